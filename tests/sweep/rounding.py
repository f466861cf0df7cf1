"""Is a difference rounding? Then it moves as soon as every result is off in its last place.

A spec may be drawn that amplifies rounding, such as a norm of rows that are large and equal but for noise: programs
that are right then differ by more. Source: random arithmetic (Vignes 1993, A stochastic arithmetic for reliable
scientific computation).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

EPS = torch.finfo(torch.float64).eps
TIMES = 3


class Rounded(TorchDispatchMode):
    """While it is on, each new float64 tensor is off in its last place, at random."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if any(r.alias_info is not None for r in func._schema.returns):  # a view, or one of the operands
            return out
        return tree_map_only(Tensor, self.off, out)

    def off(self, x: Tensor) -> Tensor:
        """Whole numbers and infinities are exact."""
        if x.dtype != torch.float64:
            return x
        sign = torch.randint(-1, 2, x.shape, generator=self.generator)
        return torch.where(x.isinf() | (x == x.round()), x, x + x * EPS * sign)


def is_rounding(error: float, moved: Sequence[float]) -> bool:
    """Is a difference one of rounding alone, where the last place moves results by so much?

    Then two runs that differ there are as far from each other as from the truth; a fault stays what it is."""
    return max(moved) > error / 2
