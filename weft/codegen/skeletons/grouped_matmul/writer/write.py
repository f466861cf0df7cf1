"""Products of experts: tokens gathered where they are used, as the grouped matmul skeleton's holes and launch.

A region without a dispatch is a batched product, and the matmul skeleton's. With one, a slot of an expert reads its
token: the product of slots and weights has `before` ahead of it (maps of tokens) and `epilogue` behind; the gradient of
weights sums over slots, and its factors are tokens or what slots own. Empty slots add nothing, as a dispatch leaves
zeros there.
"""

from collections.abc import Sequence
from typing import Any

from weft.codegen.skeletons.common.writer.holes import Hole
from weft.codegen.skeletons.common.writer.iteration import Space, coordinated, merged
from weft.codegen.skeletons.common.writer.regions import Job, Reads, Written, pair
from weft.codegen.skeletons.common.writer.wrapper import Refused, Why, Wrapper
from weft.codegen.skeletons.matmul.writer.space import default
from weft.codegen.skeletons.matmul.writer.write import Product, begin, epilogue, products, tile, tiles, write_products
from weft.codegen.skeletons.pointwise.writer.write import POINTWISE, flags_of, laid, region_body, said
from weft.ir.primitives import Scatter
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
        p = self.product = Product(graph, cores)
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

    def space(self, columns: Sequence[Dims]) -> Space:
        """Slots, their tokens, and columns."""
        rows = ((self.expert,), *((d,) for d in self.batch), (self.slot,), *((d,) for d in self.token))
        return Space((*rows, *columns), len(rows), self.product.same)

    def operands(self, nodes: Sequence[Node], more: Sequence[Val] = ()) -> list[Val]:
        """Tensors that some of the nodes load, and those of `more` that no node makes."""
        read = {v for n in nodes for v in n.ins} | set(more)
        return [a.val for a in self.w.arguments if a.role == "tensor" and a.val in read]

    def above(self, values: Sequence[Val]) -> list[Node]:
        """The maps of tokens that make some of the values."""
        maker = {v: n for n in self.ahead for v in n.outs}
        need, todo = set[Node](), list(values)
        while todo:
            made = maker.get(todo.pop())
            if made is not None and made not in need:
                need.add(made)
                todo += made.ins
        return [n for n in self.ahead if n in need]

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
        maps = self.above([source])
        ins, es = self.operands(maps) if maps else [source], self.operands(self.late)
        outs = list(self.graph.outputs)
        every = (*ins, *p.b, *es, *outs)
        k, n = (self.columns(d, every, (*maps, *self.late)) for d in (p.k, p.n))
        left, right, result = self.space(k), Space(((self.expert,), *k, *n), 1 + len(k), p.same), self.space(n)
        self.fits((left, ins), (right, p.b), (result, (*es, *outs)))
        before = self.maps("before", left, ins, maps, [source], single=True) if maps else None
        own = [c.outs[0] for c in p.cores]
        last = None
        if self.late or outs != own:
            last = epilogue(w, result, self.reads, p.cores, es, self.late, outs)
        groups = (("left", left, ins), ("right", right, p.b), ("more", result, es), ("results", result, outs))
        holes = (before, last)
        lines = self.launch("grouped_matmul", groups, "ABE", holes, n, k, (w.points(p.n), w.points(p.k)))
        return self.written(holes, lines, tiles(p.cores, es, outs, (*maps, *self.late)))

    def write_weights(self) -> Written:
        """Slots times slots, summed over them: gradients of weights."""
        p, w = self.product, self.w
        source, others = self.read(p.a), [self.read(v) for v in p.b]
        maps, more = self.above([source]), self.above(others)
        ins = self.operands(maps) if maps else [source]
        ds, outs = self.operands(more, others) if more else others, [c.outs[0] for c in p.cores]
        every = (*ins, *ds, *outs)
        m, n = (self.columns(d, every, (*maps, *more)) for d in (p.m, p.n))
        left, right, result = self.space(m), self.space(n), Space(((self.expert,), *m, *n), 1 + len(m), p.same)
        self.fits((left, ins), (right, ds), (result, outs))
        before = self.maps("before", left, ins, maps, [source], single=True) if maps else None
        factors = self.maps("factors", right, ds, more, others) if more else None
        groups = (("left", left, ins), ("right", right, ds), ("results", result, outs))
        holes = (before, factors)
        lines = self.launch("grouped_weights", groups, "AD", holes, m, n, (w.points(p.m), w.points(p.n)))
        return self.written(holes, lines, tiles(p.cores, outs, (*maps, *more)))

    def written(self, holes: Sequence[Hole | None], lines: Sequence[str], held: int) -> Written:
        found = tuple(h for h in holes if h is not None)
        return Written(self.w, "grouped_matmul", found, tuple(lines), default(held))

    def fits(self, *checks: tuple[Space, Sequence[Val]]) -> None:
        for space, values in checks:
            if any(not set(self.product.one(v.dims)) <= set(space.dims) for v in values):
                raise Refused(Why.SPACES)

    def maps(
        self, name: str, space: Space, ins: Sequence[Val], nodes: Sequence[Node], wanted: Sequence[Val], single: Any = 0
    ) -> Hole:
        """A hole of maps of tokens."""
        hole, env = begin(Hole(name, ("x", "i", "c", "X")), [("x", ins)])
        body = region_body(self.w, space, self.reads, hole, env, nodes)
        body.place = lambda node: None
        body.nodes(nodes)
        results = [said(body, v) for v in wanted]
        hole.add(f"return {results[0] if single else pair(results)}")
        return hole

    def launch(
        self,
        kernel: str,
        groups: Sequence[tuple[str, Space, Sequence[Val]]],
        letters: str,
        holes: tuple[Hole | None, Hole | None],
        first: tuple[Dims, ...],
        second: tuple[Dims, ...],
        sides: tuple[str, str],
    ) -> list[str]:
        """Statements: the slots' tokens, then the product. first, second: groups of columns; sides: how many."""
        w = self.w
        names = [w.mint(name) for name, _, _ in groups]
        token, experts, capacity = (w.mint(x) for x in ("token", "experts", "capacity"))
        expert, place = (w.argument(v).name for v in self.index)
        own = [[(self.name(v), v) for v in values] for _, _, values in groups]
        spaces = [space for _, space, _ in groups]
        slot_rows = (self.expert, *self.batch, self.slot, *self.token)
        like = next(w.argument(v).name for v in groups[1][2] if v.dtype in FLOATS)
        rows = w.points((*self.batch, self.slot))
        slots, *across = ("rows", "columns", "depth") if kernel == "grouped_matmul" else ("depth", "rows", "columns")
        flags = ", ".join(f"{x}_DIMS={flags_of(s, o)}" for x, s, o in zip((*letters, "OUT"), spaces, own))
        ends = 2 + len(self.batch), 2 + len(self.batch) + len(self.token)
        given = ", ".join(f"*host.tensors({name})" for name in names)
        shown = ", ".join(h.name if h else "None" for h in holes)
        made, read, seen = self.reads.held
        return [
            *made,
            f"config = host.config(NAME, {like})",
            f"{experts}, {capacity} = {w.size(self.expert)}, {w.size(self.slot)}",
            f"{token} = grouped_matmul.routed({expert}, {place}, {len(self.batch)}, {experts}, {capacity})",
            *(f"{n} = {pair(laid(s, x, v) for x, v in o)}" for n, s, o in zip(names, spaces, own)),
            f"sizes = {pair([w.size(d) for d in slot_rows] + [w.points(g) for g in (*first, *second)])}",
            f"{slots}, {', '.join(across)} = {rows}, {sides[0]}, {sides[1]}",
            f'grid = ({experts} * triton.cdiv(rows, config["BM"]) * triton.cdiv(columns, config["BN"]),)',
            f"grouped_matmul.{kernel}[grid]({token}, {token}.stride(), {given}, sizes, {read}, {shown}, "
            f"TOKEN_DIMS={pair([str((1,) * (2 + len(self.batch)))])}, {flags}, NR={ends[0]}, NT={ends[1]}, "
            f"NN={ends[1] + len(first)}, {tile()}, DOT=matmul.factor({like}), ACC=host.acc({like}), "
            f'PREC="ieee", IDX=host.index(({experts}, {slots}, max({", ".join(across)})), '
            f"{', '.join([*names, *seen])}), **host.options(config))",
        ]

    def name(self, v: Val) -> str:
        return self.w.result(v) if v in self.graph.outputs else self.w.argument(v).name
