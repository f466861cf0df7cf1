"""Regions with reductions along rows: norms, softmax, losses and their derivatives as the rowwise skeleton's holes.

The region is opened to maps and reductions. A reduction's level is how many reductions stand one behind the other above
it; those of one level are one stage. What depends on no reduction is `pre`, results per row are `finish`, results per
element and what is summed over rows are `body`. Sums over rows alone are the pointwise skeleton's.
"""

from collections.abc import Sequence
from typing import Any

from weft.codegen.skeletons.common.writer.configs import everywhere
from weft.codegen.skeletons.common.writer.holes import Hole, HoleBody, ir_line
from weft.codegen.skeletons.common.writer.iteration import renamings
from weft.codegen.skeletons.common.writer.job import Job, Written
from weft.codegen.skeletons.common.writer.maps import (
    POINTWISE,
    above,
    after_hole,
    after_nodes,
    check_late,
    extent,
    kind,
    loaded,
    region_body,
    said,
    unpacked,
    whole_space,
)
from weft.codegen.skeletons.common.writer.source import Reads, named, nested, operands, pair, points, strided
from weft.codegen.skeletons.common.writer.spelling import ATOM, Tri
from weft.codegen.skeletons.common.writer.wrapper import Refused, Why, Wrapper
from weft.codegen.skeletons.pointwise.writer.write import write_maps, write_sums
from weft.codegen.skeletons.rowwise.writer.space import default
from weft.codegen.torch.lines import call
from weft.ir.builder import Builder, rebuilt
from weft.ir.ops.primitives import Einsum, Reduce
from weft.ir.types import FLOATS, Graph, Node, Val, union


def write_rowwise(job: Job) -> Written:
    """The kernel of a region whose core reduces."""
    graph = primitive(job.opened())
    same = renamings(graph)
    reductions = [n for n in graph.nodes if isinstance(n.op, Reduce)]
    if not reductions:
        return write_maps(job, graph)
    over = {n: frozenset(same.get(d, d) for d in n.ins[0].dims if d not in n.op.to) for n in reductions}  # type: ignore[attr-defined]
    largest = max((v for n in graph.nodes for v in (*n.ins, *n.outs)), key=lambda v: len(v.dims))
    last = same.get(largest.dims[-1], largest.dims[-1]) if largest.dims else ""
    every = frozenset(same.get(d, d) for d in largest.dims)
    columns = next((s for s in over.values() if last in s and s != every), frozenset[str]())
    rows = every - columns
    if not columns:
        return write_sums(job, graph)
    if not set(over.values()) <= {columns, rows}:
        raise Refused(Why.ROWS)
    return _Rowwise(job, graph, rows, [n for n in reductions if over[n] == rows]).write()


def primitive(graph: Graph) -> Graph:
    """Weighted sums as products and sums, argmax as the first place of the maximum, sums over nothing as maps."""

    def rule(g: Builder, n: Node, ins: list[Val]) -> tuple[Val, ...] | None:
        names = [v.name for v in n.outs]
        if isinstance(n.op, Einsum) and set(n.space) != set(n.op.to):
            dims = union(*(v.dims for v in ins))
            factors: dict[str, Any] = {f"x{i}": v for i, v in enumerate(ins)}
            product = g.map("*".join(factors), **factors, to=dims, dtype=n.outs[0].dtype)
            return (g.one(Reduce(n.op.to), product, names=names),)
        if isinstance(n.op, Reduce) and set(n.op.to) == set(ins[0].dims):
            return (g.map("x", x=ins[0], to=n.op.to, dtype=ins[0].dtype, names=names),)
        return (_argmax(g, n.op, ins[0], names),) if isinstance(n.op, Reduce) and n.op.kind == "argmax" else None

    return rebuilt(graph, rule)


def _argmax(g: Builder, op: Reduce, x: Val, names: list[str]) -> Val:
    (over,) = [d for d in x.dims if d not in op.to]
    top = g.reduce(x, to=op.to, kind="max")
    place = f"where(x == top, -i_{over}, -n_{over})"
    least = g.reduce(g.map(place, x=x, top=top, to=x.dims, dtype=x.dtype), to=op.to, kind="max")
    return g.map("-least", least=least, to=op.to, dtype="i64", names=names)


