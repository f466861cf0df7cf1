"""Attention patterns: predicates over query and key index, parsed, given meaning, and solved in closed form."""

from weft.ir.pattern.meaning import describe, holds, opaque_atoms
from weft.ir.pattern.named import METADATA, NAMED
from weft.ir.pattern.pattern import Pattern
from weft.ir.pattern.plan import Plan
from weft.ir.pattern.solver import solve
from weft.ir.pattern.symbolic import to_sympy

__all__ = ["METADATA", "NAMED", "Pattern", "Plan", "describe", "holds", "opaque_atoms", "solve", "to_sympy"]
