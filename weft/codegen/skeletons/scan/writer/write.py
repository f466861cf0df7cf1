"""Scan regions: a loop of maps along one dim, with the maps before and after it, as the scan skeleton's holes.

What has the loop's dim is done step by step in `cell`; what has not is done once per lane in `before`. The states start
from `start`. A derivative is such a loop too: it runs backward, and sums over the steps are states.
"""

from collections.abc import Sequence
from typing import Any

from weft.codegen.skeletons.common.writer.configs import everywhere
from weft.codegen.skeletons.common.writer.holes import Hole, HoleBody, ir_line
from weft.codegen.skeletons.common.writer.iteration import IterationSpace, coordinated, merged, renamings, tell_apart
from weft.codegen.skeletons.common.writer.job import Job, Written
from weft.codegen.skeletons.common.writer.maps import POINTWISE, region_body, unpacked
from weft.codegen.skeletons.common.writer.source import Reads, named, operands, pair, points
from weft.codegen.skeletons.common.writer.spelling import ATOM, Tri
from weft.codegen.skeletons.common.writer.wrapper import Refused, Why, Wrapper
from weft.codegen.skeletons.scan.writer.space import DEFAULTS
from weft.codegen.torch.lines import call
from weft.ir.builder import flatten
from weft.ir.ops.primitives import Loop
from weft.ir.types import FLOATS, Dims, Graph, Node, Val


def write_scan(job: Job) -> Written:
    """The kernel of a region whose core is a loop."""
    graph = job.opened()
    loops = [n for n in graph.nodes if isinstance(n.op, Loop)]
    if len(loops) != 1 or not all(isinstance(n.op, (*POINTWISE, Loop)) for n in graph.nodes):
        raise Refused(Why.NOT_POINTWISE)
    return _Scan(job, graph, loops[0]).write()


