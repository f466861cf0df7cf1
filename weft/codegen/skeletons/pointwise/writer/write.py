"""Regions of maps over one space, with or without sums over its rows, as the pointwise kernels' holes and operands."""

from weft.codegen.skeletons.common.writer.configs import everywhere
from weft.codegen.skeletons.common.writer.iteration import IterationSpace, renamings
from weft.codegen.skeletons.common.writer.job import Job, Written
from weft.codegen.skeletons.common.writer.maps import (
    POINTWISE,
    after_hole,
    after_nodes,
    check_late,
    loaded,
    maps_hole,
    whole_space,
)
from weft.codegen.skeletons.common.writer.source import Reads, named, nested, operands, points
from weft.codegen.skeletons.common.writer.wrapper import Refused, Why, Wrapper
from weft.codegen.skeletons.pointwise.writer.space import MAPS, SUMS
from weft.codegen.torch.lines import call
from weft.ir.ops.primitives import Gather, Reduce
from weft.ir.types import FLOATS, Graph


def write_pointwise(job: Job) -> Written:
    """The kernel of a region of maps."""
    return write_maps(job, job.opened())


def write_maps(job: Job, graph: Graph) -> Written:
    """Maps, and gathers along a dim that stays: each reads its table at another place of the same row."""
    if not all(isinstance(n.op, (*POINTWISE, Gather)) for n in graph.nodes):
        raise Refused(Why.NOT_POINTWISE)
    w = Wrapper(graph, job.sizes, job.mixed, job.wide)
    space = whole_space(graph, graph.nodes, renamings(graph), graph.outputs)
    reads = Reads()
    ins = loaded(w, graph.inputs)
    body = maps_hole(w, space, reads, "body", ins, graph.nodes, graph.outputs)
    given = {"ins": operands(w, space, ins), "outs": operands(w, space, graph.outputs), "x": reads.text}
    launch = call("launch.maps", *_first(w, space), **named(**given))
    return Written(w, "pointwise", (body,), launch, everywhere(MAPS), {"HOLES": "launch.Holes(body)"})


def _first(w: Wrapper, space: IterationSpace) -> tuple[str, ...]:
    return "NAME", "HOLES", w.anchor.name, *(points(w, side.groups) for side in space.sides)


def write_sums(job: Job, graph: Graph) -> Written:
    """Maps over a space, sums (or maxima) of some over its rows, and maps of those."""
    w = Wrapper(graph, job.sizes, job.mixed, job.wide)
    same = renamings(graph)
    reductions = [n for n in graph.nodes if isinstance(n.op, Reduce)]
    own = {v for n in reductions for v in n.outs}
    late = after_nodes(graph, own)
    early = [n for n in graph.nodes if n not in late and n not in reductions]
    if not all(isinstance(n.op, POINTWISE) for n in (*early, *late)):
        raise Refused(Why.NOT_POINTWISE)
    rows = {frozenset(same.get(d, d) for d in n.ins[0].dims if d not in n.op.to) for n in reductions}  # type: ignore[attr-defined]
    kinds = tuple(n.op.kind for n in reductions)  # type: ignore[attr-defined]
    if len(rows) != 1 or not {*kinds} <= {"sum", "max"}:
        raise Refused(Why.ROWS)
    if any(n.ins[0].dtype not in FLOATS for n in reductions):
        raise Refused(Why.INTEGERS)
    made = {v for n in early for v in n.outs} | set(graph.inputs)
    outs = [v for v in graph.outputs if v in made]
    sums = [v for v in graph.outputs if v not in made]
    space = whole_space(graph, [*early, *reductions], same, outs, tuple(next(iter(rows))))
    columns = space.sides[1]
    if any(space.flags(v) != (1,) * len(space.groups) for v in outs):
        raise Refused(Why.SPACES)
    check_late(graph, late, own, columns)
    reads, ends = Reads(), Reads()
    ins = loaded(w, graph.inputs)
    body = maps_hole(w, space, reads, "body", ins, early, [*outs, *(n.ins[0] for n in reductions)])
    after = after_hole(w, columns, ends, reductions, late, sums)
    given = {"ins": operands(w, space, ins), "outs": operands(w, space, outs)}
    given |= {"sums": operands(w, columns, sums), "x": reads.text, "ends": ends.text}
    launch = call("launch.sums", *_first(w, space), **named(**given))
    holes = call("launch.Holes", "body", nested(kinds), "after")
    return Written(w, "pointwise", (body, after), launch, everywhere(SUMS), {"HOLES": holes})
