"""What a writer is asked for, and what it gives."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from weft.codegen.skeletons.common.writer.configs import Configs
from weft.codegen.skeletons.common.writer.holes import Hole
from weft.codegen.skeletons.common.writer.wrapper import Wrapper
from weft.codegen.torch.sizes import Sizes
from weft.ir import library
from weft.ir.builder import Builder
from weft.ir.types import Decision, Dims, Graph, Val
from weft.passes.fusion.grouping import Region
from weft.passes.opened import opened
from weft.passes.rewrite import rewritten


@dataclass(frozen=True)
class Job:
    """A region to write. where: block and half; decisions: those about it; mixed: floats of several dtypes; wide: where
    there is one, the values that stay float32 at least in a narrower one."""

    kernel: str
    where: str
    region: Region
    shown: Graph
    sizes: Sizes
    mixed: bool
    decisions: tuple[Decision, ...] = ()
    wide: frozenset[str] = frozenset()

    def opened(self, keep: tuple[type, ...] = (library.Dropout,)) -> Graph:
        """The region's graph with composites other than `keep` opened."""
        graph = opened(rewritten(self.shown), lambda op, types: isinstance(op, keep))
        return _apart(graph, [v.name for v in self.shown.outputs])


def _apart(graph: Graph, names: Sequence[str]) -> Graph:
    """The graph with each result, called by `names`, a value of its own: two norms of one x have equal statistics, and
    each has a tensor for them."""
    seen: set[Val] = set()
    if len(set(graph.outputs)) == len(graph.outputs):
        return graph
    g = Builder()
    env = dict(zip(graph.inputs, (g.input(v.name, v.type) for v in graph.inputs)))
    for n in graph.nodes:
        with g.at(n.src):
            env.update(zip(n.outs, g.many(n.op, *(env[v] for v in n.ins), names=[v.name for v in n.outs])))
    outputs: list[Val] = []
    for v, name in zip(graph.outputs, names, strict=True):
        outputs.append(g.map("x", x=env[v], to=v.dims, dtype=v.dtype, names=[name]) if v in seen else env[v])
        seen.add(v)
    return g.graph(*outputs, decisions=graph.decisions)


@dataclass(frozen=True)
class Written:
    """What a skeleton's writer gives: functions that are holes, and the call of its family's launch.

    family: whose kernels run. launch: the call as source; returns: does it make the results, or does the wrapper?
    constants: lines above the functions; given: what stands below them, by name, HOLES first. orders: results whose
    memory has the dims in another order."""

    wrapper: Wrapper
    family: str
    holes: tuple[Hole, ...]
    launch: str
    configs: Configs
    given: Mapping[str, str]
    constants: tuple[str, ...] = ()
    returns: bool = False
    orders: Mapping[Val, Dims] = field(default_factory=dict[Val, Dims])
