"""Formulas: and, or over atoms; what is not integer arithmetic is an opaque atom.

A negation is pushed to the atoms when it is built, so a formula never holds one. Replacing an atom by true therefore
gives a superset and by false a subset: what a conservative answer needs.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from weft.ir.pattern.expression import Affine, H, K, Q, add, const, make, scale, substitute, uses_head
from weft.ir.pattern.table import AnyTable


class Atom(NamedTuple):
    """x >= 0, x == 0 or x != 0, by `op` "ge", "eq", "ne"."""

    op: str
    x: Affine


class BatchCondition(NamedTuple):
    """A condition on batch metadata: "same_segment" (segments[q] == segments[k]) or "valid" (valid[k])."""

    name: str
    negated: bool


class InTable(NamedTuple):
    """The block of (q, k) is in a static table."""

    table: AnyTable
    negated: bool


class Junction(NamedTuple):
    """All ("and") or any ("or") of two or more parts."""

    op: str
    parts: "tuple[Formula, ...]"


Leaf = Atom | BatchCondition | InTable
SAME_SEGMENT = BatchCondition("same_segment", False)
Formula = bool | Atom | BatchCondition | InTable | Junction


def atom(op: str, x: Affine) -> Formula:
    """An atom in normal form, or its truth value where it has only one."""
    if not x.mods and x.den == 1:
        g = math.gcd(x.q, x.k, x.h)
        if g == 0:
            return {"ge": x.c >= 0, "eq": x.c == 0, "ne": x.c != 0}[op]
        if op != "ge" and x.c % g:
            return op == "ne"
        x = Affine(1, x.q // g, x.k // g, x.h // g, x.c // g, ())
    if op != "ge" and (x.q, x.k, x.h, x.c) < (0, 0, 0, 0):
        x = scale(x, -1)
    return Atom(op, x)


def _join(op: str, parts: tuple[Formula, ...]) -> Formula:
    absorbing = op == "or"
    out: dict[Formula, None] = {}
    for part in parts:
        if isinstance(part, bool):
            if part is absorbing:
                return absorbing
            continue
        inner = part.parts if isinstance(part, Junction) and part.op == op else (part,)
        out.update(dict.fromkeys(inner))
    if not out:
        return not absorbing
    return next(iter(out)) if len(out) == 1 else Junction(op, tuple(out))


def all_of(*parts: Formula) -> Formula:
    return _join("and", parts)


def any_of(*parts: Formula) -> Formula:
    return _join("or", parts)


def negate(f: Formula) -> Formula:
    if isinstance(f, bool):
        return not f
    if isinstance(f, Junction):
        return _join("or" if f.op == "and" else "and", tuple(negate(p) for p in f.parts))
    if isinstance(f, Atom):
        if f.op == "ge":
            return atom("ge", add(scale(f.x, -1), const(1), -1))
        return Atom("ne" if f.op == "eq" else "eq", f.x)
    return f._replace(negated=not f.negated)


def compare(op: str, x: Affine, y: Affine) -> Formula:
    """x op y for one of < <= > >= == !=."""
    if op in ("<", ">"):
        x, y = (y, x) if op == "<" else (x, y)
        return atom("ge", add(add(x, y, -1), const(1), -1))
    if op in ("<=", ">="):
        x, y = (y, x) if op == "<=" else (x, y)
        return atom("ge", add(x, y, -1))
    return atom("eq" if op == "==" else "ne", add(x, y, -1))


@lru_cache(maxsize=4096)
def leaves(f: Formula) -> tuple[Leaf, ...]:
    """Every atom once, in order of first appearance."""
    if isinstance(f, bool):
        return ()
    if not isinstance(f, Junction):
        return (f,)
    return tuple(dict.fromkeys(leaf for part in f.parts for leaf in leaves(part)))


def atoms(f: Formula) -> tuple[Atom, ...]:
    """The atoms that are arithmetic."""
    return tuple(leaf for leaf in leaves(f) if isinstance(leaf, Atom))


def opaque(f: Formula) -> "tuple[BatchCondition | InTable, ...]":
    """The atoms that are not."""
    return tuple(leaf for leaf in leaves(f) if not isinstance(leaf, Atom))


def replace(f: Formula, by: Callable[[Leaf], Formula]) -> Formula:
    """Every atom replaced by `by(atom)`, simplified."""
    if isinstance(f, bool):
        return f
    if isinstance(f, Junction):
        return _join(f.op, tuple(replace(p, by) for p in f.parts))
    return by(f)


def relax(f: Formula, to: bool, names: "frozenset[Leaf] | None" = None) -> Formula:
    """A superset (to=True) or a subset (to=False): the atoms in `names`, or all opaque ones, replaced."""

    def by(leaf: Leaf) -> Formula:
        gone = leaf in names if names is not None else not isinstance(leaf, Atom)
        return to if gone else leaf

    return replace(f, by)


def demands(f: Formula, leaf: Leaf) -> bool:
    """Does the formula hold nowhere but where an atom does? True is for certain."""
    if isinstance(f, Junction):
        every = all if f.op == "or" else any
        return every(demands(p, leaf) for p in f.parts)
    return f == leaf if not isinstance(f, bool) else not f


def at_head(f: Formula, head: int) -> Formula:
    """The formula of one head."""

    def by(leaf: Leaf) -> Formula:
        if isinstance(leaf, Atom):
            return atom(leaf.op, substitute(leaf.x, Q, K, const(head))) if uses_head(leaf.x) else leaf
        if isinstance(leaf, InTable):
            return leaf._replace(table=leaf.table.at_head(head))
        return leaf

    return replace(f, by)


def moved(f: Formula, q: Affine, k: Affine) -> Formula:
    """The formula with q and k replaced: a change of layout. Opaque atoms stay and mean the old indices."""
    return replace(f, lambda leaf: atom(leaf.op, substitute(leaf.x, q, k, H)) if isinstance(leaf, Atom) else leaf)


def swapped(f: Formula) -> Formula:
    """The transposed pattern: q and k exchanged; conditions on metadata stay, and still mean the old sides."""

    def by(leaf: Leaf) -> Formula:
        if isinstance(leaf, Atom):
            return atom(leaf.op, substitute(leaf.x, K, Q, H))
        return leaf._replace(table=leaf.table.swapped()) if isinstance(leaf, InTable) else leaf

    return replace(f, by)


def per_head(f: Formula) -> bool:
    """Does any atom depend on the head?"""
    for leaf in leaves(f):
        if isinstance(leaf, Atom) and uses_head(leaf.x):
            return True
        if isinstance(leaf, InTable) and leaf.table.per_head:
            return True
    return False


def visible_keys(nk: int) -> Formula:
    """k < nk, for a last key block that is not full."""
    return Atom("ge", make(1, 0, -1, 0, nk - 1, {}))
