"""How far a verification is, told by the matrix products that have run of those that its stages take.

with stages(program, sizes, False) as begin:
    begin(REFERENCE)
"""

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from weft.ir.cost import flops
from weft.ir.program import Program
from weft.progress import Beat, doing

_ATEN: Any = torch.ops.aten
_PRODUCTS = {_ATEN.mm.default: 0, _ATEN.bmm.default: 0, _ATEN.addmm.default: 1, _ATEN.baddbmm.default: 1}
"""Which operand is the left one."""


REFERENCE, COMPARED = "the reference, in float64", "outputs and gradients in"
DECODED, OWN = "decoding", "outputs in its own dtypes"


@contextmanager
def stages(program: Program, sizes: Mapping[str, int], own: bool) -> Generator[Callable[[str], None]]:
    """Gives a function to be told which stage begins. Nothing is counted where no one is watching.

    own: whether the module in its own dtypes is compared too."""
    if Beat.current is None or not Beat.current.tty:
        yield lambda name: doing(f"verifying: {name}")
        return
    formula = flops(program.graph)
    once = float(formula.subs({s: sizes[str(s)[2:]] for s in formula.free_symbols}))
    with _Counting(_work(program, own), once) as mode:
        yield mode.begin


def _work(program: Program, own: bool) -> dict[str, float]:
    """What the stages take, in runs forward in float32; float64 counts twice, and a backward as two runs."""
    targets = min(2, len(program.outputs)) if program.train else 1
    run = 3.0 if program.train else 1.0
    work = {REFERENCE: 2 * (1 + targets * (run - 1)), f"{COMPARED} f32": targets * run}
    work |= {f"{COMPARED} f64": 2 * targets * run, DECODED: 6.0}
    return work | ({OWN: 1.0} if own else {})


class _Counting(TorchDispatchMode):
    def __init__(self, units: Mapping[str, float], flops: float) -> None:
        super().__init__()
        self.units, self.flops, self.total = units, max(1.0, flops), sum(units.values())
        self.before, self.own, self.name, self.ran = 0.0, 0.0, "", 0.0

    def begin(self, name: str) -> None:
        """The stage before has ended."""
        self.before += self.own
        self.name, self.own, self.ran = name, self.units[name], 0.0
        self.tell()

    def tell(self) -> None:
        # What a stage takes is a guess: sparse patterns take less, and none passes its own end before it is there.
        done = self.before + min(0.98 * self.own, self.ran / self.flops)
        doing(f"verifying: {self.name}", int(100 * done / self.total), 100)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        left = _PRODUCTS.get(func)
        if left is not None:
            wide = 2 if out.dtype == torch.float64 else 1  # takes a CPU twice as long
            self.ran += wide * 2.0 * prod(out.shape) * args[left].shape[-1]
            self.tell()
        return out
