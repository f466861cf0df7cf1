"""Regions with reductions along rows: norms, softmax, losses and their derivatives as the rowwise skeleton's holes.

The region is opened to maps and reductions. A reduction's level is how many reductions stand one behind the other above
it; those of one level are one stage. What depends on no reduction is `pre`, results per row are `finish`, results per
element and what is summed over rows are `body`. Sums over rows alone are the pointwise skeleton's.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from weft.codegen.skeletons.common.writer.holes import Body, Hole, ir_line
from weft.codegen.skeletons.common.writer.iteration import Space, renamings
from weft.codegen.skeletons.common.writer.regions import Configs, Job, Reads, Written, nested, pair
from weft.codegen.skeletons.common.writer.spelling import ATOM, Tri
from weft.codegen.skeletons.common.writer.wrapper import Refused, Why, Wrapper
from weft.codegen.skeletons.pointwise.writer.write import (
    POINTWISE,
    SAME,
    after_hole,
    after_nodes,
    check_late,
    flags_of,
    kind,
    laid,
    operands,
    region_body,
    said,
    sums_end,
    whole_space,
    write_maps,
    write_sums,
)
from weft.ir.builder import Builder
from weft.ir.primitives import Einsum, Reduce
from weft.ir.types import FLOATS, Graph, Node, Val, union
from weft.targets import ARCHS, KERNEL_DTYPES


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
    return _Rowwise(job, graph, rows, {n for n in reductions if over[n] == rows}).write()


def primitive(graph: Graph) -> Graph:
    """Weighted sums as products and sums, argmax as the first place of the maximum, sums over nothing as maps."""
    g = Builder()
    env = {v: g.input(v.name, v.type) for v in graph.inputs}
    for n in graph.nodes:
        ins, names = [env[v] for v in n.ins], [v.name for v in n.outs]
        with g.at(n.src):
            if isinstance(n.op, Einsum) and set(n.space) != set(n.op.to):
                dims = union(*(v.dims for v in ins))
                formula = "*".join(f"x{i}" for i in range(len(ins)))
                factors: dict[str, Any] = {f"x{i}": v for i, v in enumerate(ins)}
                product = g.map(formula, **factors, to=dims, dtype=n.outs[0].dtype)
                outs: Sequence[Val] = (g.one(Reduce(n.op.to), product, names=names),)
            elif isinstance(n.op, Reduce) and set(n.op.to) == set(ins[0].dims):
                outs = (g.map("x", x=ins[0], to=n.op.to, dtype=ins[0].dtype, names=names),)
            elif isinstance(n.op, Reduce) and n.op.kind == "argmax":
                outs = (_argmax(g, n.op, ins[0], names),)
            else:
                outs = g.many(n.op, *ins, names=names)
        env.update(zip(n.outs, outs, strict=True))
    return g.graph(*(env[v] for v in graph.outputs))


def _argmax(g: Builder, op: Reduce, x: Val, names: list[str]) -> Val:
    (over,) = [d for d in x.dims if d not in op.to]
    top = g.reduce(x, to=op.to, kind="max")
    place = f"where(x == top, -i_{over}, -n_{over})"
    least = g.reduce(g.map(place, x=x, top=top, to=x.dims, dtype=x.dtype), to=op.to, kind="max")
    return g.map("-least", least=least, to=op.to, dtype="i64", names=names)


@dataclass
class _Stage:
    """A hole's text and what it computes anew."""

    hole: Hole
    body: Body


