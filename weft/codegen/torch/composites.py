"""Composites that torch has a fast form for; any other is printed from its expansion."""

from collections.abc import Mapping, Sequence
from typing import Any

from weft.codegen.torch.attention import attend, attend_grad, attends
from weft.codegen.torch.attention_tables import block_table
from weft.codegen.torch.body import Body
from weft.codegen.torch.chunked import CHUNKED
from weft.codegen.torch.convolutions import CONVOLUTIONS
from weft.codegen.torch.experts import EXPERTS
from weft.codegen.torch.lines import tuple_of
from weft.codegen.torch.printer import Speller
from weft.codegen.torch.spelling import ATOM, Src, literal
from weft.ir.composite import Composite
from weft.ir.formula import normal
from weft.ir.library import (
    Attend,
    AttendGrad,
    BlockTable,
    CrossEntropy,
    Dropout,
    FromStatistics,
    LayerNorm,
    Places,
    RMSNorm,
    Rotary,
    RotaryBack,
    Softmax,
    SoftmaxGrad,
    WithStatistics,
)
from weft.ir.ops.op import Op
from weft.ir.types import Node, Type, Val


def number(body: Body, e: Any) -> str:
    """A formula over sizes as the source of a Python number."""
    names = {s.name[2:]: body.size(s.name[2:]) for s in e.free_symbols}
    src = body.sizes.spelled(e, body, names)
    return (
        literal(float(src.value)).text
        if isinstance(src.value, float) and float(src.value) != int(src.value)
        else src.text
    )


def _affine(body: Body, ins: Sequence[Val]) -> tuple[str, str]:
    given = [body.full(v) for v in ins]
    return (given[0] if given else "None", given[1] if len(given) > 1 else "None")


def _softmax(body: Body, node: Node) -> None:
    (x,), out = node.ins, node.outs[0]
    op: Any = node.op
    axis = x.dims.index(op.over)
    axis = -1 if axis == len(x.dims) - 1 else axis
    body.put(out, Src(f"torch.softmax({body.argument(x)}, {axis})", ATOM, out.dims, out.dtype), node)


def _softmax_grad(body: Body, node: Node) -> None:
    (y, dy), out = node.ins, node.outs[0]
    op: Any = node.op
    axis = y.dims.index(op.over)
    name = body.named(y)
    text = f"torch._softmax_backward_data({body.argument(dy)}, {name}, {axis}, {name}.dtype)"
    body.put(out, Src(text, ATOM, out.dims, out.dtype), node)


def _with_rows(body: Body, of: Any, x: Val, rest: Sequence[Val]) -> str:
    """The call of the runtime that gives a norm's or a loss's result and its statistics."""
    if isinstance(of, CrossEntropy):
        ignore = "" if of.ignore is None else f", {of.ignore}"
        return f"entropy.cross_entropy({body.argument(x)}, {body.argument(rest[0])}{ignore})"
    w, b = _affine(body, rest)
    if isinstance(of, LayerNorm):
        return f"norms.layer_norm({body.argument(x)}, {w}, {b}, {number(body, of.eps)})"
    return f"norms.rms_norm({body.argument(x)}, {w}, {number(body, of.eps)}{'' if b == 'None' else ', ' + b})"


def _rows(body: Body, node: Node) -> None:
    op: Any = node.op
    (x, *rest), out = node.ins, node.outs[0]
    if isinstance(op, LayerNorm):
        w, b = _affine(body, rest)
        text = f"F.layer_norm({body.argument(x)}, ({body.size(op.over).text},), {w}, {b}, {number(body, op.eps)})"
    else:
        text = f"{_with_rows(body, op, x, rest)}[0]"
    body.put(out, Src(text, ATOM, out.dims, out.dtype), node, inline=False)


def _with_statistics(body: Body, node: Node) -> None:
    op: Any = node.op
    x, *rest = node.ins
    text, outs = _with_rows(body, op.of, x, rest), node.outs
    if isinstance(op.of, CrossEntropy) or body.uses[outs[0].name]:
        body.assign(outs, text)
    else:
        body.assign(outs[1:], f"{text}[1:]" if len(outs) > 2 else f"{text}[1]")


