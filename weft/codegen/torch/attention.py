"""Attend and AttendGrad in torch: a layout object of the emitted runtime, once per file, run on [B, H, N, D] views."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from weft.codegen.torch.attention_ranges import documents, near
from weft.codegen.torch.attention_tables import looked_up, walked
from weft.codegen.torch.body import Body, File
from weft.codegen.torch.lines import Lines, tuple_of
from weft.codegen.torch.spelling import ATOM, COMPARE, Src, TorchFormulas, literal
from weft.ir.formula import normal, symbol
from weft.ir.formula.evaluate import evaluate
from weft.ir.formula.functions import diff
from weft.ir.library.attention import Attend
from weft.ir.library.scores import DRAWN, S
from weft.ir.pattern import LayoutPart, Pattern, PatternLayout, opaque_atoms, to_sympy
from weft.ir.pattern import layout as choose
from weft.ir.pattern.formula import BatchCondition, InTable, Leaf
from weft.ir.types import Dims, Node, Type, Val

PLACES = ("query_at", "key_at")
"""Metadata that says where queries and keys stand, where that is not their coordinate."""
APART = (*PLACES, "near")
"""Operands that are no metadata of predicates."""


@dataclass(frozen=True)
class AttendAxes:
    """The dims of an attend in the order the runtime wants them: [batch, heads, query, contract]."""

    batch: Dims
    heads: Dims
    query: str
    over: str
    contract: str
    own: Dims
    shared: Dims  # the heads that keys have too

    def queries(self) -> tuple[Dims, ...]:
        return self.batch, self.heads, (self.query,), (self.contract,)

    def keys(self) -> tuple[Dims, ...]:
        return self.batch, self.shared, (self.over,), (self.contract,)

    def values(self) -> tuple[Dims, ...]:
        return self.batch, self.shared, (self.over,), self.own

    def outs(self) -> tuple[Dims, ...]:
        return self.batch, self.heads, (self.query,), self.own

    def rows(self) -> tuple[Dims, ...]:
        return self.batch, self.heads, (self.query,)


def axes(of: Attend, types: Sequence[Type]) -> AttendAxes | None:
    """How the operands q, k, v fit the runtime, or None when they do not."""
    q, k, v = (t.dims for t in types[:3])
    rows = tuple(d for d in q if d != of.contract)
    batch = tuple(d for d in rows if d not in of.heads and d != of.query)
    shared = tuple(d for d in of.heads if d in k)
    own = tuple(d for d in v if d not in rows and d != of.over)
    fits = (
        set(k) == {*batch, *shared, of.over, of.contract}
        and set(v) == {*batch, *shared, of.over, *own}
        and of.heads[: len(shared)] == shared  # h // group is the key head
        and len(own) >= 1
        and of.query in q
    )
    return AttendAxes(batch, of.heads, of.query, of.over, of.contract, own, shared) if fits else None


def attends(of: Attend, types: Sequence[Type]) -> bool:
    """Has the runtime a form for it? One at given positions needs them of queries and keys, by sequence."""
    a, given = axes(of, types), dict(zip(of.meta, types[len(types) - len(of.meta) :]))
    if a is None or ("near" in given and _near_places(a, given["near"].dims) is None):
        return False
    if not set(PLACES) & set(given):
        return True
    dims = [given[m].dims for m in PLACES if m in given]
    return dims == [(*a.batch, a.query), (*a.batch, a.over)]


def _near_places(a: AttendAxes, dims: Dims) -> tuple[Dims, ...] | None:
    """A table by distance as [batch, heads, query, distance], dims that it lacks left out; None where it lacks some of
    the batch or of the heads."""
    parts = tuple(tuple(d for d in group if d in dims) for group in a.rows())
    rest = tuple(d for d in dims if all(d not in group for group in a.rows()))
    return (*parts, rest) if all(p in ((), group) for p, group in zip(parts, a.rows())) else None


def _operand(body: Body, v: Val, groups: tuple[Dims, ...]) -> str:
    """A value as [B, H, N, D] (or [B, H, N]): permuted, several dims of a place joined, missing ones of size 1."""
    order = tuple(d for g in groups for d in g)
    src = body.loose(v)
    if src.number or set(src.dims or ()) != set(v.dims):
        src = Src(body.full(v), ATOM, v.dims)
    text = src.aligned(order).at(ATOM)
    for at, g in enumerate(groups):
        if len(g) > 1:
            text = f"{text}.flatten({at}, {at + len(g) - 1})"
        elif not g:
            text = f"{text}.unsqueeze({at})"
    return text


def _results(body: Body, outs: Sequence[Val], places: Sequence[tuple[Dims, ...]], text: str) -> None:
    """Assign runtime results [B, H, N, D] and say how they lie."""
    order = [tuple(d for g in groups for d in g) for groups in places]
    got = body.assign(outs, text, order)
    for v, groups, src, dims in zip(outs, places, got, order):
        view = src.text
        at = len(groups)
        for g in reversed(groups):
            at -= 1
            if not g:
                view = f"{view}.squeeze({at})"
            elif len(g) > 1:
                view = f"{view}.unflatten({at}, ({body.shape(g)}))"
        if view != src.text and body.uses[v.name]:
            body.put(v, Src(view, ATOM, dims, v.dtype), inline=False)


def _number(body: Body, formula: Any) -> Src:
    """A formula over sizes as source."""
    return body.sizes.spelled(formula, body, {s.name[2:]: body.size(s.name[2:]) for s in formula.free_symbols})


def _scale(body: Body, of: Attend) -> str:
    src = _number(body, of.scale)
    return literal(float(src.value)).text if src.value is not None else src.text


def _metadata(body: Body, of: Attend, a: AttendAxes, meta: Sequence[Val]) -> str:
    """What follows the scale, after a comma: the table by distance and its first, then the metadata as [B, L]."""
    given = dict(zip(of.meta, meta))
    out: list[str] = []
    if _plainly(of):
        near = given.pop("near", None)
        places = () if near is None else _near_places(a, near.dims) or ()
        out = ["None" if near is None else _operand(body, near, places), _number(body, of.first).text]
    dims = {m: a.query if m in ("segments", "query_at") else a.over for m in given}
    out += [_operand(body, v, (a.batch, (dims[m],))) for m, v in given.items()]
    return "".join(f", {text}" for text in out)


def _drop(body: Body, of: Attend, node: Node) -> str:
    """The last argument, after a comma, where weights are dropped."""
    drawn = {name: node.ins[i] for i, name in node.op.scalars.items()}
    if not drawn:
        return ""
    seed, layer = (body.argument(drawn[name]) for name in DRAWN)
    name = body.file.object("dropping", f"attention.Dropping({literal(float(of.rate)).text}, {of.op_id})")
    return f", drop={name}.by({seed}, {layer})"


def attend(body: Body, node: Node) -> None:
    of, (q, k, v, *meta) = node.op, node.ins
    assert isinstance(of, Attend)
    a = axes(of, node.types)
    assert a is not None
    order = {m: i for i, m in enumerate(PLACES)}
    given = sorted(zip(of.meta, meta), key=lambda m: order.get(m[0], len(order)))
    sinks = [_operand(body, v, (a.heads,)) for m, v in given if m == "sinks"]
    given, drop = [m for m in given if m[0] not in (*DRAWN, "sinks")], _drop(body, of, node)
    of = replace(of, meta=tuple(m for m, _ in given))
    name = steps(body.file, of) if set(PLACES) <= set(of.meta) else layout(body, of, a)
    operands = ", ".join(_operand(body, x, g) for x, g in ((q, a.queries()), (k, a.keys()), (v, a.values())))
    text = f"{name}.forward({operands}, {_scale(body, of)}{_metadata(body, of, a, [v for _, v in given])}{drop})"
    if sinks:
        text = f"{body.file.object('sunk', 'attention.sunk')}(*{text}, {sinks[0]})"  # a value may be called attention
    _results(body, node.outs, (a.outs(), a.rows()), text)


def attend_grad(body: Body, node: Node) -> None:
    of: Any = node.op.of  # type: ignore[attr-defined]
    q, k, v, out, lse, do, *meta = node.ins
    a = axes(of, node.types)
    assert a is not None
    drop, meta = _drop(body, of, node), [v for m, v in zip(of.meta, meta) if m not in DRAWN]
    of = replace(of, meta=tuple(m for m in of.meta if m not in DRAWN))
    name = layout(body, of, a)
    order = ((do, a.outs()), (q, a.queries()), (k, a.keys()), (v, a.values()), (out, a.outs()), (lse, a.rows()))
    operands = ", ".join(_operand(body, x, g) for x, g in order)
    text = f"{name}.backward({operands}, {_scale(body, of)}{_metadata(body, of, a, meta)}{drop})"
    near = [_near_places(a, v.dims) or () for v in node.outs[3:]]
    _results(body, node.outs, (a.queries(), a.keys(), a.values(), *near), text)


def layout(body: Body, of: Attend, a: AttendAxes) -> str:
    """The name of the file's layout object for this attend; printed when first needed."""
    file = body.file
    if _plainly(of):
        return file.object("attention", _distant(file, of))
    if normal(of.score) != S or of.meta:
        return file.object("attention", _tiles(file, of, of.pattern))
    chosen = of.layout if of.layout is not None else _choose(file, of, a)
    parts: list[tuple[tuple[int, ...] | None, str]] = [(p.heads, _part(file, of, p)) for p in chosen.parts]
    return file.object("attention", _merged(parts))


