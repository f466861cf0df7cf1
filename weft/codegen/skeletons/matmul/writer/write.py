"""Products with maps in front and behind: the matmul skeleton's holes and launch.

A core is an einsum of two factors; several share the left one. The left factor is the one that the region computes, or
that all cores read; its own dims are rows, the other's are columns, dims that both keep are batches. What stands before
the cores is `before`, what stands after them `epilogue`.
"""

from collections.abc import Sequence
from typing import Any

from weft.codegen.skeletons.common.writer.holes import Hole, ir_line
from weft.codegen.skeletons.common.writer.iteration import Space, coordinated, merged, renamings
from weft.codegen.skeletons.common.writer.regions import Job, Reads, Written, pair
from weft.codegen.skeletons.common.writer.spelling import ATOM, Tri
from weft.codegen.skeletons.common.writer.wrapper import Refused, Why, Wrapper
from weft.codegen.skeletons.matmul.writer.space import default
from weft.codegen.skeletons.pointwise.writer.write import POINTWISE, flags_of, kind, laid, region_body, said
from weft.ir.library import Dropout
from weft.ir.primitives import Einsum
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


class Product:
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
        maker = {v: n for n in self.graph.nodes for v in n.outs}
        need, todo = set[Node](), [v for c in self.cores for v in c.ins]
        while todo:
            made = maker.get(todo.pop())
            if made is not None and made not in need:
                need.add(made)
                todo += made.ins
        return [n for n in self.graph.nodes if n in need]


class _Matmul:
    def __init__(self, job: Job, graph: Graph, cores: Sequence[Node]) -> None:
        self.job, self.graph = job, graph
        self.w = Wrapper(graph, job.sizes, job.mixed, job.wide)
        p = self.product = Product(graph, cores)
        self.ahead = p.above()
        self.late = [n for n in graph.nodes if n not in self.ahead and n not in p.cores]
        self.reads = Reads()
        self.ins = self.tensors(self.ahead) if self.ahead else [p.a]
        self.es = self.tensors(self.late)
        self.outs = [v for v in graph.outputs if v not in {o for n in self.ahead for o in n.outs}]
        if len(self.outs) < len(graph.outputs):
            raise Refused(Why.SPACES)
        self.spaces()

    def tensors(self, nodes: Sequence[Node]) -> list[Val]:
        """Operands that some of the nodes load."""
        read = {v for n in nodes for v in n.ins}
        return [a.val for a in self.w.arguments if a.role == "tensor" and a.val in read]

    def spaces(self) -> None:
        """The spaces of the factors and of the results, neighbouring dims merged where all operands allow."""
        p = self.product
        order = (*p.z, *p.m, *p.k), (*p.z, *p.m, *p.n)
        alone = coordinated(self.ahead, order[0], p.same) | coordinated(self.late, order[1], p.same)
        border = [p.one(v.dims) for v in (*self.ins, *p.b, *self.es, *self.outs)]
        z, m, n, k = (merged(dims, border, alone) for dims in (p.z, p.m, p.n, p.k))
        self.sides = z, m, n, k
        self.left = Space((*z, *m, *k), len(z) + len(m), p.same)
        self.right = Space((*z, *k, *n), len(z) + len(k), p.same)
        self.result = Space((*z, *m, *n), len(z) + len(m), p.same)
        checks = (self.left, self.ins), (self.right, p.b), (self.result, [*self.es, *self.outs])
        for space, values in checks:
            if any(not set(p.one(v.dims)) <= set(space.dims) for v in values):
                raise Refused(Why.SPACES)
        full = (1,) * len(self.result.groups)
        if any(self.result.flags(v) != full for v in self.outs):
            raise Refused(Why.SPACES)

    def write(self) -> Written:
        before, epilogue = self.before(), self.epilogue()
        holes = [h for h in (before, epilogue) if h is not None]
        launch = self.launch(before, epilogue)
        held = tiles(self.product.cores, self.es, self.outs, (*self.ahead, *self.late))
        return Written(self.w, "matmul", tuple(holes), tuple(launch), default(held))

    def before(self) -> Hole | None:
        """The left factor of loaded operands."""
        if not self.ahead:
            return None
        hole = begin(Hole("before", ("x", "i", "c", "X")), [("x", self.ins)])
        body = region_body(self.w, self.left, self.reads, hole[0], hole[1], self.ahead)
        body.nodes(self.ahead)
        hole[0].add(f"return {said(body, self.product.a)}")
        return hole[0]

    def epilogue(self) -> Hole | None:
        """The results of the products and loaded operands."""
        own = [c.outs[0] for c in self.product.cores]
        if not self.late and self.outs == own:
            return None
        return epilogue(self.w, self.result, self.reads, self.product.cores, self.es, self.late, self.outs)

    def launch(self, before: Hole | None, epilogue: Hole | None) -> list[str]:
        w, p = self.w, self.product
        z, m, n, k = self.sides
        a, b, e, outs = (w.mint(x) for x in ("left", "right", "more", "results"))
        like = w.argument(p.b[0]).name
        given = ((a, self.left, self.named(self.ins)), (b, self.right, self.named(p.b)))
        given += ((e, self.result, self.named(self.es)), (outs, self.result, [(w.result(v), v) for v in self.outs]))
        tensors = ", ".join(f"*host.tensors({name})" for name, _, _ in given)
        dims = ", ".join(f"{x}_DIMS={flags_of(space, vs)}" for x, (_, space, vs) in zip(("A", "B", "E", "OUT"), given))
        ends = len(z), len(z) + len(m), len(z) + len(m) + len(n)
        made, read, seen = self.reads.held
        return [
            *made,
            f"config = host.config(NAME, {like})",
            *(f"{name} = {pair(laid(space, x, v) for x, v in vs)}" for name, space, vs in given),
            f"sizes = {pair(w.points(g) for g in (*z, *m, *n, *k))}",
            f"batches, rows, columns, depth = {', '.join(w.points(x) for x in (p.z, p.m, p.n, p.k))}",
            'grid = (batches * triton.cdiv(rows, config["BM"]) * triton.cdiv(columns, config["BN"]),)',
            f"matmul.matmul[grid]({tensors}, (), (), sizes, {read}, "
            f"{before.name if before else None}, {epilogue.name if epilogue else None}, {dims}, SUM_DIMS=(), "
            f"NZ={ends[0]}, NM={ends[1]}, NN={ends[2]}, {tile()}, DOT=matmul.factor({like}), "
            f'ACC=host.acc({like}), PREC="ieee", '
            f"IDX=host.index((batches, rows, max(columns, depth)), {', '.join([a, b, e, outs, *seen])}), "
            "**host.options(config))",
        ]

    def named(self, values: Sequence[Val]) -> list[tuple[str, Val]]:
        return [(self.w.argument(v).name, v) for v in values]


