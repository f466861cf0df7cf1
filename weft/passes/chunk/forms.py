"""What each value of a loop's body is in the loop's states: free of them, linear in them, or anything else.

    p = einsum(k, s) to=[batch heads value]; after = map(s, k, v, b, p) exprs="a*s + b*k*(v - a*p)"
    ->  after = a * s  +  (-a*b*k) * <k, s>  +  b*k*v

A form is a sum of coefficients times atoms: a state itself, a read <by, s> (a state times `by`, summed over dims), 1.
Coefficients are formulas over symbols that stand for values which are free of states; those are computed outside of the
loop, for all positions at once.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sympy as sp

from weft.ir.builder import Builder
from weft.ir.formula import local, operand, symbol
from weft.ir.formula.functions import where
from weft.ir.ops.op import op_name
from weft.ir.ops.primitives import Einsum, Map, Reduce
from weft.ir.types import Dims, Graph, Node, Val, union


class NotLinear(Exception):
    """A loop, or one of its values, that is not linear in the states; the message says what is not."""


@dataclass(frozen=True)
class StateItself:
    """A state as it was before the step, by its place among the carries."""

    carry: int


@dataclass(frozen=True)
class StateRead:
    """The sum over dims of a state before the step times `by`."""

    carry: int
    over: frozenset[str]
    by: Any


@dataclass(frozen=True)
class FixedRead:
    """What is read of a fixed state, by its first carry and the place among its readers; see `fixed`."""

    carry: int
    at: int


Atom = StateItself | StateRead | FixedRead | None
Form = dict[Atom, Any]


class Outside:
    """Values outside of a loop along `time`, and formulas over the symbols that stand for them."""

    def __init__(self, g: Builder, time: str, order: Sequence[str]) -> None:
        self.g, self.time = g, time
        self.order = (*order[:1], time, *order[1:])
        self.vals: dict[Any, Val] = {}
        self.symbols: dict[Val, Any] = {}
        self.summed: dict[object, Any] = {}

    def symbol(self, v: Val) -> Any:
        """The symbol of a value."""
        if v not in self.symbols:
            self.symbols[v] = symbol(f"x{len(self.vals)}")
            self.vals[self.symbols[v]] = v
        return self.symbols[v]

    def dims(self, e: Any) -> set[str]:
        """The dims, time apart, that a formula varies along."""
        found: set[str] = set()
        for s in e.free_symbols:
            found.update(self.vals[s].dims if s in self.vals else [s.name[2:]] if s.name.startswith("i_") else [])
        return found - {self.time}

    def ordered(self, dims: Iterable[str]) -> Dims:
        return tuple(sorted(dims, key=self.order.index))

    def value(self, e: Any, dtype: str, also: Iterable[str] = ()) -> Val:
        """The value of a formula, over the dims that it varies along and `also` these."""
        given = {s.name: self.vals[s] for s in sorted(e.free_symbols, key=str) if s in self.vals}
        dims = self.ordered({*self.dims(e), *also, *(d for v in given.values() for d in v.dims)})
        if e in self.vals and self.vals[e].dims == dims:
            return self.vals[e]
        return self.g.maps([e], given, to=dims, dtype=dtype)[0]

    def sum(self, factors: Sequence[Any], over: frozenset[str], dtype: str) -> Any:
        """The symbol of the sum of a product over dims that all of them, together, have."""
        found = sp.Mul(*factors), over
        if found not in self.summed:
            groups: dict[frozenset[str], Any] = {}
            for f in factors:
                dims = frozenset(self.dims(f))
                groups[dims] = groups.get(dims, sp.S.One) * f
            vals = [self.value(e, dtype) for e in groups.values()]
            to = self.ordered(set(union(*(v.dims for v in vals))) - over)
            self.summed[found] = self.symbol(
                self.g.einsum(*vals, to=to) if len(vals) > 1 else self.g.reduce(vals[0], to)
            )
        return self.summed[found]


class Forms:
    """The forms of a body's values. later: the nodes that read states in another way, to be run on what is read."""

    def __init__(
        self, out: Outside, body: Graph, given: Mapping[Val, Val], states: Mapping[Val, int], dtype: str
    ) -> None:
        self.out, self.body, self.states, self.dtype = out, body, states, dtype
        self.form: dict[Val, Form | None] = {v: {StateItself(i): sp.S.One} for v, i in states.items()}
        self.form |= {v: {None: out.symbol(o)} for v, o in given.items()}
        self.later: list[Node] = []
        for n in body.nodes:
            self.form.update(zip(n.outs, self._node(n)))

    def _node(self, n: Node) -> Sequence[Form | None]:
        ins = [self.form[v] for v in n.ins]
        known = [f for f in ins if f is not None]
        if len(known) == len(ins):
            if all(set(f) <= {None} for f in known):
                return [{None: self.out.symbol(v)} for v in self._outside(n, known)]
            try:
                return self._linear(n, known)
            except NotLinear:
                pass
        self.later.append(n)
        return [None] * len(n.outs)

    def _outside(self, n: Node, ins: Sequence[Form]) -> tuple[Val, ...]:
        return self.run(n, [self.out.value(f.get(None, sp.S.Zero), v.dtype, v.dims) for f, v in zip(ins, n.ins)])

    def run(self, n: Node, ins: Sequence[Val]) -> tuple[Val, ...]:
        """A node outside of the loop, for all positions where an operand has them."""
        op: Any = n.op
        if any(self.out.time in v.dims for v in ins):
            if not isinstance(op, Map | Einsum | Reduce):
                raise NotLinear(f"a step has {op_name(type(op))}, which is not done for all positions at once")
            op = replace(op, to=self.out.ordered((*op.to, self.out.time)))
        with self.out.g.at(n.src):
            return self.out.g.many(op, *ins, names=[v.name for v in n.outs])

    def _linear(self, n: Node, ins: Sequence[Form]) -> list[Form]:
        if isinstance(n.op, Map):
            env = {operand(i): f for i, f in enumerate(ins)}
            for i, e in enumerate(n.op.lets):
                env[local(i)] = _evaluated(e, env)
            return [_evaluated(e, env) for e in n.op.exprs]
        if isinstance(n.op, Einsum) or (isinstance(n.op, Reduce) and n.op.kind == "sum"):
            total: Form = {None: sp.S.One}
            for f in ins:
                total = _times(total, f)
            return [self._summed(total, set(n.space).difference(n.op.to))]
        raise NotLinear(op_name(type(n.op)))

    def dims(self, atom: Atom) -> set[str]:
        """The dims of a state that are there."""
        if atom is None:
            return set()
        state = next(v for v, i in self.states.items() if i == atom.carry)
        return set(state.dims) - (atom.over if isinstance(atom, StateRead) else frozenset())

    def _summed(self, form: Form, over: set[str]) -> Form:
        found: Form = {}
        for atom, e in form.items():
            for term in sp.Add.make_args(sp.expand_mul(e)):
                found = _plus(found, self._summed_term(atom, term, over))
        return found

    def _summed_term(self, atom: Atom, term: Any, over: set[str]) -> Form:
        factors = list(sp.Mul.make_args(term))
        if isinstance(atom, StateRead) and (
            own := over & self.out.dims(atom.by) - self.dims(replace(atom, over=frozenset()))
        ):
            more = [f for f in factors if self.out.dims(f) & own]  # the weights alone have these dims
            by = self.out.sum([*sp.Mul.make_args(atom.by), *more], frozenset(own), self.dtype)
            atom, factors, over = replace(atom, by=by), [f for f in factors if f not in more], over - own
        inside = over & self.dims(atom)
        if inside:
            assert atom is not None
            read = [f for f in factors if self.out.dims(f) & inside]
            by, factors = sp.Mul(*read), [f for f in factors if f not in read]
            if self.out.dims(by) & (over - inside):
                raise NotLinear("a read whose weights are sums")
            before = (atom.over, atom.by) if isinstance(atom, StateRead) else (frozenset[str](), sp.S.One)
            atom = StateRead(atom.carry, before[0] | inside, before[1] * by)
        rest = over - inside
        own = [f for f in factors if self.out.dims(f) & rest]
        others = [f for f in factors if f not in own]
        have = rest & set[str]().union(*map(self.out.dims, own))
        if own:
            others.append(self.out.sum(own, frozenset(have), self.dtype))
        return {atom: sp.Mul(*others, *(symbol(f"n_{d}") for d in sorted(rest - have)))}


