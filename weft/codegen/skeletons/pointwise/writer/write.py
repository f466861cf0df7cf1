"""Regions of maps over one space, with or without sums over its rows: the pointwise skeleton's holes and launches."""

from collections.abc import Sequence

from weft.codegen.skeletons.common.writer.holes import Body, Hole, ir_line
from weft.codegen.skeletons.common.writer.iteration import Space, by_place, coordinated, merged, renamings, tell_apart
from weft.codegen.skeletons.common.writer.regions import Configs, Job, Reads, Written, nested, pair
from weft.codegen.skeletons.common.writer.spelling import ATOM, Tri
from weft.codegen.skeletons.common.writer.wrapper import Refused, Why, Wrapper
from weft.ir.library import Dropout
from weft.ir.primitives import Detach, Einsum, Gather, Map, Reduce, Rename
from weft.ir.types import FLOATS, Dims, Graph, Node, Val
from weft.targets import ARCHS, KERNEL_DTYPES

POINTWISE = (Map, Dropout, Einsum, Rename, Detach)


def kind(v: Val) -> str:
    """What a loaded operand is in a hole."""
    return "float" if v.dtype in FLOATS else "bool" if v.dtype == "bool" else "int"


def same_everywhere(found: dict[str, int]) -> Configs:
    return {a: {d: dict(found) for d in KERNEL_DTYPES} for a in ARCHS}


def write_pointwise(job: Job) -> Written:
    """The kernel of a region of maps."""
    return write_maps(job, job.opened())


def write_maps(job: Job, graph: Graph) -> Written:
    """Maps, and gathers along a dim that stays: each reads its table at another place of the same row."""
    if not all(isinstance(n.op, (*POINTWISE, Gather)) for n in graph.nodes):
        raise Refused(Why.NOT_POINTWISE)
    w = Wrapper(graph, job.sizes, job.mixed, job.wide)
    same = renamings(graph)
    space = whole_space(graph, graph.nodes, same, graph.outputs)
    reads = Reads()
    hole = body_hole(w, space, reads, graph.nodes, graph.outputs)
    ins, outs = operands(w, space, graph.inputs), [(w.result(v), v) for v in graph.outputs]
    made, read, seen = reads.held
    launch = [
        *made,
        f"sizes = {pair(w.points(g) for g in space.groups)}",
        f"ins = {pair(laid(space, name, v) for name, v in ins)}",
        f"outs = {pair(laid(space, name, v) for name, v in outs)}",
        f"config = host.config(NAME, {w.anchor.name})",
        f"rows, columns = {w.points(space.dims[: _count(space)])}, {w.points(space.dims[_count(space) :])}",
        'bm, bn = host.tile(rows, columns, config["BLOCK"])',
        "grid = (triton.cdiv(rows, bm) * triton.cdiv(columns, bn),)",
        f"pointwise.pointwise[grid](*host.tensors(ins), *host.tensors(outs), sizes, {read}, body, "
        f"IN_DIMS={flags_of(space, ins)}, OUT_DIMS={flags_of(space, outs)}, "
        f"NR={space.rows}, BM=bm, BN=bn, ACC=host.acc({w.anchor.name}), "
        f"IDX=host.index({', '.join(['sizes', 'ins', 'outs', *seen])}), **host.options(config))",
    ]
    return Written(w, "pointwise", (hole,), tuple(launch), same_everywhere({"BLOCK": 1024, "num_warps": 4}))


def flags_of(space: Space, values: Sequence[tuple[str, Val]]) -> str:
    return pair(str(space.flags(v)) for _, v in values)


def _count(space: Space) -> int:
    return sum(len(g) for g in space.groups[: space.rows])


def whole_space(
    graph: Graph, nodes: Sequence[Node], same: dict[str, str], outputs: Sequence[Val], first: Dims = ()
) -> Space:
    """The space of the nodes: in the order of the largest result, dims in `first` before all others (as rows)."""

    def one(dims: Dims) -> Dims:
        return tuple(same.get(d, d) for d in dims)

    tell_apart(nodes, same)
    every = {d for n in nodes for d in one(n.space)}
    largest = max((v for n in nodes for v in (*n.outs, *n.ins) if v.dims), key=lambda v: len(v.dims), default=None)
    if not every:
        return Space(((),), 0, same)
    if largest is None or not every <= set(one(largest.dims)):
        raise Refused(Why.SPACES)
    order = one(largest.dims)
    for v in outputs:  # a result's own order makes its stores contiguous
        if set(one(v.dims)) == every:
            order = one(v.dims)
            break
    rest = tuple(d for d in order if d not in first)
    order = (*(d for d in order if d in first), *rest)
    values = {v for n in nodes for v in (*n.ins, *n.outs)} & {*graph.inputs, *graph.outputs}
    alone = coordinated(graph.nodes, order, same)
    border = [one(v.dims) for v in sorted(values, key=lambda v: v.name)]
    if first:
        top = merged([d for d in order if d in first], border, alone)
        return Space((*top, *(merged(rest, border, alone) or ((),))), len(top), same)
    groups = merged(order, border, alone)
    return Space(groups, len(groups) - 1 if len(groups) > 1 else 0, same)


