"""Convolutions in torch: channels flattened, positions the last dim but one."""

from collections.abc import Mapping, Sequence
from typing import Any

from weft.codegen.torch.body import Body
from weft.codegen.torch.grouped import flat, put_grouped
from weft.codegen.torch.lines import call
from weft.codegen.torch.printer import Speller
from weft.codegen.torch.spelling import ATOM, Src
from weft.ir.library.convolution import Convolve, ConvolveWeights, parts
from weft.ir.ops.op import Op
from weft.ir.types import Dims, Node, Val


def _convolve(body: Body, node: Node) -> None:
    op: Any = node.op
    (x, w, *at), out = node.ins, node.outs[0]
    rows, inner, channels = parts(op, x.dims, w.dims)
    weights = _full(body, w, ((op.tap,), *([inner] if inner else []), channels))
    more: dict[str, object] = {"queries": body.size(op.query).text} if op.placed and not op.later else {}
    more |= {"dilation": op.dilation} if op.dilation != 1 else {}
    more |= {"later": True} if op.later else {}
    more |= {"at": body.full(at[0])} if at else {}
    text = call("convolutions.convolve", _full(body, x, _by(rows, op.over, inner or channels)), weights, **more)
    put_grouped(body, out, text, _by(rows, op.query, channels), node)


def _weights(body: Body, node: Node) -> None:
    op: Any = node.op
    (x, dy, *at), of = node.ins, op.of
    rows, inner, channels = parts(of, x.dims, op.to)
    given = [_full(body, x, _by(rows, of.over, inner or channels)), _full(body, dy, _by(rows, of.query, channels))]
    more: dict[str, object] = {"dilation": of.dilation} if of.dilation != 1 else {}
    more |= {"dense": True} if inner else {}
    more |= {"at": body.full(at[0])} if at else {}
    text = call("convolutions.convolve_weights", *given, body.size(of.tap).text, **more)
    put_grouped(body, node.outs[0], text, ((of.tap,), *([inner] if inner else []), channels), node)


def _by(rows: Dims, positions: str, channels: Dims) -> tuple[Dims, ...]:
    """The axes of a value: each of its rows, its positions, its channels as one."""
    return (*((d,) for d in rows), (positions,), channels)


def _full(body: Body, v: Val, groups: Sequence[Dims]) -> str:
    """The whole value with each group of dims as one axis."""
    return flat(body, Src(body.full(v), ATOM, v.dims), groups)


CONVOLUTIONS: Mapping[type[Op], Speller] = {Convolve: _convolve, ConvolveWeights: _weights}