def tiles(*held: Sequence[Any]) -> int:
    """How many tiles of results a program holds at once; the last are its maps: random bits take as many as four."""
    return sum(map(len, held[:-1])) + 4 * sum(isinstance(n.op, Dropout) for n in held[-1])


def tile() -> str:
    """A program's tile as arguments of a launch."""
    return ", ".join(f'{x}=config["{x}"]' for x in ("GROUP", "BM", "BN", "BK"))


def begin(hole: Hole, given: Sequence[tuple[str, Sequence[Val]]]) -> tuple[Hole, dict[str, Tri]]:
    """A hole whose tuples `given` (argument, values) are unpacked, and where the values are."""
    env: dict[str, Tri] = {}
    for source, values in given:
        names = [hole.mint(v.name) for v in values]
        if names:
            hole.lines.add(f"{', '.join(names)} = {source}" if len(names) > 1 else f"{names[0]} = {source}[0]")
        for n, v in zip(names, values):
            env[v.name] = Tri(n, ATOM, kind(v))
            if v.dtype in FLOATS and not hole.computes:
                hole.acc = f"{n}.dtype"
    return hole, env


def epilogue(
    w: Wrapper, space: Space, reads: Reads, cores: Sequence[Node], es: Sequence[Val], late: Sequence[Node], outs: Any
) -> Hole:
    """The hole that makes results of products and operands of their place."""
    own = [c.outs[0] for c in cores]
    hole, env = begin(Hole("epilogue", ("acc", "e", "i", "c", "X")), [("acc", own), ("e", es)])
    for c in cores:
        hole.note(ir_line(c))
    body = region_body(w, space, reads, hole, env, late)
    body.nodes(late)
    hole.add(f"return {pair(said(body, v) for v in outs)}")
    return hole
