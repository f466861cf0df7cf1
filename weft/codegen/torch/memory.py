"""Gather and scatter in torch: a slice, a pad, an embedding, or rows of a flattened table."""

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import sympy as sp

from weft.codegen.torch.body import Body
from weft.codegen.torch.lines import tuple_of
from weft.codegen.torch.printer import Speller
from weft.codegen.torch.sizes import Sizes
from weft.codegen.torch.spelling import ATOM, Src, TorchFormulas
from weft.ir.formula import symbol
from weft.ir.formula.functions import maximum, minimum, where
from weft.ir.ops.op import Op
from weft.ir.ops.primitives import Gather, Map, Rename, Scatter
from weft.ir.types import Dims, Node, Val, union


def _gather(body: Body, node: Node) -> None:
    op, (table, *idx), out = node.op, node.ins, node.outs[0]
    assert isinstance(op, Gather)
    run = _progression(body, idx[0]) if len(idx) == 1 else None
    fixed = _constant(body, idx[0], op.at[0]) if len(idx) == 1 else None
    if fixed is not None:
        dims = tuple(d for d in table.dims if d not in op.at)
        text = f"{body.full(table)}.select({table.dims.index(op.at[0])}, {fixed})"
        body.put(out, Src(text, ATOM, dims, out.dtype).ordered(out.dims), node)
        return
    if run is not None and run[0] not in table.dims:
        body.put(out, _slice(body, table, op.at[0], *run).ordered(out.dims), node)
        return
    where = union(*(v.dims for v in idx))
    shared = tuple(d for d in table.dims if d in where and d not in op.at)
    rest = tuple(d for d in table.dims if d not in shared and d not in op.at)
    varies = union(shared, *(body.loose(v).dims or () for v in idx))
    where = tuple(d for d in where if d in varies)
    flat = _flattened(body, table, shared + op.at, rest)
    index, inside = _index(body, table, idx, op.at, shared, where)
    src = Src(f"rows.take({flat}, {index}{inside})", ATOM, where + rest, out.dtype)
    if not rest:
        src = Src(f"{src.text}.squeeze(-1)", ATOM, where, out.dtype)
    elif len(rest) > 1:
        src = Src(f"{src.text}.unflatten(-1, ({body.shape(rest)}))", ATOM, where + rest, out.dtype)
    body.put(out, src.ordered(out.dims), node)


def _scatter(body: Body, node: Node) -> None:
    op, (x, *idx), out = node.op, node.ins, node.outs[0]
    assert isinstance(op, Scatter)
    if body.loose(x).number and body.loose(x).value == 0:
        body.put(out, body.loose(x), node)
        return
    run = _progression(body, idx[0]) if len(idx) == 1 else None
    left = tuple(op.at[0] if run and d == run[0] else d for d in x.dims)
    if run is not None and run[0] in x.dims and run[0] not in op.to and set(left) == set(op.to):
        src = _padded(body, x, run[0], run[1], body.size(op.at[0]))
        body.put(out, Src(src, ATOM, left, out.dtype).ordered(out.dims), node)
        return
    fixed = _constant(body, idx[0], op.at[0]) if len(idx) == 1 else None
    left = tuple(d for d in op.to if d not in op.at)
    if fixed is not None and {*left, *idx[0].dims} <= set(x.dims):
        over = [i for i, d in enumerate(x.dims) if d not in left]
        text = (
            f"{body.full(x)}.sum({over[0] if len(over) == 1 else tuple_of(map(str, over))})" if over else body.full(x)
        )
        at = op.to.index(op.at[0])
        src = Src(text, ATOM, tuple(d for d in x.dims if d in left)).aligned(left)
        after = TorchFormulas(body, (), "f32", "n").table["sub"](body.size(op.at[0]), _number(fixed + 1))
        text = _pad(body, f"{src.at(ATOM)}.unsqueeze({at})", len(op.to), at, _number(fixed), after)
        body.put(out, Src(text, ATOM, op.to, out.dtype), node)
        return
    where = union(*(v.dims for v in idx))
    shared = tuple(d for d in op.to if d in where and d not in op.at)
    rest = tuple(d for d in op.to if d not in where and d not in op.at)
    space = union(where, (d for d in x.dims if d not in rest))
    rows = _rows(body, x, space, rest)
    index, inside = _index(body, out, idx, op.at, shared, space, expand=True)
    count = " * ".join(body.size(d).text for d in shared + op.at)
    src = Src(f"rows.add({rows}, {index}, {count}{inside})", ATOM, ("rows", *rest), out.dtype)
    if len(shared + op.at) > 1 or len(rest) != 1:
        src = body.bind("added", src) if len(src.text) > 60 else src
        src = Src(f"{src.text}.view({body.shape(shared + op.at + rest)})", ATOM, (), out.dtype)
    body.put(out, Src(src.text, ATOM, shared + op.at + rest, out.dtype).ordered(out.dims), node)


