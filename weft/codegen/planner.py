"""Program -> everything decided about it: layouts, regions, recompute modes per layer, peak bytes. Imports no torch.

Equal blocks are worked on once, whatever the number of layers. The recompute choice is made on profiles that the caller
may have measured (`Profiler`); without any they are estimated from the graphs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from math import prod

from weft.errors import InfeasibleError
from weft.ir.program import Program
from weft.ir.types import ITEMSIZE, Decision, Graph
from weft.passes import FUSION, PATTERN, Options, Watch, run
from weft.passes.chain import BlockProfile, Chain, Choice, inference_peak, smallest_budget, solve
from weft.passes.fusion import Fusion, fusion_of
from weft.passes.optimizer import OPTIMIZERS, Optimizer
from weft.passes.price import Prices
from weft.passes.recompute import modes
from weft.progress import doing
from weft.targets import Target

from .blocks import Block, Mode, distinct, key
from .decoding import Decoding, decoding
from .estimate import estimated, held
from .halves import Derived, derived
from .kernel_package import Emitted, counted, kernel_package
from .structure import Site, Stack, Structure, structure

Profiler = Callable[[Program, Mapping[str, int], Sequence[Derived]], Sequence[BlockProfile]]
"""Measures each block in each of its modes at given sizes."""


SCALARS = 64
"""Bytes."""


@dataclass(frozen=True)
class Half:
    """One function of a block: what it is called, its graph, and how its nodes are grouped."""

    name: str
    graph: Graph
    fusion: Fusion


@dataclass(frozen=True)
class BlockPlan:
    """One distinct block, in every mode it could have. calls: how often it runs in a forward.

    made: its halves in the modes that some layer uses, which are printed. backward: by mode, those. further: what its
    file holds beside them: a backward that starts from the loss alone, both halves without a loss, the forwards of
    modes after the first. No total counts them."""

    block: Block
    calls: int
    made: Derived
    profile: BlockProfile
    forward: Half
    backward: Mapping[str, Half]
    further: tuple[Half, ...] = ()

    @property
    def name(self) -> str:
        return self.block.name

    @property
    def halves(self) -> tuple[Half, ...]:
        """Every function of its file."""
        return self.forward, *self.backward.values(), *self.further


@dataclass(frozen=True)
class Layer:
    """One run of a block: its index in `Planned.blocks`, the row of its stack (None outside one), its mode."""

    block: int
    row: int | None
    mode: str


@dataclass(frozen=True)
class Planned:
    """A plan as values. sizes: of every dim, at which it was made; budget: bytes, None for no limit. optimizer: whose
    state lives beside the parameters; `peak` and `smallest` count it and its step."""

    model: Structure
    sizes: Mapping[str, int]
    target: Target
    budget: int | None
    blocks: tuple[BlockPlan, ...]
    layers: tuple[Layer, ...]
    chain: Chain
    choice: Choice | None
    peak: int
    smallest: int
    measured: bool
    optimizer: Optimizer = OPTIMIZERS["none"]

    @property
    def program(self) -> Program:
        return self.model.program

    @cached_property
    def decoding(self) -> Decoding:
        """How the model decodes."""
        return decoding(self.model, {key(b.block.site): b.block for b in self.blocks})

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
        return kernel_package(self.program, [b.made for b in self.blocks], self.prices, fused)

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
) -> Planned:
    """Decide everything about a program.

    sizes: of every dim. budget: most bytes alive at once, the optimizer's state and step included. Raises
    InfeasibleError with the smallest budget that a plan fits in."""
    longest = program.resolve(**{d: r.max for d, r in program.runtime.items()})
    options = Options(sizes, target, program.train, longest=longest, skeletons=counted())
    doing("planning: attention patterns")
    program = replace(program, graph=run(program.graph, options, (PATTERN,), watch))
    model = structure(program)
    doing("planning: derivatives")
    choose = partial(_modes, prices=options.prices)
    found = [derived(block, program.train, choose) for block in distinct(model).values()]
    if profiler is None:
        profiles = [estimated(made, options.prices) for made in found]
    else:
        profiles = list(profiler(program, sizes, found))
    runs = _runs(model, found, sizes)
    weights = parameters(program, options.prices) if program.train else []
    base = _base(program, options.prices)
    chain = Chain(tuple(profiles[i] for i, _ in runs), base + optimizer.kept(weights))
    step = sum(weights) + optimizer.kept(weights) + optimizer.step(weights)
    choice = solve(chain, budget) if program.train else None
    most = max(choice.peak, step) if choice else inference_peak(chain)
    names = choice.names(chain) if choice else ("",) * len(runs)
    doing("planning: fusion")
    layers = tuple(Layer(i, row, mode) for (i, row), mode in zip(runs, names, strict=True))
    blocks = tuple(
        _block(made, p, [x for x in layers if x.block == i], options, watch)
        for i, (made, p) in enumerate(zip(found, profiles))
    )
    smallest = max(smallest_budget(chain), step) if choice else most
    if budget is not None and most > budget:
        what = f"the step of {optimizer.name}" if choice else "running forward"
        raise InfeasibleError(f"{what} takes {most:,} bytes, more than {budget:,}: --memory {most}B", most)
    measured = profiler is not None
    return Planned(model, sizes, target, budget, blocks, layers, chain, choice, most, smallest, measured, optimizer)


def parameters(program: Program, prices: Prices) -> list[int]:
    """Bytes of each parameter, a row of a stack by itself."""
    each = [(prod(prices.sizes[d] for d in p.dims) * ITEMSIZE[p.dtype], p.rows(prices.sizes)) for p in program.params]
    return [size for size, rows in each for _ in range(rows)]


def _modes(block: Block, joint: Graph, prices: Prices) -> list[Mode]:
    """The recompute modes that a block could have."""
    kept = modes(joint, len(block.graph.outputs), prices, held(block.site))
    return [Mode(name, saved) for name, saved in kept.items()]


def _runs(model: Structure, found: Sequence[Derived], sizes: Mapping[str, int]) -> list[tuple[int, int | None]]:
    """(block, row) of every call in the order they run."""
    index = {key(made.block.site): i for i, made in enumerate(found)}
    out: list[tuple[int, int | None]] = []
    for step in model.steps:
        if isinstance(step, Site):
            out.append((index[key(step)], None))
        elif isinstance(step, Stack):
            rows = range(sizes[step.loop.dim])
            out += [(index[key(s)], s.start + s.step * row) for row in rows for s in step.sites]
    return out


def _base(program: Program, prices: Prices) -> int:
    """Bytes that live throughout: parameters, the model's inputs, and what it returns, which its caller holds.

    With training also the gradient that a backward starts from: one of the size of the first output. And scalars that a
    call makes: seeds and counts."""
    wanted = {p.value for p in program.params} | set(program.inputs)
    held = [v for v in program.graph.inputs if v.name in wanted]
    seed = program.graph.outputs[:1] if program.train else ()
    return sum(map(prices.size, (*held, *program.graph.outputs, *seed))) + SCALARS


def _block(
    made: Derived, profile: BlockProfile, layers: Sequence[Layer], options: Options, watch: Watch | None
) -> BlockPlan:
    block, used = made.block, {x.mode for x in layers}
    made = made.using([m for m in block.modes if m.name in used] or block.modes)
    if made.joint is None:
        return BlockPlan(block, len(layers), made, profile, _half("forward", block.graph, options, watch), {})
    forwards, backward, further = list[Half](), dict[str, Half](), list[Half]()
    for pair in made.pairs:
        for side, of, graph in pair.parts():
            half = _half(pair.half(side, of), graph, options, watch)
            if of or pair.block.variant:
                further.append(half)
            elif side == "forward":
                forwards.append(half)
            else:
                backward[pair.mode.name] = half
    return BlockPlan(block, len(layers), made, profile, forwards[0], backward, (*forwards[1:], *further))


def _half(name: str, graph: Graph, options: Options, watch: Watch | None) -> Half:
    """One half with its regions, in the graph's decisions too."""
    graph = run(graph, options, (FUSION,), watch)
    return Half(name, graph, fusion_of(graph))


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
    """(first, last, block, mode) of neighbouring runs of one block in one mode; positions in the chain."""
    out: list[tuple[int, int, int, str]] = []
    for block in dict.fromkeys(x.block for x in layers):
        places = [i for i, x in enumerate(layers) if x.block == block]
        start = places[0]
        for a, b in zip(places, [*places[1:], -1]):
            if b < 0 or layers[b].mode != layers[a].mode:
                out.append((start, a, block, layers[a].mode))
                start = b
    return sorted(out)
