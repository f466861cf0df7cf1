"""The recompute mode of every layer, under a budget for the whole model: exact, on the profiles of its blocks.

Source: Checkmate (1910.02653) on runs of blocks, as `solver.solve` has it.
"""

from dataclasses import replace
from math import prod

from weft.errors import InfeasibleError
from weft.ir.program import Program
from weft.ir.types import ITEMSIZE
from weft.passes.fusion.price import Prices
from weft.passes.halves import Derived
from weft.passes.memory.runs import calls, scheduled
from weft.passes.memory.segments import solved
from weft.passes.schedule import inference_peak
from weft.passes.stage import ChosenModes, Layer, PassOptions, StagedProgram

SCALARS = 64
"""Bytes."""


def choose(stage: StagedProgram, options: PassOptions) -> StagedProgram:
    """The stage with a mode for every layer, and blocks in the modes that some layer has.

    Raises InfeasibleError with the smallest budget that a plan fits in."""
    assert stage.model is not None
    program, prices, optimizer = stage.program, options.prices, options.optimizer
    runs = calls(stage.model, stage.blocks, options.sizes)
    weights = parameters(program, prices) if program.train else []
    base = _base(program, prices) + optimizer.kept(weights)
    schedule = scheduled(stage.model, stage.blocks, stage.profiles, prices, base)
    step = sum(weights) + optimizer.kept(weights) + optimizer.step(weights)
    choice, smallest = None, 0
    if program.train:
        each, states = _of_a_segment(program, prices)
        choice, smallest = solved(schedule, options.budget, program.through, each, states, step)
    most = max(choice.peak, step) if choice else inference_peak(schedule)
    if options.budget is not None and most > options.budget:
        what = f"the step of {optimizer.name}" if choice else "running forward"
        raise InfeasibleError(f"{what} takes {most:,} bytes, more than {options.budget:,}: --memory {most}B", most)
    names = choice.names(schedule) if choice else ("",) * len(runs)
    layers = tuple(Layer(run.block, run.layer, mode) for run, mode in zip(runs, names, strict=True))
    smallest = smallest if choice else most
    blocks = tuple(_used(made, {x.mode for x in layers if x.block == i}) for i, made in enumerate(stage.blocks))
    return replace(stage, blocks=blocks, chosen=ChosenModes(layers, schedule, choice, most, smallest))


def _used(made: Derived, modes: set[str]) -> Derived:
    return made.using([m for m in made.candidates if m.name in modes] or made.block.modes)


def parameters(program: Program, prices: Prices) -> list[int]:
    """Bytes of each parameter, a row of a stack by itself."""
    each = [(prod(prices.sizes[d] for d in p.dims) * ITEMSIZE[p.dtype], p.rows(prices.sizes)) for p in program.params]
    return [size for size, rows in each for _ in range(rows)]


def _of_a_segment(program: Program, prices: Prices) -> tuple[int, int]:
    """Bytes of what a call is given and returns, and of the states that it is given."""
    given = [program.input(name) for name in program.inputs]
    states = sum(prices.size(v) for v in given if v.name in program.carried)
    return sum(map(prices.size, (*given, *program.graph.outputs))), states


def _base(program: Program, prices: Prices) -> int:
    """Bytes that live throughout: parameters, the model's inputs, and what it returns, which its caller holds; integers
    that one block makes for others, such as where tokens stand.

    With training also the gradient that a backward starts from: one of the size of the first output. And scalars that a
    call makes: seeds and counts."""
    wanted = {p.value for p in program.params} | set(program.inputs)
    held = [v for v in program.graph.inputs if v.name in wanted]
    outputs = program.graph.outputs
    seed = outputs[:1] if program.train else ()
    made = {v for n in program.graph.nodes if not n.op.shows for v in n.outs if not v.type.floating}
    return sum(map(prices.size, (*held, *outputs, *(made - {*outputs}), *seed))) + SCALARS
