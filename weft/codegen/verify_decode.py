"""What decoding is held to: the whole run at once, with the sizes that decoding keeps to. Imports torch."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from weft.ir.program import Program
from weft.ir.reference_model import reference
from weft.passes.inference import inference

from .sizes import Sizes
from .stepping import TIME


def whole_run(
    program: Program,
    module: nn.Module,
    params: Mapping[str, Tensor],
    inputs: Mapping[str, Tensor],
    sizes: Mapping[str, int],
    wrapped: Mapping[str, nn.Module] | None = None,
) -> dict[str, Tensor]:
    """The module's results for all positions; the interpreter's where a size grows with the run, as a capacity may.

    A step cannot know how long the run will be: such a size is then that of the longest run."""
    grown = _grown(program, sizes)
    if not grown:
        return dict(zip(program.outputs, module(**inputs)))
    with torch.no_grad():
        return reference(inference(program), torch, params, inputs, {**sizes, **grown}, torch.float64, wrapped)


def _grown(program: Program, sizes: Mapping[str, int]) -> dict[str, int]:
    """The sizes at the longest run that differ from these, the length and the dims that have it apart."""
    limit, known = program.runtime.get(TIME), Sizes.of(program)
    longest = program.resolve(**{d: sizes[d] for d in program.runtime} | ({TIME: limit.max} if limit else {}))
    return {d: n for d, n in longest.items() if n != sizes[d] and known.alias(d) != TIME}
