"""Loops over small matrices: the matrix scan skeleton's cell and launch.

Each value of the body is a tile whose axes stand for dims, rows and columns. What is loaded can be turned; what a
product made is not, for compilers have done that wrongly: its place follows from where it is read.
"""

from collections.abc import Callable, Sequence
from typing import Any

from weft.codegen.skeletons.common.writer.holes import Hole
from weft.codegen.skeletons.common.writer.iteration import IterationSpace, coordinated, merged
from weft.codegen.skeletons.common.writer.job import Job, Written
from weft.codegen.skeletons.common.writer.source import Reads, named, nested, pair, points
from weft.codegen.skeletons.common.writer.wrapper import Refused, Why, Wrapper
from weft.codegen.skeletons.matrix_scan.writer.cell import Axes, CellBody, Dim
from weft.codegen.skeletons.matrix_scan.writer.space import MOST, default
from weft.codegen.torch.lines import call
from weft.ir.builder import flatten
from weft.ir.ops.matrix_cell import MatrixCell, matrix_cell
from weft.ir.ops.primitives import Loop
from weft.ir.types import FLOATS, Graph, Val


def write_matrix_scan(job: Job) -> Written:
    """The kernel of a region that is one loop over small matrices."""
    graph = job.shown
    if len(graph.nodes) != 1 or not isinstance(graph.nodes[0].op, Loop):
        raise Refused(Why.NO_SKELETON)
    return _MatrixScan(job, graph).write()


def facts(graph: Graph, size: Callable[[str], int]) -> dict[str, int]:
    """side: the longest axis of a tile that is not divided; area: elements of the largest tile."""
    for n in graph.nodes:
        if isinstance(n.op, Loop) and (cell := matrix_cell(n.op.body, n.op.carries)):
            return _sides(n.op.body, cell, size)
    return {}


def _sides(body: Graph, cell: MatrixCell, size: Callable[[str], int]) -> dict[str, int]:
    values = (*body.inputs, *(v for n in body.nodes for v in n.outs))
    side, area = 1, 1
    for v in values:
        own = [tile(size(d)) for d in cell.own(v.dims) if d != cell.divided]
        side = max(side, *own, 1)
        area = max(area, own[0] * own[1] if len(own) == 2 else 1)
    return {"side": side, "area": max(area, side)}


def tile(size: int) -> int:
    """The axis of a tile that holds a dim: a power of 2, of 16 at least."""
    return max(16, 1 << (size - 1).bit_length())


