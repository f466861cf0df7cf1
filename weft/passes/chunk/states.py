"""A state's step in normal form: a decay, and sources that write at keys what is given and what is read.

    s' = a*s + sum over sources i of  key_i * (y_i + sum over readers r of c_ir * <w_r, s>)

Dims of the state are keys where its reads sum them, batch where the decay or a factor with a key varies along them, and
values otherwise. Linear attention, RetNet, GLA, SSD, mLSTM, the delta rules and RWKV-7 are this with other sources.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import sympy as sp

from weft.ir.types import Dims, Val
from weft.passes.chunk.forms import Form, NotLinear, Outside, StateItself, StateRead


@dataclass
class StateSource:
    """What is written at `key`: `plain`, and for each reader by its place what it reads times a coefficient."""

    key: Any
    plain: Any = sp.S.Zero
    reads: dict[int, Any] = field(default_factory=dict[int, Any])


@dataclass
class LinearState:
    """One state. decay: 1 where nothing is forgotten. readers: the weights of each read."""

    state: Val
    batch: Dims
    key: Dims
    value: Dims
    decay: Any
    sources: list[StateSource]
    readers: list[Any]

    @property
    def active(self) -> list[int]:
        """The sources that read the state."""
        return [i for i, s in enumerate(self.sources) if s.reads]

    def kind(self, out: Outside) -> str:
        """In words: its decay, and whether what it writes depends on what it reads."""
        over = [d for d in self.state.dims[1:] if d in out.dims(self.decay)]
        moving = any(out.time in out.vals[s].dims for s in self.decay.free_symbols if s in out.vals)
        said = f"{'a' if moving else 'a fixed'} decay over [{' '.join(over)}]" if self.decay != 1 else "no decay"
        active, name = len(self.active), self.state.name
        written = f"{active} of {len(self.sources)} writes depend on reads" if active else "writes are outer products"
        return f"{name} has {said}, {written}"


def linear_state(out: Outside, state: Val, carry: int, step: Form, reads: Iterable[StateRead]) -> LinearState:
    """The normal form of a state, by the form of its next value and all reads of it. Raises NotLinear."""
    name = state.name
    mine = list(dict.fromkeys(r for r in (*step, *reads) if isinstance(r, StateRead) and r.carry == carry))
    for atom in step:
        if atom is not None and atom.carry != carry:
            raise NotLinear(f"the next value of {name} reads another state as a whole")
    overs = {r.over for r in mine}
    if len(overs) != 1:
        raise NotLinear(f"{name} is summed along other dims here than there" if overs else f"no sum reads {name}")
    key = tuple(d for d in state.dims if d in overs.copy().pop())
    decay = step.get(StateItself(carry), sp.S.Zero)
    written = [(atom, factors(t)) for atom, e in step.items() if not isinstance(atom, StateItself) for t in terms(e)]
    rest = set(state.dims) - set(key)
    batch = {state.dims[0]} | (out.dims(decay) & rest)
    for parts in (*(fs for _, fs in written), *(factors(r.by) for r in mine)):
        batch |= {d for f in parts if out.dims(f) & set(key) for d in out.dims(f) & rest}
    found = LinearState(state, _part(state, batch), key, _part(state, rest - batch), decay, [], [])
    for r in mine:
        if r.by not in found.readers:
            found.readers.append(r.by)
    for atom, parts in written:
        _write(out, found, atom, parts)
    return found


def _part(state: Val, dims: set[str]) -> Dims:
    return tuple(d for d in state.dims if d in dims)


def terms(e: Any) -> Sequence[Any]:
    """The terms of a sum, multiplied out."""
    return sp.Add.make_args(sp.expand_mul(e))


def factors(term: Any) -> Sequence[Any]:
    """The factors of a product."""
    return sp.Mul.make_args(term)


def _write(out: Outside, found: LinearState, atom: Any, parts: Sequence[Any]) -> None:
    """Add a term of the step to the source of its key."""
    keys = [f for f in parts if out.dims(f) & set(found.key)]
    key, others = sp.Mul(*keys), sp.Mul(*(f for f in parts if f not in keys))
    if atom is not None and out.dims(others) & set(found.value):
        raise NotLinear(f"the next value of {found.state.name} mixes its values")
    source = next((s for s in found.sources if s.key == key), None)
    if source is None:
        source = StateSource(key)
        found.sources.append(source)
    if atom is None:
        source.plain += others
    else:
        r = found.readers.index(atom.by)
        source.reads[r] = source.reads.get(r, sp.S.Zero) + others
