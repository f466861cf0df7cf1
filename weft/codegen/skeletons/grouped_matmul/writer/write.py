"""Products of experts: tokens gathered where they are used, as the grouped matmul skeleton's holes and launch.

A region without a dispatch is a batched product, and the matmul skeleton's. With one, a slot of an expert reads its
token: the product of slots and weights has `before` ahead of it (maps of tokens) and `epilogue` behind; the gradient of
weights sums over slots, and its factors are tokens or what slots own. Empty slots add nothing, as a dispatch leaves
zeros there.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from weft.codegen.skeletons.common.writer.holes import Hole
from weft.codegen.skeletons.common.writer.iteration import IterationSpace, coordinated, merged
from weft.codegen.skeletons.common.writer.job import Job, Written
from weft.codegen.skeletons.common.writer.maps import POINTWISE, above, maps_hole, read_by
from weft.codegen.skeletons.common.writer.source import Reads, named, operands, points
from weft.codegen.skeletons.common.writer.wrapper import Refused, Why, Wrapper
from weft.codegen.skeletons.matmul.writer.space import default
from weft.codegen.skeletons.matmul.writer.write import RegionProduct, epilogue, products, tiles, write_products
from weft.codegen.torch.lines import call
from weft.ir.ops.primitives import Scatter
from weft.ir.types import FLOATS, Dims, Graph, Node, Val


def write_grouped_matmul(job: Job) -> Written:
    """The kernel of a region whose cores are products with weights of their own for each expert."""
    graph = job.opened()
    cores = products(graph)
    scatters = [n for n in graph.nodes if isinstance(n.op, Scatter)]
    if not scatters:
        return write_products(job, graph, cores)
    if not cores or not all(isinstance(n.op, (*POINTWISE, Scatter)) for n in graph.nodes):
        raise Refused(Why.NOT_POINTWISE)
    return _Grouped(job, graph, cores, scatters).write()


class _Grouped:
    """One region under way. sent: what is dispatched -> what tokens own; expert, slot: dims of the slots; batch, token:
    dims of the routing that slots have, and that only tokens have."""

    def __init__(self, job: Job, graph: Graph, cores: Sequence[Node], scatters: Sequence[Node]) -> None:
        self.job, self.graph = job, graph
        self.w = Wrapper(graph, job.sizes, job.mixed, job.wide)
        p = self.product = RegionProduct(graph, cores)
        self.scatters = list(scatters)
        op: Any = scatters[0].op
        self.index = scatters[0].ins[1:]
        if len(op.at) != 2 or any(n.op.at != op.at or n.ins[1:] != self.index for n in scatters):  # type: ignore[attr-defined]
            raise Refused(Why.LAYOUT)
        self.expert, self.slot = p.one(op.at)
        routing, slots = p.one(self.index[0].dims), p.one(scatters[0].outs[0].dims)
        self.batch = tuple(d for d in routing if d in slots)
        self.token = tuple(d for d in routing if d not in slots)
        if routing != self.batch + self.token or p.one(self.index[1].dims) != routing:
            raise Refused(Why.LAYOUT)
        self.reads = Reads()
        self.sums = self.slot in p.k
        self.ahead = [n for n in p.above() if n not in scatters]
        self.late = [n for n in graph.nodes if n not in self.ahead and n not in scatters and n not in cores]
        self.check()

    def check(self) -> None:
        """Refused where a factor has other rows than slots."""
        p, rows = self.product, {*self.batch, self.slot}
        if p.z != (self.expert,) or set(p.k if self.sums else p.m) != rows:
            raise Refused(Why.LAYOUT)
        if (self.sums and self.late) or any(v not in self.results for v in self.graph.outputs):
            raise Refused(Why.SPACES)

    @property
    def results(self) -> set[Val]:
        return {v for n in (*self.product.cores, *self.late) for v in n.outs}

    def read(self, v: Val) -> Val:
        """What a factor reads: of a dispatched one what tokens own."""
        return next((n.ins[0] for n in self.scatters if v in n.outs), v)

    def space(self, columns: Sequence[Dims]) -> IterationSpace:
        """Slots, their tokens, and columns."""
        rows = ((self.expert,), *((d,) for d in self.batch), (self.slot,), *((d,) for d in self.token))
        return IterationSpace((*rows, *columns), len(rows), self.product.same)

    def columns(self, dims: Dims, values: Sequence[Val], nodes: Sequence[Node]) -> tuple[Dims, ...]:
        """Dims of columns, neighbours merged where all of the values allow."""
        same = self.product.same
        return merged(dims, [self.product.one(v.dims) for v in values], coordinated(nodes, (), same))

    def write(self) -> Written:
        return self.write_weights() if self.sums else self.write_slots()

    # -- the two kernels ---------------------------------------------------------------------------------------------

    def write_slots(self) -> Written:
        """Slots times weights: rows are slots."""
        p, w = self.product, self.w
        source = self.read(p.a)
        maps = above(self.ahead, [source])
        ins, es = read_by(w, maps) if maps else [source], read_by(w, self.late)
        outs = list(self.graph.outputs)
        every = (*ins, *p.b, *es, *outs)
        k, n = (self.columns(d, every, (*maps, *self.late)) for d in (p.k, p.n))
        left, right, result = self.space(k), IterationSpace(((self.expert,), *k, *n), 1 + len(k), p.same), self.space(n)
        self.fits((left, ins), (right, p.b), (result, (*es, *outs)))
        before = self.maps("before", left, ins, maps, [source]) if maps else None
        own = [c.outs[0] for c in p.cores]
        last = None
        if self.late or outs != own:
            last = epilogue(w, result, self.reads, p.cores, es, self.late, outs)
        given = {"left": operands(w, left, ins), "right": operands(w, right, p.b)}
        given |= {"more": operands(w, result, es), "outs": operands(w, result, outs)}
        launch = self.launch("launch.slots", p.b, (n, k), given)
        return self.written((before, last), launch, tiles(p.cores, es, outs, (*maps, *self.late)))

    def write_weights(self) -> Written:
        """Slots times slots, summed over them: gradients of weights."""
        p, w = self.product, self.w
        source, others = self.read(p.a), [self.read(v) for v in p.b]
        maps, more = above(self.ahead, [source]), above(self.ahead, others)
        ins = read_by(w, maps) if maps else [source]
        ds, outs = read_by(w, more, others) if more else others, [c.outs[0] for c in p.cores]
        every = (*ins, *ds, *outs)
        m, n = (self.columns(d, every, (*maps, *more)) for d in (p.m, p.n))
        left, right, result = self.space(m), self.space(n), IterationSpace(((self.expert,), *m, *n), 1 + len(m), p.same)
        self.fits((left, ins), (right, ds), (result, outs))
        before = self.maps("before", left, ins, maps, [source]) if maps else None
        factors = self.maps("factors", right, ds, more, others) if more else None
        given = {"left": operands(w, left, ins), "right": operands(w, right, ds), "outs": operands(w, result, outs)}
        launch = self.launch("launch.weights", ds, (m, n), given)
        return self.written((before, factors), launch, tiles(p.cores, outs, (*maps, *more)))

    def written(self, holes: Sequence[Hole | None], launch: str, held: int) -> Written:
        found = tuple(h for h in holes if h is not None)
        given = call("launch.Holes", **{h.name: h.name for h in found})
        return Written(self.w, "grouped_matmul", found, launch, default(held), {"HOLES": given})

    def fits(self, *checks: tuple[IterationSpace, Sequence[Val]]) -> None:
        for space, values in checks:
            if any(not set(self.product.one(v.dims)) <= set(space.dims) for v in values):
                raise Refused(Why.SPACES)

    def maps(
        self, name: str, space: IterationSpace, ins: Sequence[Val], nodes: Sequence[Node], wanted: Sequence[Val]
    ) -> Hole:
        """A hole of maps of tokens: all right factors, or the one left factor."""
        single = name == "before"
        return maps_hole(self.w, space, self.reads, name, ins, nodes, wanted, single=single, placed=False)

    def launch(self, name: str, right: Sequence[Val], sides: Sequence[Sequence[Dims]], given: Mapping[str, str]) -> str:
        """sides: the groups of columns that the kernel walks, of results and of what is summed."""
        w = self.w
        like = next(w.name(v) for v in right if v.dtype in FLOATS)
        sizes = str(len(self.batch)), w.size(self.expert), w.size(self.slot)
        routing = call("launch.Routing", *map(w.name, self.index), *sizes)
        more = named(**given, x=self.reads.text)
        return call(name, "NAME", "HOLES", like, routing, *(points(w, side) for side in sides), **more)