def _flattened(body: Body, table: Val, lead: Dims, rest: Dims) -> str:
    """The table as [rows, payload]."""
    src = Src(body.full(table), ATOM, table.dims).aligned(lead + rest)
    if len(lead) == 1 and len(rest) == 1:
        return src.text
    if len(lead) == 1 and len(rest) > 1:
        return f"{src.at(ATOM)}.flatten(1)"
    if not rest:
        return f"{src.at(ATOM)}.reshape(-1, 1)"
    if len(rest) == 1:
        return f"{src.at(ATOM)}.flatten(0, {len(lead) - 1})"
    return f"{src.at(ATOM)}.flatten(0, {len(lead) - 1}).flatten(1)"


def _rows(body: Body, x: Val, space: Dims, rest: Dims) -> str:
    """x as [points of space, payload]."""
    src = body.loose(x)
    if src.number:
        src = Src(body.full(x), ATOM, x.dims)
    src = src.aligned(space + rest)
    text = src.at(ATOM)
    if tuple(src.dims or ()) != space + rest:
        text = f"{text}.expand({body.shape(space + rest)})"
    if not rest:
        return f"{text}.reshape(-1, 1)"
    text = f"{text}.flatten(0, {len(space) - 1})" if len(space) > 1 else f"{text}[None]" if not space else text
    return f"{text}.flatten(1)" if len(rest) > 1 else text


def _index(
    body: Body, table: Val, idx: Sequence[Val], at: Dims, shared: Dims, space: Dims, expand: bool = False
) -> tuple[str, str]:
    """(row number over `space`, ", condition" under which it is in range); "" for a condition known to hold."""
    spell = TorchFormulas(body, space, "f32", "index")
    add, mul, both = spell.table["add"], spell.table["mul"], spell.table["and"]
    row, inside = None, None
    for d in shared + at:
        if d in at:
            v = idx[at.index(d)]
            src = body.loose(v).aligned(space)
            if not _in_range(body, v, d):
                src = spell.named(src)
                low, high = spell.table["ge"](src, _number(0)), spell.table["lt"](src, body.size(d))
                here = both(low, high)
                inside = here if inside is None else both(inside, here)
        else:
            src = body.coordinate(d).aligned(space)
        row = src if row is None else add(mul(row, body.size(d)), src)
    assert row is not None
    row = spell.named(row) if len(row.text) > 40 else row
    text = _spread(body, row, space) if expand else row.text
    if row.number:
        text = f"torch.tensor({row.text}, device={body.device()})"
        text += f".expand({' * '.join(body.size(d).text for d in space) or '1'})" if expand else ""
    if inside is None or inside.value is True:
        return text, ""
    if inside.number:
        inside = Src(f"torch.tensor({inside.text}, device={body.device()})", ATOM, (), "bool")
    inside = body.bind("inside", inside) if len(inside.text) > 40 else inside
    return text, f", {_spread(body, inside, space) if expand else inside.text}"


def _spread(body: Body, src: Src, space: Dims) -> str:
    if src.number or not space:
        return f"torch.tensor([{src.text}], device={body.device()})" if src.number else f"{src.at(ATOM)}[None]"
    text = src.text if src.dims == space else f"{src.at(ATOM)}.expand({body.shape(space)})"
    return text if len(space) == 1 else f"{text if text != src.text else src.at(ATOM)}.flatten()"


def _number(n: int) -> Src:
    return Src(str(n), ATOM, None, "int", n)


def _formula(body: Body, v: Val) -> tuple[Any, Dims] | None:
    """An index that is a formula of coordinates and sizes alone."""
    name = v.name
    renamed: dict[str, str] = {}
    while name in body.made and isinstance(body.made[name].op, Rename):
        op: Any = body.made[name].op
        renamed = {op.old: op.new, **{k: op.new if n == op.old else n for k, n in renamed.items()}}
        name = body.made[name].ins[0].name
    node = body.made.get(name)
    if node is None or not isinstance(node.op, Map) or node.ins or node.op.lets or len(node.outs) > 1:
        return None
    e: Any = node.op.exprs[0].xreplace({symbol(f"i_{a}"): symbol(f"i_{b}") for a, b in renamed.items()})
    return e, v.dims


def _constant(body: Body, v: Val, dim: str) -> int | None:
    """An index that is one number, inside a frozen dim."""
    found, n = _formula(body, v), body.sizes.number(dim)
    if found is None or not found[0].is_Integer or not 0 <= int(found[0]) < (n or 1):  # no dim is ever empty
        return None
    return int(found[0])


