"""Products with maps in front and behind: the matmul skeleton's holes and launch.

A core is an einsum of two factors; several share the left one. The left factor is the one that the region computes, or
that all cores read; its own dims are rows, the other's are columns, dims that both keep are batches. What stands before
the cores is `before`, what stands after them `epilogue`.
"""

from collections.abc import Sequence
from typing import Any

from weft.codegen.skeletons.common.writer.holes import Hole, ir_line
from weft.codegen.skeletons.common.writer.iteration import IterationSpace, coordinated, merged, renamings
from weft.codegen.skeletons.common.writer.job import Job, Written
from weft.codegen.skeletons.common.writer.maps import POINTWISE, above, maps_hole, read_by, region_body, said, unpacked
from weft.codegen.skeletons.common.writer.source import Reads, named, operands, pair, points
from weft.codegen.skeletons.common.writer.wrapper import Refused, Why, Wrapper
from weft.codegen.skeletons.matmul.writer.space import default
from weft.codegen.torch.lines import call
from weft.ir import library
from weft.ir.ops.primitives import Einsum
from weft.ir.types import FLOATS, Dims, Graph, Node, Val


def write_matmul(job: Job) -> Written:
    """The kernel of a region whose core is a product that is more than the vendor's."""
    graph = job.opened()
    return write_products(job, graph, products(graph))


def write_products(job: Job, graph: Graph, cores: Sequence[Node]) -> Written:
    """The kernel of a region of products, batched or not."""
    if not cores or len(graph.nodes) == len(cores) == 1:
        raise Refused(Why.VENDOR)
    if not all(isinstance(n.op, POINTWISE) for n in graph.nodes):
        raise Refused(Why.NOT_POINTWISE)
    return _Matmul(job, graph, cores).write()


def products(graph: Graph) -> list[Node]:
    """The nodes that sum over a dim."""
    return [n for n in graph.nodes if isinstance(n.op, Einsum) and set(n.space) != set(n.op.to)]


class RegionProduct:
    """The cores of a region, their factors and dims.

    a: the left factor; b: the right ones, one a core. z, m, n, k: dims of batches, rows, columns, and what is summed.
    """

    def __init__(self, graph: Graph, cores: Sequence[Node]) -> None:
        self.graph, self.cores = graph, list(cores)
        self.same = renamings(graph)
        made = {v for n in graph.nodes for v in n.outs}
        if any(len(c.ins) != 2 or c.ins[0] == c.ins[1] for c in cores):
            raise Refused(Why.SPACES)
        common = [v for v in cores[0].ins if all(v in c.ins for c in cores)]
        if not common:
            raise Refused(Why.SPACES)
        self.a = next((v for v in common if v in made), common[0])
        self.b = [next(v for v in c.ins if v != self.a) for c in cores]
        if self.a.dtype not in FLOATS or any(v.dtype != self.a.dtype for v in self.b):
            raise Refused(Why.NO_FLOAT)
        out, a, b = (self.one(v.dims) for v in (cores[0].outs[0], self.a, self.b[0]))
        if any(set(self.one(v.dims)) != set(b) for v in self.b) or any(
            set(self.one(c.outs[0].dims)) != set(out) for c in cores
        ):
            raise Refused(Why.SPACES)
        self.z = tuple(d for d in out if d in a and d in b)
        self.m = tuple(d for d in out if d in a and d not in b)
        self.n = tuple(d for d in out if d in b and d not in a)
        self.k = tuple(d for d in a if d not in out)
        if {*a, *b} != {*out, *self.k} or not set(self.k) <= set(b) or len(set(a)) < len(a) or len(set(b)) < len(b):
            raise Refused(Why.SPACES)

    def one(self, dims: Dims) -> Dims:
        return tuple(self.same.get(d, d) for d in dims)

    def above(self) -> list[Node]:
        """The nodes that stand before the cores."""
        return above(self.graph.nodes, [v for c in self.cores for v in c.ins])


