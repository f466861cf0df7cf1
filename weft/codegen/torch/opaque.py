"""Opaque blocks in torch: the wrapped modules come to a block's functions as one more argument."""

from collections.abc import Mapping, Sequence
from typing import Any

from weft.codegen.torch.body import Body
from weft.codegen.torch.lines import tuple_of
from weft.codegen.torch.printer import Speller
from weft.ir.names import label
from weft.ir.ops.op import Op
from weft.ir.ops.regions import Opaque, OpaqueGrad
from weft.ir.types import Node, Val


def _arguments(body: Body, of: Opaque, ins: Sequence[Val]) -> str:
    """key, parameter names, inputs, parameters."""
    cut = len(ins) - len(of.params)
    names = tuple_of(f'"{label(name)}"' for name in of.params) if of.params else "()"
    sides = (tuple_of(body.full(v) for v in side) if side else "()" for side in (ins[1:cut], ins[cut:]))
    return f'"{label(of.key)}", {names}, {", ".join(sides)}'


def _opaque(body: Body, node: Node) -> None:
    op: Any = node.op
    body.assign(node.outs, f"{body.full(node.ins[0])}.run({_arguments(body, op, node.ins)})")


def _opaque_grad(body: Body, node: Node) -> None:
    op: Any = node.op
    own, given = node.ins[: op.n], iter(node.ins[op.n :])
    cotangents = tuple_of(body.full(next(given)) if have else "None" for have in op.have)
    text = f"{body.full(own[0])}.grad({_arguments(body, op.of, own)}, {cotangents})"
    body.assign(node.outs, text if len(node.outs) > 1 else f"{text}[0]")


OPAQUE: Mapping[type[Op], Speller] = {Opaque: _opaque, OpaqueGrad: _opaque_grad}
