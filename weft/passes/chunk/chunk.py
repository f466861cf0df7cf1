"""Loops over positions that are linear in their states become products within chunks and a loop over chunks.

before:
    loop seq (s; q, k, v, a) { s' = a*s + k*v; o = <q, s'> }
after:
    q, k, v, a = chunk(.., seq -> chunks chunk)
    M = <q, k> * decays between two places;  loop chunks (s; whole, add) { s' = whole*s + add; stack s }
    o = unchunk(q*before @ s + M @ v)

It fires on loops whose positions can be cut (`chunks`) and whose states' next values are linear in the states, which
nothing reads but by sums along their key dims; states that others read and that are not linear (a stabiliser's maximum)
stay a loop of their own before it. What is free of the states is computed for all positions at once. Derivatives are
those of the result, so what is kept of states is one for each chunk. The same real-arithmetic function: `numerics`.

A state whose decays differ by key, which no other dim shares, and are fixed is computed in chunks too, or by one long
convolution where prices say so; with another one it may be a complex number (see `fixed`, `invariant`).

It does not fire, and the decision says why, on any other loop; nor where such decays move: each number of the state
would need a chunk's square of them.

Source: see `product`, `invariant`.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import sympy as sp

from weft.ir.builder import Builder, flatten, rebuilt
from weft.ir.formula.functions import where
from weft.ir.graphs import dce
from weft.ir.loops import linear_in_state
from weft.ir.ops.regions import Loop
from weft.ir.types import Decision, Graph, Node, Val, union
from weft.passes.chunk.choose import ChosenForm, Rejected, by_price
from weft.passes.chunk.fixed import FixedState, coupled, fixed_state
from weft.passes.chunk.forms import FixedRead, Form, Forms, NotLinear, Outside, StateItself, StateRead
from weft.passes.chunk.product import Chunked
from weft.passes.chunk.states import LinearState, linear_state
from weft.passes.fusion.price import Prices

SERIAL: Rejected = ("step by step", "slower", ())


def chunk(graph: Graph, prices: Prices | None = None) -> Graph:
    """The graph with its linear recurrences in chunks. prices: what forms are chosen by; None: chunks, where there are
    several."""
    if not any(isinstance(n.op, Loop) and n.op.chunks for n in graph.nodes):
        return graph
    read = {v for n in graph.nodes for v in n.ins} | set(graph.outputs)
    decisions: list[Decision] = []

    def rule(g: Builder, n: Node, ins: list[Val]) -> Sequence[Val | None] | None:
        if not isinstance(n.op, Loop) or not n.op.chunks:
            return None
        try:
            outs, said, rejected = _Loop(g, n, ins, read, prices).build()
        except NotLinear as e:
            decisions.append(_decision(n, "step by step", [("in chunks", str(e), ())]))
            return None
        decisions.append(_decision(n, said, rejected))
        return outs

    made = dce(rebuilt(graph, rule))
    return replace(made, decisions=(*made.decisions, *decisions))


def _decision(n: Node, choice: str, rejected: Sequence[Rejected]) -> Decision:
    op: Any = n.op
    numbers = (("states", op.carries),)
    return Decision("chunk", n.outs[op.carries].name, choice, "numerics", numbers, tuple(rejected), n.src)


class _Loop:
    """One loop on its way into chunks."""

    def __init__(self, g: Builder, n: Node, ins: Sequence[Val], read: set[Val], prices: Prices | None) -> None:
        op: Any = n.op
        if op.reverse:
            raise NotLinear("it runs backwards")
        self.g, self.node, self.op, self.ins, self.read, self.prices = g, n, op, ins, read, prices
        self.body = flatten(op.body)
        self.count = op.carries
        self.carries = self.body.inputs[: self.count]
        self.dtype = self.carries[0].dtype
        every = union(*(v.dims for v in self.carries), *(m.space for m in self.body.nodes))
        self.out = Outside(g, op.dim, every)
        self.results: dict[int, Val] = {}
        self.histories: dict[Val, Val] = {}

    def build(self) -> tuple[list[Val | None], str, list[Rejected]]:
        """The loop's results, None for one that nothing reads; how they are computed, in words, and how not."""
        alone = self.alone()
        given = dict(zip(self.body.inputs[self.count :], self.ins[self.count :]))
        if alone:
            given |= self.serial(alone)
        states = {v: i for i, v in enumerate(self.carries) if i not in alone}
        forms = Forms(self.out, self.body, given, states, self.dtype)
        reads = self.reads(forms)
        fixed = self.fixed(forms, sorted(states.values()), reads)
        one_by_one = [i for i in states.values() if not any(i in group for group in fixed)]
        found = {i: self.state(forms, i, reads) for i in one_by_one}
        histories = self.node.outs[len(self.body.outputs) :]
        if any(histories[i] in self.read for i in states.values()):
            raise NotLinear("the states of all positions are read")
        known: dict[Any, Val] = {}
        for i, state in found.items():
            self.chunked(i, state, reads, known)
        chosen = [self.chosen(group, state, known) for group, state in fixed.items()]
        outs = self.outputs(forms, known)
        said = [f"{self.carries[i].name} step by step before the others" for i in sorted(alone)]
        how = "; ".join([*said, *(s.kind(self.out) for s in found.values()), *(s.kind() for s in fixed.values())])
        form = {c.name for c in chosen} or {"in chunks"}
        return outs, f"{' and '.join(sorted(form))}: {how}", [*(r for c in chosen for r in c.rejected), SERIAL]

    def fixed(
        self, forms: Forms, states: Sequence[int], reads: Sequence[StateRead]
    ) -> dict[tuple[int, ...], FixedState]:
        """The states whose numbers are fixed and differ by key: alone, or two that are one complex number."""
        steps = {i: self.unheld(forms, forms.form[self.body.outputs[i]] or {}) for i in range(self.count)}
        pairs = coupled([steps[i] for i in range(self.count)])
        alone = [i for i in states if not any(i in pair for pair in pairs)]
        by_key: dict[tuple[int, ...], LinearState] = {
            (i,): found for i in alone if (found := self.by_key(i, steps[i], reads)) is not None
        }
        made: dict[tuple[int, ...], FixedState] = {}
        for group in (*pairs, *by_key):
            try:
                made[group] = fixed_state(forms, group, [steps[i] for i in group], reads, self.wanted(forms))
            except NotLinear:
                if group not in by_key or not by_key[group].value:
                    raise
        return made

    def unheld(self, forms: Forms, step: Form) -> Form:
        """The step of a place where there is something: behind the last one no state is read but at the end."""
        if not self.op.padded:
            return step
        (real,) = (forms.form[self.body.inputs[-1]] or {}).values()
        there = {where(real, 1, 0): sp.S.One, where(real, 0, 1): sp.S.Zero}
        found = {a: e.xreplace(there) for a, e in step.items()}
        return {a: e for a, e in found.items() if e != 0}

    def by_key(self, i: int, step: Form, reads: Sequence[StateRead]) -> LinearState | None:
        """A state alone that has decays by key: its numbers are fixed, or its values share the products of a chunk."""
        if any(isinstance(a, StateItself) and a.carry != i for a in step):
            return None  # which `state` tells
        found = linear_state(self.out, self.carries[i], i, step, reads)
        return None if self.out.dims(found.decay).isdisjoint(found.key) else found

    def chosen(self, group: tuple[int, ...], state: FixedState, known: dict[Any, Val]) -> ChosenForm:
        """What is read of a fixed state, in the form that costs least."""
        starts = [self.ins[i] for i in group]
        last = [i for i in group if self.node.outs[i] in self.read]
        found = by_price(self.out, state, self.op.chunks, starts, bool(last), self.prices)
        known |= {
            FixedRead(group[0], r): self.g.expand(v, to=self.out.ordered(v.dims)) for r, v in enumerate(found.reads)
        }
        if last:
            self.results |= dict(zip(group, found.last(self.lengths())))
        return found

    def lengths(self) -> Val | None:
        """How many positions each row has, where that is not all of them: i64[batch]."""
        if not self.op.padded:
            return None
        real, time = self.ins[-1], self.out.time
        places = self.g.map(f"where(r, i_{time} + 1, 0)", r=real, to=real.dims, dtype="i64")
        return self.g.reduce(places, to=[d for d in real.dims if d != time], kind="max")

    def alone(self) -> set[int]:
        """The states whose next value is not linear in those it goes round with: they must depend on no others."""
        uses = [self.below(v) for v in self.body.outputs[: self.count]]
        found: set[int] = set()
        for i in range(self.count):
            group = {i} | {j for j in uses[i] if i in uses[j]}
            if any(self.without(group).form[self.body.outputs[j]] is None for j in group):
                found |= group
        for i in sorted(found):
            if more := sorted(uses[i] - found):
                raise NotLinear(
                    f"{self.carries[i].name} is not linear in the states and reads {self.carries[more[0]].name}"
                )
        if len(found) == self.count:
            what = "a matrix times the state" if linear_in_state(self.op) else "not linear in the states"
            raise NotLinear(f"the next value of {self.carries[min(found)].name} is {what}")
        return found

    def below(self, v: Val) -> set[int]:
        """The states that a value of the body depends on, through the steps before it too."""
        found, todo = set[int](), [v]
        while todo:
            below = dce(replace(self.body, outputs=(todo.pop(),)))
            read = {x for n in below.nodes for x in n.ins} | set(below.outputs)
            new = {i for i, c in enumerate(self.carries) if c in read} - found
            found |= new
            todo += [self.body.outputs[i] for i in new]
        return found

    def without(self, group: set[int]) -> Forms:
        """The forms of the body's values in these states alone, all others as if they were given."""
        first, time, *rest = self.out.order
        out = Outside(Builder(), time, [first, *rest])
        given = {v: out.g.input(v.name, v.type) for i, v in enumerate(self.body.inputs) if i not in group}
        return Forms(out, self.body, given, {self.carries[i]: i for i in group}, self.dtype)

    def serial(self, alone: set[int]) -> dict[Val, Val]:
        """A loop of the states that are not linear; gives what they are before each step."""
        at = sorted(alone)
        body = dce(replace(self.body, outputs=tuple(self.body.outputs[i] for i in at)))
        used = {v for n in body.nodes for v in n.ins} | set(body.outputs)
        inputs = [(v, o) for v, o in zip(self.body.inputs[self.count :], self.ins[self.count :]) if v in used]
        body = replace(body, inputs=(*(self.carries[i] for i in at), *(v for v, _ in inputs)))
        outs = self.g.many(Loop(self.op.dim, body, len(at)), *(self.ins[i] for i in at), *(o for _, o in inputs))
        self.results |= dict(zip(at, outs))
        before = outs[len(at) :]
        first, *rest = self.out.order
        order = {v: tuple(d for d in (first, *rest) if d in v.dims) for v in before}
        self.histories = {self.node.outs[len(self.body.outputs) + i]: v for i, v in zip(at, before)}
        return {self.carries[i]: self.g.expand(v, to=order[v]) for i, v in zip(at, before)}

    def reads(self, forms: Forms) -> list[StateRead]:
        """Every read of a state, in order."""
        wanted = [v for n in forms.later for v in n.ins] + list(self.body.outputs)
        found = [a for v in wanted for a in (forms.form[v] or ())]
        if whole := [a for v in self.wanted(forms) for a in (forms.form[v] or ()) if isinstance(a, StateItself)]:
            raise NotLinear(f"{self.carries[whole[0].carry].name} is read as a whole")
        return list(dict.fromkeys(a for a in found if isinstance(a, StateRead)))

    def wanted(self, forms: Forms) -> list[Val]:
        """What has to be known at each position."""
        return [*(v for n in forms.later for v in n.ins), *self.body.outputs[self.count :]]

    def state(self, forms: Forms, i: int, reads: Sequence[StateRead]) -> LinearState:
        step = forms.form[self.body.outputs[i]]
        assert step is not None
        return linear_state(self.out, self.carries[i], i, step, reads)

    def chunked(self, i: int, state: LinearState, reads: Sequence[StateRead], known: dict[Any, Val]) -> None:
        last = self.node.outs[i] in self.read
        mine = {r: state.readers.index(r.by) for r in reads if r.carry == i}
        of = Chunked(self.out, state, self.op.chunks[:4], last)
        got, self.results[i] = of.build(self.ins[i], list(dict.fromkeys(mine.values())))
        known |= {r: self.g.expand(got[at], to=self.out.ordered(got[at].dims)) for r, at in mine.items()}

    def outputs(self, forms: Forms, known: dict[Any, Val]) -> list[Val | None]:
        """The results of the loop."""
        made: dict[Val, Val] = {}

        def value(v: Val) -> Val:
            form = forms.form[v]
            return made[v] if form is None else self.out.value(self.meant(form, known), v.dtype, v.dims)

        for n in forms.later:
            made.update(zip(n.outs, forms.run(n, [value(v) for v in n.ins])))
        count, k = self.count, len(self.body.outputs)
        outs: list[Val | None] = [self.results.get(i) for i in range(count)]
        for v, o in zip(self.body.outputs[count:], self.node.outs[count:k]):
            got = value(v) if o in self.read else None
            outs.append(got and self.g.expand(got, to=o.dims))
        for o in self.node.outs[k:]:
            outs.append(None if o not in self.read else self.g.expand(self.histories[o], to=o.dims))
        return outs

    def meant(self, form: Form, known: dict[Any, Val]) -> Any:
        """A form as a formula over what is read."""
        total: Any = 0
        for atom, e in form.items():
            assert not isinstance(atom, StateItself)
            total += e if atom is None else e * self.out.symbol(known[atom])
        return total
