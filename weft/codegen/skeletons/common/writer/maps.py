"""Holes of maps over a space, for the writers of all families: what they read, where they stand, what they give."""

from collections.abc import Iterable, Sequence

from weft.codegen.skeletons.common.writer.holes import Hole, HoleBody, ir_line
from weft.codegen.skeletons.common.writer.iteration import IterationSpace, by_place, coordinated, merged, tell_apart
from weft.codegen.skeletons.common.writer.source import Reads, pair, strided
from weft.codegen.skeletons.common.writer.spelling import ATOM, Tri
from weft.codegen.skeletons.common.writer.wrapper import Refused, Why, Wrapper
from weft.ir import library
from weft.ir.ops.primitives import Detach, Einsum, Gather, Map, Rename
from weft.ir.types import FLOATS, Dims, Graph, Node, Val

POINTWISE = (Map, library.Dropout, Einsum, Rename, Detach)


def kind(v: Val) -> str:
    """What a loaded operand is in a hole."""
    return "float" if v.dtype in FLOATS else "bool" if v.dtype == "bool" else "int"


def loaded(w: Wrapper, values: Iterable[Val]) -> list[Val]:
    """Those of the inputs that a kernel loads: no seeds and no numbers of layers."""
    return [v for v in values if w.argument(v).role == "tensor"]


def read_by(w: Wrapper, nodes: Iterable[Node], more: Iterable[Val] = ()) -> list[Val]:
    """The operands that some of the nodes load, and those among `more`."""
    read = {v for n in nodes for v in n.ins} | set(more)
    return [a.val for a in w.tensors if a.val in read]


def above(nodes: Iterable[Node], wanted: Iterable[Val], known: Iterable[Val] = ()) -> list[Node]:
    """Those of the nodes that make `wanted` from `known` and inputs, in order."""
    nodes, known = list(nodes), set(known)
    maker = {v: n for n in nodes for v in n.outs if v not in known}
    need, todo = set[Node](), list(wanted)
    while todo:
        made = maker.get(todo.pop())
        if made is not None and made not in need:
            need.add(made)
            todo += made.ins
    return [n for n in nodes if n in need]


def unpacked(hole: Hole, given: Sequence[tuple[str, Sequence[Val]]]) -> dict[str, Tri]:
    """Where values are after the hole's arguments, tuples of them, are unpacked: (argument, values) each."""
    env: dict[str, Tri] = {}
    for source, values in given:
        own = [hole.mint(v.name) for v in values]
        if own:
            hole.lines.add(f"{', '.join(own)} = {source}" if len(own) > 1 else f"{own[0]} = {source}[0]")
        for n, v in zip(own, values):
            env[v.name] = Tri(n, ATOM, kind(v))
            if v.dtype in FLOATS and not hole.computes:
                hole.acc = f"{n}.dtype"
    return env


def whole_space(
    graph: Graph, nodes: Sequence[Node], same: dict[str, str], outputs: Sequence[Val], first: Dims = ()
) -> IterationSpace:
    """The space of the nodes: in the order of the largest result, dims in `first` before all others (as rows)."""

    def one(dims: Dims) -> Dims:
        return tuple(same.get(d, d) for d in dims)

    tell_apart(nodes, same)
    every = {d for n in nodes for d in one(n.space)}
    largest = max((v for n in nodes for v in (*n.outs, *n.ins) if v.dims), key=lambda v: len(v.dims), default=None)
    if not every:
        return IterationSpace(((),), 0, same)
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
        return IterationSpace((*top, *(merged(rest, border, alone) or ((),))), len(top), same)
    groups = merged(order, border, alone)
    return IterationSpace(groups, len(groups) - 1 if len(groups) > 1 else 0, same)


def maps_hole(
    w: Wrapper,
    space: IterationSpace,
    reads: Reads,
    name: str,
    ins: Sequence[Val],
    nodes: Sequence[Node],
    wanted: Sequence[Val],
    single: bool = False,
    placed: bool = True,
) -> Hole:
    """The hole that computes the nodes from the loaded operands `ins` and gives `wanted`: a tuple, or the one value.

    placed: is i the row-major place in the space?"""
    hole = Hole(name, ("x", "i", "c", "X"))
    body = region_body(w, space, reads, hole, unpacked(hole, [("x", ins)]), nodes)
    if not placed:
        body.place = lambda node: None
    if any(isinstance(n.op, Gather) for n in nodes):
        body.gather = _Elsewhere(w, space, reads, body, nodes).gather
    body.nodes(nodes)
    results = [said(body, v) for v in wanted]
    hole.add(f"return {results[0] if single else pair(results)}")
    return hole