class _Scan:
    def __init__(self, job: Job, graph: Graph, loop: Node) -> None:
        self.job, self.graph, self.loop = job, graph, loop
        op: Any = loop.op
        self.op: Loop = op
        self.inner = flatten(op.body)
        if not all(isinstance(n.op, POINTWISE) for n in self.inner.nodes):
            raise Refused(Why.NOT_POINTWISE)
        self.w = Wrapper(graph, job.sizes, job.mixed, job.wide)
        self.same = renamings(graph)
        tell_apart(graph.nodes, self.same)
        self.time = self.same.get(self.op.dim, self.op.dim)
        self.reads = Reads()
        self.split()

    def timed(self, v: Val) -> bool:
        return self.time in self.one(v.dims)

    def one(self, dims: Dims) -> Dims:
        return tuple(self.same.get(d, d) for d in dims)

    def split(self) -> None:
        """Which nodes run per lane, which per step; what is loaded, carried, stored."""
        graph, loop, c = self.graph, self.loop, self.op.carries
        self.finals, self.stacked = set(loop.outs[:c]), loop.outs[c:]
        late = set(loop.outs)
        for n in graph.nodes:
            if n is not loop and not late.isdisjoint(n.ins):
                late.update(n.outs)
        nodes = [n for n in graph.nodes if n is not loop]
        self.lane_nodes = [n for n in nodes if not any(map(self.timed, n.outs))]
        self.step_nodes = [n for n in nodes if any(map(self.timed, n.outs))]
        if any(v in late for n in self.lane_nodes for v in n.ins):
            raise Refused(Why.SPACES)
        if any(not self.timed(v) and v in late for n in self.step_nodes for v in n.ins):
            raise Refused(Why.SPACES)
        if any(v.dtype not in FLOATS for v in (*loop.ins[:c], *self.stacked)):
            raise Refused(Why.INTEGERS)
        tensors = [a.val for a in self.w.arguments if a.role == "tensor"]
        self.seq = [v for v in tensors if self.timed(v)]
        self.lane = [v for v in tensors if not self.timed(v)]
        self.dims = self.lanes()

    def lanes(self) -> IterationSpace:
        """The lanes' space: the carries' dims."""
        carries = [self.one(v.dims) for v in self.loop.ins[: self.op.carries]]
        every = {d for n in self.graph.nodes for d in self.one(n.space)} - {self.time}
        like = next((self.one(v.dims) for v in self.seq if set(self.one(v.dims)) == every | {self.time}), None)
        order = [d for d in (like or max(carries, key=len, default=())) if d != self.time]
        if set(order) != every or not all(set(x) == every for x in carries):
            raise Refused(Why.SPACES)
        border = [
            tuple(d for d in self.one(v.dims)) for v in (*self.seq, *self.lane, *self.graph.outputs, *self.loop.ins)
        ]
        nodes = [*self.lane_nodes, *self.step_nodes, *self.inner.nodes]
        alone = coordinated(nodes, (), self.same)
        return IterationSpace(merged(order, border, alone) or ((),), 0, self.same)

    # -- values ------------------------------------------------------------------------------------------------------

    def start_values(self) -> list[Val]:
        """The carries that start from a value per lane, each with its state."""
        return list(self.loop.ins[: self.op.carries])

    def states(self) -> list[int]:
        """The order of the carries as states: those whose last value is a result first."""
        c = range(self.op.carries)
        return sorted(c, key=lambda j: self.loop.outs[j] not in self.graph.outputs)

    def begin(self, name: str, args: Sequence[str], given: Sequence[tuple[str, Sequence[Val]]], nodes: Any) -> HoleBody:
        hole = Hole(name, args)
        env = self.numbers | unpacked(hole, given)
        body = region_body(self.w, self.dims, self.reads, hole, env, nodes)
        body.place = lambda node: None
        body.coordinates = {**body.coordinates, self.op.dim: Tri("t", ATOM, "int", None, 0)}
        body.coordinates |= {d: body.coordinates[self.op.dim] for d in self.same if self.same[d] == self.time}
        return body

    def write(self) -> Written:
        self.numbers: dict[str, Tri] = {}
        p, before = self.before()
        start = self.start(p)
        extra = [v for v in self.graph.outputs if not self.timed(v) and v not in self.finals]
        cell, outs = self.cell(p, extra)
        holes = [*([before] if before else []), start, cell]
        given = call("launch.Holes", "cell", "start", *(["before"] if before else []))
        config, launch = everywhere(DEFAULTS["scan"]), self.launch(outs, extra)
        return Written(self.w, "scan", tuple(holes), launch, config, {"HOLES": given}, orders=self.orders())

    def before(self) -> tuple[list[Val], Hole | None]:
        """p, what later holes read per lane, and the hole that makes it."""
        made = [v for n in self.lane_nodes for v in n.outs]
        read = {v for n in (*self.step_nodes, self.loop) for v in n.ins} | set(self.graph.outputs)
        if not self.lane_nodes:
            return list(self.lane), None
        body = self.begin("before", ("p", "c", "X"), [("p", self.lane)], self.lane_nodes)
        hole = body.hole
        if not hole.computes:
            hole.acc = self.anchored(hole)
        body.nodes(self.lane_nodes)
        wanted = [v for v in (*self.lane, *made) if v in read]
        self.numbers = {v.name: src for v in wanted if (src := body.value(v)).number}
        p = [v for v in wanted if v.name not in self.numbers]
        hole.add(f"return {pair(body.value(v).text for v in p)}")
        return p, hole

    def anchored(self, hole: Hole) -> str:
        """The accumulator's dtype where no operand at hand says it: by what a tensor holds."""
        floats = [v for v in (*self.lane, *self.seq) if v.dtype in FLOATS]
        if not floats:
            raise Refused(Why.NO_FLOAT)
        name = self.w.argument(floats[0]).name
        return f"elementwise.accumulator({self.reads.at(name)}.dtype.element_ty)"

    def start(self, p: Sequence[Val]) -> Hole:
        order = [self.start_values()[j] for j in self.states()]
        body = self.begin("start", ("e", "p", "c", "X"), [("p", p)], ())
        if not body.hole.computes:
            body.hole.acc = self.anchored(body.hole)
        extra = [v for v in self.graph.outputs if not self.timed(v) and v not in self.finals]
        said = [self.said(body, v) for v in (*order, *extra)]
        body.hole.add(f"return {pair(said)}")
        return body.hole

    def said(self, body: HoleBody, v: Val) -> str:
        src = body.value(v)
        return src.text if not src.number else f"tl.full([], {src.text}, {body.hole.acc})"

    def cell(self, p: Sequence[Val], extra: Sequence[Val]) -> tuple[Hole, list[Val]]:
        """One step: maps ahead of the loop, its body, maps after it."""
        loop, c = self.loop, self.op.carries
        carries = [Val(self.inner.inputs[j].name, self.inner.inputs[j].type) for j in self.states()]
        held = [Val(f"held_{v.name}", v.type) for v in extra]
        given = [("s", [*carries, *held]), ("x", self.seq), ("p", p)]
        nodes = [*self.step_nodes, *self.inner.nodes]
        body = self.begin("cell", ("s", "x", "p", "t", "c", "X"), given, nodes)
        ahead = [n for n in self.step_nodes if not any(v in self.after() for v in n.outs)]
        body.nodes(ahead)
        outer = dict(body.env)
        for inner, v in zip(self.inner.inputs[c:], loop.ins[c:]):
            body.env[inner.name] = outer[v.name] if v.name in outer else body.value(v)
        body.hole.note(ir_line(loop).split(" body=")[0])
        body.nodes(self.inner.nodes)
        done = [body.value(v) for v in self.inner.outputs]
        k = len(self.inner.outputs)
        old = {j: outer[self.inner.inputs[j].name] for j in range(c)}
        results = {**outer, **{v.name: done[c + i] for i, v in enumerate(loop.outs[c:k])}}
        results |= {v.name: old[j] for j, v in enumerate(loop.outs[k:])}
        body.env = results
        body.nodes([n for n in self.step_nodes if n not in ahead])
        outs = [v for v in self.graph.outputs if self.timed(v)]
        new = [done[j].text if not done[j].number else self.number(body, done[j]) for j in self.states()]
        new += [body.env[v.name].text for v in held]
        body.hole.add(f"return {pair(new)}, {pair(self.said(body, v) for v in outs)}")
        return body.hole, outs

    def number(self, body: HoleBody, src: Tri) -> str:
        return f"tl.full([], {src.text}, {body.hole.acc})"

    def after(self) -> set[Val]:
        """What depends on the loop's results."""
        late = set(self.loop.outs)
        for n in self.graph.nodes:
            if n is not self.loop and not late.isdisjoint(n.ins):
                late.update(n.outs)
        return late

    # -- launch ------------------------------------------------------------------------------------------------------

    def orders(self) -> dict[Val, Dims]:
        """Stacked results lie in memory as the operands do, though the loop's dim is their first."""
        out: dict[Val, Dims] = {}
        for v in self.graph.outputs:
            like = next((x for x in self.seq if set(self.one(x.dims)) == set(self.one(v.dims))), None)
            if like is not None and self.timed(v):
                own = {self.same.get(d, d): d for d in v.dims}
                out[v] = tuple(own[d] for d in self.one(like.dims))
        return out

    def launch(self, outs: Sequence[Val], extra: Sequence[Val]) -> str:
        w, lanes = self.w, self.dims
        steps = IterationSpace(((self.time,), *lanes.groups), 1, self.same)
        last = [self.loop.outs[j] for j in self.states() if self.loop.outs[j] in self.graph.outputs]
        if extra and len(last) < len(self.states()):
            raise Refused(Why.SPACES)
        last += extra
        full = (1,) * len(steps.groups)
        if any(steps.flags(v) != full for v in outs) or any(lanes.flags(v) != full[1:] for v in last):
            raise Refused(Why.SPACES)
        given = named(
            per_step=operands(w, steps, self.seq), per_lane=operands(w, lanes, self.lane),
            outs=operands(w, steps, outs), ends=operands(w, lanes, last), states=str(len(self.states()) + len(extra)),
            reverse="True" if self.op.reverse else "", x=self.reads.text,
        )  # fmt: skip
        sizes = w.size(self.op.dim), points(w, lanes.groups)
        return call("launch.scan", "NAME", "HOLES", w.anchor.name, *sizes, **given)
