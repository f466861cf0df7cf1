"""A loop over steps, such as a recurrence over positions: the printed Python loop, and one op for a compiler."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .whole import KNOWN, OPS, Whole, define


@dataclass(frozen=True)
class Steps(Whole):
    """The loop `run(*sliced, *others)`.

    sliced: along which axis the loop goes through each of the first arguments. stacked: for each result the axis along
    which it holds one entry a step, None for the last value of a carry.
    """

    run: Callable[..., tuple[Tensor, ...]]
    sliced: tuple[int, ...]
    stacked: tuple[int | None, ...]

    def __call__(self, *given: Tensor | int | None) -> tuple[Tensor, ...]:
        if not torch.compiler.is_compiling():
            return self.run(*given)
        where = "".join("n" if isinstance(x, int) else "t" for x in given)
        tensors = [x for x in given if not isinstance(x, int)]
        return tuple(OPS.steps(self.key, where, tensors, [x for x in given if isinstance(x, int)]))


def _arguments(where: str, tensors: list[Tensor | None], numbers: list[int]) -> list[Tensor | int | None]:
    a, b = iter(tensors), iter(numbers)
    return [next(b) if c == "n" else next(a) for c in where]


def _run(key: str, where: str, tensors: list[Tensor | None], numbers: list[int]) -> list[Tensor]:
    out = KNOWN[key].run(*_arguments(where, tensors, numbers))
    return [y.clone(memory_format=torch.contiguous_format) for y in out]  # a carry may be a view of an operand


def _fake(key: str, where: str, tensors: list[Tensor | None], numbers: list[int]) -> list[Tensor]:
    """One step tells every shape but the lengths."""
    loop = KNOWN[key]
    sliced = [x for x in tensors[: len(loop.sliced)] if x is not None]
    one = [x.narrow(axis, 0, 1) for x, axis in zip(sliced, loop.sliced)]
    out = loop.run(*one, *_arguments(where, tensors, numbers)[len(one) :])
    shapes = [[*y.shape] for y in out]
    for shape, at in zip(shapes, loop.stacked):
        if at is not None:
            shape[at] = sliced[0].shape[loop.sliced[0]]
    return [y.new_empty(shape) for y, shape in zip(out, shapes)]


define("steps", "(str loop, str where, Tensor?[] tensors, SymInt[] numbers) -> Tensor[]", _run, _fake)
