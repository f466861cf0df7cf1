"""A block's decode functions as graphs: `step` over what earlier positions left, `prefill` from nothing, the start, and
what is made once of streams that are read whole."""

from dataclasses import dataclass, replace

import sympy as sp

from weft.codegen.torch.sizes import Sizes
from weft.errors import DecodeError
from weft.ir.builder import Builder
from weft.ir.formula import symbol
from weft.ir.graphs import dce
from weft.ir.ops.op import body_of
from weft.ir.ops.primitives import Concat, Loop
from weft.ir.program import Program, Runtime, Size
from weft.ir.types import Decision, Graph, Node, Val
from weft.passes.blocks import Block, below
from weft.passes.chunk.chunk import chunk
from weft.passes.decode.alone import block_alone, sizes_alone
from weft.passes.decode.few_rows import few_rows
from weft.passes.decode.latents import absorbed, narrowed
from weft.passes.decode.step import ROWS, StepGraph, StepInputs, StepState, decode
from weft.passes.decode.time import refitted
from weft.passes.decode.whole import cut
from weft.passes.structure import Given
from weft.targets import TARGETS, Target


@dataclass(frozen=True)
class Stepping:
    """The decode functions of one block.

    step: the block's inputs that it reads, `kept`, what it reads of `fed`, each state's value; to the outputs that a
    step has, then each state's next value. prefill: likewise with `real` alone and no states, recurrences in chunks.
    start: first values of the carries. constant: of the streams that are read once, what it keeps. outputs: which of
    the block's outputs those are. sizes: with past rows and the longest sequence's derived sizes. time: the length that
    grows. decisions: what of its keys and values is kept."""

    step: Graph
    prefill: Graph
    start: Graph
    constant: Graph
    fed: StepInputs
    outputs: tuple[int, ...]
    states: tuple[StepState, ...]
    sizes: Sizes
    time: str
    decisions: tuple[Decision, ...] = ()

    @property
    def constants(self) -> tuple[Val, ...]:
        """What a step reads that was made once."""
        return self.constant.outputs

    @property
    def rows(self) -> tuple[StepState, ...]:
        """The states that hold one row for each position; carries follow them."""
        return tuple(s for s in self.states if s.kind != "carry")

    @property
    def kept(self) -> tuple[int | None, ...]:
        """How many rows each of them keeps for later positions; None: all."""
        return tuple(None if s.window is None else s.window - 1 for s in self.rows)


def stepping(
    program: Program,
    block: Block,
    missing: frozenset[str] = frozenset(),
    whole: frozenset[str] = frozenset(),
    target: Target = TARGETS[0],
) -> Stepping:
    """The decode functions of a block. Raises DecodeError where its results depend on later positions.

    missing: inputs of the block that no step has; outputs that read them are left out. whole: inputs that are whole
    before the first step. target: by whose prices it is chosen what is kept."""
    block = replace(block, graph=block_alone(block.graph, program.states))
    program = sizes_alone(program)
    longest = program.resolve(**{d: r.max for d, r in program.runtime.items()})
    (time,) = program.growing
    parameters = {v.name for v, s in zip(block.site.body.inputs, block.site.sources) if not isinstance(s, Given)}
    halves = cut(block.graph, whole, parameters)
    narrow = narrowed(halves.rest, longest, time, parameters, target)
    found = decode(narrow.graph, longest, time)
    graph, count = found.graph, len(found.outputs)
    after = graph.outputs[count:]
    lost = below(graph, missing)
    if bad := [v.name for v in after if v in lost]:
        raise DecodeError(bad[0], "", "is kept for later positions and reads what no step has")
    kept = [(halves.outputs[i], v) for i, v in zip(found.outputs, graph.outputs) if v not in lost]
    every = replace(graph, outputs=(*(v for _, v in kept), *after))
    own = {v.name for v in block.graph.inputs} - {v.name for v in block.given}
    read = {v for n in dce(every).nodes for v in n.ins} | set(every.outputs)
    held = {v.name for v in halves.kept if v in read}
    sizes = _sizes(replace(program, sizes={**program.sizes, **narrow.sizes}), found, time)
    step = few_rows(absorbed(every, parameters), parameters)
    step = _told(_read_only(step, own | held | {s.value.name for s in found.states}), every, sizes)
    first = chunk(_prefill(every, found, time))
    first = _told(_read_only(first, own | held), first, sizes)
    start = _read_only(found.start, own)
    if held & {v.name for v in start.inputs}:
        start = _read_only(found.start, own | held)
    once = replace(block.graph, outputs=tuple(v for v in halves.kept if v in read))
    constant = _read_only(once, own if held else set())
    outputs = tuple(i for i, _ in kept)
    return Stepping(step, first, start, constant, found.fed, outputs, found.states, sizes, time, narrow.decisions)