def operands(w: Wrapper, space: Space, values: Sequence[Val]) -> list[tuple[str, Val]]:
    """The tensors that a skeleton loads."""
    return [(w.argument(v).name, v) for v in values if w.argument(v).role == "tensor"]


def laid(space: Space, name: str, v: Val) -> str:
    return f"host.laid({', '.join([name, *(str(a) for a in space.axes(v))])})"


def body_hole(
    w: Wrapper,
    space: Space,
    reads: Reads,
    nodes: Sequence[Node],
    results: Sequence[Val],
    name: str = "body",
    args: Sequence[str] = ("x", "i", "c", "X"),
) -> Hole:
    """The hole that computes the nodes from loaded operands and gives `results`."""
    hole = Hole(name, args)
    given = operands(w, space, w.body.inputs)
    env: dict[str, Tri] = {}
    names = [hole.mint(n) for n, _ in given]
    hole.lines.add(f"{', '.join(names)} = x" if len(names) > 1 else f"{names[0]} = x[0]")
    for n, (_, v) in zip(names, given):
        env[v.name] = Tri(n, ATOM, kind(v))
    found = next((n for n, (_, v) in zip(names, given) if v.dtype in FLOATS), None)
    hole.acc = f"{found}.dtype" if found else ""
    body = region_body(w, space, reads, hole, env, nodes)
    if any(isinstance(n.op, Gather) for n in nodes):
        body.gather = _Elsewhere(w, space, reads, body, nodes).gather
    body.nodes(nodes)
    hole.add(f"return {pair(said(body, v) for v in results)}")
    return hole


class _Elsewhere:
    """Values at another coordinate of one dim: their operands are loaded there, and the maps done again."""

    def __init__(self, w: Wrapper, space: Space, reads: Reads, body: Body, nodes: Sequence[Node]) -> None:
        self.w, self.space, self.reads, self.body = w, space, reads, body
        self.maker = {v: n for n in nodes for v in n.outs}
        self.inside = ""

    def gather(self, node: Node) -> Tri:
        (dim,), (table, index) = node.op.at, node.ins  # type: ignore[attr-defined]
        if dim not in index.dims or dim not in table.dims:
            raise Refused(Why.SPACES, dim)
        at, hole = self.body.value(index), self.body.hole
        at = at if at.plain else hole.bind("at", at)
        size = self.body.sizes(dim)
        there = hole.bind("there", Tri(f"({at.text} >= 0) & ({at.text} < {size.text})", 1, "bool"))
        moved = Body(hole, {**self.body.coordinates, dim: at}, self.body.sizes, lambda v: self.load(v, dim, at, there))
        moved.seeds = self.body.seeds
        moved.nodes(self.above(table))
        hole.note(ir_line(node))
        return Tri(f"tl.where({there.text}, {moved.value(table).text}, 0.0)", ATOM, kind(node.outs[0]))

    def above(self, v: Val) -> list[Node]:
        need, todo = set[Node](), [v]
        while todo:
            made = self.maker.get(todo.pop())
            if made is not None and made not in need:
                if isinstance(made.op, Gather):
                    raise Refused(Why.SPACES)
                need.add(made)
                todo += made.ins
        return [n for n in dict.fromkeys(self.maker.values()) if n in need]

    def load(self, v: Val, dim: str, at: Tri, there: Tri) -> Tri:
        """An operand with the coordinate of `dim` replaced."""
        hole, space = self.body.hole, self.space
        if self.w.argument(v).role != "tensor":
            return self.body.value(v)
        x = self.reads.at(laid(space, self.w.argument(v).name, v))
        if not self.inside:
            first = {0: space.groups[0], space.rows: space.groups[space.rows]}
            ends = [f"(c[{k}] < {self.points(g)})" for k, g in first.items()]
            self.inside = hole.bind("inside", Tri(" & ".join(ends), 1, "bool")).text
        terms = ""
        for k, (has, g) in enumerate(zip(space.flags(v), space.groups)):
            own = at.text if g == (space.same.get(dim, dim),) else f"c[{k}]"
            terms += f" + {own} * {x}[1][{k}]" if has else ""
        cast = f".to({hole.acc})" if v.dtype in FLOATS else ""
        place = hole.bind(f"{v.name}_at", Tri(f"{x}[0]{terms}")).text
        return Tri(f"tl.load({place}, mask={self.inside} & {there.text}, other=0){cast}", ATOM, kind(v))

    def points(self, dims: Dims) -> str:
        text = self.w.points(dims)
        frozen = all(self.w.sizes.number(d) is not None for d in dims)
        return self.w.number(text) if frozen else self.reads.at(text)


