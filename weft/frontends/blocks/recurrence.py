"""Recurrent cells by formula, and the low-rank attention that can feed them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, Tag, model_validator

from weft.errors import FormulaError, Path, Problem, SpecError
from weft.frontends.blocks.apart import apart, misplaced, segments
from weft.frontends.blocks.kind import Aux, BlockKind
from weft.frontends.memories import stream_of
from weft.frontends.resolve import Dims
from weft.frontends.schema_values import Formula, Init, InitRule, Name, Norm, Rate, Size, SpecPart, one_of
from weft.ir.pattern.formula import at_head
from weft.ir.pattern.pattern import Pattern
from weft.ir.pattern.writing import written

if TYPE_CHECKING:
    from weft.frontends.lower.scope import Scope
    from weft.ir.types import Val


class CellAttention(SpecPart):
    """Attention inside the projection of a recurrence, at low rank (SRU++, Lei 2021)."""

    rank: Size = Field(description="size of the shared low-rank projection")
    heads: Size = Field(default=1, description="heads the rank is divided into")
    pattern: Formula = Field(
        default="causal", description="which keys a query sees; `none`: no attention, only the rank"
    )
    alpha: float = Field(default=0.0, description="initial factor on the attention's output (ReZero: 0)")
    norm: Norm = Field(default="layer_norm", description="normalisation before the last projection")
    dropout: Rate = Field(default=0.0, description="before the last projection")


class Recurrence(BlockKind):
    """A recurrent cell written as formulas, run along `seq` for every channel by itself.

    In a formula: the cell's states (their value before this step), `inputs`, `parameters`, earlier lets, and `x`, the
    block's own input at this channel, and `mask`, 1 or what `dropout` makes of it. In `output` also `next(h)`, the
    value of the state `h` after this step; an output of `h` alone lags by one position, and `weft check` warns of it.
    """

    kind: Literal["recurrence"] = "recurrence"
    inputs: list[Name] = Field(description="names of the projected inputs; each has a matrix from the layer's input")
    state: dict[Name, float] = Field(description="the cell's states and their first values")
    parameters: dict[Name, Init] = Field(default_factory=dict, description="one number per channel each, and its rule")
    let: dict[Name, Formula] = Field(default_factory=dict, description="named steps, in order")
    update: dict[Name, Formula] = Field(description="each state's next value")
    output: Formula = Field(description="the cell's output, such as `next(h)`")
    dropout: Rate = Field(
        default=0.0, description="of `mask`: one draw for each sequence and channel, shared along `seq`"
    )
    projection: Annotated[
        Annotated[Literal["linear"], Tag("text")] | Annotated[CellAttention, Tag("map")],
        one_of("`linear`, or a map with `rank`"),
    ] = Field(
        default="linear",
        description="how inputs come from the layer's input: one matrix each, or through low-rank attention",
    )
    init: dict[Literal["down", "key_value", "up"], Init] = Field(
        default_factory=dict, description="rules for the projection's matrices; default as `weight`"
    )

    @model_validator(mode="after")
    def _complete(self) -> Recurrence:
        if set(self.update) != set(self.state):
            raise ValueError("`update` must give the next value of each state, and of nothing else")
        names = ["x", "mask", *self.inputs, *self.state, *self.parameters, *self.let]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)}: a name may stand for one thing only")
        return self

    def lower(self, s: Scope, x: Val, stem: str, path: Path) -> tuple[Val, Aux]:
        """The cell along `seq`, channel by channel, its state in the accumulate dtype."""
        low = s.low
        if stream_of(low.model) == s.stream:
            message = "the states of a cell start anew in each segment, and the memory keeps rows for attention alone"
            raise SpecError.at(path, "W0403", message, "leave out `memory`, or make it an attention")
        with s.at(*path):
            width = low.sizes["width"]
            lanes = low.mint("channels", width, s.space)
            u = _inputs(s, x, self, stem, path, lanes)
            values = dict(zip(self.inputs, u))
            for name, rule in self.parameters.items():
                where = (rule, (*path, "parameters", name))
                values[name] = s.param(f"{stem}.{name}", lanes, rule=where, dtype=s.accumulate)
            values["x"] = s.rename("x", x, "width", lanes)
            if low.train and self.dropout:
                ones = s.map("mask", 1, to=f"batch {lanes}", dtype=s.accumulate)
                values["mask"] = s.dropout(ones, self.dropout)
            values |= {name: s.g.cast(v, s.accumulate) for name, v in values.items()}
            out = _scan(s, self, values, lanes, path, starts_anew(s))
            h = s.rename("output", out, lanes, "width")
            return s.map(stem, "h", to=" ".join(s.space), h=h, dtype=s.compute), []

    def warnings(self, dims: Dims, path: Path, predicts: bool) -> Iterator[Problem]:
        """A cell whose output reads states as they were before the step, and no state as it is after it."""
        if old := _old_states(self):
            said, way = ", ".join(old), ", ".join(f"next({name})" for name in old)
            message = f"the output reads {said} as before this step, so it lags by one position"
            yield Problem("W0504", message, (*path, "output"), f"write {way} for the value after it")


def starts_anew(s: Scope, backward: bool = False) -> Val | None:
    """What a token does with the states, i64[batch seq]: 1, they start anew with it; -1, it is padding and leaves them
    alone; else 0. None where no token does but the first, or the last where a cell runs `backward`."""
    rule = s.rows_of()
    if not rule.documents and not rule.padding:
        return None
    if backward and rule.documents:
        return _ends(s, rule.padding)
    given = {"p": s.counted("place")} if rule.documents else {}
    given |= {"v": s.shared("valid")} if rule.padding else {}
    first = "where(p == 0, 1, 0)" if rule.documents else "0"
    return s.map("anew", f"where(v, {first}, -1)" if rule.padding else first, to=s.rows, dtype="i64", **given)


def _ends(s: Scope, padding: bool) -> Val:
    """The same of a cell that runs backward: the last token of a document that is no padding starts it."""
    given = {"d": s.counted("document")} | ({"v": s.shared("valid")} if padding else {})
    ends, seen = "where(d == seen, 0, 1)", "d"
    if padding:
        ends, seen = f"where(v, {ends}, -1)", "where(v, d, seen)"
    none = s.map("none_seen", -1, to="batch", dtype="i64")
    state = {"seen": (seen, none)}
    made = s.g.scan(s.length, state, {"anew": ends}, reverse=True, operands=given, to="batch", dtype="i64")
    return s.g.expand(made["anew"], to=s.rows)


def _scan(s: Scope, block: Recurrence, values: dict[str, Val], lanes: str, path: Path, anew: Val | None) -> Val:
    """The cell's formulas as one loop; gives its output [seq batch channels].

    Names of the spec become symbols of our own, so that none can meet a coordinate, a size or a keyword. A state's next
    value that the output reads is a let too, and so is its value where it may start `anew`.
    """
    own = {name: f"v_{name}" for name in (*values, *block.state)}
    symbol = s.ir.symbol
    names: dict[str, Any] = {"mask": s.ir.sympy.Integer(1)} | {name: symbol(minted) for name, minted in own.items()}
    after: dict[str, Any] = {name: symbol(f"u_{name}") for name in block.state}

    def read(text: str, *where: str, **forms: dict[str, Any]) -> Any:
        return s.low.read(text, (*path, *where), names, names, partial(s.ir.parse, forms=forms))

    lets: dict[str, Any] = {}
    for name, first in block.state.items() if anew is not None else ():
        lets[f"b_{name}"] = s.ir.where(symbol("anew") > 0, s.ir.exact(first), symbol(own[name]))
        names[name] = symbol(f"b_{name}")
    for name, text in block.let.items():
        lets[f"w_{name}"] = read(text, "let", name)
        names[name] = symbol(f"w_{name}")
    output = read(block.output, "output", next=after)
    state: dict[str, tuple[Any, Val]] = {}
    for name, first in block.state.items():
        start = s.map(f"{name}_first", s.ir.exact(first), to=f"batch {lanes}", dtype=s.accumulate)
        following = read(block.update[name], "update", name)
        if after[name] in output.free_symbols:
            lets[f"u_{name}"], following = following, after[name]
        if anew is not None:
            following = s.ir.where(symbol("anew") < 0, symbol(own[name]), following)
        state[own[name]] = (following, start)
    formulas = [*lets.values(), *(f for f, _ in state.values()), output]
    used = {name for name in values if any(symbol(own[name]) in f.free_symbols for f in formulas)}
    _all_used(s, block, used, path)
    with s.at(*path, "update"):
        operands = {own[n]: v for n, v in values.items() if n in used} | ({} if anew is None else {"anew": anew})
        space, dtype = ("batch", lanes), s.accumulate
        return s.g.scan(s.length, state, {"h": output}, lets, operands=operands, to=space, dtype=dtype)["h"]


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
        rank = low.axis(p.rank, "rank", (*where, "rank"), (*s.space, lanes))
        z = s.linear("low", x, f"width {rank}", f"{s.rows} {rank}", f"{stem}.down", rule=rules.get("down"))
        if p.pattern != "none":
            seen = _low_rank(s, z, p, stem, where, rank, rules.get("key_value"))
            alpha = s.param(f"{stem}.alpha", "", rule=(InitRule(constant=p.alpha), (*where, "alpha")))
            z = s.map("low", "alpha * a + z", to=f"{s.rows} {rank}", alpha=alpha, a=seen, z=z, dtype=s.compute)
        z = s.dropout(s.norm(z, p.norm, f"{stem}.norm", (*where, "norm"), rank), p.dropout)
        return _matrices(s, z, block, stem, rank, lanes, rules.get("up"))


def _matrices(
    s: Scope, x: Val, block: Recurrence, stem: str, own: str, lanes: str, rule: tuple[Init, Path] | None
) -> list[Val]:
    return [
        s.linear(n, x, f"{own} {lanes}", f"{s.rows} {lanes}", f"{stem}.{n}", fan_in=own, rule=rule)
        for n in block.inputs
    ]


def _low_rank(
    s: Scope, z: Val, p: CellAttention, stem: str, path: Path, rank: str, rule: tuple[Init, Path] | None
) -> Val:
    """Attention among the low-rank projections themselves: queries are z, keys and values linear in z.

    With several heads z's dim is cut into heads by gathers, since a dim is never reshaped.
    """
    low, parse = s.low, s.ir.parse
    with low.reading((*path, "heads"), "W0201"):
        heads = low.dims.size(p.heads)
    if low.number(rank) % heads:
        raise SpecError.at((*path, "heads"), "W0402", f"{heads} heads do not divide the rank {low.number(rank)}")
    key = low.mint("key", low.dims.sizes[s.length], (*s.space, rank))
    with low.reading((*path, "pattern"), "W0302"):
        pattern = apart(s, Pattern.parse(p.pattern, low.dims.on(s.length).named))
    for problem in misplaced(s, pattern, s.ir.symbol("s"), "", path):
        low.tell(problem)
    if heads == 1:  # which has no dim, so that a pattern that differs by head is that of head 0
        pattern = Pattern.parse(written(at_head(pattern.formula, 0))) if pattern.per_head else pattern
        head, cut, many = low.mint("mixed", low.sizes[rank], (rank, *s.space, key)), (), ""
        q = s.rename("query", z, rank, head)
    else:
        many = low.axis(p.heads, "heads", (*path, "heads"), (*s.space, rank, key))
        head, cut = low.mint("head", low.number(rank) // heads, (many, rank, *s.space, key)), (many,)
        place = s.map("place", parse(f"i_{many} * n_{head} + i_{head}"), to=f"{many} {head}", dtype="i64")
        q = s.g.expand(s.gather("query", z, place, at=rank), to=f"{s.rows} {many} {head}")
    own = f"{many} {head}".strip()

    def project(name: str) -> Val:
        y = s.linear(name, z, f"{rank} {own}", f"{s.rows} {own}", f"{stem}.{name}", fan_in=rank, rule=rule)
        return s.rename(f"{name}s", y, s.length, key)

    op = s.ir.Attend(head, key, s.length, pattern, parse(f"1/sqrt(n_{head})"), s.ir.symbol("s"), cut, pattern.metadata)
    given = {
        "segments": lambda: segments(s, "")[0],
        "valid": lambda: s.rename("valid", s.shared("valid"), s.length, key),
    }
    meta = [given[name]() for name in pattern.metadata]
    with s.at(*path, "pattern"):
        out = s.g.many(op, q, project("key"), project("value"), *meta, names=["attended", "lse"])[0]
    if heads == 1:
        return s.rename("attended", out, head, rank)
    at = [s.map("at", parse(f), to=rank, dtype="i64") for f in (f"i_{rank} // n_{head}", f"i_{rank} % n_{head}")]
    return s.gather("attended", out, *at, at=f"{many} {head}")


def _old_states(block: Recurrence) -> list[str]:
    """The states that the output reads; none where it reads a new value too, by `next` or as a let or a part of it."""
    from weft.ir.formula import parse, symbol  # SymPy, which the language alone does without

    names = ["x", "mask", *block.inputs, *block.parameters, *block.state, *block.let]
    after = {name: symbol(f"next {name}") for name in block.state}
    try:
        lets = {symbol(name): parse(text, names) for name, text in block.let.items()}
        updates = [parse(text, names) for text in block.update.values()]
        read = [parse(block.output, names, forms={"next": after})]
    except FormulaError:
        return []  # told as a problem
    for e in read:
        read += [lets[s] for s in sorted(e.free_symbols & lets.keys(), key=str) if lets[s] not in read]
    seen: set[Any] = set().union(*(e.free_symbols for e in read))
    new = seen & set(after.values()) or any(e.has(u) for e in read for u in updates if u.args or u in lets)
    return [] if new else [name for name in block.state if symbol(name) in seen]
