"""Program -> everything decided about it: layouts, regions, recompute modes per layer, peak bytes. Imports no torch.

Equal blocks are worked on once, whatever the number of layers. The recompute choice is made on profiles that the caller
may have measured (`Profiler`); without any they are estimated from the graphs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

from weft.codegen.package.decoding import Decoding, decoding
from weft.codegen.package.kernels import Emitted, kernel_package
from weft.codegen.skeletons import rows
from weft.codegen.torch.composites import known
from weft.ir.program import Program
from weft.ir.types import Decision
from weft.passes.blocks import Block, Mode, key
from weft.passes.fusion.price import Prices
from weft.passes.fusion.ran import Ran
from weft.passes.halves import Derived
from weft.passes.optimizer import OPTIMIZERS, Optimizer
from weft.passes.pipeline import Watch, run
from weft.passes.schedule import BlockProfile, Choice, Schedule
from weft.passes.settled import settled
from weft.passes.stage import Half, Layer, PassOptions, Profiler, StagedProgram
from weft.passes.structure import Structure
from weft.targets import Target


class Meter(Protocol):
    """Measures at given sizes what fusion does not see."""

    def paths(
        self, emitted: Emitted, sizes: Mapping[str, int], target: str
    ) -> Mapping[tuple[str, str], tuple[Ran, ...]]:
        """What a package's kernel paths run, by block and half: statements. target: by name."""
        ...

    def checks(self, program: Program, sizes: Mapping[str, int]) -> Ran:
        """What a call does to tell whether its inputs are in range."""
        ...


@dataclass(frozen=True)
class PlannedBlock:
    """One distinct block. calls: how often it runs in a forward. made: it and its halves in the modes that some layer
    uses, which are printed. halves: every function of its file."""

    calls: int
    made: Derived
    profile: BlockProfile
    halves: tuple[Half, ...]

    @cached_property
    def block(self) -> Block:
        """The block in every mode that it could have."""
        return replace(self.made.block, modes=self.made.candidates)

    @property
    def name(self) -> str:
        return self.block.name

    @property
    def forward(self) -> Half:
        """The forward of the first mode; those of others differ in what they keep."""
        return self.halves[0]

    @property
    def backward(self) -> dict[str, Half]:
        """By mode, of those that some layer uses."""
        return {h.mode: h for h in self.halves if h.side == "backward" and not h.further}

    @property
    def further(self) -> list[Half]:
        """What its file holds beside them, which no total counts."""
        return [h for h in self.halves if h.further]


@dataclass(frozen=True)
class Planned:
    """A plan as values. sizes: of every dim, at which it was made; budget: bytes, None for no limit. optimizer: whose
    state lives beside the parameters; `peak` and `smallest` count it and its step."""

    model: Structure
    sizes: Mapping[str, int]
    target: Target
    budget: int | None
    blocks: tuple[PlannedBlock, ...]
    layers: tuple[Layer, ...]
    schedule: Schedule
    choice: Choice | None
    peak: int
    smallest: int
    measured: bool
    optimizer: Optimizer = OPTIMIZERS["none"]
    meter: Meter | None = None

    @cached_property
    def settled(self) -> tuple[PlannedBlock, ...]:
        """The blocks, their regions priced as what became of them. Without torch: as fusion priced them."""
        if self.meter is None or self.target.kind == "cpu":
            return self.blocks
        ran = self.meter.paths(self.kernels, self.sizes, self.target.name)
        return tuple(
            replace(b, halves=tuple(self._settled(h, ran.get((b.name, h.name))) for h in b.halves)) for b in self.blocks
        )

    @cached_property
    def checks(self) -> Ran:
        """What a call does to its inputs before the first block."""
        return Ran((), 0, 0) if self.meter is None else self.meter.checks(self.program, self.sizes)

    def _settled(self, half: Half, ran: tuple[Ran, ...] | None) -> Half:
        return half if ran is None else settled(half, ran, self.prices)

    @property
    def program(self) -> Program:
        return self.model.program

    @cached_property
    def decoding(self) -> Decoding:
        """How the model decodes."""
        return decoding(self.model, {key(b.block.site): b.block for b in self.blocks}, self.target)

    @cached_property
    def longest(self) -> Mapping[str, int]:
        """Sizes with run-time dims at their largest: those that layouts were chosen at."""
        return self.program.resolve(**{d: r.max for d, r in self.program.runtime.items()})

    @cached_property
    def prices(self) -> Prices:
        return Prices(self.sizes, self.target, self.longest)

    @cached_property
    def kernels(self) -> Emitted:
        """The kernels of the package, and what became of each region."""
        halves = [(b.name, half) for b in self.blocks for half in b.halves]
        fused = {(name, half.name): half.fusion for name, half in halves}
        return kernel_package(self.model, [b.made for b in self.blocks], self.prices, fused)

    @property
    def modes(self) -> dict[str, list[Mode]]:
        """Name of a block's call -> the modes that some layer uses, the one that keeps most first: what is printed."""
        used = {(layer.block, layer.mode) for layer in self.layers}
        return {
            b.block.site.call.name: [m for m in b.block.modes if (i, m.name) in used] for i, b in enumerate(self.blocks)
        }

    @property
    def choices(self) -> dict[str, list[str]]:
        """Name of a block -> the mode of each of its runs, in order."""
        return {b.name: [x.mode for x in self.layers if x.block == i] for i, b in enumerate(self.blocks)}