class _Rowwise:
    """One region under way. rows: its rows' dims; sums: the reductions over them."""

    def __init__(self, job: Job, graph: Graph, rows: frozenset[str], sums: set[Node]) -> None:
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
        row_dims = set(self.space.dims[: sum(len(g) for g in self.space.groups[: self.space.rows])])
        if any({self.same.get(d, d) for d in v.dims} != row_dims for v in self.per_row):
            raise Refused(Why.SPACES)
        columns = Space(self.space.groups[self.space.rows :], 0, self.same)
        check_late(graph, self.late, {v for n in sums for v in n.outs}, columns)
        self.maker = {v: n for n in self.main for v in n.outs}
        self.level = self._levels()
        self.reads, self.ends = Reads(), Reads()
        self.ins = operands(self.w, self.space, graph.inputs)

    def is_whole(self, v: Val, rows: frozenset[str]) -> bool:
        return not {self.same.get(d, d) for d in v.dims} <= rows

    def _levels(self) -> dict[Val, int]:
        level = dict.fromkeys(self.graph.inputs, 0)
        for n in self.main:
            top = max((level[v] for v in n.ins), default=0) + isinstance(n.op, Reduce)
            level.update(dict.fromkeys(n.outs, top))
        return level

    # -- what goes where ---------------------------------------------------------------------------------------------

    def above(self, wanted: Iterable[Val], known: set[Val]) -> list[Node]:
        """The nodes that make `wanted` from `known`, in order."""
        need, todo = set[Node](), list(wanted)
        while todo:
            v = todo.pop()
            if v in known or v not in self.maker or self.maker[v] in need:
                continue
            need.add(self.maker[v])
            todo += self.maker[v].ins
        return [n for n in self.main if n in need]

    def stages(self) -> list[list[Node]]:
        """The reductions along rows by level."""
        depth = max(self.level[n.outs[0]] for n in self.reductions)
        return [[n for n in self.reductions if self.level[n.outs[0]] == t + 1] for t in range(depth)]

    def shared(self) -> list[Val]:
        """What the stages and the body read of `pre`: values free of reductions."""
        first = [
            v for v in (*self.outs, *(n.ins[0] for n in (*self.reductions, *self.sums_in_order))) if not self.level[v]
        ]
        for n in self.main:
            if self.level[n.outs[0]]:
                first += [v for v in n.ins if not self.level[v]]
        scalars = {a.val for a in self.w.arguments if a.role != "tensor"}
        return [v for v in dict.fromkeys(first) if v not in scalars]

    # -- holes -------------------------------------------------------------------------------------------------------

    def begin(self, name: str, args: Sequence[str], given: Sequence[tuple[str, Sequence[Val]]]) -> _Stage:
        """A hole whose tuples `given` (argument, values) are unpacked."""
        hole = Hole(name, args)
        env: dict[str, Tri] = dict(self.numbers)
        for source, values in given:
            names = [hole.mint(v.name) for v in values]
            if names:
                hole.lines.add(f"{', '.join(names)} = {source}" if len(names) > 1 else f"{names[0]} = {source}[0]")
            for n, v in zip(names, values):
                env[v.name] = Tri(n, ATOM, kind(v))
                if v.dtype in FLOATS and not hole.computes:
                    hole.acc = f"{n}.dtype"
        return _Stage(hole, region_body(self.w, self.space, self.reads, hole, env, self.main))

    def write(self) -> Written:
        self.numbers: dict[str, Tri] = {}
        loaded = [v for _, v in self.ins]
        shared = self.shared()
        pre = self.pre(loaded, shared) if self.above(shared, set(loaded)) else None
        u = [v for v in shared if v.name not in self.numbers] if pre else loaded
        stages, so_far, holes = self.stages(), list[Val](), list[Hole]()
        for t, reductions in enumerate(stages):
            name = f"stage{t}" if len(stages) > 1 else "stage"
            holes.append(self.hole(name, u, so_far, [n.ins[0] for n in reductions], reductions))
            so_far += [n.outs[0] for n in reductions]
        finish = self.finish(so_far) if self.per_row else None
        ends = [n.ins[0] for n in self.sums_in_order]
        body = self.hole("body", u, so_far, [*self.outs, *ends], self.sums_in_order)
        after = self.after()
        found = [*([pre] if pre else []), *holes, *([finish] if finish else []), body, *after]
        launch = self.launch(pre, holes, finish, stages)
        return Written(self.w, "rowwise", tuple(found), tuple(launch), default(self.job, self.space, bool(self.sums)))

    @property
    def sums_in_order(self) -> list[Node]:
        return [n for n in self.graph.nodes if n in self.sums]

    def pre(self, loaded: Sequence[Val], shared: Sequence[Val]) -> Hole:
        stage = self.begin("pre", ("x", "i", "c", "X"), [("x", loaded)])
        stage.body.nodes(self.above(shared, set(loaded)))
        self.numbers = {v.name: src for v in shared if (src := stage.body.value(v)).number}
        stage.hole.add(f"return {pair(stage.body.value(v).text for v in shared if v.name not in self.numbers)}")
        return stage.hole

    def hole(self, name: str, u: Sequence[Val], s: Sequence[Val], wanted: Sequence[Val], ends: Sequence[Node]) -> Hole:
        nodes = self.above(wanted, {*u, *s})
        read = {v for n in nodes for v in n.ins} | set(wanted)
        order = ("u", "s", "i", "c", "X")
        stage = self.begin(name, order, [("u", _named(u, read)), ("s", _named(s, read))])
        stage.body.nodes(nodes)
        for n in ends:
            stage.hole.note(ir_line(n))
        stage.hole.add(f"return {pair(said(stage.body, v) for v in wanted)}")
        return stage.hole

    def finish(self, s: Sequence[Val]) -> Hole:
        """Results per row: what they read of operands is loaded here, through X."""
        nodes = self.above(self.per_row, set(s))
        read = {v for n in nodes for v in n.ins} | set(self.per_row)
        stage = self.begin("finish", ("s", "c", "X"), [("s", _named(s, read))])
        stage.body.load = lambda v: self.row_load(stage.hole, v)
        stage.body.nodes(nodes)
        stage.hole.add(f"return {pair(said(stage.body, v) for v in self.per_row)}")
        return stage.hole

    def row_load(self, hole: Hole, v: Val) -> Tri:
        rows = self.space.groups[: self.space.rows]
        if any(self.space.flags(v)[self.space.rows :]) or self.w.argument(v).role != "tensor":
            raise Refused(Why.SPACES, v.name)
        x = self.reads.at(laid(Space(rows, len(rows), self.same), self.w.argument(v).name, v))
        at = "".join(f" + c[{k}] * {x}[1][{k}]" for k, has in enumerate(self.space.flags(v)[: len(rows)]) if has)
        number = self.w.points(rows[0])
        many = (
            self.reads.at(number) if any(self.job.sizes.number(d) is None for d in rows[0]) else self.w.number(number)
        )
        mask = f", mask=c[0] < {many}, other=0" if at else ""
        cast = f".to({hole.acc})" if v.dtype in FLOATS else ""
        return Tri(f"tl.load({x}[0]{at}{mask}){cast}", ATOM, kind(v))

    def after(self) -> list[Hole]:
        if not self.sums:
            return []
        columns = Space(self.space.groups[self.space.rows :], 0, self.same)
        return [SAME, after_hole(self.w, columns, self.ends, self.sums_in_order, self.late, self.sum_results)]

    @property
    def sum_results(self) -> list[Val]:
        return [v for v in self.graph.outputs if v not in self.maker]

    # -- launch ------------------------------------------------------------------------------------------------------

    def launch(self, pre: Hole | None, stages: Sequence[Hole], finish: Hole | None, kinds: Any) -> list[str]:
        w, space = self.w, self.space
        results = [(w.result(v), v) for v in self.outs]
        rows = Space(space.groups[: space.rows], space.rows, self.same)
        columns = space.groups[space.rows :]
        shown = tuple(tuple(n.op.kind for n in level) for level in kinds)
        ends = self.sums_in_order
        flags = str((1,) * (1 + len(columns)))
        sizes = [w.points(g) for g in columns]
        number = sum(len(g) for g in rows.groups)
        made, read, seen = self.reads.held
        lines = [
            *made,
            f"config = host.config(NAME, {w.anchor.name})",
            f"rows, columns, acc = {w.points(space.dims[:number])}, {w.points(space.dims[number:])}, "
            f"host.acc({w.anchor.name})",
            "single, bm, bn = host.row_tile(rows, columns, config)",
            f"sizes = {pair(w.points(g) for g in space.groups)}",
            f"ins = {pair(laid(space, name, v) for name, v in self.ins)}",
            f"outs = {pair(laid(space, name, v) for name, v in results)}",
            f"per_row = {pair(laid(rows, w.result(v), v) for v in self.per_row)}",
        ]
        if ends:
            lines += [
                'programs = min(config["PROGRAMS"], triton.cdiv(rows, bm))',
                f"part = host.partial({w.anchor.name}, {len(ends)}, programs, {pair(sizes)})",
                f"parts = tuple(host.laid(p, {', '.join(f'({n},)' for n in range(len(sizes) + 1))}) for p in part)",
            ]
        grid = "(programs,)" if ends else "(triton.cdiv(rows, bm),)"
        tensors = ", ".join(f"*host.tensors({t})" for t in ("ins", "outs", "per_row", "parts" if ends else "()"))
        lines.append(
            f"rowwise.rowwise[{grid}]({tensors}, sizes, {read}, {'pre' if pre else None}, "
            f"{pair(h.name for h in stages)}, {'finish' if finish else None}, body, KINDS={nested(shown)}, "
            f"IN_DIMS={flags_of(space, self.ins)}, OUT_DIMS={flags_of(space, results)}, "
            f"ROW_DIMS={pair([str((1,) * space.rows)] * len(self.per_row))}, SUM_DIMS={pair([flags] * len(ends))}, "
            f"NR={space.rows}, SINGLE=single, BM=bm, BN=bn, ACC=acc, "
            f"IDX=host.index({', '.join(['sizes', 'ins', 'outs', 'per_row', *(['parts'] if ends else []), *seen])}), "
            "**host.options(config))"
        )
        if ends:
            own = Space(columns, 0, self.same)
            lines += ["bm, bn = host.tile(programs, columns, 2048, 64)"]
            lines += sums_end(w, own, self.sum_results, ["sum"] * len(ends), "programs", sizes, self.ends)
        return lines


def _named(values: Sequence[Val], read: set[Val]) -> list[Val]:
    """The values of a tuple that is unpacked; those that are not read are still named."""
    return list(values) if any(v in read for v in values) else []


def default(job: Job, space: Space, sums: bool) -> Configs:
    """Configurations by the length of a row: a tile of 1024 to 8192 elements, 16 of them a thread; 4 where sums over
    rows are kept beside them, as the derivatives of norms read up to ten operands."""
    numbers = [job.sizes.number(d) for g in space.groups[space.rows :] for d in g]
    columns = 1
    for n in numbers:
        columns *= n or 1024
    tile = 1 << max(10, min(13, (columns - 1).bit_length()))
    warps = max(4, min(16, tile // (128 if sums else 512)))
    found = {"BLOCK": tile, "CHUNK": 4096, "LONGEST": 16384, "num_warps": warps}
    if sums:
        found |= {"PROGRAMS": 264, "LONGEST": 1 << 20}
    return {a: {d: dict(found) for d in KERNEL_DTYPES} for a in ARCHS}
