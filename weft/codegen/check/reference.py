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
        plain = [name for name in program.outputs if name not in program.carried]
        self.outputs = make_dataclass("Output", [*plain, *(["memory"] if program.states else [])])
        drawn = initial(program, torch, generator)
        for name, (parameter, _) in program.logical_names().items():
            value = drawn[name].to(device, DTYPES[parameter.dtype])
            place(self, name, value if parameter.fixed else nn.Parameter(value))

    def forward(self, *inputs: Tensor, **named: Tensor | None) -> Any:
        """The program's outputs by name; inputs in the compiled module's order or by name, a seed left out is drawn.
        memory: what the call before returned, a tensor of each state.

        Without the loss's targets `loss` is None. Moved to float64, everything is computed in it."""
        states = self.program.states
        given: dict[str, Any] = dict(zip(self.order(), inputs)) | named
        memory = given.pop("memory", None)
        given |= zip((s.past for s in states), memory) if memory is not None else {}
        free = not any(isinstance(given.get(name), Tensor) for name in targets(self.program))
        if free:
            given |= self.uncounted(given)
        if "seed" in self.program.inputs:
            device = next(self.parameters()).device
            given["seed"] = draw_seed(given.get("seed"), self.training, device)
        params = {name: weight(self, name) for name in self.program.logical_names()}
        wide = all(p.dtype == torch.float64 for p in params.values())
        found = reference(self.program, torch, params, given, dtype=torch.float64 if wide else None)
        found |= {"memory": tuple(found.pop(s.value) for s in states)} if states else {}
        return self.outputs(**found | ({"loss": None} if free and "loss" in found else {}))

    def order(self) -> list[str]:
        """What the compiled module takes, in order."""
        program = self.program
        plain = [n for n in program.inputs if n not in program.carried]
        tensors = [n for n in plain if program.input(n).dims]
        return [*tensors, *(["memory"] if program.states else []), *(n for n in plain if n not in tensors)]

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
