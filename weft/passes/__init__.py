"""Passes over one block: pure functions from graph to graph, in one explicit order, each followed by the verifier."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from weft.errors import PassError, WeftError
from weft.ir.text import show
from weft.ir.types import Decision, Graph
from weft.ir.verify import verify
from weft.passes import derivative, fusion, pattern, recompute
from weft.passes.price import Prices
from weft.passes.skeletons import SKELETONS, Skeleton
from weft.targets import TARGETS, Target

Watch = Callable[[int, str, Graph], None]  # number and name of a pass, and the graph after it


@dataclass(frozen=True)
class Options:
    """What the passes may know besides the graph. sizes: of every dim. longest: with run-time dims at their largest,
    when those are others. held: inputs that live anyway (parameters), by name."""

    sizes: Mapping[str, int]
    target: Target = TARGETS[0]
    train: bool = True
    held: frozenset[str] = frozenset()
    skeletons: tuple[Skeleton, ...] = SKELETONS
    longest: Mapping[str, int] | None = None

    @property
    def prices(self) -> Prices:
        return Prices(self.sizes, self.target, self.longest)


@dataclass(frozen=True, slots=True)
class Pass:
    """A name and a function (graph, options) -> graph."""

    name: str
    run: Callable[[Graph, Options], Graph] = field(repr=False)


def _pattern(graph: Graph, options: Options) -> Graph:
    """Layouts hold for every length; which is cheapest is asked at the longest."""
    return pattern.pattern(graph, options.longest or options.sizes)


def _derivative(graph: Graph, options: Options) -> Graph:
    """The joint graph of a block; how many of its outputs are the block's own is a decision on it."""
    if not options.train:
        return graph
    made, count = derivative.joint(graph), len(graph.outputs)
    note = Decision("derivative", "outputs", str(count), "exact", (("outputs", count),))
    return replace(made, decisions=(*graph.decisions, note))


def _recompute(graph: Graph, options: Options) -> Graph:
    """What each mode keeps, as decisions on the joint graph."""
    outputs = forward_outputs(graph)
    if outputs is None:
        return graph
    return replace(
        graph, decisions=(*graph.decisions, *recompute.decisions(graph, outputs, options.prices, options.held))
    )


def _fusion(graph: Graph, options: Options) -> Graph:
    return fusion.fusion(graph, options.prices, options.skeletons)


PATTERN, DERIVATIVE = Pass("pattern", _pattern), Pass("derivative", _derivative)
RECOMPUTE, FUSION = Pass("recompute", _recompute), Pass("fusion", _fusion)
PIPELINE: tuple[Pass, ...] = (PATTERN, DERIVATIVE, RECOMPUTE, FUSION)
"""The order. Fusion comes last, as it groups what will run: each half of a block by itself."""


def forward_outputs(graph: Graph) -> int | None:
    """How many outputs of a joint graph are the block's own; None when the graph is no joint graph."""
    found = [d for d in graph.decisions if d.pass_ == "derivative" and d.subject == "outputs"]
    return int(found[-1].choice) if found else None


def run(graph: Graph, options: Options, passes: Sequence[Pass] = PIPELINE, watch: Watch | None = None) -> Graph:
    """Run the passes in order, verifying after each.

    Raises PassError with the pass, those already run and the graph before it, when a pass breaks or breaks the graph;
    what a pass refuses on purpose (a budget, a spec) goes through as it is."""
    done: list[str] = []
    for p in passes:
        try:
            after = verify(p.run(graph, options))
        except WeftError as e:
            if e.exit_code != 1:
                raise
            raise PassError(p.name, str(e), done, show(graph)) from e
        except Exception as e:
            raise PassError(p.name, f"{type(e).__name__}: {e}", done, show(graph)) from e
        done.append(p.name)
        if watch is not None:
            watch(len(done), p.name, after)
        graph = after
    return graph