class _Matmul:
    def __init__(self, job: Job, graph: Graph, cores: Sequence[Node]) -> None:
        self.job, self.graph = job, graph
        self.w = Wrapper(graph, job.sizes, job.mixed, job.wide)
        p = self.product = RegionProduct(graph, cores)
        self.ahead = p.above()
        self.late = [n for n in graph.nodes if n not in self.ahead and n not in p.cores]
        self.reads = Reads()
        self.ins = read_by(self.w, self.ahead) if self.ahead else [p.a]
        self.es = read_by(self.w, self.late)
        self.outs = [v for v in graph.outputs if v not in {o for n in self.ahead for o in n.outs}]
        if len(self.outs) < len(graph.outputs):
            raise Refused(Why.SPACES)
        self.spaces()

    def spaces(self) -> None:
        """The spaces of the factors and of the results, neighbouring dims merged where all operands allow."""
        p = self.product
        order = (*p.z, *p.m, *p.k), (*p.z, *p.m, *p.n)
        alone = coordinated(self.ahead, order[0], p.same) | coordinated(self.late, order[1], p.same)
        border = [p.one(v.dims) for v in (*self.ins, *p.b, *self.es, *self.outs)]
        z, m, n, k = (merged(dims, border, alone) for dims in (p.z, p.m, p.n, p.k))
        self.sides = z, m, n, k
        self.left = IterationSpace((*z, *m, *k), len(z) + len(m), p.same)
        self.right = IterationSpace((*z, *k, *n), len(z) + len(k), p.same)
        self.result = IterationSpace((*z, *m, *n), len(z) + len(m), p.same)
        checks = (self.left, self.ins), (self.right, p.b), (self.result, [*self.es, *self.outs])
        for space, values in checks:
            if any(not set(p.one(v.dims)) <= set(space.dims) for v in values):
                raise Refused(Why.SPACES)
        full = (1,) * len(self.result.groups)
        if any(self.result.flags(v) != full for v in self.outs):
            raise Refused(Why.SPACES)

    def write(self) -> Written:
        w, p, own = self.w, self.product, [c.outs[0] for c in self.product.cores]
        before = last = None
        if self.ahead:
            before = maps_hole(w, self.left, self.reads, "before", self.ins, self.ahead, [p.a], single=True)
        if self.late or self.outs != own:
            last = epilogue(w, self.result, self.reads, p.cores, self.es, self.late, self.outs)
        holes = tuple(h for h in (before, last) if h is not None)
        held = tiles(p.cores, self.es, self.outs, (*self.ahead, *self.late))
        given = call("launch.Holes", **{h.name: h.name for h in holes})
        return Written(w, "matmul", holes, self.launch(), default(held), {"HOLES": given})

    def launch(self) -> str:
        w, p = self.w, self.product
        sizes = pair(points(w, side) for side in self.sides)
        given = {"left": operands(w, self.left, self.ins), "right": operands(w, self.right, p.b)}
        given |= {"more": operands(w, self.result, self.es), "outs": operands(w, self.result, self.outs)}
        more = named(**given, x=self.reads.text)
        return call("launch.matmul", "NAME", "HOLES", w.name(p.b[0]), sizes, **more)


def tiles(*held: Sequence[Any]) -> int:
    """How many tiles of results a program holds at once; the last are its maps: random bits take as many as four."""
    return sum(map(len, held[:-1])) + 4 * sum(isinstance(n.op, library.Dropout) for n in held[-1])


def epilogue(
    w: Wrapper,
    space: IterationSpace,
    reads: Reads,
    cores: Sequence[Node],
    es: Sequence[Val],
    late: Sequence[Node],
    outs: Any,
) -> Hole:
    """The hole that makes results of products and operands of their place."""
    own = [c.outs[0] for c in cores]
    hole = Hole("epilogue", ("acc", "e", "i", "c", "X"))
    env = unpacked(hole, [("acc", own), ("e", es)])
    for c in cores:
        hole.note(ir_line(c))
    body = region_body(w, space, reads, hole, env, late)
    body.nodes(late)
    hole.add(f"return {pair(said(body, v) for v in outs)}")
    return hole
