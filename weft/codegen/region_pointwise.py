"""Regions of maps over one space, with or without sums over its rows: the pointwise skeleton's holes and launches."""

from collections.abc import Sequence

from weft.ir.library import Dropout
from weft.ir.primitives import Detach, Einsum, Map, Reduce, Rename
from weft.ir.types import FLOATS, Dims, Graph, Node, Val

from .holes import Body, Hole
from .regions import Configs, Job, Reads, Written, pair
from .space import Space, by_place, coordinated, merged, renamings
from .triton_spelling import ATOM, Tri
from .wrapper import Refused, Wrapper

POINTWISE = (Map, Dropout, Einsum, Rename, Detach)
ARCHS = ("sm_80", "sm_90", "sm_100", "sm_120")
DTYPES = ("bf16", "f16", "f32")


def kind(v: Val) -> str:
    """What a loaded operand is in a hole."""
    return "float" if v.dtype in FLOATS else "bool" if v.dtype == "bool" else "int"


def same_everywhere(found: dict[str, int]) -> Configs:
    return {a: {d: dict(found) for d in DTYPES} for a in ARCHS}


def write_pointwise(job: Job) -> Written:
    """The kernel of a region of maps."""
    graph = job.opened()
    if any(isinstance(n.op, Reduce) for n in graph.nodes):
        return write_sums(job, graph)
    if not all(isinstance(n.op, POINTWISE) for n in graph.nodes):
        raise Refused("a node is not pointwise")
    w = Wrapper(graph, job.sizes, job.mixed)
    same = renamings(graph)
    space = whole_space(graph, graph.nodes, same, graph.outputs)
    reads = Reads()
    hole = body_hole(w, space, reads, graph.nodes, graph.outputs)
    ins, outs = operands(w, space, graph.inputs), [(w.result(v), v) for v in graph.outputs]
    launch = [
        f"sizes = {pair(w.points(g) for g in space.groups)}",
        f"ins = {pair(laid(space, name, v) for name, v in ins)}",
        f"outs = {pair(laid(space, name, v) for name, v in outs)}",
        f"config = launch.config(NAME, {w.anchor.name})",
        f"rows, columns = {w.points(space.dims[: _count(space)])}, {w.points(space.dims[_count(space) :])}",
        'bm, bn = launch.tile(rows, columns, config["BLOCK"])',
        "grid = (triton.cdiv(rows, bm) * triton.cdiv(columns, bn),)",
        f"pointwise.pointwise[grid](*launch.tensors(ins), *launch.tensors(outs), sizes, {reads.text}, body, "
        f"IN_DIMS={pair(str(space.flags(v)) for _, v in ins)}, OUT_DIMS={pair(str(space.flags(v)) for _, v in outs)}, "
        f"NR={space.rows}, BM=bm, BN=bn, ACC=launch.acc({w.anchor.name}), IDX=launch.index(sizes, *ins, *outs), "
        "**launch.options(config))",
    ]
    return Written(w, ("pointwise",), (hole,), tuple(launch), same_everywhere({"BLOCK": 1024, "num_warps": 4}))


def _count(space: Space) -> int:
    return sum(len(g) for g in space.groups[: space.rows])


def whole_space(
    graph: Graph, nodes: Sequence[Node], same: dict[str, str], outputs: Sequence[Val], first: Dims = ()
) -> Space:
    """The space of the nodes: in the order of the largest result, dims in `first` before all others (as rows)."""

    def one(dims: Dims) -> Dims:
        return tuple(same.get(d, d) for d in dims)

    every = {d for n in nodes for d in one(n.space)}
    largest = max((v for n in nodes for v in (*n.outs, *n.ins) if v.dims), key=lambda v: len(v.dims), default=None)
    if largest is None or not every <= set(one(largest.dims)):
        raise Refused("its nodes are over different spaces")
    order = one(largest.dims)
    for v in outputs:  # a result's own order makes its stores contiguous
        if set(one(v.dims)) == every:
            order = one(v.dims)
            break
    rest = tuple(d for d in order if d not in first)
    order = (*(d for d in order if d in first), *rest)
    values = {v for n in nodes for v in (*n.ins, *n.outs)} & {*graph.inputs, *graph.outputs}
    alone = coordinated(nodes, order, same)
    border = [one(v.dims) for v in sorted(values, key=lambda v: v.name)]
    if first:
        top = merged([d for d in order if d in first], border, alone)
        return Space((*top, *merged(rest, border, alone)), len(top), same)
    groups = merged(order, border, alone)
    return Space(groups, len(groups) - 1 if len(groups) > 1 else 0, same)


def operands(w: Wrapper, space: Space, values: Sequence[Val]) -> list[tuple[str, Val]]:
    """The tensors that a skeleton loads."""
    return [(w.argument(v).name, v) for v in values if w.argument(v).role == "tensor"]


def laid(space: Space, name: str, v: Val) -> str:
    return f"launch.laid({', '.join([name, *(str(a) for a in space.axes(v))])})"


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
    hole.acc = accumulator(given, names)
    body = region_body(w, space, reads, hole, env)
    body.nodes(nodes)
    hole.add(f"return {pair(said(body, v) for v in results)}")
    return hole


def accumulator(given: Sequence[tuple[str, Val]], names: Sequence[str]) -> str:
    """The dtype of the first float operand, which every hole computes in."""
    found = next((n for n, (_, v) in zip(names, given) if v.dtype in FLOATS), None)
    if found is None:
        raise Refused("it reads no float, whose dtype it would compute in")
    return f"{found}.dtype"


def said(body: Body, v: Val) -> str:
    """A result as source; a constant as a scalar of the accumulator."""
    src = body.value(v)
    return src.text if not src.number else f"tl.full([1, 1], {src.text}, {body.hole.acc})"


def region_body(w: Wrapper, space: Space, reads: Reads, hole: Hole, env: dict[str, Tri]) -> Body:
    """Nodes of a region inside a hole whose operands are loaded: `c` are the coordinates, `i` the place."""
    seeds: dict[str, str] = {}
    for a in w.arguments:
        if a.role == "seed":
            seeds[a.val.name] = reads.at(a.name)
        elif a.role == "layer":
            env[a.val.name] = Tri(reads.at(a.name), ATOM, "int", None, 0)

    def size(dim: str) -> Tri:
        return w.frozen(dim) or Tri(reads.at(w.size(dim)), ATOM, "int", None, 0)

    def load(v: Val) -> Tri:
        raise Refused(f"{v.name} is not an operand that is loaded here")

    def place(node: Node) -> Tri | None:
        return Tri("i", ATOM, "int", None, 0) if by_place(node, space.dims, space.same) else None

    return Body(hole, space.coordinates(), size, load, env, seeds, place)


def write_sums(job: Job, graph: Graph) -> Written:
    """Maps over a space, sums of some over its rows, and maps of the sums."""
    raise Refused("sums over rows")
