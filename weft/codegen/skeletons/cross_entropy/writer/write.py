"""Losses over long vocabularies: the cross-entropy skeleton's holes and launch; every other row is the rowwise one's.

A row that fits a tile of the rowwise kernel is read once there; a longer one twice, for its maximum and for its sum.
The cross-entropy kernel has a running maximum and reads it once. The derivative, made of statistics, is a map of the
logits: one pass in the pointwise kernel.
"""

from typing import Any

from weft.codegen.skeletons.common.writer.configs import everywhere
from weft.codegen.skeletons.common.writer.holes import Hole
from weft.codegen.skeletons.common.writer.iteration import IterationSpace, coordinated, merged, renamings
from weft.codegen.skeletons.common.writer.job import Job, Written
from weft.codegen.skeletons.common.writer.maps import (
    POINTWISE,
    after_nodes,
    maps_hole,
    read_by,
    region_body,
    said,
    scalar_load,
)
from weft.codegen.skeletons.common.writer.source import Reads, named, operand, operands, pair, points
from weft.codegen.skeletons.common.writer.spelling import Tri
from weft.codegen.skeletons.common.writer.wrapper import Refused, Why, Wrapper
from weft.codegen.skeletons.cross_entropy.writer.space import DEFAULT, LONG
from weft.codegen.torch.lines import call
from weft.ir.library import Dropout, WithStatistics
from weft.ir.library.loss import CrossEntropy
from weft.ir.types import Graph, Node
from weft.passes.opened import opened


def write_loss(job: Job) -> Written:
    """The kernel of a region whose core is a loss over a long vocabulary."""
    graph = opened(job.shown, lambda op, types: isinstance(op, Dropout | CrossEntropy | WithStatistics))
    losses = [n for n in graph.nodes if isinstance(_of(n), CrossEntropy)]
    if len(losses) != 1 or (job.sizes.number(_of(losses[0]).over) or 0) <= LONG:
        raise Refused(Why.ROWS)
    return _Loss(job, graph, losses[0], _of(losses[0]).over).write()


def _of(n: Node) -> Any:
    return n.op.of if isinstance(n.op, WithStatistics) else n.op


class _Loss:
    """One region under way: maps of logits, the loss, maps of rows."""

    def __init__(self, job: Job, graph: Graph, core: Node, over: str) -> None:
        self.graph, self.core = graph, core
        self.w = Wrapper(graph, job.sizes, job.mixed, job.wide)
        self.late = after_nodes(graph, set(core.outs))
        self.ahead = [n for n in graph.nodes if n is not core and n not in self.late]
        if not all(isinstance(n.op, POINTWISE) for n in (*self.ahead, *self.late)):
            raise Refused(Why.NOT_POINTWISE)
        if any(v in {o for n in self.ahead for o in n.outs} for v in graph.outputs):
            raise Refused(Why.SPACES)
        self.logits, self.target = core.ins
        self.reads, same = Reads(), renamings(graph)
        self.ins = read_by(self.w, self.ahead) if self.ahead else [self.logits]
        order = [same.get(d, d) for d in self.logits.dims if d != over]
        values = [self.target, *graph.outputs, *self.ins]
        alone = coordinated(self.ahead, (*order, over), same) | coordinated(self.late, (), same)
        border = [tuple(same.get(d, d) for d in v.dims) for v in values]
        groups = merged(order, border, alone) or ((),)
        self.space = IterationSpace((*groups, (over,)), len(groups), same)
        self.rows = IterationSpace(groups, len(groups), same)
        if any(set(self.rows.one(v.dims)) != set(order) for v in (self.target, *graph.outputs)):
            raise Refused(Why.SPACES)

    def write(self) -> Written:
        w, holes = self.w, list[Hole]()
        if self.ahead:
            holes.append(maps_hole(w, self.space, self.reads, "pre", self.ins, self.ahead, [self.logits], single=True))
        if self.late or self.graph.outputs != self.core.outs[: len(self.graph.outputs)]:
            holes.append(self.finish())
        given = call("launch.Holes", **{h.name: h.name for h in holes})
        return Written(w, "cross_entropy", tuple(holes), self.launch(), everywhere(DEFAULT), {"HOLES": given})

    def finish(self) -> Hole:
        """The results per row of the loss and the logarithm of the sum."""
        names = ("loss", "lse")
        hole = Hole("finish", (*names, "c", "X"), "loss.dtype")
        given = {v.name: Tri(n) for v, n in zip(self.core.outs, names)}
        body = region_body(self.w, self.rows, self.reads, hole, given, self.late)
        body.load = lambda v: scalar_load(self.w, self.reads, hole, v)
        body.nodes(self.late)
        hole.add(f"return {pair(said(body, v) for v in self.graph.outputs)}")
        return hole

    def launch(self) -> str:
        w, ignore = self.w, _of(self.core).ignore
        given = {"ins": operands(w, self.space, self.ins), "per_row": operands(w, self.rows, self.graph.outputs)}
        more = named(**given, ignore="" if ignore is None else str(int(ignore)), x=self.reads.text)
        sizes, target = (points(w, side.groups) for side in self.space.sides), operand(w, self.rows, self.target)
        return call("launch.loss", "NAME", "HOLES", w.anchor.name, *sizes, target, **more)