def _read_only(graph: Graph, keep: set[str]) -> Graph:
    """Without the inputs that nothing reads, those in `keep` apart."""
    graph = dce(graph)
    read = {v for n in graph.nodes for v in n.ins} | set(graph.outputs)
    return replace(graph, inputs=tuple(v for v in graph.inputs if v in read or v.name in keep))


def _told(graph: Graph, whole: Graph, sizes: Sizes) -> Graph:
    """With those unread inputs of `whole` that alone tell a size which the graph needs."""
    for d in sizes.untold([graph]):
        if d in sizes.untold([graph]):
            more = next((v for v in whole.inputs if d in v.dims), None)
            graph = replace(graph, inputs=tuple(v for v in whole.inputs if v in graph.inputs or v == more))
    return graph


def _sizes(program: Program, found: StepGraph, length: str) -> Sizes:
    """Sizes in a step: keys are past and new rows; whatever else depends on the length has its size at the longest one,
    the length itself included, as nothing but keys grows with positions; and how many chunks a prompt is cut into."""
    limit = program.runtime.get(length)
    most = limit.max if limit is not None else program.resolve()[length]
    time, known = symbol(f"n_{length}"), Sizes.of(program)
    runtime = dict(program.runtime) | {length: limit or Runtime(most)}
    table: dict[str, Size] = {}
    cut = {n.op.chunks[0] for n in found.graph.nodes if isinstance(n.op, Loop) and n.op.chunks}
    for dim in program.sizes:
        size = known.expression(dim)
        if dim not in runtime:
            table[dim] = size if dim in cut else size.xreplace({time: sp.Integer(most)})
    pasts = {s.past for s in found.states if s.past}
    for n in found.graph.nodes:
        if isinstance(n.op, Concat) and n.op.dims[0] in pasts:
            past = n.op.dims[0]
            table[n.op.new] = symbol(f"n_{past}") + time
            runtime[past] = Runtime(most)
    return Sizes(table, runtime)


def _prefill(step: Graph, found: StepGraph, time: str) -> Graph:
    """The step with nothing before it: positions are coordinates, keys the new rows, carries at their start."""
    g = Builder()
    given, fed = {s.value for s in found.states}, found.fed
    env: dict[Val, Val] = {v: g.input(v.name, v.type) for v in step.inputs if v not in {*given, fed.pos, fed.at}}
    own = [next(x for v, x in env.items() if v.name == w.name) for w in found.start.inputs]
    starts = iter(g.inline(found.start, own))
    for s in found.states:
        if s.kind == "carry":
            env[s.value] = next(starts)
    pasts = {s.past for s in found.states if s.past}
    for n in step.nodes:
        with g.at(n.src):
            env.update(zip(n.outs, _first(g, n, env, fed, pasts, time)))
    return g.graph(*(g.expand(env[v], to=v.dims) for v in step.outputs))


def _first(g: Builder, n: Node, env: dict[Val, Val], fed: StepInputs, pasts: set[str], time: str) -> tuple[Val, ...]:
    """One node of the step, at the start; () for what lies along past rows or says where keys stand."""
    op, ins = n.op, list(n.ins)
    if isinstance(op, Concat) and op.dims[0] in pasts:
        return (g.rename(env[ins[1]], op.dims[1], op.new),) if ins[1] in env else ()
    if any(not pasts.isdisjoint(v.dims) for v in (*n.ins, *n.outs)):
        return tuple(g.zeros(v) for v in n.outs if pasts.isdisjoint(v.dims))  # a sum over no rows
    op, ins = op.unplaced(ins, fed.at, time)
    now = [env[v] for v in ins]
    if body_of(op) is not None:  # which takes no fewer dims: a place that is a coordinate has lost its rows
        now = [g.expand(x, to=v.dims) for x, v in zip(now, ins)]
    return g.many(refitted(op, n.ins, now, ROWS), *now, names=[v.name for v in n.outs])