def plan(
    program: Program,
    sizes: Mapping[str, int],
    target: Target,
    budget: int | None = None,
    profiler: Profiler | None = None,
    watch: Watch | None = None,
    optimizer: Optimizer = OPTIMIZERS["none"],
    meter: Meter | None = None,
) -> Planned:
    """Decide everything about a program.

    sizes: of every dim. budget: most bytes alive at once, the optimizer's state and step included. meter: of what
    became of regions. Raises InfeasibleError with the smallest budget that a plan fits in."""
    longest = program.resolve(**{d: r.max for d, r in program.runtime.items()})
    options = PassOptions(sizes, target, rows(), longest, known, profiler, budget, optimizer)
    return _planned(run(StagedProgram(program), options, watch=watch), options, meter)


def _planned(stage: StagedProgram, options: PassOptions, meter: Meter | None) -> Planned:
    chosen, model = stage.chosen, stage.model
    assert chosen is not None
    assert model is not None
    blocks = tuple(
        PlannedBlock(sum(x.block == i for x in chosen.layers), made, profile, halves)
        for i, (made, profile, halves) in enumerate(zip(stage.blocks, stage.profiles, stage.halves, strict=True))
    )
    o, choice, measured = options, chosen.choice, options.profiler is not None
    return Planned(
        model, o.sizes, o.target, o.budget, blocks, chosen.layers, chosen.schedule, choice, chosen.peak,
        chosen.smallest, measured, o.optimizer, meter,
    )  # fmt: skip


def recompute_decisions(planned: Planned) -> tuple[Decision, ...]:
    """Why each run of equal layers recomputes what it does."""
    out: list[Decision] = []
    for first, last, block, mode in stretches(planned.layers):
        b = planned.blocks[block]
        own = next(m for m in b.profile.modes if m.name == mode)
        rejected: list[tuple[str, str, tuple[tuple[str, float | int | str], ...]]] = []
        for m in b.profile.modes:
            if m.name == mode:
                continue
            if m.time > own.time:
                rejected.append((m.name, "slower", (("microseconds", round((m.time - own.time) * 1e6, 3)),)))
            else:
                rejected.append((m.name, "over budget" if m.time < own.time else "more bytes", (("bytes", m.saved),)))
        subject = f"{b.name} {first}" if first == last else f"{b.name} {first} to {last}"
        numbers = (("bytes", own.saved), ("microseconds", round(own.time * 1e6, 3)))
        src = next((n.src for n in b.block.graph.nodes if n.src), "")
        out.append(Decision("recompute", subject, mode, "exact", numbers, tuple(rejected), src))
    return tuple(out)


def stretches(layers: Sequence[Layer]) -> list[tuple[int, int, int, str]]:
    """(first, last, block, mode) of neighbouring runs of one block in one mode; places among the runs."""
    out: list[tuple[int, int, int, str]] = []
    for block in dict.fromkeys(x.block for x in layers):
        places = [i for i, x in enumerate(layers) if x.block == block]
        start = places[0]
        for a, b in zip(places, [*places[1:], -1]):
            if b < 0 or layers[b].mode != layers[a].mode:
                out.append((start, a, block, layers[a].mode))
                start = b
    return sorted(out)
