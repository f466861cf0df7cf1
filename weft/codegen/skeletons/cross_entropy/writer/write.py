"""Losses over long vocabularies: the cross-entropy skeleton's holes and launch; every other row is the rowwise one's.

A row that fits a tile of the rowwise kernel is read once there; a longer one twice, for its maximum and for its sum.
The cross-entropy kernel has a running maximum and reads it once. The derivative, made of statistics, is a map of the
logits: one pass in the pointwise kernel.
"""

from collections.abc import Sequence
from typing import Any

from weft.codegen.prepare import opened
from weft.codegen.skeletons.common.writer.holes import Hole
from weft.codegen.skeletons.common.writer.iteration import Space, coordinated, merged, renamings
from weft.codegen.skeletons.common.writer.regions import Job, Reads, Written, pair
from weft.codegen.skeletons.common.writer.spelling import Tri
from weft.codegen.skeletons.common.writer.wrapper import Refused, Why, Wrapper
from weft.codegen.skeletons.cross_entropy.writer.space import LONG, default
from weft.codegen.skeletons.matmul.writer.write import begin
from weft.codegen.skeletons.pointwise.writer.write import (
    POINTWISE,
    after_nodes,
    flags_of,
    laid,
    region_body,
    said,
    scalar_load,
)
from weft.ir.library import Dropout, WithStatistics
from weft.ir.library.loss import CrossEntropy
from weft.ir.types import Graph, Node, Val


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
        self.ins = self.operands() if self.ahead else [(self.w.argument(self.logits).name, self.logits)]
        order = [same.get(d, d) for d in self.logits.dims if d != over]
        values = [self.target, *graph.outputs, *(v for _, v in self.ins)]
        alone = coordinated(self.ahead, (*order, over), same) | coordinated(self.late, (), same)
        border = [tuple(same.get(d, d) for d in v.dims) for v in values]
        groups = merged(order, border, alone) or ((),)
        self.space = Space((*groups, (over,)), len(groups), same)
        self.rows = Space(groups, len(groups), same)
        if any(set(self.rows.one(v.dims)) != set(order) for v in (self.target, *graph.outputs)):
            raise Refused(Why.SPACES)

    def operands(self) -> list[tuple[str, Val]]:
        """What the maps of logits load."""
        read = {v for n in self.ahead for v in n.ins}
        return [(a.name, a.val) for a in self.w.tensors if a.val in read]

    def write(self) -> Written:
        pre, finish = self.pre(), self.finish()
        holes = tuple(h for h in (pre, finish) if h is not None)
        return Written(self.w, "cross_entropy", holes, tuple(self.launch(pre, finish)), default())

    def pre(self) -> Hole | None:
        """The logits of loaded operands."""
        if not self.ahead:
            return None
        hole, env = begin(Hole("pre", ("x", "i", "c", "X")), [("x", [v for _, v in self.ins])])
        body = region_body(self.w, self.space, self.reads, hole, env, self.ahead)
        body.nodes(self.ahead)
        hole.add(f"return {said(body, self.logits)}")
        return hole

    def finish(self) -> Hole | None:
        """The results per row of the loss and the logarithm of the sum."""
        outs = self.graph.outputs
        if not self.late and outs == self.core.outs[: len(outs)]:
            return None
        names = ("loss", "lse")
        hole = Hole("finish", (*names, "c", "X"), "loss.dtype")
        given = {v.name: Tri(n) for v, n in zip(self.core.outs, names)}
        body = region_body(self.w, self.rows, self.reads, hole, given, self.late)
        body.load = lambda v: scalar_load(self.w, self.reads, hole, v)
        body.nodes(self.late)
        hole.add(f"return {pair(said(body, v) for v in outs)}")
        return hole

    def launch(self, pre: Hole | None, finish: Hole | None) -> Sequence[str]:
        w, space, rows = self.w, self.space, self.rows
        target, like = w.argument(self.target).name, w.anchor.name
        results = [(w.result(v), v) for v in self.graph.outputs]
        ignore = _of(self.core).ignore
        number = [d for g in rows.groups for d in g]
        made, read, seen = self.reads.held
        return [
            *made,
            f"config = host.config(NAME, {like})",
            f"rows = {w.points(number)}",
            f"sizes = {pair(w.points(g) for g in space.groups)}",
            f"ins = {pair(laid(space, name, v) for name, v in self.ins)}",
            f"per_row = {pair(laid(rows, name, v) for name, v in results)}",
            'grid = (triton.cdiv(rows, config["BM"]),)',
            f"cross_entropy.forward[grid](*host.tensors(ins), *host.tensors(({laid(rows, target, self.target)},)), "
            f"*host.tensors(per_row), sizes, {read}, {'pre' if pre else None}, "
            f"{'finish' if finish else None}, IGNORE={None if ignore is None else int(ignore)}, "
            f"IN_DIMS={flags_of(space, self.ins)}, TARGET_DIMS={pair([str(rows.flags(self.target))])}, "
            f'ROW_DIMS={flags_of(rows, results)}, NR={space.rows}, BM=config["BM"], BN=config["BN"], '
            f"ACC=host.acc({like}), "
            f"IDX=host.index({', '.join(['sizes', 'ins', 'per_row', target, *seen])}), **host.options(config))",
        ]
