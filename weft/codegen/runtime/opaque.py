"""Wrapped modules: run with the parameters that the model holds for them, differentiated by torch's autograd."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import get_device_states, set_device_states


class Wrapped:
    """The wrapped modules of one call of a block, and where the random generators stood when each was run."""

    def __init__(self, modules: Mapping[str, nn.Module]):
        self.modules = modules
        self.states: dict[str, tuple[Tensor, list[int], list[Tensor]]] = {}  # of the CPU; devices, and theirs

    def module(self, key: str) -> nn.Module:
        if key not in self.modules:
            raise RuntimeError(f"wrapped module {key!r} is missing: call install(model, {{{key!r}: module}}) first")
        return self.modules[key]

    def run(self, key: str, names: tuple[str, ...], inputs: tuple[Tensor, ...], parameters: tuple[Tensor, ...]):
        """The module's result for `inputs`, its parameters `names` replaced by `parameters`."""
        self.states[key] = torch.get_rng_state(), *get_device_states(*inputs, *parameters)
        return torch.func.functional_call(self.module(key), dict(zip(names, parameters)), inputs)

    def grad(
        self,
        key: str,
        names: tuple[str, ...],
        inputs: tuple[Tensor, ...],
        parameters: tuple[Tensor, ...],
        cotangents: tuple[Tensor | None, ...],
    ) -> tuple[Tensor | None, ...]:
        """Gradients of the float inputs, then of the parameters, None for a frozen one. The module runs again with the
        same random numbers."""
        state, devices, others = self.states[key]
        with torch.random.fork_rng(devices=devices), torch.enable_grad():
            torch.set_rng_state(state)
            set_device_states(devices, others)
            given = (*inputs, *parameters)
            leaves = [x.detach().requires_grad_(x.is_floating_point() and not _frozen(x)) for x in given]
            own = dict(zip(names, leaves[len(inputs) :]))
            out = torch.func.functional_call(self.module(key), own, tuple(leaves[: len(inputs)]))
        out = out if isinstance(out, tuple) else (out,)
        pairs = [(y, d) for y, d in zip(out, cotangents) if d is not None]
        wanted = [x for x in leaves if x.requires_grad]
        given = [y for y, _ in pairs], wanted, [d for _, d in pairs]
        found = iter(torch.autograd.grad(*given, allow_unused=True, materialize_grads=True))
        return tuple(next(found) if x.requires_grad else None for x in leaves if x.is_floating_point())


def _frozen(x: Tensor) -> bool:
    """Is it a parameter that asks for no gradient? What a block computed asks for none either, but may lead to one."""
    return isinstance(x, nn.Parameter) and not x.requires_grad
