"""What an optimizer keeps beside the parameters, and what its step takes: bytes in a memory plan, no code.

A step works on one tensor after another (torch's `foreach=False`, its default on a CPU), when all gradients live and
nothing of the model but its parameters does. States have the dtypes of their parameters, as torch.optim makes them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from weft.errors import UsageError


@dataclass(frozen=True, slots=True)
class Optimizer:
    """states: tensors of a parameter's size that stay; working: those that its step makes beside them."""

    name: str
    states: int
    working: int

    def kept(self, parameters: Sequence[int]) -> int:
        """Bytes that live from step to step. parameters: bytes of each."""
        return self.states * sum(parameters)

    def step(self, parameters: Sequence[int]) -> int:
        """Bytes beside parameters and states while it steps: all gradients, and its work on the largest parameter."""
        return (sum(parameters) + self.working * max(parameters, default=0)) if self.name != "none" else 0


OPTIMIZERS = {
    o.name: o
    for o in (
        Optimizer("none", 0, 0),
        Optimizer("sgd", 1, 0),  # momentum
        Optimizer("adamw", 2, 2),  # Loshchilov and Hutter 2019, 1711.05101
        Optimizer("lamb", 2, 4),  # You et al. 2020, 1904.00962
        Optimizer("lars", 1, 3),  # the same, algorithm 1
    )
}


def find(name: str) -> Optimizer:
    """The optimizer of that name. Raises UsageError that lists those there are."""
    if name not in OPTIMIZERS:
        raise UsageError(f"no optimizer is called {str(name)[:20]!r}; known: {', '.join(OPTIMIZERS)}")
    return OPTIMIZERS[name]