def said(body: Body, v: Val) -> str:
    """A result as source; a constant as a scalar of the accumulator."""
    src = body.value(v)
    return src.text if not src.number else f"tl.full([1, 1], {src.text}, {body.hole.acc})"


def region_body(w: Wrapper, space: Space, reads: Reads, hole: Hole, env: dict[str, Tri], nodes: Sequence[Node]) -> Body:
    """Prints nodes of a region in a hole whose operands are loaded: `c` are the coordinates, `i` the place."""
    seeds: dict[str, str] = {}
    for a in (a for n in nodes if isinstance(n.op, Dropout) for a in (w.argument(n.ins[1]), w.argument(n.ins[2]))):
        if a.role == "seed":
            seeds[a.val.name] = reads.at(a.name)
        else:
            env[a.val.name] = Tri(reads.at(a.name), ATOM, "int", None, 0)

    def size(dim: str) -> Tri:
        return w.frozen(dim) or Tri(reads.at(w.size(dim)), ATOM, "int", None, 0)

    def load(v: Val) -> Tri:
        raise Refused(Why.SPACES, v.name)

    def place(node: Node) -> Tri | None:
        known = "i" in hole.args and by_place(node, space.dims, space.same)
        return Tri("i", ATOM, "int", None, 0) if known else None

    return Body(hole, space.coordinates(), size, load, env, seeds, place)


def write_sums(job: Job, graph: Graph) -> Written:
    """Maps over a space, sums (or maxima) of some over its rows, and maps of those: reduce_rows, twice."""
    w = Wrapper(graph, job.sizes, job.mixed, job.wide)
    same = renamings(graph)
    reductions = [n for n in graph.nodes if isinstance(n.op, Reduce)]
    own = {v for n in reductions for v in n.outs}
    late = after_nodes(graph, own)
    early = [n for n in graph.nodes if n not in late and n not in reductions]
    if not all(isinstance(n.op, POINTWISE) for n in (*early, *late)):
        raise Refused(Why.NOT_POINTWISE)
    rows = {frozenset(same.get(d, d) for d in n.ins[0].dims if d not in n.op.to) for n in reductions}  # type: ignore[attr-defined]
    if len(rows) != 1 or any(n.op.kind not in ("sum", "max") for n in reductions):  # type: ignore[attr-defined]
        raise Refused(Why.ROWS)
    if any(n.ins[0].dtype not in FLOATS for n in reductions):
        raise Refused(Why.INTEGERS)
    made = {v for n in early for v in n.outs} | set(graph.inputs)
    outs = [v for v in graph.outputs if v in made]
    sums = [v for v in graph.outputs if v not in made]
    space = whole_space(graph, [*early, *reductions], same, outs, tuple(next(iter(rows))))
    columns = Space(space.groups[space.rows :], 0, same)
    if any(space.flags(v) != (1,) * len(space.groups) for v in outs):
        raise Refused(Why.SPACES)
    check_late(graph, late, own, columns)
    reads = Reads()
    kinds = [n.op.kind for n in reductions]  # type: ignore[attr-defined]
    body = body_hole(w, space, reads, early, [*outs, *(n.ins[0] for n in reductions)])
    ends = Reads()
    after = after_hole(w, columns, ends, reductions, late, sums)
    launch = tuple(_sums_launch(w, space, columns, (reads, ends), outs, sums, kinds))
    configs = same_everywhere({"BM": 32, "BN": 64, "SLABS": 128, "num_warps": 4})
    return Written(w, "pointwise", (body, SAME, after), launch, configs)


SAME = Hole("same", ("x", "i", "c", "X"), doc="Partial results go on as they are.")
SAME.add("return x")


def after_nodes(graph: Graph, values: set[Val]) -> list[Node]:
    """The nodes that depend on some of the values."""
    known, out = set(values), list[Node]()
    for n in graph.nodes:
        if not known.isdisjoint(n.ins):
            out.append(n)
            known.update(n.outs)
    return out


def check_late(graph: Graph, late: Sequence[Node], reduced: set[Val], columns: Space) -> None:
    """Refused unless nodes after the reductions over rows are over columns alone, and read besides these and each
    other operands without dims."""
    inside = {v for n in late for v in n.outs} | reduced
    read = {v for n in late for v in n.ins if v not in inside}
    wide = any(not set(columns.one(n.space)) <= set(columns.dims) for n in late)
    if wide or any(v.dims or v not in graph.inputs for v in read):
        raise Refused(Why.SPACES)


