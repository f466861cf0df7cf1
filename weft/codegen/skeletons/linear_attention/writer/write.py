"""Work within chunks of positions: the linear attention skeleton's launches. One op is one kernel, with no holes."""

from collections.abc import Callable, Sequence
from typing import Any

from weft.codegen.skeletons.common.writer.iteration import IterationSpace, merged
from weft.codegen.skeletons.common.writer.job import Job, Written
from weft.codegen.skeletons.common.writer.source import operands, points
from weft.codegen.skeletons.common.writer.wrapper import Refused, Why, Wrapper
from weft.codegen.skeletons.linear_attention.writer.space import MOST, default, held
from weft.codegen.torch.lines import call
from weft.ir.library.decay import DecayedProduct, DecayedProductGrad, UnitInverse
from weft.ir.types import FLOATS, Dims, Graph, Val

OPS = (DecayedProduct, DecayedProductGrad, UnitInverse)


def write_linear_attention(job: Job) -> Written:
    """The kernel of a region that is one op within chunks."""
    graph = job.shown
    if len(graph.nodes) != 1 or not isinstance(graph.nodes[0].op, OPS):
        raise Refused(Why.NO_SKELETON)
    return _Within(job, graph).write()


def facts(graph: Graph, size: Callable[[str], int]) -> dict[str, int]:
    """places: of a chunk, up to a power of 2. tiles: that a program holds at once."""
    for n in graph.nodes:
        op: Any = n.op
        if isinstance(op, OPS):
            levels = _levels(size(op.row))
            return {"places": 1 << levels, "tiles": held(levels, isinstance(op, DecayedProductGrad))}
    return {}


def _levels(places: int) -> int:
    return max(4, (places - 1).bit_length())


class _Within:
    """One op: its operands over (chunks ..., place, key), and what lies between two places."""

    def __init__(self, job: Job, graph: Graph) -> None:
        self.node = graph.nodes[0]
        self.op: Any = self.node.op
        self.w = Wrapper(graph, job.sizes, job.mixed, job.wide)
        places, values = job.sizes.number(self.op.row), (*graph.inputs, *graph.outputs)
        if places is None or places > MOST:
            raise Refused(Why.CHUNK, self.op.row)
        if any(v.dtype not in FLOATS for v in values):
            raise Refused(Why.NO_FLOAT)
        if not {*self.node.outs} <= {*graph.outputs}:  # such as the gradient of keys that are constants
            raise Refused(Why.UNREAD)
        own = {self.op.row, self.op.column, *getattr(self.op, "key", ())}
        lead = tuple(d for d in self.node.ins[0].dims if d not in own)
        self.lead = merged(lead, [v.dims for v in values])
        self.between = self.space(self.op.row, self.op.column)

    def space(self, *own: str, **same: str) -> IterationSpace:
        return IterationSpace((*self.lead, *((d,) for d in own)), len(self.lead), same)

    def write(self) -> Written:
        configs = default(keyed=not isinstance(self.op, UnitInverse))
        return Written(self.w, "linear_attention", (), self.launch(), configs, {})

    def launch(self) -> str:
        node, op = self.node, self.op
        if isinstance(op, UnitInverse):
            given = self.laid(ins=(self.between, node.ins), outs=(self.between, node.outs))
            return self.call("unit_inverse", self.w.size(op.row), given)
        (key,) = op.key
        keyed = self.space(op.row, key, **{op.column: op.row})
        sizes = points(self.w, ((op.row,), (key,)))
        if isinstance(op, DecayedProduct):
            given = self.laid(ins=(keyed, node.ins), outs=(self.between, node.outs))
            return self.call("decayed_product", sizes, given)
        given = self.laid(ins=(keyed, node.ins[:3]), d=(self.between, node.ins[3:]), outs=(keyed, node.outs))
        return self.call("decayed_product_backward", sizes, given)

    def laid(self, **groups: tuple[IterationSpace, Sequence[Val]]) -> dict[str, str]:
        return {name: operands(self.w, space, values) for name, (space, values) in groups.items()}

    def call(self, name: str, sizes: str, given: dict[str, str]) -> str:
        lead: Sequence[Dims] = self.lead
        like = self.w.name(self.node.ins[0])
        return call(f"launch.{name}", "NAME", like, points(self.w, lead), sizes, **given)
