"""How many tokens an expert takes of one sequence, as a formula over its length, and what is sure about it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import sympy as sp

from weft.frontends.resolve import Dims
from weft.ir.formula import normal, parse, symbol
from weft.ir.formula.functions import FUNCTIONS, maximum, minimum

if TYPE_CHECKING:
    from weft.frontends.blocks.moe import Moe

BATCH = symbol("n_batch")
Line = tuple[Any, Any]
"""Slope and offset of a line over the length."""


def length(dims: Dims) -> Any:
    """The symbol of the length of the stream at hand."""
    return symbol(f"n_{dims.length}")


def capacity(block: Moe, dims: Dims) -> Any:
    """Tokens an expert takes from one sequence, at least one: an integer, or a formula over the length and n_batch.

    Raises FormulaError where `experts` or `capacity` is none."""
    if block.capacity == "none":
        return length(dims)
    if block.capacity is not None:
        found = normal(dims.symbolic(block.capacity))
    else:
        factor = parse(repr(block.capacity_factor or 1.0)) * block.top_k / dims.size(block.experts)
        found = -sp.floor(-length(dims) * factor)
    found = normal(found) if _surely(found, dims, lambda n: 0) else FUNCTIONS["max"][0](sp.S.One, normal(found))
    return int(found) if found.is_Integer else found


def drops(block: Moe, dims: Dims) -> bool:
    """Can a token find its expert full? Not where an expert takes as many as a sequence can have, whatever its length;
    one that is not surely so counts as able to."""
    return not _surely(normal(capacity(block, dims)), dims, lambda n: n - 1)


def _surely(e: Any, dims: Dims, least: Callable[[int], int]) -> bool:
    """Is a formula above the line `least` at every length of a run?"""
    if isinstance(e, maximum):
        return any(_surely(a, dims, least) for a in e.args)
    if isinstance(e, minimum):
        return all(_surely(a, dims, least) for a in e.args)
    found = _line(e, length(dims), above=False)
    ends = (1, dims.longest)
    return found is not None and all(bool(found[0] * n + found[1] > least(n)) for n in ends)


def _line(e: Any, n: Any, above: bool) -> Line | None:
    """A line that a whole-numbered formula is nowhere below (`above`: above), if one is known."""
    if e.is_Rational:
        return sp.S.Zero, e
    if e == n:
        return sp.S.One, sp.S.Zero
    if e == BATCH and not above:
        return sp.S.Zero, sp.S.One
    if e.is_Add:
        lines = [_line(a, n, above) for a in e.args]
        known = [x for x in lines if x is not None]
        return (sum(x[0] for x in known), sum(x[1] for x in known)) if len(known) == len(lines) else None
    if e.is_Mul:
        factor, rest = e.as_coeff_Mul()
        inner = None if factor == 1 else _line(rest, n, above == (factor > 0))
        return inner and (factor * inner[0], factor * inner[1])
    if isinstance(e, sp.floor):
        inner, rest = _line(e.args[0], n, above), sp.S.Zero if above else 1 - 1 / e.args[0].as_numer_denom()[1]
        return inner and (inner[0], inner[1] - rest) if rest.is_Rational else None
    if isinstance(e, sp.Mod) and e.args[1].is_Integer:
        most: Any = e.args[1]
        return sp.S.Zero, most - 1 if above else sp.S.Zero
    return None