def steps(file: File, of: Attend) -> str:
    """The name of the file's attention at positions that are given."""
    keep = _function(file, "keep", of, None, of.pattern)
    score = "" if normal(of.score) == S else f", {_function(file, 'score', of, of.score, of.pattern)}"
    if not _plainly(of):
        return file.object("steps", f"decode.Steps({keep}{score})")
    return file.object("steps", f"distances.Steps({keep}{score}{'' if of.normalised else ', normalised=False'})")


def _plainly(of: Attend) -> bool:
    """Does it run as the plain products of `distances`?"""
    return of.distant or not of.normalised


def _choose(file: File, of: Attend, a: AttendAxes) -> PatternLayout:
    """The layout for the largest sizes, where the pattern pass has not chosen one."""
    limit = {d: file.sizes.most(d) for d in (*a.heads, a.query, a.over)}
    heads = math.prod(limit[d] for d in a.heads)
    return choose(of.pattern, limit[a.query], heads=heads, nk=limit[a.over])


def _merged(parts: Sequence[tuple[tuple[int, ...] | None, str]]) -> str:
    """The union of parts; those that serve some heads only stand in a PerHead."""
    common = [text for heads, text in parts if heads is None]
    own: dict[tuple[int, ...], list[str]] = {}
    for heads, text in parts:
        if heads is not None:
            own.setdefault(heads, []).append(text)
    if own:
        each = [f"({range(*heads)}, {_union(texts)})" for heads, texts in sorted(own.items())]
        common.append(f"attention.PerHead({tuple_of(each)})")
    return _union(common)


