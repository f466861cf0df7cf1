"""A pattern as a union of disjoint terms."""

import itertools
from functools import lru_cache

from weft.ir.pattern.expression import congruences
from weft.ir.pattern.formula import Atom, Formula, Junction, all_of, any_of, atoms, negate, opaque, replace

MAX_TERMS = 16


def conjuncts(f: Formula) -> tuple[Formula, ...]:
    return f.parts if isinstance(f, Junction) and f.op == "and" else (f,)


def terms(f: Formula) -> tuple[Formula, ...]:
    """f as a union: its disjunctive form, terms that differ only in what they ask of k % l joined again.

    One term, f itself, where the disjunctive form is longer than MAX_TERMS.
    """
    spread = _disjunctive(f)
    if spread is None:
        return (f,)
    groups: dict[tuple[Formula, bool], list[Formula]] = {}
    for term in spread:
        of_keys = [c for c in conjuncts(term) if _reads_key_only(c)]
        rest = all_of(*(c for c in conjuncts(term) if c not in of_keys))
        groups.setdefault((rest, bool(of_keys)), []).append(all_of(*of_keys))
    return tuple(all_of(rest, any_of(*keys)) for (rest, _), keys in groups.items())


def _disjunctive(f: Formula) -> list[Formula] | None:
    if not isinstance(f, Junction):
        return [f]
    parts = [_disjunctive(p) for p in f.parts]
    some = [p for p in parts if p is not None]
    if len(some) < len(parts):
        return None
    if f.op == "or":
        out = [t for p in some for t in p]
        return out if len(out) <= MAX_TERMS else None
    count = 1
    for p in some:
        count *= len(p)
    return [all_of(*c) for c in itertools.product(*some)] if count <= MAX_TERMS else None


def _reads_key_only(f: Formula) -> bool:
    """Is it a condition on remainders of k alone?"""
    found = atoms(f)
    plain = all(a.x.q == a.x.k == 0 and a.x.mods and all(c[0] == 0 for c in congruences(a.x)) for a in found)
    return bool(found) and plain and not opaque(f)


@lru_cache(maxsize=4096)
def simplified(f: Formula) -> Formula:
    """Drop from each conjunct what the conjuncts that are atoms already decide."""
    known: dict[Formula, bool] = {}
    for c in conjuncts(f):
        if isinstance(c, Atom):
            known[c], known[negate(c)] = True, False
    parts = [c if c in known else replace(c, lambda leaf: known.get(leaf, leaf)) for c in conjuncts(f)]
    g = all_of(*parts)
    return g if g == f else simplified(g)


def disjoint(some: tuple[Formula, ...]) -> tuple[Formula, ...]:
    """Each term without those before it; empty ones left out."""
    out = (simplified(all_of(t, *(negate(u) for u in some[:i]))) for i, t in enumerate(some))
    return tuple(t for t in out if t is not False)
