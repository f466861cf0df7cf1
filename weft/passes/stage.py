"""What passes turn into what: a program, its blocks with all that is made of them, and what was chosen."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from weft.ir.program import Program
from weft.ir.types import Graph
from weft.passes.fusion.grouping import Fusion
from weft.passes.fusion.price import Prices
from weft.passes.fusion.skeleton import Skeleton
from weft.passes.halves import Derived
from weft.passes.opened import Known
from weft.passes.optimizer import OPTIMIZERS, Optimizer
from weft.passes.schedule import BlockProfile, Choice, Schedule
from weft.passes.structure import Structure
from weft.targets import TARGETS, Target

Profiler = Callable[[Structure, Mapping[str, int], Sequence[Derived]], Sequence[BlockProfile]]
"""Measures each block in each of its modes at given sizes."""


@dataclass(frozen=True)
class PassOptions:
    """What the passes may know besides the program. sizes: of every dim. longest: with run-time dims at their largest,
    when those are others. known: composites that the printer has a form for. profiler: None estimates. budget: most
    bytes alive at once, the optimizer's state and step included; None for no limit."""

    sizes: Mapping[str, int]
    target: Target = TARGETS[0]
    skeletons: tuple[Skeleton, ...] = ()
    longest: Mapping[str, int] | None = None
    known: Known = lambda op, types: False
    profiler: Profiler | None = None
    budget: int | None = None
    optimizer: Optimizer = OPTIMIZERS["none"]

    @property
    def prices(self) -> Prices:
        return Prices(self.sizes, self.target, self.longest)


@dataclass(frozen=True)
class Half:
    """One function of a block: what it is called, its graph, and how its nodes are grouped. further: one that no total
    counts: a backward that starts from one result alone, one without a loss, a forward of a mode after the first."""

    name: str
    side: str
    mode: str
    graph: Graph
    fusion: Fusion
    further: bool = False


@dataclass(frozen=True)
class Layer:
    """One run of a block: its index among the blocks, the row of its stack (None outside one), its mode."""

    block: int
    row: int | None
    mode: str


@dataclass(frozen=True)
class ChosenModes:
    """The mode of every layer. peak: most bytes alive at once; smallest: the least budget that some choice fits in."""

    layers: tuple[Layer, ...]
    schedule: Schedule
    choice: Choice | None
    peak: int
    smallest: int


@dataclass(frozen=True)
class StagedProgram:
    """A program as far as the passes have come. Everything after `program` is filled in by the pass of its name."""

    program: Program
    model: Structure | None = None
    blocks: tuple[Derived, ...] = ()
    profiles: tuple[BlockProfile, ...] = ()
    chosen: ChosenModes | None = None
    halves: tuple[tuple[Half, ...], ...] = ()

    def graphs(self) -> dict[str, Graph]:
        """Every graph that stands, each part in its last form, by what it is of."""
        if not self.blocks:
            return {"model": self.program.graph}
        if self.halves:
            every = zip(self.blocks, self.halves, strict=True)
            return {f"{made.block.name}, {half.name}": half.graph for made, halves in every for half in halves}
        out: dict[str, Graph] = {}
        for made in self.blocks:
            for one in (made, *([made.bare] if made.bare else [])):
                out |= _graphs(one)
        return out


def _graphs(made: Derived) -> dict[str, Graph]:
    block = made.block
    name = f"{block.name}{block.variant.replace('_', ' ')}"
    if not made.own:
        return {name: made.joint or made.plain or made.alone or made.graph}
    out: dict[str, Graph] = {}
    for pair in made.own:
        printed = [pair.forward, pair.backward, *pair.only.values()]
        for (side, of, graph), own in zip(pair.parts(), printed, strict=True):
            out[f"{block.name}, {pair.half(side, of)}"] = graph
            if own is not graph:
                out[f"{block.name}, {pair.half(side, of)}, in torch"] = own
    return out
