"""The reference interpreter as an nn.Module: what a compiled module is compared with. Imports torch."""

from dataclasses import make_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from weft.ir.program import Program
from weft.ir.reference_model import initial, reference

from .runtime.module import DTYPES, draw_seed, place, weight


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
        """The program's outputs by name; inputs in the spec's order or by name, a seed left out is drawn."""
        given = dict(zip(self.program.inputs, inputs)) | named
        if "seed" in self.program.inputs:
            device = next(self.parameters()).device
            given["seed"] = draw_seed(given.get("seed"), self.training, device)
        params = {name: weight(self, name) for name in self.program.logical_names()}
        found = reference(self.program, torch, params, given)
        return self.outputs(**found)
