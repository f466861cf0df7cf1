"""Chunks of positions in torch, and what a linear recurrence is within one."""

from collections.abc import Mapping
from typing import Any

from weft.codegen.torch.body import Body
from weft.codegen.torch.printer import Speller
from weft.codegen.torch.spelling import ATOM, Src
from weft.ir.library.decay import DecayedProduct, DecayedProductGrad, UnitInverse
from weft.ir.ops.chunks import Chunk, Unchunk
from weft.ir.ops.op import Op
from weft.ir.types import Node


def _chunk(body: Body, node: Node) -> None:
    op: Any = node.op
    (x,), out = node.ins, node.outs[0]
    text = f"chunked.cut({body.full(x)}, {x.dims.index(op.dim)}, {body.size(op.inner).text})"
    body.put(out, Src(text, ATOM, out.dims, out.dtype), node)


def _unchunk(body: Body, node: Node) -> None:
    op: Any = node.op
    (x,), out = node.ins, node.outs[0]
    text = f"chunked.join({body.full(x)}, {x.dims.index(op.outer)}, {body.size(op.dim).text})"
    body.put(out, Src(text, ATOM, out.dims, out.dtype), node)


def _product(body: Body, node: Node) -> None:
    (w, k, a), out = node.ins, node.outs[0]
    text = f"chunked.decayed_product({', '.join(body.argument(v) for v in (w, k, a))})"
    body.put(out, Src(text, ATOM, out.dims, out.dtype), node, inline=False)


def _product_grad(body: Body, node: Node) -> None:
    body.assign(node.outs, f"chunked.decayed_product_backward({', '.join(body.argument(v) for v in node.ins)})")


def _inverse(body: Body, node: Node) -> None:
    (x,), out = node.ins, node.outs[0]
    body.put(out, Src(f"chunked.unit_inverse({body.argument(x)})", ATOM, out.dims, out.dtype), node, inline=False)


MOVES: Mapping[type[Op], Speller] = {Chunk: _chunk, Unchunk: _unchunk}
CHUNKED: Mapping[type[Op], Speller] = {
    DecayedProduct: _product,
    DecayedProductGrad: _product_grad,
    UnitInverse: _inverse,
}