def _plus(a: Form, b: Form) -> Form:
    out = dict(a)
    for atom, e in b.items():
        out[atom] = out.get(atom, sp.S.Zero) + e
    return {atom: e for atom, e in out.items() if e != 0}


def _times(a: Form, b: Form) -> Form:
    if not set(a) <= {None}:
        a, b = b, a
    if not set(a) <= {None}:
        raise NotLinear("a product of states")
    factor = a.get(None, sp.S.Zero)
    return {atom: factor * e for atom, e in b.items()} if factor != 0 else {}


def _evaluated(e: Any, env: Mapping[Any, Form]) -> Form:
    """A formula over symbols with forms."""
    if e in env:
        return env[e]
    moving = [s for s in e.free_symbols if s in env and not set(env[s]) <= {None}]
    if not moving:
        return {None: e.xreplace({s: env[s].get(None, sp.S.Zero) for s in e.free_symbols if s in env})}
    if e.is_Add:
        found: Form = {}
        for a in e.args:
            found = _plus(found, _evaluated(a, env))
        return found
    if e.is_Mul:
        found = {None: sp.S.One}
        for a in e.args:
            found = _times(found, _evaluated(a, env))
        return found
    if isinstance(e, where) and not any(s in moving for s in e.args[0].free_symbols):
        chosen, other = (_evaluated(a, env) for a in e.args[1:])
        cond = e.args[0].xreplace({s: env[s].get(None, sp.S.Zero) for s in e.args[0].free_symbols if s in env})
        found = _times({None: where(cond, 1, 0)}, chosen)
        return _plus(found, _times({None: where(cond, 0, 1)}, other))
    raise NotLinear(str(e))
