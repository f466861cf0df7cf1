"""Layer-wise optimizers: one step of a logical parameter as formulas, worked out on torch tensors.

A trust ratio is that of a parameter as the spec names it, whatever a package fuses and however it is sharded: the norm
of a DTensor is that of the whole, the rest is done on each rank's own part.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from weft.errors import UsageError
from weft.ir.formula import parse, symbol
from weft.ir.formula.evaluate import evaluate
from weft.ir.reference import functions


@dataclass(frozen=True)
class Rule:
    """Formulas over the parameter x, its gradient g, the moments and the numbers of its group.

    moments: each one's next value, in order; a later formula reads the values of earlier ones. direction: r, of which
    x loses lr * trust * r, where trust is |x| / |r|, and 1 where either is 0."""

    moments: Mapping[str, str]
    direction: str


NUMBERS = ("lr", "beta1", "beta2", "eps", "decay", "left1", "left2")
"""left1, left2: 1 - beta^t at step t, or 1 without `bias_correction`."""
MOMENT = "beta1*m + (1 - beta1)*g"
RULES = {
    # You et al. 2020, 1904.00962, algorithm 2
    "lamb": Rule({"m": MOMENT, "v": "beta2*v + (1 - beta2)*g*g"}, "m/left1 / (sqrt(v/left2) + eps) + decay*x"),
    # the same, algorithm 1
    "lars": Rule({"m": "beta1*m + (1 - beta1)*(g + decay*x)"}, "m"),
}


class LayerWise(torch.optim.Optimizer):
    """An optimizer of RULES; params, and what `step` and `state_dict` do, as of torch.optim. numbers: those of
    `weft.optimizer`, of which a group of parameters may have its own.

    Raises UsageError for a rule that is none, ValueError for numbers out of range."""

    def __init__(
        self,
        rule: str,
        params: Iterable[Any],
        numbers: Mapping[str, Any],
    ) -> None:
        if rule not in RULES:
            raise UsageError(f"no optimizer is called {str(rule)[:20]!r}; known: {', '.join(RULES)}")
        if min(numbers[k] for k in ("lr", "eps", "weight_decay")) < 0 or not all(0 <= b < 1 for b in numbers["betas"]):
            raise ValueError("lr, eps and weight_decay are at least 0, and each of betas in [0, 1)")
        self.rule = RULES[rule]
        super().__init__(params, dict(numbers))

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step. closure: computes the loss anew, with gradients, and returns it."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for x in group["params"]:
                if x.grad is not None:
                    self._one(x, group)
        return loss

    def _one(self, x: Tensor, group: Mapping[str, Any]) -> None:
        state = self.state[x]
        if not state:
            state |= {"step": 0, **{name: torch.zeros_like(x) for name in self.rule.moments}}
        state["step"] += 1
        numbers = _numbers(group, state["step"])
        given: dict[str, Any] = {"x": _own(x), "g": _own(x.grad), **{m: _own(state[m]) for m in self.rule.moments}}
        for name, text in self.rule.moments.items():
            given[name].copy_(_value(text, given, numbers))
        r = _value(self.rule.direction, given, numbers)
        factor = _trust(x, r, group["bound"]) * numbers["lr"] if group["trust"] else numbers["lr"]
        given["x"].sub_((r * factor).to(x.dtype))


def _numbers(group: Mapping[str, Any], step: int) -> dict[str, float]:
    left = (1 - b**step if group["bias_correction"] else 1.0 for b in group["betas"])
    return dict(zip(NUMBERS, (group["lr"], *group["betas"], group["eps"], group["weight_decay"], *left), strict=True))


def _value(text: str, given: Mapping[str, Tensor], numbers: Mapping[str, float]) -> Tensor:
    """A formula's value, in the dtype of the parameter."""
    x = given["x"]
    env = {symbol(name): value for name, value in {**given, **numbers}.items()}
    (found,) = evaluate([parse(text, [*given, *numbers])], env, functions(torch, x.dtype, x.device))  # pyright: ignore[reportArgumentType]  # a module is hashable
    return found


def _trust(x: Tensor, r: Tensor, bound: tuple[float, float]) -> Tensor:
    """|x| / |r|, both of the whole parameter; 1 where either is 0."""
    size, of = _norm(x).clamp(*bound), _norm(_like(r, x))
    return torch.where((size > 0) & (of > 0), size / of, 1.0)


def _norm(x: Tensor) -> Tensor:
    """In float32 at least."""
    found: Any = torch.linalg.vector_norm(x, dtype=torch.promote_types(x.dtype, torch.float32))
    return found.full_tensor() if hasattr(found, "full_tensor") else found


def _own(x: Any) -> Any:
    """This rank's part of a DTensor; any other tensor itself."""
    return x.to_local() if hasattr(x, "to_local") else x


def _like(r: Tensor, x: Any) -> Any:
    """r as x is sharded."""
    if not hasattr(x, "to_local"):
        return r
    return type(x).from_local(r, x.device_mesh, x.placements, run_check=False, shape=x.shape, stride=x.stride())
