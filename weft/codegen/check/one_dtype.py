"""A package of several float dtypes run in one of them all, its text as it ships. Imports torch.

Rounding to bfloat16 hides what is wrong by less, and Triton's interpreter cannot compute in it; in float64 the same
text is held to a tight tolerance.
"""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from weft.codegen.torch.body import floats
from weft.ir.ops.op import body_of
from weft.ir.program import Program


def uniform(program: Program) -> bool:
    """Are all floats f32? Such a package runs in any one float dtype."""
    found = floats(program.graph) | {p.dtype for p in program.params}
    for n in program.graph.nodes:
        body = body_of(n.op)
        found |= floats(body) if body is not None else set()
    return found <= {"f32"}


class OneDtype(TorchDispatchMode):
    """While it is on, whatever asks for a float dtype gets this one, a backward too. Parameters and inputs have it
    already."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*map(self.one, args), **{k: self.one(x) for k, x in (kwargs or {}).items()})

    def one(self, x: Any) -> Any:
        """An operand; no operator takes a dtype inside another one."""
        return self.dtype if isinstance(x, torch.dtype) and x.is_floating_point else x