def _from_statistics(body: Body, node: Node) -> None:
    op: Any = node.op
    of = op.of
    own, statistics, dy = node.ins[: op.n], node.ins[op.n : -1], node.ins[-1]
    given = [body.argument(v) for v in own]
    if isinstance(of, CrossEntropy):
        ignore = "" if of.ignore is None else f", {of.ignore}"
        args = f"{body.argument(dy)}, {', '.join(given)}, {body.argument(statistics[0])}{ignore}"
        body.assign(node.outs, f"entropy.cross_entropy_backward({args})")
        return
    w, b = _affine(body, own[1:])
    stats = ", ".join(body.named(v) for v in statistics)
    if isinstance(of, LayerNorm):
        text = f"norms.layer_norm_backward({body.argument(dy)}, {given[0]}, {w}, {b}, {stats})"
    else:
        text = f"norms.rms_norm_backward({body.argument(dy)}, {given[0]}, {w}, {stats})"
    _first(body, node.outs, text, 3)


def _first(body: Body, outs: tuple[Val, ...], text: str, count: int) -> None:
    """Assign the first of `count` results."""
    if len(outs) == 1:
        body.assign(outs, f"{text}[0]")
    else:
        body.assign(outs, text, unused=count - len(outs))


def _dropout(body: Body, node: Node) -> None:
    op: Any = node.op
    (x, seed, layer), out = node.ins, node.outs[0]
    shape = ""
    if op.shared:
        shape = f", {tuple_of('1' if d in op.shared else body.size(d).text for d in x.dims)}"
    args = (
        f"{body.argument(x)}, {number(body, op.rate)}, {body.argument(seed)}, {op.op_id}, {body.argument(layer)}{shape}"
    )
    body.put(out, Src(f"drop.dropout({args})", ATOM, out.dims, out.dtype), node)


def _angles(body: Body, of: Rotary, x: Val, at: tuple[Val, ...]) -> Src:
    """The angles, aligned to x without its last dim, as an atom with the pairs last."""
    turned = int(normal(of.fraction) * body.sizes.frozen(of.over))
    position = body.loose(at[0]) if at else body.coordinate(of.position)
    args = f"{position.text}, {turned}, {number(body, of.theta)}, {body.dtype('f64' if x.dtype == 'f64' else 'f32')}"
    function = "rotary.angles"
    if of.factor != 1:
        function, args = "stretched.angles", f"{args}, {number(body, of.factor)}{_ramp(body, of)}"
    angle = body.bind("angle", Src(f"{function}({args})", ATOM, (*(position.dims or ()), of.over), "f32"))
    return angle.aligned(x.dims)


def _ramp(body: Body, of: Rotary) -> str:
    return f', "{of.ramp}", ({", ".join(number(body, b) for b in of.bounds)})' if of.ramp else ""


def _rotary(body: Body, node: Node) -> None:
    op: Any = node.op
    (x, *at), out = node.ins, node.outs[0]
    back = isinstance(node.op, RotaryBack)
    of: Rotary = op.of if back else op
    angle = _angles(body, of, x, tuple(at))
    sign = "-" if back else ""
    text = f"rotary.rotate({body.argument(x)}, {sign}{angle.text}, {of.style == 'interleaved'})"
    body.put(out, Src(text, ATOM, out.dims, out.dtype), node, inline=False)


def _places(body: Body, node: Node) -> None:
    op: Any = node.op
    given = iter([body.full(v) for v in node.ins])
    both = [next(given) if there else "None" for there in (op.documents, op.padding)]
    text = f"places.{'documents' if op.documents else 'counted'}({', '.join([*(both[not op.documents :]), *given])})"
    body.assign(node.outs, text)


COMPOSITES: Mapping[type[Op], Speller] = {
    Softmax: _softmax,
    SoftmaxGrad: _softmax_grad,
    LayerNorm: _rows,
    RMSNorm: _rows,
    CrossEntropy: _rows,
    WithStatistics: _with_statistics,
    FromStatistics: _from_statistics,
    Dropout: _dropout,
    Places: _places,
    Rotary: _rotary,
    RotaryBack: _rotary,
    Attend: attend,
    AttendGrad: attend_grad,
    BlockTable: block_table,
    **CHUNKED,
    **EXPERTS,
    **CONVOLUTIONS,
}


def known(op: Op, types: tuple[Type, ...]) -> bool:
    """Has the op a torch form for operands of these types?"""
    if op.attention is not None:
        return attends(op.attention, types)
    return type(op) in COMPOSITES and (not isinstance(op, Composite) or op.direct(types))
