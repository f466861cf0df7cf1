"""Recurrent cells by formula, and the low-rank attention that can feed them."""

from __future__ import annotations

from typing import Any

import sympy as sp

from weft.errors import Path, Problem, SpecError
from weft.frontends.lower_parts import norm
from weft.frontends.lower_scope import Forms, Scope, exact
from weft.frontends.schema import CellAttention, Init, InitRule, Recurrence
from weft.ir.formula import parse, symbol
from weft.ir.library.attention import Attend
from weft.ir.pattern.pattern import Pattern
from weft.ir.types import Val


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
        values["x"] = s.rename("x", x, "width", lanes)
        if low.train and block.dropout:
            ones = s.map("mask", 1, to=f"batch {lanes}", dtype=s.accumulate)
            values["mask"] = s.dropout(ones, block.dropout)
        values |= {name: s.g.cast(v, s.accumulate) for name, v in values.items()}
        out = _scan(s, block, values, lanes, path)
        return s.map(stem, "h", to="batch seq width", h=s.rename("output", out, lanes, "width"), dtype=s.compute)


def _scan(s: Scope, block: Recurrence, values: dict[str, Val], lanes: str, path: Path) -> Val:
    """The cell's formulas as one loop; gives its output [seq batch channels].

    Names of the spec become symbols of our own, so that none can meet a coordinate, a size or a keyword. A state's next
    value that the output reads is a let too.
    """
    own = {name: f"v_{name}" for name in (*values, *block.state)}
    names: dict[str, Any] = {"mask": sp.Integer(1)} | {name: symbol(minted) for name, minted in own.items()}
    after: dict[str, Any] = {name: symbol(f"u_{name}") for name in block.state}

    def read(text: str, *where: str, forms: Forms | None = None) -> Any:
        return s.low.read(text, (*path, *where), names, names, forms)

    lets: dict[str, Any] = {}
    for name, text in block.let.items():
        lets[f"w_{name}"] = read(text, "let", name)
        names[name] = symbol(f"w_{name}")
    output = read(block.output, "output", forms={"next": after})
    state: dict[str, tuple[Any, Val]] = {}
    for name, first in block.state.items():
        start = s.map(f"{name}_first", exact(first), to=f"batch {lanes}", dtype=s.accumulate)
        following = read(block.update[name], "update", name)
        if after[name] in output.free_symbols:
            lets[f"u_{name}"], following = following, after[name]
        state[own[name]] = (following, start)
    formulas = [*lets.values(), *(f for f, _ in state.values()), output]
    used = {name for name in values if any(symbol(own[name]) in f.free_symbols for f in formulas)}
    _all_used(s, block, used, path)
    with s.at(*path, "update"):
        operands = {own[n]: v for n, v in values.items() if n in used}
        space, dtype = ("batch", lanes), s.accumulate
        return s.g.scan("seq", state, {"h": output}, lets, operands=operands, to=space, dtype=dtype)["h"]


def _all_used(s: Scope, block: Recurrence, used: set[str], path: Path) -> None:
    """A matrix or a parameter that no formula reads is a mistake, most likely a misspelt name."""
    if s.low.problems:
        return
    where = {name: (*path, "parameters", name) for name in block.parameters}
    where |= {name: (*path, "inputs", i) for i, name in enumerate(block.inputs)}
    where |= {"mask": (*path, "dropout")} if s.low.train and block.dropout else {}
    idle = [
        Problem("W0403", f"no formula reads '{n}'", p, "use it or leave it out")
        for n, p in where.items()
        if n not in used
    ]
    if idle:
        raise SpecError(idle)


def _inputs(s: Scope, x: Val, block: Recurrence, stem: str, path: Path, lanes: str) -> list[Val]:
    """The cell's projected inputs, each [batch seq channels]."""
    rules: dict[str, tuple[Init, Path]] = {k: (rule, (*path, "init", k)) for k, rule in block.init.items()}
    if not isinstance(block.projection, CellAttention):
        return _matrices(s, x, block, stem, "width", lanes, rules.get("up"))
    with s.at(*path, "projection"):
        low, p, where = s.low, block.projection, (*path, "projection")
        rank = low.axis(p.rank, "rank", (*where, "rank"), ("batch", "seq", "width", lanes))
        z = s.linear("low", x, f"width {rank}", f"batch seq {rank}", f"{stem}.down", rule=rules.get("down"))
        if p.pattern != "none":
            seen = _low_rank(s, z, p, stem, where, rank, rules.get("key_value"))
            alpha = s.param(f"{stem}.alpha", "", rule=(InitRule(constant=p.alpha), (*where, "alpha")))
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
        pattern = Pattern.parse(p.pattern, low.dims.most)
    if heads == 1:
        head, cut, many = low.mint("mixed", low.sizes[rank], (rank, "batch", "seq", "width", key)), (), ""
        q = s.rename("query", z, rank, head)
    else:
        many = low.axis(p.heads, "heads", (*path, "heads"), ("batch", "seq", "width", rank, key))
        head, cut = low.mint("head", low.number(rank) // heads, (many, rank, "batch", "seq", "width", key)), (many,)
        place = s.map("place", parse(f"i_{many} * n_{head} + i_{head}"), to=f"{many} {head}", dtype="i64")
        q = s.g.expand(s.gather("query", z, place, at=rank), to=f"batch seq {many} {head}")
    own = f"{many} {head}".strip()

    def project(name: str) -> Val:
        y = s.linear(name, z, f"{rank} {own}", f"batch seq {own}", f"{stem}.{name}", fan_in=rank, rule=rule)
        return s.rename(f"{name}s", y, "seq", key)

    op = Attend(head, key, "seq", pattern, parse(f"1/sqrt(n_{head})"), symbol("s"), cut, pattern.metadata)
    given = {
        "segments": lambda: s.shared("segments"),
        "valid": lambda: s.rename("valid", s.shared("valid"), "seq", key),
    }
    meta = [given[name]() for name in pattern.metadata]
    with s.at(*path, "pattern"):
        out = s.g.many(op, q, project("key"), project("value"), *meta, names=["attended", "lse"])[0]
    if heads == 1:
        return s.rename("attended", out, head, rank)
    at = [s.map("at", parse(f), to=rank, dtype="i64") for f in (f"i_{rank} // n_{head}", f"i_{rank} % n_{head}")]
    return s.gather("attended", out, *at, at=f"{many} {head}")