class _MatrixScan:
    """One loop on its way into a kernel."""

    def __init__(self, job: Job, graph: Graph) -> None:
        self.loop = graph.nodes[0]
        self.op: Any = self.loop.op
        self.body: Graph = flatten(self.op.body)
        cell = matrix_cell(self.body, self.op.carries)
        if cell is None:
            raise Refused(Why.SPACES)
        self.cell, self.sizes = cell, job.sizes
        self.w, self.reads = Wrapper(graph, job.sizes, job.mixed, job.wide), Reads()
        if any(v.dtype not in FLOATS for v in (*self.body.inputs[: self.op.carries], *graph.outputs)):
            raise Refused(Why.INTEGERS)
        if any(a.role != "tensor" for a in self.w.arguments):
            raise Refused(Why.NOT_POINTWISE)
        values = (*self.body.inputs, *(v for n in self.body.nodes for v in n.outs))
        dims = dict.fromkeys(d for v in values for d in cell.own(v.dims))
        self.own = {d: self.axis(d) for d in dims}
        border = [v.dims for v in (*graph.inputs, *graph.outputs) if v.dims]
        self.lanes = merged(cell.lanes, border, coordinated(self.body.nodes, cell.lanes, {}))
        self.space = IterationSpace((*self.lanes, (self.op.dim,)), 0)
        self.outputs = graph.outputs

    def axis(self, d: str) -> Dim:
        """A dim as an axis of tiles."""
        if d == self.cell.divided:
            return Dim("B", None, self.w.size(d))
        size = self.sizes.number(d)
        if size is None or size > MOST:
            raise Refused(Why.CHUNK, d)
        return Dim(str(tile(size)), tile(size), str(size))

    def write(self) -> Written:
        loop, c, body = self.loop, self.op.carries, self.body
        k = len(body.outputs)
        wanted = [i for i in range(c, k) if loop.outs[i] in self.outputs]
        args = ("s", "x", "p", "t", "first", "c", "X", "B: tl.constexpr", "DOT: tl.constexpr", "PREC: tl.constexpr")
        hole = Hole("cell", args, "s[0].dtype")
        given = list(zip(body.inputs[c:], loop.ins[c:]))
        seq = [(v, o) for v, o in given if self.op.dim in o.dims]
        shared = [(v, o) for v, o in given if self.op.dim not in o.dims]
        printed = CellBody(hole, self.own, self.cell, self.size, self.lanes)
        printed.take("s", body.inputs[:c])
        printed.take("x", [v for v, _ in seq])
        printed.take("p", [v for v, _ in shared])
        printed.run(body.nodes)
        new = [printed.state(body.outputs[i], body.inputs[i]) for i in range(c)]
        made = [printed.result(body.outputs[i]) for i in wanted]
        hole.add(f"return {pair(new)}, {pair(text for text, _ in made)}")
        groups = {
            "seq": [self.operand(o, printed.axes(v)) for v, o in seq],
            "shared": [self.operand(o, printed.axes(v)) for v, o in shared],
            "start": [self.operand(o, printed.axes(v)) for v, o in zip(body.inputs[:c], loop.ins[:c])],
            "outs": [self.operand(loop.outs[i], axes) for i, (_, axes) in zip(wanted, made)],
            "before": self.states(k, printed), "ends": self.states(0, printed),
        }  # fmt: skip
        launch = self.launch({name: pair(group) for name, group in groups.items()})
        return Written(
            self.w, "matrix_scan", (hole,), launch, default(*self.held()), {"HOLES": call("launch.Holes", "cell")}
        )

    def held(self) -> tuple[int, int]:
        """What `default` asks for."""
        found = _sides(self.body, self.cell, lambda d: self.sizes.number(d) or 1)
        return (found["side"] if self.cell.divided else 0), found["area"]

    def size(self, d: str) -> str:
        number = self.sizes.number(d)
        return str(number) if number is not None else self.reads.at(self.w.size(d))

    def states(self, first: int, printed: CellBody) -> list[str]:
        """Those results of the loop, from number `first` on, that are states and read."""
        found = [(j, self.loop.outs[first + j]) for j in range(self.op.carries)]
        axes = printed.axes
        return [self.operand(v, axes(self.body.inputs[j]), str(j)) for j, v in found if v in self.outputs]

    def operand(self, v: Val, axes: Axes, *number: str) -> str:
        """A tensor with its axes, and which of its tile's is divided."""
        rows = [None if d is None else (v.dims.index(d),) for d in axes]
        divided = axes.index(self.cell.divided) if self.cell.divided in axes else -1
        groups = (*self.space.axes(v), *rows)
        return pair((*number, str(divided), self.w.name(v), *map(nested, groups)))

    def launch(self, groups: dict[str, str]) -> str:
        w, sizes = self.w, (self.w.size(self.op.dim), points(self.w, self.lanes))
        divided = w.size(self.cell.divided) if self.cell.divided else ""
        more = named(divided=divided, **groups, reverse="True" if self.op.reverse else "", x=self.reads.text)
        like: Sequence[Val] = [a.val for a in w.tensors if a.val.dtype in FLOATS]
        if not like:
            raise Refused(Why.NO_FLOAT)
        return call("launch.matrix_scan", "NAME", "HOLES", w.anchor.name, *sizes, **more)
