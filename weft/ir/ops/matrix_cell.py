"""Bodies of loops whose states are small matrices: which of their dims a program of a kernel holds whole."""

from collections.abc import Iterable
from dataclasses import dataclass

from weft.ir.ops.op import op_name
from weft.ir.types import Dims, Graph, Node, Val

WORK = ("map", "einsum", "reduce", "rename", "detach")


@dataclass(frozen=True)
class MatrixCell:
    """lanes: dims of which each coordinate is by itself in all states. divided: one more of them, "" for none, of which
    a program holds several coordinates. Every value has at most two dims besides the lanes."""

    lanes: Dims
    divided: str

    def own(self, dims: Iterable[str]) -> Dims:
        """Dims that are not lanes."""
        return tuple(d for d in dims if d not in self.lanes)


def matrix_cell(body: Graph, carries: int) -> MatrixCell | None:
    """What a loop's body is as a cell of small matrices, None where it is none."""
    if not carries or any(op_name(type(n.op)) not in WORK for n in body.nodes):
        return None
    states, results = body.inputs[:carries], body.outputs
    crossed = frozenset[str]().union(*(n.op.crossed(n) for n in body.nodes))
    renamed = {d for n in body.nodes if op_name(type(n.op)) == "rename" for d in n.op.moves()}
    free = [d for d in states[0].dims if all(d in v.dims for v in (*states, *results)) and d not in crossed | renamed]
    every = [v for v in body.inputs if v.dims]
    shared = tuple(d for d in free if all(d in v.dims for v in every))
    for divided in (*reversed(free), ""):
        found = MatrixCell(tuple(d for d in shared if d != divided), divided)
        if (not divided or shared or len(free) == 1) and _fits(found, body):
            return found
    return None


def _fits(found: MatrixCell, body: Graph) -> bool:
    values: list[Val] = [*body.inputs, *(v for n in body.nodes for v in n.outs)]
    return all(len(found.own(v.dims)) <= 2 for v in values) and all(_held(found, n) for n in body.nodes)


def _held(found: MatrixCell, n: Node) -> bool:
    """Is a node a map or sum over two own dims at most, or a product of two matrices?"""
    own = found.own(n.space)
    if len(own) <= 2:
        return len(n.ins) <= 2 or op_name(type(n.op)) == "map"
    sides = [found.own(v.dims) for v in n.ins]
    summed = set(own) - set(n.outs[0].dims)
    product = op_name(type(n.op)) == "einsum" and len(own) == 3 and len(sides) == 2 and len(summed) == 1
    return product and all(len(s) == 2 and summed <= set(s) for s in sides)