class _Elsewhere:
    """Values at another coordinate of one dim: their operands are loaded there, and the maps done again."""

    def __init__(self, w: Wrapper, space: IterationSpace, reads: Reads, body: HoleBody, nodes: Sequence[Node]) -> None:
        self.w, self.space, self.reads, self.body = w, space, reads, body
        self.nodes = nodes
        self.inside = ""

    def gather(self, node: Node) -> Tri:
        (dim,), (table, index) = node.op.at, node.ins  # type: ignore[attr-defined]
        if dim not in index.dims or dim not in table.dims:
            raise Refused(Why.SPACES, dim)
        at, hole = self.body.value(index), self.body.hole
        at = at if at.plain else hole.bind("at", at)
        size = self.body.sizes(dim)
        there = hole.bind("there", Tri(f"({at.text} >= 0) & ({at.text} < {size.text})", 1, "bool"))
        moved = HoleBody(
            hole, {**self.body.coordinates, dim: at}, self.body.sizes, lambda v: self.load(v, dim, at, there)
        )
        moved.seeds = self.body.seeds
        again = above(self.nodes, [table])
        if any(isinstance(n.op, Gather) for n in again):
            raise Refused(Why.SPACES)
        moved.nodes(again)
        hole.note(ir_line(node))
        return Tri(f"tl.where({there.text}, {moved.value(table).text}, 0.0)", ATOM, kind(node.outs[0]))

    def load(self, v: Val, dim: str, at: Tri, there: Tri) -> Tri:
        """An operand with the coordinate of `dim` replaced."""
        hole, space = self.body.hole, self.space
        if self.w.argument(v).role != "tensor":
            return self.body.value(v)
        x = self.reads.at(strided(self.w, space, v))
        if not self.inside:
            first = {0: space.groups[0], space.rows: space.groups[space.rows]}
            ends = [f"(c[{k}] < {extent(self.w, self.reads, g)})" for k, g in first.items()]
            self.inside = hole.bind("inside", Tri(" & ".join(ends), 1, "bool")).text
        terms = ""
        for k, (has, g) in enumerate(zip(space.flags(v), space.groups)):
            own = at.text if g == (space.same.get(dim, dim),) else f"c[{k}]"
            terms += f" + {own} * {x}[1][{k}]" if has else ""
        cast = f".to({hole.acc})" if v.dtype in FLOATS else ""
        place = hole.bind(f"{v.name}_at", Tri(f"{x}[0]{terms}")).text
        return Tri(f"tl.load({place}, mask={self.inside} & {there.text}, other=0){cast}", ATOM, kind(v))


def extent(w: Wrapper, reads: Reads, dims: Dims) -> str:
    """How many coordinates a group of dims has, as source of a hole."""
    text = w.points(dims)
    return w.number(text) if all(w.sizes.number(d) is not None for d in dims) else reads.at(text)


def said(body: HoleBody, v: Val) -> str:
    """A result as source; a constant as a scalar of the accumulator."""
    src = body.value(v)
    return src.text if not src.number else f"tl.full([1, 1], {src.text}, {body.hole.acc})"


def region_body(
    w: Wrapper, space: IterationSpace, reads: Reads, hole: Hole, env: dict[str, Tri], nodes: Sequence[Node]
) -> HoleBody:
    """Prints nodes of a region in a hole whose operands are loaded: `c` are the coordinates, `i` the place."""
    seeds: dict[str, str] = {}
    for a in (
        a for n in nodes if isinstance(n.op, library.Dropout) for a in (w.argument(n.ins[1]), w.argument(n.ins[2]))
    ):
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

    return HoleBody(hole, space.coordinates(), size, load, env, seeds, place)


def after_nodes(graph: Graph, values: set[Val]) -> list[Node]:
    """The nodes that depend on some of the values."""
    known, out = set(values), list[Node]()
    for n in graph.nodes:
        if not known.isdisjoint(n.ins):
            out.append(n)
            known.update(n.outs)
    return out


def check_late(graph: Graph, late: Sequence[Node], reduced: set[Val], columns: IterationSpace) -> None:
    """Refused unless nodes after the reductions over rows are over columns alone, and read besides these and each
    other operands without dims."""
    inside = {v for n in late for v in n.outs} | reduced
    read = {v for n in late for v in n.ins if v not in inside}
    wide = any(not set(columns.one(n.space)) <= set(columns.dims) for n in late)
    if wide or any(v.dims or v not in graph.inputs for v in read):
        raise Refused(Why.SPACES)


def after_hole(
    w: Wrapper,
    columns: IterationSpace,
    reads: Reads,
    reductions: Sequence[Node],
    late: Sequence[Node],
    sums: Sequence[Val],
) -> Hole:
    """The hole that makes results of reduced values."""
    hole = Hole("after", ("s", "c", "X"))
    env = unpacked(hole, [("s", [n.outs[0] for n in reductions])])
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
