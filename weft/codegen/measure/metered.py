"""What the functions of a kernel path run, measured: kernels as their launch wrappers launch them, torch's operators
between as they are printed; and what the model does around its blocks. Imports torch.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

import torch
from torch import Tensor

from weft.codegen.measure.launched import Cost, Launches, Ledger
from weft.codegen.measure.meta import Meta
from weft.codegen.measure.stand_in import StandIn
from weft.codegen.measure.tracer import untraced
from weft.codegen.package.fused import Printed
from weft.codegen.package.kernels import Emitted
from weft.codegen.package.model import ranges
from weft.codegen.runtime.module import bounded
from weft.codegen.torch.sizes import Sizes
from weft.ir.names import identifier
from weft.ir.program import Program
from weft.ir.types import Val, torch_dtype
from weft.passes.blocks import handle_of
from weft.passes.fusion.ran import Ran


def checks(program: Program, sizes: Mapping[str, int]) -> Ran:
    """What a call does to tell whether the numbers of its inputs are coordinates."""
    seen: list[Cost] = []
    given = {name: program.input(name) for name in program.inputs}
    inputs = {identifier(name): _tensor(v, sizes) for name, v in given.items()}
    with untraced(), Launches(seen.append):
        bounded(inputs, ranges(program, Sizes.of(program)))
    return Ran((), sum(c.launches for c in seen), sum(c.bytes for c in seen))


def paths(emitted: Emitted, sizes: Mapping[str, int], target: str) -> dict[tuple[str, str], tuple[Ran, ...]]:
    """By block and half: statements, with the values of the half's graph that they were printed for. Not of blocks with
    wrapped modules, which are not at hand, nor of what no GPU can launch."""
    meter, out = _Meter(emitted, sizes, target), dict[tuple[str, str], tuple[Ran, ...]]()
    for block, path in emitted.paths.items():
        if any(handle_of(printed.graph) is not None for printed in path.functions.values()):
            continue
        for half, printed in path.functions.items():
            with suppress(ValueError):  # a grid over a GPU's largest: refused where it is launched
                out[block, half] = meter.run(block, printed)
    return out


class _Meter:
    def __init__(self, emitted: Emitted, sizes: Mapping[str, int], target: str) -> None:
        self.sizes, self.meta = sizes, Meta()
        self.ledger: Ledger | None = None
        paths = {f"fused/{name}.py": path.source for name, path in emitted.paths.items()}
        self.kernels = StandIn({**emitted.files, **paths}, target, self.see)

    def see(self, found: Cost) -> None:
        if self.ledger is not None:
            self.ledger.see(found)

    def run(self, block: str, printed: Printed) -> tuple[Ran, ...]:
        function = getattr(self.kernels.module(f"fused.{block}"), printed.function.name)
        self.ledger = ledger = Ledger(function, printed.function)
        args: list[Tensor | int] = [_tensor(v, self.sizes) for v in printed.graph.inputs]
        with torch.no_grad(), untraced(), Launches(self.see, self.meta):
            function(*args, *(self.sizes[d] for d in printed.given))
        names = printed.origins
        return tuple(replace(one, nodes=tuple(names.get(n, n) for n in one.nodes)) for one in ledger.ran())


def _tensor(v: Val, sizes: Mapping[str, int]) -> Tensor:
    return torch.empty([sizes[d] for d in v.dims], dtype=torch_dtype(torch, v.dtype), device="meta")
