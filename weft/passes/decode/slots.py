"""Slots of experts in a step: a token sent to a slot of its own stays a token, and meets its expert's weights alone.

sent = scatter(x, expert, place); up = einsum(sent, w [experts width inner]); back = gather(up, expert, place)
->  up = expert_product(x, w, expert); back = up where the token has a slot, else 0
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import sympy as sp

from weft.ir.builder import Builder
from weft.ir.formula import operand, symbol
from weft.ir.library import ExpertProduct
from weft.ir.ops.op import Op
from weft.ir.ops.primitives import Einsum, Map
from weft.ir.types import Dims, Node, Val, union
from weft.passes.decode.time import refusal


@dataclass(frozen=True, slots=True)
class Routed:
    """A scatter of single tokens into slots, as the tokens: `dims` of the slots -> the `index` values they went to."""

    token: Val
    dims: Dims
    index: tuple[Val, ...]


def sent(g: Builder, n: Node, x: Val, index: tuple[Val, ...]) -> Routed:
    """Tokens sent to slots of their own, by a scatter."""
    op: Any = n.op
    dims = union(*(v.dims for v in index), (d for d in op.to if d not in op.at))
    return Routed(g.expand(x, to=dims), op.at, index)


def taken(g: Builder, n: Node, ins: Sequence[Any]) -> Val:
    """A token takes its own slot's result, by a gather: 0 when it was dropped."""
    op: Any = n.op
    x, *index = ins
    if op.at != x.dims or tuple(index) != x.index:
        raise refusal(n, "reads slots that other positions may have filled")
    names = [f"s{i}" for i in range(len(x.index))]
    inside = sp.And(*(sp.And(symbol(s) >= 0, symbol(s) < symbol(f"n_{d}")) for s, d in zip(names, x.dims)))
    formula = sp.Piecewise((symbol("x"), inside), (0, True))
    read: dict[str, Any] = {"x": x.token} | dict(zip(names, x.index))
    out = n.outs[0]
    return g.maps([formula], to=out.dims, dtype=out.dtype, names=[out.name], **read)[0]


def on_tokens(g: Builder, n: Node, ins: Sequence[Val | Routed], time: str) -> tuple[Op, list[Val], Routed]:
    """An op on slots, to be done on the tokens in them: what it reads by slot is read where the token is.

    The op, its operands, and slots for the results to be put in."""
    slots = next(x for x in ins if isinstance(x, Routed))
    if any(isinstance(x, Routed) and (x.dims, x.index) != (slots.dims, slots.index) for x in ins):
        raise refusal(n, "mixes slots of different routers")
    if not isinstance(n.op, Map | Einsum) or set(slots.dims) & n.op.crossed(n):
        raise refusal(n, f"mixes slots, and with them positions along {time}")
    where = union(*(v.dims for v in slots.index))
    to = union(*((where if d in slots.dims else (d,)) for d in n.op.to))
    if n.op.core != "pointwise" and (product := _product(ins, slots, where)):
        over, operands = product
        return ExpertProduct(over, to), operands, slots
    own = [x.token if isinstance(x, Routed) else _at(g, x, slots) for x in ins]
    op: Any = replace(n.op, to=to)
    if op.core == "pointwise":
        used = [d for d in slots.dims if f"i_{d}" in op.symbols]
        op = op.replaced({symbol(f"i_{d}"): operand(len(own) + i) for i, d in enumerate(used)})
        own += [slots.index[slots.dims.index(d)] for d in used]
    return op, own, slots


def _product(ins: Sequence[Val | Routed], slots: Routed, where: Dims) -> tuple[str, list[Val]] | None:
    """The dim of experts and the operands, where tokens meet one matrix each of those that `ins` has by slot."""
    tokens = [x.token for x in ins if isinstance(x, Routed)]
    others = [x for x in ins if not isinstance(x, Routed)]
    if len(tokens) != 1 or len(others) != 1 or set(where) & set(others[0].dims):
        return None
    at = [(d, i) for d, i in zip(slots.dims, slots.index) if d in others[0].dims and set(i.dims) == set(where)]
    if len(at) != 1 or len(set(slots.dims) & set(others[0].dims)) != 1:
        return None
    return at[0][0], [tokens[0], others[0], at[0][1]]


def _at(g: Builder, x: Val, slots: Routed) -> Val:
    """A value by slot, at each token's slot."""
    at = [(d, i) for d, i in zip(slots.dims, slots.index) if d in x.dims]
    return g.gather(x, *(i for _, i in at), at=[d for d, _ in at]) if at else x