class _Rowwise:
    """One region under way. rows: its rows' dims; sums: the reductions over them."""

    def __init__(self, job: Job, graph: Graph, rows: frozenset[str], sums: Sequence[Node]) -> None:
        self.job, self.graph, self.sums = job, graph, sums
        self.w = Wrapper(graph, job.sizes, job.mixed, job.wide)
        self.same = renamings(graph)
        self.late = after_nodes(graph, {v for n in sums for v in n.outs})
        self.main = [n for n in graph.nodes if n not in self.late and n not in sums]
        self.reductions = [n for n in self.main if isinstance(n.op, Reduce)]
        if not all(isinstance(n.op, (*POINTWISE, Reduce)) for n in graph.nodes):
            raise Refused(Why.NOT_POINTWISE)
        if any(n.ins[0].dtype not in FLOATS for n in (*self.reductions, *sums)):
            raise Refused(Why.INTEGERS)
        own = {v for n in self.main for v in n.outs}
        self.outs = [v for v in graph.outputs if v in own and self.is_whole(v, rows)]
        self.per_row = [v for v in graph.outputs if v in own and v not in self.outs]
        self.space = whole_space(graph, [*self.main, *sums], self.same, self.outs, tuple(sorted(rows)))
        self.rows, self.columns = self.space.sides
        if any({self.same.get(d, d) for d in v.dims} != set(self.rows.dims) for v in self.per_row):
            raise Refused(Why.SPACES)
        check_late(graph, self.late, {v for n in sums for v in n.outs}, self.columns)
        self.level = self._levels()
        self.reads, self.ends = Reads(), Reads()
        self.ins = loaded(self.w, graph.inputs)

    def is_whole(self, v: Val, rows: frozenset[str]) -> bool:
        return not {self.same.get(d, d) for d in v.dims} <= rows

    def _levels(self) -> dict[Val, int]:
        level = dict.fromkeys(self.graph.inputs, 0)
        for n in self.main:
            top = max((level[v] for v in n.ins), default=0) + isinstance(n.op, Reduce)
            level.update(dict.fromkeys(n.outs, top))
        return level

    # -- what goes where ---------------------------------------------------------------------------------------------

    def stages(self) -> list[list[Node]]:
        """The reductions along rows by level."""
        depth = max(self.level[n.outs[0]] for n in self.reductions)
        return [[n for n in self.reductions if self.level[n.outs[0]] == t + 1] for t in range(depth)]

    def shared(self) -> list[Val]:
        """What the stages and the body read of `pre`: values free of reductions."""
        first = [v for v in (*self.outs, *(n.ins[0] for n in (*self.reductions, *self.sums))) if not self.level[v]]
        for n in self.main:
            if self.level[n.outs[0]]:
                first += [v for v in n.ins if not self.level[v]]
        scalars = {a.val for a in self.w.arguments if a.role != "tensor"}
        return [v for v in dict.fromkeys(first) if v not in scalars]

    # -- holes -------------------------------------------------------------------------------------------------------

    def begin(self, name: str, args: Sequence[str], given: Sequence[tuple[str, Sequence[Val]]]) -> HoleBody:
        """A hole whose tuples `given` (argument, values) are unpacked."""
        hole = Hole(name, args)
        return region_body(self.w, self.space, self.reads, hole, self.numbers | unpacked(hole, given), self.main)

    def write(self) -> Written:
        self.numbers: dict[str, Tri] = {}
        shared = self.shared()
        pre = self.pre(shared) if above(self.main, shared, self.ins) else None
        u = [v for v in shared if v.name not in self.numbers] if pre else self.ins
        levels, so_far, stages = self.stages(), list[Val](), list[Hole]()
        for t, reductions in enumerate(levels):
            name = f"stage{t}" if len(levels) > 1 else "stage"
            stages.append(self.hole(name, u, so_far, [n.ins[0] for n in reductions], reductions))
            so_far += [n.outs[0] for n in reductions]
        finish = self.finish(so_far) if self.per_row else None
        sums = self.sums
        body = self.hole("body", u, so_far, [*self.outs, *(n.ins[0] for n in sums)], sums)
        results = [v for v in self.graph.outputs if v not in self.level]
        after = after_hole(self.w, self.columns, self.ends, sums, self.late, results) if sums else None
        optional = {"pre": pre, "finish": finish, "after": after}
        holes = [h for h in (pre, *stages, finish, body, after) if h]
        kinds = tuple(tuple(n.op.kind for n in level) for level in levels)  # type: ignore[attr-defined]
        summed = {"summed": len(sums)} if sums else {}
        given = call(
            "launch.Holes", "body", pair(h.name for h in stages), nested(kinds),
            **{name: name for name, hole in optional.items() if hole}, **summed,
        )  # fmt: skip
        config = default([self.job.sizes.number(d) for d in self.columns.dims], bool(sums))
        return Written(self.w, "rowwise", tuple(holes), self.launch(results), everywhere(config), {"HOLES": given})

    def launch(self, sums: Sequence[Val]) -> str:
        w, space = self.w, self.space
        given = {"ins": operands(w, space, self.ins), "outs": operands(w, space, self.outs)}
        given |= {"per_row": operands(w, self.rows, self.per_row), "sums": operands(w, self.columns, sums)}
        sizes = (points(w, side.groups) for side in space.sides)
        more = named(**given, x=self.reads.text, ends=self.ends.text)
        return call("launch.rows", "NAME", "HOLES", w.anchor.name, *sizes, **more)

    def pre(self, shared: Sequence[Val]) -> Hole:
        body = self.begin("pre", ("x", "i", "c", "X"), [("x", self.ins)])
        body.nodes(above(self.main, shared, self.ins))
        self.numbers = {v.name: src for v in shared if (src := body.value(v)).number}
        body.hole.add(f"return {pair(body.value(v).text for v in shared if v.name not in self.numbers)}")
        return body.hole

    def hole(self, name: str, u: Sequence[Val], s: Sequence[Val], wanted: Sequence[Val], ends: Sequence[Node]) -> Hole:
        nodes = above(self.main, wanted, (*u, *s))
        read = {v for n in nodes for v in n.ins} | set(wanted)
        body = self.begin(name, ("u", "s", "i", "c", "X"), [("u", _named(u, read)), ("s", _named(s, read))])
        body.nodes(nodes)
        for n in ends:
            body.hole.note(ir_line(n))
        body.hole.add(f"return {pair(said(body, v) for v in wanted)}")
        return body.hole

    def finish(self, s: Sequence[Val]) -> Hole:
        """Results per row: what they read of operands is loaded here, through X."""
        nodes = above(self.main, self.per_row, s)
        read = {v for n in nodes for v in n.ins} | set(self.per_row)
        body = self.begin("finish", ("s", "c", "X"), [("s", _named(s, read))])
        body.load = lambda v: self.row_load(body.hole, v)
        body.nodes(nodes)
        body.hole.add(f"return {pair(said(body, v) for v in self.per_row)}")
        return body.hole

    def row_load(self, hole: Hole, v: Val) -> Tri:
        rows = self.rows
        if any(self.columns.flags(v)) or self.w.argument(v).role != "tensor":
            raise Refused(Why.SPACES, v.name)
        x = self.reads.at(strided(self.w, rows, v))
        at = "".join(f" + c[{k}] * {x}[1][{k}]" for k, has in enumerate(rows.flags(v)) if has)
        mask = f", mask=c[0] < {extent(self.w, self.reads, rows.groups[0])}, other=0" if at else ""
        cast = f".to({hole.acc})" if v.dtype in FLOATS else ""
        return Tri(f"tl.load({x}[0]{at}{mask}){cast}", ATOM, kind(v))


def _named(values: Sequence[Val], read: set[Val]) -> list[Val]:
    """The values of a tuple that is unpacked; those that are not read are still named."""
    return list(values) if any(v in read for v in values) else []
