"""Products of routed rows in torch: rows and columns flattened, and each expert's rows found once a function."""

from collections.abc import Mapping
from typing import Any

from weft.codegen.torch.body import Body
from weft.codegen.torch.grouped import flat, put_grouped
from weft.codegen.torch.lines import call
from weft.codegen.torch.printer import Speller
from weft.codegen.torch.spelling import ATOM, Src
from weft.ir.library.routing import ExpertProduct, ExpertWeights
from weft.ir.ops.op import Op
from weft.ir.types import Dims, Node, Val


def _product(body: Body, node: Node) -> None:
    op: Any = node.op
    (x, w, expert), out = node.ins, node.outs[0]
    inner = tuple(d for d in w.dims if d not in (op.over, *op.to))
    columns = tuple(d for d in w.dims if d in op.to)
    rows, each = _rows(body, x, expert.dims, inner)
    matrices = flat(body, Src(body.full(w), ATOM, w.dims), ((op.over,), inner, columns))
    _put(body, out, "product", [rows, matrices], expert, op.over, each, (expert.dims, columns))


def _weights(body: Body, node: Node) -> None:
    op: Any = node.op
    (x, d, expert), out = node.ins, node.outs[0]
    inner = tuple(n for n in x.dims if n in op.to)
    columns = tuple(n for n in d.dims if n in op.to)
    rows, each = _rows(body, x, expert.dims, inner)
    grads = flat(body, Src(body.full(d), ATOM, d.dims), (expert.dims, columns))
    _put(body, out, "weights", [rows, grads], expert, op.over, each, ((op.over,), inner, columns))


def _put(
    body: Body, out: Val, name: str, args: list[str], expert: Val, over: str, each: str, groups: tuple[Dims, ...]
) -> None:
    """Record the result, each of whose `groups` of dims is one axis of the call's."""
    args += [_sent(body, expert, over), *([each] if each else [])]
    text = call(f"experts.{name}", *args)
    put_grouped(body, out, text, groups)


def _rows(body: Body, x: Val, rows: Dims, inner: Dims) -> tuple[str, str]:
    """x as [rows, inner]; and of how many neighbours each of them is the row, "" for one: x may lack the last dims."""
    src = body.loose(x)
    src = Src(body.full(x), ATOM, x.dims) if src.number or not set(inner) <= set(src.dims or ()) else src
    own = tuple(d for d in rows if d in (src.dims or ()))
    if own != rows[: len(own)]:
        src, own = Src(body.full(x), ATOM, x.dims).aligned((*rows, *inner)), rows
        src = Src(f"{src.at(ATOM)}.expand({body.shape((*rows, *inner))})", ATOM, (*rows, *inner))
    each = " * ".join(body.size(d).text for d in rows[len(own) :])
    return flat(body, src, (own, inner)), each


def _sent(body: Body, expert: Val, over: str) -> str:
    """The name of the rows of each expert."""
    key = expert.name, over
    if key not in body.sent:
        text = call("experts.groups", body.full(expert), body.size(over).text)
        body.sent[key] = body.bind("sent", Src(text, ATOM, None, "i64")).text
    return body.sent[key]


EXPERTS: Mapping[type[Op], Speller] = {ExpertProduct: _product, ExpertWeights: _weights}
