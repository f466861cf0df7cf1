"""States whose decays, keys and reads are the same at every position: diagonal state spaces, real or complex.

    re' = a*re - b*im + k*u;  im' = b*re + a*im + h*u;  y = <p, re> - <q, im>     (im, b, h and q may be missing)

is z' = A z + K u, y = Re <W, z> of complex numbers, one for each of the dims that reads sum. What is read of position j
at t depends on t - j alone.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import sympy as sp

from weft.ir.types import Dims, Val
from weft.passes.chunk.forms import FixedRead, Form, Forms, NotLinear, Outside, StateItself, StateRead
from weft.passes.chunk.states import factors, terms

Complex = tuple[Any, Any]
"""The formulas of a number's real and imaginary part."""


@dataclass(frozen=True)
class FixedState:
    """One state, by the carries that are its parts. lead: dims of it that the numbers have, the summed ones apart;
    value: all its other dims but the first. sources: a key and what is written there; readers: the weights of reads."""

    carries: tuple[Val, ...]
    key: Dims
    lead: Dims
    value: Dims
    decay: Complex
    sources: tuple[tuple[Complex, Any], ...]
    readers: tuple[Complex, ...]

    def kind(self) -> str:
        """In words."""
        names = " and ".join(v.name for v in self.carries)
        what = "one complex state with" if len(self.carries) > 1 else "with"
        return f"{names}, {what} numbers of their own over [{' '.join((*self.lead, *self.key))}], fixed"


def product(x: Complex, y: Complex) -> Complex:
    """The product of two complex numbers, as formulas."""
    return x[0] * y[0] - x[1] * y[1], x[0] * y[1] + x[1] * y[0]


def coupled(steps: Sequence[Form]) -> list[tuple[int, int]]:
    """The pairs of states of which each reads the other as a whole, and none else."""
    others = [{a.carry for a in step if isinstance(a, StateItself)} - {i} for i, step in enumerate(steps)]
    return [(i, j) for i, found in enumerate(others) for j in found if i < j and found == {j} and others[j] == {i}]


def fixed_state(
    forms: Forms, group: Sequence[int], steps: Sequence[Form], reads: Iterable[StateRead], wanted: Iterable[Val]
) -> FixedState:
    """The state whose parts are the carries `group`, by their steps; in the forms of `wanted` its reads become
    FixedReads. Raises NotLinear where a number of it moves, or it is more than diagonal."""
    out, parts = forms.out, tuple(forms.body.inputs[i] for i in group)
    name = parts[0].name
    over = {r.over for r in reads if r.carry in group}
    if len(over) != 1 or {v.dims for v in parts} != {parts[0].dims}:
        raise NotLinear(f"{name} is not read by sums along the same dims" if over else f"no sum reads {name}")
    (summed,) = over
    if any(a is not None and not isinstance(a, StateItself) for step in steps for a in step):
        raise NotLinear(f"the next value of {name} depends on sums over it")
    decay, sources = _decay(name, group, steps), _sources(out, name, summed, steps)
    readers, read = _readers(forms, group, wanted)
    numbers = [*decay, *(e for key, _ in sources for e in key), *(e for w in readers for e in w)]
    dims = set[str]().union(*map(out.dims, numbers)) - summed
    if any(_moves(out, e) for e in numbers) or not dims <= set(parts[0].dims[1:]):
        raise NotLinear(f"{name} has no dim that shares the products of a chunk, and numbers that move")
    forms.form.update(read)
    rest = [d for d in parts[0].dims[1:] if d not in summed]
    lead, value = (tuple(d for d in rest if (d in dims) == own) for own in (True, False))
    key = tuple(d for d in parts[0].dims if d in summed)
    return FixedState(parts, key, lead, value, decay, sources, readers)


def _moves(out: Outside, e: Any) -> bool:
    return any(out.time in out.vals[s].dims for s in e.free_symbols if s in out.vals)


def _decay(name: str, group: Sequence[int], steps: Sequence[Form]) -> Complex:
    """The number that a state is multiplied by. Raises NotLinear for parts that do not turn as one number."""
    first, *rest = (StateItself(i) for i in group)
    zero = sp.S.Zero
    if not rest:
        return steps[0].get(first, zero), zero
    other = rest[0]
    a, b = steps[0].get(first, zero), -steps[0].get(other, zero)
    if steps[1].get(other, zero) != a or steps[1].get(first, zero) != b:
        raise NotLinear(f"{name} and a second state mix, and not as one complex number")
    return a, b


def _sources(out: Outside, name: str, key: frozenset[str], steps: Sequence[Form]) -> tuple[tuple[Complex, Any], ...]:
    """What is written, by what it is without its key."""
    found: dict[Any, list[Any]] = {}
    for part, step in enumerate(steps):
        for term in terms(step.get(None, sp.S.Zero)):
            keys = [f for f in factors(term) if out.dims(f) & key]
            given = sp.Mul(*(f for f in factors(term) if f not in keys))
            if given != 0:
                found.setdefault(given, [sp.S.Zero, sp.S.Zero])[part] += sp.Mul(*keys)
    if not found:
        raise NotLinear(f"nothing is written to {name}")
    return tuple(((re, im), given) for given, (re, im) in found.items())


def _readers(
    forms: Forms, group: Sequence[int], wanted: Iterable[Val]
) -> tuple[tuple[Complex, ...], dict[Val, Form | None]]:
    """The weights of all reads: those of one form together, where none has a factor of its own; and the forms with
    FixedReads in them."""
    found: list[Complex] = []
    forms_read: dict[Val, Form | None] = {}

    def read(weights: Complex) -> FixedRead:
        if weights not in found:
            found.append(weights)
        return FixedRead(group[0], found.index(weights))

    for v in dict.fromkeys(wanted):
        form = forms.form[v] or {}
        mine = {a: e for a, e in form.items() if isinstance(a, StateRead) and a.carry in group}
        if not mine:
            continue
        made: Form = {a: e for a, e in form.items() if a not in mine}
        if all(e.is_number for e in mine.values()):
            sums = [sum((e * a.by for a, e in mine.items() if a.carry == i), sp.S.Zero) for i in group]
            made[read((sums[0], -sums[1] if len(sums) > 1 else sp.S.Zero))] = sp.S.One
        else:
            for a, e in mine.items():
                atom = read((a.by, sp.S.Zero) if a.carry == group[0] else (sp.S.Zero, -a.by))
                made[atom] = made.get(atom, sp.S.Zero) + e
        forms_read[v] = made
    return tuple(found), forms_read
