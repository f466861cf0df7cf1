"""Attention patterns: predicates over query and key index, parsed, given meaning, solved, and laid out."""

from weft.ir.pattern.bounds import Growth, growth, is_causal, max_distance, rows_seeing_nothing
from weft.ir.pattern.choose import in_tiles, layout
from weft.ir.pattern.layout import LayoutPart, PatternLayout
from weft.ir.pattern.leak import Leak, leaks
from weft.ir.pattern.meaning import holds, opaque_atoms
from weft.ir.pattern.named import METADATA, NAMED
from weft.ir.pattern.pattern import Pattern
from weft.ir.pattern.plan import Plan
from weft.ir.pattern.reach import Path, Reach, State, reach
from weft.ir.pattern.solver import solve
from weft.ir.pattern.symbolic import to_sympy
from weft.ir.pattern.writing import describe

__all__ = [
    "METADATA",
    "NAMED",
    "Growth",
    "LayoutPart",
    "Leak",
    "Path",
    "Pattern",
    "PatternLayout",
    "Plan",
    "Reach",
    "State",
    "describe",
    "growth",
    "holds",
    "in_tiles",
    "is_causal",
    "layout",
    "leaks",
    "max_distance",
    "opaque_atoms",
    "reach",
    "rows_seeing_nothing",
    "solve",
    "to_sympy",
]
