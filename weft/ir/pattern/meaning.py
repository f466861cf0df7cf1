"""What a pattern means: its value at given indices."""

from collections.abc import Mapping
from typing import Any

from weft.errors import FormulaError
from weft.ir.pattern import expression as ex
from weft.ir.pattern.formula import Atom, BatchCondition, Formula, InTable, Junction, opaque
from weft.ir.pattern.named import METADATA
from weft.ir.pattern.pattern import Pattern
from weft.ir.pattern.table import AnyTable, slots

Vectors = Mapping[str, tuple[Any, Any]]
"""Metadata by name: (its value at the query, its value at the key), shaped to broadcast with q and k."""


def holds(
    pattern: Pattern,
    q: Any,
    k: Any,
    head: Any = None,
    meta: Vectors | None = None,
    np: Any = None,
    n: int | None = None,
) -> Any:
    """Does query q see key k? Booleans; for a multiset, how often it does, in integers.

    q, k, head: integers, or integer arrays that broadcast together, of `np` (numpy, or torch: pass the module).
    n: tokens, for a pattern that needs a length. A union counts a key as often as the side that lists it most.
    """
    formula = (pattern if n is None else pattern.at(n)).formula
    if pattern.per_head and head is None:
        raise FormulaError("this pattern differs by head: say which head", pattern.text)
    return holds_formula(formula, q, k, head, meta, np, pattern.multiset)


def holds_formula(
    f: Formula, q: Any, k: Any, head: Any = None, meta: Vectors | None = None, np: Any = None, counts: bool = False
) -> Any:
    """`holds` for a bare formula."""
    if np is None:
        import numpy as np  # the IR itself does without NumPy
    walker = _PatternWalker(q, k, 0 if head is None else head, meta or {}, np)
    everywhere = (q == q) & (k == k)
    return walker.count(f) * everywhere if counts else walker.truth(f) & everywhere


def visible(f: Formula, queries: range, keys: range) -> int:
    """How many pairs of a block a formula without opaque atoms lets through, point by point."""
    import numpy as np  # the IR itself does without NumPy

    q, k = (np.arange(x.start, x.stop, dtype=np.int64) for x in (queries, keys))
    truth = _PatternWalker(q[:, None], k[None], 0, {}, np).truth(f)
    return int(np.count_nonzero(np.broadcast_to(truth, (len(q), len(k)))))


class _PatternWalker:
    def __init__(self, q: Any, k: Any, h: Any, meta: Vectors, np: Any):
        self.q, self.k, self.h, self.meta, self.np = q, k, h, meta, np

    def truth(self, f: Formula) -> Any:
        if isinstance(f, bool):
            return f
        if isinstance(f, Junction):
            out = self.truth(f.parts[0])
            for part in f.parts[1:]:
                out = out & self.truth(part) if f.op == "and" else out | self.truth(part)
            return out
        if isinstance(f, Atom):
            value = ex.numerator(f.x, self.q, self.k, self.h)
            return value >= 0 if f.op == "ge" else value == 0 if f.op == "eq" else value != 0
        if isinstance(f, InTable):
            listed = self.listed(f.table)
            return listed == 0 if f.negated else listed > 0
        return self.metadata(f)

    def count(self, f: Formula) -> Any:
        """Multiplicity: a conjunction multiplies, a disjunction takes the greatest."""
        if isinstance(f, Junction):
            out = self.count(f.parts[0])
            for part in f.parts[1:]:
                other = self.count(part)
                out = out * other if f.op == "and" else out + (other - out) * (other > out)
            return out
        if isinstance(f, InTable) and not f.negated:
            return self.listed(f.table)
        return self.truth(f) * 1

    def metadata(self, f: BatchCondition) -> Any:
        vector = METADATA[f.name]
        if vector not in self.meta:
            raise FormulaError(f"the pattern reads the metadata vector '{vector}', which is not given")
        at_query, at_key = self.meta[vector]
        if f.name == "same_segment":
            return at_query != at_key if f.negated else at_query == at_key
        return (at_key ^ True) if f.negated else at_key

    def listed(self, table: AnyTable) -> Any:
        """How often the table lists the block of (q, k)."""
        q, k = (self.k, self.q) if table.swap else (self.q, self.k)
        row, block = q // table.block, k // table.block
        heads = 1 if not table.per_head else int(self.h.max() if hasattr(self.h, "max") else self.h) + 1
        lists: Any = slots(table, heads)
        width = lists.shape[2]
        if hasattr(self.np, "as_tensor"):  # torch
            lists = self.np.as_tensor(lists, device=q.device)
        head = self.h if heads > 1 else 0
        first = lists[head, row, 0]
        out = (first == -2) * 1 + (first == block)
        for s in range(1, width):
            out = out + (lists[head, row, s] == block)
        return out


def opaque_atoms(pattern: Pattern) -> "tuple[BatchCondition | InTable, ...]":
    """The atoms that index arithmetic cannot say (metadata, static tables), each once and unnegated."""
    return tuple(dict.fromkeys(leaf._replace(negated=False) for leaf in opaque(pattern.formula)))
