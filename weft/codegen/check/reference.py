"""The reference interpreter as an nn.Module: what a compiled module is compared with. Imports torch."""

from collections.abc import Mapping
from dataclasses import make_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from weft.codegen.runtime.module import DTYPES, draw_seed, place, weight
from weft.ir.indices import indices, targets
from weft.ir.program import Program
from weft.ir.reference_model import initial, reference


class Reference(nn.Module):
    """A program run node by node, differentiated by torch: the same parameters and outputs as the compiled module.

    It materialises every attention matrix and frees nothing early, so it is for small sizes."""

    def __init__(self, program: Program, generator: Any = 0, device: Any = None) -> None:
        super().__init__()
        self.program = program
        self.outputs = make_dataclass("Output", program.outputs)
        drawn = initial(program, torch, generator)
        for name, (parameter, _) in program.logical_names().items():
            place(self, name, nn.Parameter(drawn[name].to(device, DTYPES[parameter.dtype])))

    def forward(self, *inputs: Tensor, **named: Tensor | None) -> Any:
        """The program's outputs by name; inputs in the spec's order or by name, a seed left out is drawn.

        Without the loss's targets `loss` is None. Moved to float64, everything is computed in it."""
        given = dict(zip(self.program.inputs, inputs)) | named
        free = not any(isinstance(given.get(name), Tensor) for name in targets(self.program))
        if free:
            given |= self.uncounted(given)
        if "seed" in self.program.inputs:
            device = next(self.parameters()).device
            given["seed"] = draw_seed(given.get("seed"), self.training, device)
        params = {name: weight(self, name) for name in self.program.logical_names()}
        wide = all(p.dtype == torch.float64 for p in params.values())
        found = reference(self.program, torch, params, given, dtype=torch.float64 if wide else None)
        return self.outputs(**found | ({"loss": None} if free and "loss" in found else {}))

    def uncounted(self, given: Mapping[str, Any]) -> dict[str, Tensor]:
        """Targets of which none counts."""
        known = [(v, given[v.name]) for v in map(self.program.input, self.program.inputs) if v.name in given]
        sizes = {d: n for v, x in known if isinstance(x, Tensor) for d, n in zip(v.dims, x.shape)}
        device = next(self.parameters()).device
        return {
            i.input: torch.full([sizes[d] for d in self.program.input(i.input).dims], i.ignore or 0, device=device)
            for i in indices(self.program)
            if i.target
        }
