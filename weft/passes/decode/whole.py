"""What decoding reads once: the streams that are whole before the first step, and what blocks make of them alone.

A value of the model is whole when it comes from streams that are read once, parameters apart, and from none that grows.
Blocks that read nothing else run before the first step. What a block that grows makes of whole values alone (the keys
and values of a cross attention) is made then too, and kept:

    (x [batch target width], source [batch source width], w, ..) { k = einsum(source, w); o = attend(q(x), k, ..) }
    ->  constant: (source, w, ..) { k = einsum(source, w) }    rest: (x, .., k) { o = attend(q(x), k, ..) }
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

from weft.ir.graphs import dce
from weft.ir.types import Graph, Node, Val
from weft.ir.verify import verify
from weft.passes.structure import CallSite, Given, Stack, Structure


@dataclass(frozen=True)
class WholeValues:
    """top: the whole values of the model's graph. given: of each call, by its place among the calls, the names of those
    inputs of its body that are whole. once: the calls whose every result is."""

    top: frozenset[Val]
    given: tuple[frozenset[str], ...]
    once: frozenset[int]


def whole(model: Structure) -> WholeValues:
    """What is whole in a model."""
    program = model.program
    lengths, growing = {s.length for s in program.streams if s.once}, {*program.growing}
    public = [program.input(name) for name in program.inputs]
    top = _WholeWalk({v for v in public if lengths & {*v.dims}}, {v for v in public if growing & {*v.dims}})
    given, once = list[frozenset[str]](), set[int]()

    def call(site: CallSite, walk: _WholeWalk) -> None:
        walk.results([s.value for s in site.sources if isinstance(s, Given)], site.node.outs)
        here = zip(site.body.inputs, site.sources)
        once.update([len(given)] if all(map(walk.holds, site.node.outs)) else [])
        given.append(frozenset(v.name for v, s in here if isinstance(s, Given) and walk.holds(s.value)))

    for step in model.steps:
        if isinstance(step, CallSite):
            call(step, top)
        elif isinstance(step, Stack):
            inner = _WholeWalk(set(), set())
            top.hand(zip(step.node.ins, step.loop.body.inputs), inner)
            for site in step.sites:
                call(site, inner)
            inner.hand(zip(step.loop.body.outputs, step.node.outs), top)
        else:
            top.results(step.ins, step.outs)
    return WholeValues(frozenset(filter(top.holds, top.whole)), tuple(given), frozenset(once))


@dataclass
class _WholeWalk:
    """Values of one graph that come from a stream that is read once, and those that come from one that grows."""

    whole: set[Val]
    grown: set[Val]

    def holds(self, v: Val) -> bool:
        return v in self.whole and v not in self.grown

    def results(self, ins: Collection[Val], outs: Collection[Val]) -> None:
        for values in (self.whole, self.grown):
            if not values.isdisjoint(ins):
                values.update(outs)

    def hand(self, pairs: Iterable[tuple[Val, Val]], other: "_WholeWalk") -> None:
        """Values under their names in another graph."""
        for v, there in pairs:
            other.whole |= {there} if v in self.whole else set()
            other.grown |= {there} if v in self.grown else set()


@dataclass(frozen=True)
class DividedBlock:
    """A block in two. constant: its inputs to what it makes of whole ones alone, `kept`; rest: the block without that,
    which it reads in its last inputs, to those of the block's `outputs` that are not whole."""

    constant: Graph
    rest: Graph
    outputs: tuple[int, ...]

    @property
    def kept(self) -> tuple[Val, ...]:
        return self.constant.outputs


def cut(graph: Graph, whole: Collection[str], parameters: Collection[str]) -> DividedBlock:
    """Cut a block's graph at what it makes of its inputs of the names `whole` alone, parameters apart."""
    fixed = {v for v in graph.inputs if v.name in whole}
    grown = {v for v in graph.inputs if v.name not in {*whole, *parameters}}
    rest, kept = list[Node](), dict[Val, None]()
    for n in graph.nodes:
        if not grown.isdisjoint(n.ins):
            grown.update(n.outs)
            kept |= dict.fromkeys(v for v in n.ins if v in fixed)
        elif not fixed.isdisjoint(n.ins):
            fixed.update(n.outs)
            continue
        rest.append(n)
    constant = dce(replace(graph, outputs=tuple(kept)))
    inputs = (*(v for v in graph.inputs if v.name not in whole), *kept)
    outputs = tuple(i for i, v in enumerate(graph.outputs) if v not in fixed)
    left = tuple(graph.outputs[i] for i in outputs)
    without = verify(dce(replace(graph, inputs=inputs, nodes=tuple(rest), outputs=left)))
    return DividedBlock(_read(constant), without, outputs)


def _read(graph: Graph) -> Graph:
    """Without the inputs that nothing reads."""
    read = {v for n in graph.nodes for v in n.ins} | {*graph.outputs}
    return replace(graph, inputs=tuple(v for v in graph.inputs if v in read))