def _union(texts: Sequence[str]) -> str:
    if not texts:
        return "attention.Merge(())"
    return texts[0] if len(texts) == 1 else f"attention.Merge({tuple_of(texts)})"


def _part(file: File, of: Attend, p: LayoutPart) -> str:
    """One part of a layout as the runtime's class; what that has no class for runs in tiles."""
    if p.layout == "blocks":
        return _blocks(file, of, p)
    if p.layout == "columns":
        return f"attention.Columns({p.arg('modulus')}, {p.arg('start')}, {p.arg('width')})"
    if p.layout == "rows":
        count = p.arg("count")
        return (
            f"attention.Rows(0, {count})"
            if p.inner == "dense"
            else f"attention.Corner({count}, None, {_inner(p.inner)})"
        )
    if p.layout == "cols":
        return _cols(p) or _tiles(file, of, p.term)
    if p.layout in ("diagonal", "residues"):
        size = p.arg("block" if p.layout == "diagonal" else "modulus")
        said = f"attention.{p.layout.capitalize()}({size}, {_inner(p.inner)})"
    elif p.layout in _PLAIN:
        said = _core(p.layout, [p.arg(n) for n in _PLAIN[p.layout]])
    else:
        return _tiles(file, of, p.term)
    start = p.arg("start")
    return f"attention.Tail({start}, {said})" if start else said


def _cols(p: LayoutPart) -> str:
    """k < count, q >= start and inner; "" where the runtime has no class for it."""
    count, start = p.arg("count"), p.arg("start")
    if p.inner == "dense" or (p.inner == "causal" and start >= count - 1):
        return f"attention.Rectangle(start={start}, last={count})" if start else f"attention.Cols(0, {count})"
    return "" if start else f"attention.Corner(None, {count}, {_inner(p.inner)})"


_PLAIN = {"dense": (), "causal": (), "strict": (), "lag": ("steps",), "window": ("width",), "band": ("left", "right")}


def _core(name: str, numbers: Sequence[int]) -> str:
    if name == "lag":
        return f"attention.Causal({-numbers[0]})"
    return f"attention.{name.capitalize()}({', '.join(map(str, numbers))})"


def _inner(text: str) -> str:
    """ "window(64)" -> attention.Window(64)."""
    name, _, rest = text.partition("(")
    return _core(name, [int(n) for n in rest.rstrip(")").split(",") if n.strip()])


def _blocks(file: File, of: Attend, p: LayoutPart) -> str:
    """A static table by itself, its blocks whole."""
    formula = p.term.formula
    if not isinstance(formula, InTable) or formula.negated:
        return _tiles(file, of, p.term)
    return walked(file, of, formula.table)


