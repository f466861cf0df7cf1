"""The recompute mode of every layer, under a budget for the whole model: exact, on the profiles of its blocks.

Source: Checkmate (1910.02653) on a chain of blocks, as `chain.solve` has it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod

from weft.errors import InfeasibleError
from weft.ir.program import Program
from weft.ir.types import ITEMSIZE
from weft.passes.blocks import key
from weft.passes.chain import Chain, inference_peak, smallest_budget, solve
from weft.passes.halves import Derived
from weft.passes.price import Prices
from weft.passes.stage import Chosen, Layer, Options, Stage
from weft.passes.structure import Site, Stack, Structure

SCALARS = 64
"""Bytes."""


def choose(stage: Stage, options: Options) -> Stage:
    """The stage with a mode for every layer, and blocks in the modes that some layer has.

    Raises InfeasibleError with the smallest budget that a plan fits in."""
    assert stage.model is not None
    program, prices, optimizer = stage.program, options.prices, options.optimizer
    runs = _runs(stage.model, stage.blocks, options.sizes)
    weights = parameters(program, prices) if program.train else []
    chain = Chain(tuple(stage.profiles[i] for i, _ in runs), _base(program, prices) + optimizer.kept(weights))
    step = sum(weights) + optimizer.kept(weights) + optimizer.step(weights)
    choice = solve(chain, options.budget) if program.train else None
    most = max(choice.peak, step) if choice else inference_peak(chain)
    if options.budget is not None and most > options.budget:
        what = f"the step of {optimizer.name}" if choice else "running forward"
        raise InfeasibleError(f"{what} takes {most:,} bytes, more than {options.budget:,}: --memory {most}B", most)
    names = choice.names(chain) if choice else ("",) * len(runs)
    layers = tuple(Layer(i, row, mode) for (i, row), mode in zip(runs, names, strict=True))
    smallest = max(smallest_budget(chain), step) if choice else most
    blocks = tuple(_used(made, {x.mode for x in layers if x.block == i}) for i, made in enumerate(stage.blocks))
    return replace(stage, blocks=blocks, chosen=Chosen(layers, chain, choice, most, smallest))


def _used(made: Derived, modes: set[str]) -> Derived:
    return made.using([m for m in made.candidates if m.name in modes] or made.block.modes)


def parameters(program: Program, prices: Prices) -> list[int]:
    """Bytes of each parameter, a row of a stack by itself."""
    each = [(prod(prices.sizes[d] for d in p.dims) * ITEMSIZE[p.dtype], p.rows(prices.sizes)) for p in program.params]
    return [size for size, rows in each for _ in range(rows)]


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
