"""The schedule of a program: every run of its blocks in order, which values it reads and makes, and until when.

A value lives in the forward until the last block has read it, or as long as a variable of the model's `forward` holds
it: that of a running value takes the next one, any other stands to the end.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from weft.ir.graphs import with_gradient
from weft.ir.program import Param
from weft.ir.types import Node, Type, Val
from weft.passes.blocks import key
from weft.passes.fusion.price import Prices
from weft.passes.halves import Derived
from weft.passes.schedule import BlockProfile, Run, Schedule, Value
from weft.passes.structure import CallSite, Given, Stack, Structure

Env = dict[Val, int]
"""Values of a graph -> their numbers in the schedule."""


@dataclass(frozen=True)
class PlacedCall:
    """One run of a block: its index among the blocks, the layer it is (None outside a stack), its call."""

    block: int
    layer: int | None
    site: CallSite


def calls(model: Structure, blocks: Sequence[Derived], sizes: Mapping[str, int]) -> list[PlacedCall]:
    """Every run in order."""
    index = _index(blocks)
    return [call for step in model.steps for call in _of(step, index, sizes)]


def scheduled(
    model: Structure, blocks: Sequence[Derived], profiles: Sequence[BlockProfile], prices: Prices, base: int
) -> Schedule:
    """The runs and the values between them. What the program returns counts in `base`, and is none of these."""
    index, graph = _index(blocks), model.program.graph
    walk = _ProgramWalk(profiles, prices, frozenset(graph.outputs), Counter(v for n in graph.nodes for v in n.ins))
    for step in model.steps:
        runs = list(_of(step, index, prices.sizes))
        if isinstance(step, Stack):
            walk.stack(step, runs)
        elif isinstance(step, CallSite):
            walk.run(runs[0], walk.env)
        else:
            walk.node(step)
    return walk.done(base)


def _index(blocks: Sequence[Derived]) -> dict[object, int]:
    return {key(made.block.site): i for i, made in enumerate(blocks)}


def _of(step: object, index: Mapping[object, int], sizes: Mapping[str, int]) -> Iterator[PlacedCall]:
    if isinstance(step, CallSite):
        yield PlacedCall(index[key(step)], None, step)
    elif isinstance(step, Stack):
        for row in range(sizes[step.loop.dim]):
            yield from (PlacedCall(index[key(s)], s.start + s.step * row, s) for s in step.sites)


@dataclass
class _ProgramWalk:
    """The program as far as it has run. env: of the model's graph; uses: how often each of its values is read."""

    profiles: Sequence[BlockProfile]
    prices: Prices
    returned: frozenset[Val]
    uses: Mapping[Val, int]
    env: Env = field(default_factory=Env)
    runs: list[Run] = field(default_factory=list[Run])
    values: list[Value] = field(default_factory=list[Value])
    users: dict[tuple[Param, int | None], int] = field(default_factory=dict[tuple[Param, int | None], int])
    """The last run that reads a parameter; of a stack, a layer's."""

    def run(self, call: PlacedCall, env: Env) -> None:
        site, profile, at = call.site, self.profiles[call.block], len(self.runs)
        given = {v.name: s.value for v, s in zip(site.body.inputs, site.sources) if isinstance(s, Given)}
        reads = {name: env[given[name]] for name, _ in profile.enters if given[name] in env}
        for i in reads.values():
            self.values[i] = replace(self.values[i], last=at, born=at)
        outs = {inside.name: v for v, inside in zip(site.node.outs, site.body.outputs)}
        made = self.make((outs[name] for name, _ in profile.leaves if outs[name] not in self.returned), at)
        env |= made
        makes = {name: made[outs[name]] for name, _ in profile.leaves if outs[name] in made}
        self.runs.append(Run(profile, tuple((reads | makes).items())))
        for s in site.sources:
            if not isinstance(s, Given):
                self.users[s.param, call.layer if s.param.stack else None] = at

    def stack(self, stack: Stack, runs: Sequence[PlacedCall]) -> None:
        body, carries = stack.loop.body, stack.loop.carries
        live = {
            v
            for s in stack.sites
            for v, inside in zip(s.node.outs, s.body.outputs)
            if inside in with_gradient(s.body, s.body.outputs)
        }
        inner = {v: self.env[outer] for v, outer in zip(body.inputs, stack.node.ins) if outer in self.env}
        listed, constant = list[int](), list[int]()
        for n, call in enumerate(runs, 1):
            self.run(call, inner)
            if n % len(stack.sites) == 0:
                listed += [inner[v] for v in body.outputs[carries:] if v in inner and v in live]
                constant += [inner[v] for v in body.outputs[carries:] if v in inner and v not in live]
                inner |= {v: inner[o] for v, o in zip(body.inputs, body.outputs[:carries]) if o in inner}
        self.read([*listed, *constant])
        for i in listed:  # what stacks them gives each a gradient, behind the last of these runs
            self.values[i] = replace(self.values[i], born=len(self.runs))
        for outer in stack.node.ins[:carries]:
            if self.uses[outer] == 1:
                self.env.pop(outer, None)
        self.env |= {v: inner[carry] for v, carry in zip(stack.node.outs, body.inputs[:carries]) if carry in inner}
        self.env |= self.make(stack.node.outs[carries:], len(self.runs) - 1)

    def node(self, node: Node) -> None:
        """What stands between blocks is made with the run before it."""
        self.read(self.env[v] for v in node.ins if v in self.env)
        self.env |= self.make((v for v in node.outs if v.type.floating), max(0, len(self.runs) - 1))

    def read(self, values: Iterable[int]) -> None:
        """Read beside the blocks, before the next run."""
        for i in values:
            self.values[i] = replace(self.values[i], last=max(self.values[i].last, len(self.runs) - 1))

    def make(self, outs: Iterable[Val], at: int) -> Env:
        """New values of run `at`."""
        made = {v: len(self.values) + i for i, v in enumerate(outs)}
        self.values += [Value(self.prices.size(v), at, at) for v in made]
        return made

    def done(self, base: int) -> Schedule:
        self.read(self.env.values())
        first: Counter[int] = Counter()
        for (param, _), last in self.users.items():
            first[last] += self.prices.size(Val(param.value, Type(param.dtype, param.dims)))
        runs = tuple(replace(r, grads=first[i]) for i, r in enumerate(self.runs))
        return Schedule(runs, tuple(self.values), base)