def _tiles(file: File, of: Attend, pattern: Pattern) -> str:
    """The general layout, from a pattern's formula alone."""
    said = [
        _function(file, "keep", of, None, pattern),
        *near(file, of, pattern),
        *documents([m for m in of.meta if m not in APART], pattern),
    ]
    if normal(of.score) == S:
        return f"attention.Tiles({', '.join(said)})"
    return f"attention.Scored({', '.join([*said, *_scored(file, of, pattern)])})"


def _scored(file: File, of: Attend, pattern: Pattern) -> list[str]:
    """`score=..`, `slope=..`."""
    score = _function(file, "score", of, of.score, pattern)
    slope = _function(file, "slope", of, diff(normal(of.score), S), pattern)
    return [f"score={score}", f"slope={slope}"]


def _distant(file: File, of: Attend) -> str:
    """The layout of what depends on distances, or of weights without a softmax, from the pattern's formula alone."""
    said = [
        _function(file, "keep", of, None, of.pattern),
        *near(file, of, of.pattern),
        *documents([m for m in of.meta if m not in APART], of.pattern),
    ]
    said += _scored(file, of, of.pattern) if normal(of.score) != S else []
    said += (["tail=True"] if of.tail else []) + ([] if of.normalised else ["normalised=False"])
    return f"distances.Tiles({', '.join(said)})"


def _function(file: File, name: str, of: Attend, expr: Any, pattern: Pattern) -> str:
    """Print `keep(q, k, h, ...)` or a function of the score `s`, and return its name."""
    meta = [m for m in of.meta if m not in APART]
    args = [*(["s"] if expr is not None else []), "q", "k", "h", *meta]
    lines = Lines()
    host = _Host(lines, "q")
    dims = ("pairs",)
    env = {symbol(f"i_{c}"): Src(c, ATOM, dims, "i64") for c in "qkh"} | {S: Src("s", ATOM, dims, "f32")}
    if expr is None:
        given = {leaf: symbol(f"seen{n}") for n, leaf in enumerate(opaque_atoms(pattern))}
        env |= {x: _opaque(file, of, leaf, dims) for leaf, x in given.items()}
        counted = pattern.multiset
        known: dict[Leaf, Any] = {f: x > 0 if isinstance(f, InTable) and not counted else x for f, x in given.items()}
        expr = to_sympy(pattern, symbol("i_q"), symbol("i_k"), symbol("i_h"), known)
    sizes = {s: literal(file.sizes.frozen(s.name[2:])) for s in expr.free_symbols if s.name.startswith("n_")}
    with lines.indent(f"def {{}}({', '.join(args)}):"):
        formulas = TorchFormulas(host, dims, "f32" if name != "keep" else "i64", "t")
        (src,) = evaluate([normal(expr)], env | sizes, formulas.table)
        lines.add(f"return {src.text}")  # may be a number: the runtime spreads it
    return file.function(name, lines.lines)


def _opaque(file: File, of: Attend, leaf: BatchCondition | InTable, dims: Dims) -> Src:
    """What index arithmetic cannot say: a condition on metadata, or how often a table lists the pair's blocks."""
    if isinstance(leaf, InTable):
        return Src(f"{looked_up(file, of, leaf.table)}(q, k, h)", ATOM, dims, "i64")
    keys = "key_segments" if "key_segments" in of.meta else "segments"
    if "key_at" in of.meta:  # q and k are positions, and metadata is that of what is given
        if leaf.name == "valid":
            return Src("valid[:, None, None, :]", ATOM, dims, "bool")
        return Src(f"segments[:, None, :, None] == {keys}[:, None, None, :]", COMPARE, dims, "bool")
    if leaf.name == "valid":
        return Src("attention.at(valid, k)", ATOM, dims, "bool")
    return Src(f"attention.at(segments, q) == attention.at({keys}, k)", COMPARE, dims, "bool")


@dataclass
class _Host:
    """The little that a pointwise function needs of a Body."""

    lines: Lines
    like: str
    count: int = 0

    def bind(self, hint: str, src: Src) -> Src:
        self.count += 1
        name = f"{hint}{self.count}"
        self.lines.add(f"{name} = {src.text}")
        return Src(name, ATOM, src.dims, src.dtype)

    def device(self) -> str:
        return f"{self.like}.device"

    def dtype(self, name: str) -> str:
        return {"i64": "torch.int64", "bool": "torch.bool"}.get(name, "s.dtype")
