"""Recurrent cells by formula, routed experts, and opaque modules."""

from __future__ import annotations

from typing import Any

import sympy as sp

from weft.errors import FormulaError, Path, SpecError
from weft.frontends.lower_parts import activation, hidden, norm
from weft.frontends.lower_scope import Lowering, Scope, exact
from weft.frontends.schema import CellAttention, Init, Moe, Opaque, Recurrence
from weft.ir.formula import parse, symbol
from weft.ir.library.attention import Attend
from weft.ir.library.routing import Route
from weft.ir.pattern.pattern import Pattern
from weft.ir.primitives import Opaque as OpaqueOp
from weft.ir.types import Type, Val


def recurrence(s: Scope, x: Val, block: Recurrence, stem: str, path: Path) -> Val:
    """The cell along `seq`, channel by channel, its state in the accumulate dtype. x: [batch seq width] in and out."""
    low = s.low
    with s.at(*path):
        width = low.sizes["width"]
        lanes = low.mint("channels", width, ("batch", "seq", "width"))
        u = _inputs(s, x, block, stem, path, lanes)
        values = dict(zip(block.inputs, u))
        for name, rule in block.parameters.items():
            where = (rule, (*path, "parameters", name))
            values[name] = s.param(f"{stem}.{name}", lanes, rule=where, dtype=s.accumulate)
        values["x"] = s.g.rename(x, "width", lanes)
        values |= {name: s.g.cast(v, s.accumulate) for name, v in values.items()}
        out = _scan(s, block, values, lanes, path)
        return s.map(stem, "h", to="batch seq width", h=s.g.rename(out, lanes, "width"), dtype=s.compute)


def _scan(s: Scope, block: Recurrence, values: dict[str, Val], lanes: str, path: Path) -> Val:
    """The cell's formulas as one loop; gives its output [seq batch channels].

    Names of the spec become symbols of our own, so that none can meet a coordinate, a size or a keyword.
    """
    own = {name: f"v_{name}" for name in (*values, *block.state)}
    names: dict[str, sp.Symbol] = {name: symbol(minted) for name, minted in own.items()}

    def read(text: str, *where: str) -> Any:
        return s.low.read(text, (*path, *where), names, names)

    lets: dict[str, Any] = {}
    for name, text in block.let.items():
        lets[f"w_{name}"] = read(text, "let", name)
        names[name] = symbol(f"w_{name}")
    state: dict[str, tuple[Any, Val]] = {}
    for name, first in block.state.items():
        start = s.map(f"{name}_first", exact(first), to=f"batch {lanes}", dtype=s.accumulate)
        state[own[name]] = (read(block.update[name], "update", name), start)
    output = read(block.output, "output")
    with s.at(*path, "update"):
        got = s.g.scan(
            "seq",
            state,
            {"h": output},
            lets,
            **{own[n]: v for n, v in values.items() if _used(n, block, own, lets, state, output)},
        )
    return got["h"]


def _used(
    name: str, block: Recurrence, own: dict[str, str], lets: dict[str, Any], state: dict[str, Any], output: Any
) -> bool:
    formulas = [*lets.values(), *(f for f, _ in state.values()), output]
    return any(symbol(own[name]) in f.free_symbols for f in formulas)


def _inputs(s: Scope, x: Val, block: Recurrence, stem: str, path: Path, lanes: str) -> list[Val]:
    """The cell's projected inputs, each [batch seq channels]."""
    rules = {k: (rule, (*path, "init", k)) for k, rule in block.init.items()}
    if not isinstance(block.projection, CellAttention):
        return _matrices(s, x, block, stem, "width", lanes, rules.get("up"))
    with s.at(*path, "projection"):
        low, p, where = s.low, block.projection, (*path, "projection")
        rank = low.axis(p.rank, "rank", (*where, "rank"), ("batch", "seq", "width", lanes))
        z = s.linear("low", x, f"width {rank}", f"batch seq {rank}", f"{stem}.down", rule=rules.get("down"))
        if p.pattern != "none":
            seen = _low_rank(s, z, p, stem, where, rank, rules.get("key_value"))
            alpha = s.param(f"{stem}.alpha", "", rule=(_constant(p.alpha), (*where, "alpha")))
            z = s.map("low", "alpha * a + z", to=f"batch seq {rank}", alpha=alpha, a=seen, z=z, dtype=s.compute)
        z = s.dropout(norm(s, z, p.norm, f"{stem}.norm", (*where, "norm"), rank), p.dropout)
        return _matrices(s, z, block, stem, rank, lanes, rules.get("up"))