def after_hole(
    w: Wrapper, columns: Space, reads: Reads, reductions: Sequence[Node], late: Sequence[Node], sums: Sequence[Val]
) -> Hole:
    """The hole that makes results of reduced values."""
    hole = Hole("after", ("s", "c", "X"))
    names = [hole.mint(n.outs[0].name) for n in reductions]
    hole.lines.add(f"{', '.join(names)} = s" if len(names) > 1 else f"{names[0]} = s[0]")
    hole.acc = f"{names[0]}.dtype"
    env = {n.outs[0].name: Tri(name) for n, name in zip(reductions, names)}
    for n in reductions:
        hole.note(ir_line(n))
    body = region_body(w, columns, reads, hole, env, late)
    body.load = lambda v: scalar_load(w, reads, hole, v)
    body.nodes(late)
    hole.add(f"return {pair(said(body, v) for v in sums)}")
    return hole


def scalar_load(w: Wrapper, reads: Reads, hole: Hole, v: Val) -> Tri:
    """An operand without dims, where a hole is given none."""
    if v.dims or w.argument(v).role != "tensor":
        raise Refused(Why.SPACES, v.name)
    cast = f".to({hole.acc})" if v.dtype in FLOATS else ""
    return Tri(f"tl.load({reads.at(w.argument(v).name)}){cast}", ATOM, kind(v))


def _sums_launch(
    w: Wrapper,
    space: Space,
    columns: Space,
    reads: tuple[Reads, Reads],
    outs: Sequence[Val],
    sums: Sequence[Val],
    kinds: Sequence[str],
) -> list[str]:
    """Statements: a first launch that leaves a partial result for each slab, a second that ends them."""
    ins, results = operands(w, space, w.body.inputs), [(w.result(v), v) for v in outs]
    own, anchor = columns.dims, w.anchor.name
    rows = w.points(space.dims[: _count(space)])
    flags = str((1, *(1 for _ in columns.groups)))
    sizes = [w.points(g) for g in columns.groups]
    walked = ", ".join(str((n + 1,)) for n in range(len(sizes)))
    constants = f"KINDS={nested(tuple(kinds))}, SUM_DIMS={pair([flags] * len(kinds))}, "
    tensors = "*host.tensors(ins), *host.tensors(outs), *host.tensors(parts)"
    made, read, seen = reads[0].held
    return [
        *made,
        f"config = host.config(NAME, {anchor})",
        f"rows, columns, acc = {rows}, {w.points(own)}, host.acc({anchor})",
        'bm, bn = host.tile(rows, columns, config["BM"] * config["BN"], config["BN"])',
        'slabs = min(config["SLABS"], triton.cdiv(rows, bm))',
        f"sizes = {pair(w.points(g) for g in space.groups)}",
        f"ins = {pair(laid(space, name, v) for name, v in ins)}",
        f"outs = {pair(laid(space, name, v) for name, v in results)}",
        f"part = host.partial({anchor}, {len(kinds)}, slabs, {pair(sizes)})",
        f"parts = tuple(host.laid(p, (0,){', ' + walked if walked else ''}) for p in part)",
        "grid = (triton.cdiv(columns, bn), slabs)",
        f"pointwise.reduce_rows[grid]({tensors}, sizes, {read}, body, None, {constants}"
        f"IN_DIMS={flags_of(space, ins)}, OUT_DIMS={flags_of(space, results)}, "
        f"NR={space.rows}, BM=bm, BN=bn, ACC=acc, "
        f"IDX=host.index({', '.join(['sizes', 'ins', 'outs', 'parts', *seen])}), **host.options(config))",
        *sums_end(w, columns, sums, kinds, "slabs", sizes, reads[1]),
    ]


def sums_end(
    w: Wrapper,
    columns: Space,
    sums: Sequence[Val],
    kinds: Sequence[str],
    slabs: str,
    sizes: Sequence[str],
    reads: Reads,
) -> list[str]:
    """Statements that end partial results `parts`, `slabs` of them, in one launch with tiles bm, bn."""
    flags = str((1, *(1 for _ in columns.groups)))
    final = [f"host.slab({laid(columns, w.result(v), v)})" for v in sums]
    made, read, seen = reads.held
    return [
        *made,
        f"ins, outs, parts = parts, (), {pair(final)}",
        "pointwise.reduce_rows[(triton.cdiv(columns, bn), 1)](*host.tensors(ins), *host.tensors(outs), "
        f"*host.tensors(parts), {pair([slabs, *sizes])}, {read}, same, after, KINDS={nested(tuple(kinds))}, "
        f"SUM_DIMS={pair([flags] * len(sums))}, IN_DIMS={pair([flags] * len(kinds))}, OUT_DIMS=(), NR=1, BM=bm, BN=bn, "
        f"ACC=acc, IDX=host.index({', '.join([f'({slabs}, columns)', 'ins', 'parts', *seen])}), "
        "**host.options(config))",
    ]