def _progression(body: Body, v: Val) -> tuple[str, Src] | None:
    """(dim, start) of an index that is i_dim + start."""
    found = _formula(body, v)
    if found is None or len(found[1]) != 1:
        return None
    e, (dim,) = found
    start = e - symbol(f"i_{dim}")
    if any(not s.name.startswith("n_") for s in start.free_symbols):
        return None
    names = {s.name[2:]: body.size(s.name[2:]) for s in start.free_symbols}
    return dim, body.sizes.spelled(start, body, names)


def bounds(sizes: Sizes, e: Any) -> tuple[int, int] | None:
    """An interval that holds every value of a formula of coordinates and sizes, or None."""
    if e.is_Integer:
        return int(e), int(e)
    if e.is_Symbol:
        n = sizes.limit(e.name[2:])
        return None if n is None or e.name[:2] not in ("i_", "n_") else (0, n - 1) if e.name[0] == "i" else (1, n)
    if e.is_Rational:
        return math.floor(e), math.ceil(e)
    if isinstance(e, sp.Mod):
        modulus: Any = e.args[1]
        return (0, int(modulus) - 1) if modulus.is_Integer and modulus > 0 else None
    if isinstance(e, sp.floor):
        top, below = e.args[0].as_numer_denom()
        have = bounds(sizes, top)
        return None if have is None or not below.is_Integer else (have[0] // int(below), have[1] // int(below))
    inner = [bounds(sizes, a) for a in (e.args[1:] if isinstance(e, where) else e.args)]
    known = [x for x in inner if x is not None]
    return _combined(e, known) if known and len(known) == len(inner) else None


def _combined(e: Any, inner: list[tuple[int, int]]) -> tuple[int, int] | None:
    """The interval of a sum, product or choice from those of its operands; None for anything else."""
    lows, highs = zip(*inner)
    if e.is_Add:
        return sum(lows), sum(highs)
    if e.is_Mul:
        ends = [math.prod(some) for some in product(*inner)]
        return min(ends), max(ends)
    if isinstance(e, maximum | minimum):
        pick = max if isinstance(e, maximum) else min
        return pick(lows), pick(highs)
    return (min(lows), max(highs)) if isinstance(e, where) else None


def _in_range(body: Body, v: Val, dim: str) -> bool:
    """Is the index certainly a coordinate of `dim`?"""
    if v.name in body.trusted:
        return True
    found, n = _formula(body, v), body.sizes.number(dim)
    if found is None:
        return False
    if n is None:
        return (
            len(found[1]) == 1
            and found[0] == symbol(f"i_{found[1][0]}")
            and body.sizes.alias(found[1][0]) == body.sizes.alias(dim)
        )
    have = bounds(body.sizes, found[0])
    return have is not None and 0 <= have[0] <= have[1] < n


def _slice(body: Body, table: Val, at: str, dim: str, start: Src) -> Src:
    """table at i_dim + start: the part of it, zero past its ends."""
    dims = tuple(dim if d == at else d for d in table.dims)
    axis, have, want = table.dims.index(at), body.sizes.number(at), body.sizes.limit(dim)
    first = start.value if isinstance(start.value, int) else -1
    inside = have is not None and want is not None and 0 <= first <= have - want
    if inside or (body.sizes.alias(at) == body.sizes.alias(dim) and first == 0):
        text = f"{body.full(table)}.narrow({axis}, {start.text}, {body.size(dim).text})"
        if start.value == 0:
            text = (
                body.full(table)
                if body.size(at).text == body.size(dim).text
                else f"{body.full(table)}[{':, ' * axis}:{body.size(dim).text}]"
            )
        return Src(text, ATOM, dims, table.dtype)
    spell = TorchFormulas(body, (), "f32", "n").table
    before = spell["neg"](start)
    after = spell["sub"](spell["add"](body.size(dim), start), body.size(at))
    return Src(_pad(body, body.full(table), len(table.dims), axis, before, after), ATOM, dims, table.dtype)


def _padded(body: Body, x: Val, dim: str, start: Src, size: Src) -> str:
    """x laid at `start` into zeros of `size` along dim."""
    spell = TorchFormulas(body, (), "f32", "n").table
    after = spell["sub"](spell["sub"](size, start), body.size(dim))
    return _pad(body, body.full(x), len(x.dims), x.dims.index(dim), start, after)


def _pad(body: Body, text: str, rank: int, axis: int, before: Src, after: Src) -> str:
    """Zeros around one axis; a negative count cuts."""
    pads = ["0", "0"] * (rank - 1 - axis) + [before.text, after.text]
    return f"F.pad({text}, ({', '.join(pads)}))"


MEMORY: Mapping[type[Op], Speller] = {Gather: _gather, Scatter: _scatter}