def _matrices(
    s: Scope, x: Val, block: Recurrence, stem: str, own: str, lanes: str, rule: tuple[Init, Path] | None
) -> list[Val]:
    return [
        s.linear(n, x, f"{own} {lanes}", f"batch seq {lanes}", f"{stem}.{n}", fan_in=own, rule=rule)
        for n in block.inputs
    ]


def _constant(value: float) -> Init:
    from weft.frontends.schema import InitRule

    return InitRule(constant=value)


def _low_rank(
    s: Scope, z: Val, p: CellAttention, stem: str, path: Path, rank: str, rule: tuple[Init, Path] | None
) -> Val:
    """Attention among the low-rank projections themselves: queries are z, keys and values linear in z.

    With several heads z's dim is cut into heads by gathers, since a dim is never reshaped.
    """
    low = s.low
    with low.reading((*path, "heads"), "W0201"):
        heads = low.dims.size(p.heads)
    if low.number(rank) % heads:
        raise SpecError.at((*path, "heads"), "W0402", f"{heads} heads do not divide the rank {low.number(rank)}")
    key = low.mint("key", low.dims.sizes["seq"], ("batch", "seq", "width", rank))
    with low.reading((*path, "pattern"), "W0302"):
        pattern = Pattern.parse(p.pattern, dict(low.dims.values))
    if heads == 1:
        head, cut, many = low.mint("mixed", low.sizes[rank], (rank, "batch", "seq", "width", key)), (), ""
        q = s.g.rename(z, rank, head)
    else:
        many = low.axis(p.heads, "heads", (*path, "heads"), ("batch", "seq", "width", rank, key))
        head, cut = low.mint("head", low.number(rank) // heads, (many, rank, "batch", "seq", "width", key)), (many,)
        place = s.map("place", parse(f"i_{many} * n_{head} + i_{head}"), to=f"{many} {head}", dtype="i64")
        q = s.g.expand(s.g.gather(z, place, at=rank), to=f"batch seq {many} {head}")
    own = f"{many} {head}".strip()

    def project(name: str) -> Val:
        y = s.linear(name, z, f"{rank} {own}", f"batch seq {own}", f"{stem}.{name}", fan_in=rank, rule=rule)
        return s.g.rename(y, "seq", key)

    op = Attend(head, key, "seq", pattern, parse(f"1/sqrt(n_{head})"), symbol("s"), cut, pattern.metadata)
    given = {"segments": lambda: s.shared("segments"), "valid": lambda: s.g.rename(s.shared("valid"), "seq", key)}
    meta = [given[name]() for name in pattern.metadata]
    with s.at(*path, "pattern"):
        out = s.g.many(op, q, project("key"), project("value"), *meta, names=["attended", "lse"])[0]
    if heads == 1:
        return s.g.rename(out, head, rank)
    at = [s.map("at", parse(f), to=rank, dtype="i64") for f in (f"i_{rank} // n_{head}", f"i_{rank} % n_{head}")]
    return s.g.gather(out, *at, at=(many, head))


def moe(s: Scope, x: Val, block: Moe, stem: str, path: Path) -> tuple[Val, Val]:
    """The routed experts' sum, each weighted by its gate, and the load-balancing loss f32[].

    Router in the accumulate dtype. Dropped tokens get 0: the residual carries them. x: [batch seq width] in and out.
    """
    low, avoid = s.low, ("batch", "seq", "width")
    with s.at(*path):
        experts = low.axis(block.experts, "experts", (*path, "experts"), avoid)
        routes = low.mint("routes", low.sizes[experts], (*avoid, experts))  # sharded apart from the stacked experts
        slots = low.mint("capacity", _capacity(low, block, low.number(experts), path), (*avoid, experts, routes))
        inner = low.axis(block.inner, "inner", (*path, "inner"), (*avoid, experts, slots))
        if block.top_k > low.number(experts):
            raise SpecError.at((*path, "top_k"), "W0402", f"top_k is {block.top_k}, more than the experts there are")
        choice = low.mint("choice", block.top_k, (*avoid, experts, routes, slots, inner)) if block.top_k > 1 else ""
        router = s.param(f"{stem}.router.weight", f"width {routes}", "router", "width", dtype=s.accumulate)
        logits = s.einsum("logits", s.g.cast(x, s.accumulate), router, to=f"batch seq {routes}")
        op = Route(routes, "seq", block.top_k, choice, block.normalize)
        names = ["expert", "place", "gate", "balance", "load"]
        expert, place, gate, aux, _ = s.g.many(op, logits, names=names)
        at = f"{experts} {slots}"
        sent = s.g.scatter(x, expert, place, at=at, to=f"batch {at} width")
        done = _experts(s, sent, block, stem, path, at, experts, inner)
        back = s.g.gather(done, expert, place, at=at)
        return s.einsum(stem, back, s.g.cast(gate, s.compute), to="batch seq width"), aux


def _experts(s: Scope, x: Val, block: Moe, stem: str, path: Path, at: str, experts: str, inner: str) -> Val:
    """Every expert's feed-forward on the tokens it was sent."""
    act = activation(s, block.activation, (*path, "activation"))
    to, own = f"batch {at} {inner}", f"{experts} width {inner}"
    matrices = ("gate", "up") if block.gated else ("up",)
    got = {m: s.einsum(m, x, s.param(f"{stem}.{m}.weight", own, "experts", "width"), to=to) for m in matrices}
    bias = {f"{m}_bias": s.param(f"{stem}.{m}.bias", f"{experts} {inner}", "bias") for m in matrices if block.bias}
    h = hidden(s, got["up"], got.get("gate"), act, to, **bias)
    back = f"{experts} width" if block.bias else None
    return s.linear(
        "down", h, f"{experts} {inner} width", f"batch {at} width", f"{stem}.down", back, "expert_output", inner
    )


def _capacity(low: Lowering, block: Moe, experts: int, path: Path) -> Any:
    """Tokens an expert takes from one sequence; an expression over n_seq when given as a factor."""
    if block.capacity is not None:
        with low.reading((*path, "capacity"), "W0201"):
            return low.dims.symbolic(block.capacity)
    factor = exact(block.capacity_factor or 1.0) * block.top_k / experts
    return -sp.floor(-symbol("n_seq") * factor)


def opaque(s: Scope, x: Val, block: Opaque, stem: str, path: Path) -> Val:
    """The wrapped module, one tensor in and one out, its parameters as parameters of the model."""
    sides = [side.split() for side in block.signature.split("->")]
    if len(sides) != 2 or tuple(sides[0]) != x.dims:
        message = f"the signature '{block.signature}' does not take [{' '.join(x.dims)}]"
        raise SpecError.at((*path, "signature"), "W0402", message, "write `batch seq width -> batch seq width`")
    weights: list[Val] = []
    for name, value in block.module.named_parameters():
        dims = [s.low.mint(f"own_{i}", int(n), [f"own_{j}" for j in range(i)]) for i, n in enumerate(value.shape)]
        weights.append(s.param(f"{stem}.{name}", " ".join(dims)))
    names = tuple(name for name, _ in block.module.named_parameters())
    with s.at(*path):
        op = OpaqueOp(s.prefix.format(0) + stem, (Type(s.compute, tuple(sides[1])),), names)
        return s.g.one(op, x, *weights, names=[stem])


__all__ = ["FormulaError", "moe", "opaque", "recurrence"]
