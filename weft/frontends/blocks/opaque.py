"""Modules of one's own, planned around."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import ConfigDict, Field, field_validator
from pydantic.json_schema import SkipJsonSchema

from weft.errors import Path, SpecError
from weft.frontends.blocks.kind import Aux, BlockKind
from weft.frontends.schema_values import Init, InitRule

if TYPE_CHECKING:
    from weft.frontends.lower.scope import Scope
    from weft.ir.types import Val


class OpaqueBlock(BlockKind):
    """Any `torch.nn.Module` as a block, planned around and never looked into. Python builder only."""

    called = "Opaque"
    model_config = ConfigDict(arbitrary_types_allowed=True)
    positional = ("module", "signature")

    kind: Literal["opaque"] = "opaque"
    module: SkipJsonSchema[Any] = Field(
        default=None, validate_default=True, description="the module: one tensor in, one tensor out"
    )
    signature: str = Field(
        default="batch seq width -> batch seq width", description="dims of the input and of the output"
    )

    if TYPE_CHECKING:

        def __init__(self, module: Any, signature: str = "batch seq width -> batch seq width") -> None: ...

    @field_validator("module")
    @classmethod
    def _is_module(cls, value: Any) -> Any:
        if not (callable(value) and hasattr(value, "named_parameters")):
            raise ValueError("an opaque block wraps a torch.nn.Module: only the Python builder can make one")
        return value

    @property
    def wrapped(self) -> Any:
        return self.module

    def lower(self, s: Scope, x: Val, stem: str, path: Path) -> tuple[Val, Aux]:
        """The wrapped module, one tensor in and one out, its parameters as parameters of the model."""
        sides = [side.split() for side in self.signature.split("->")]
        if len(sides) != 2 or tuple(sides[0]) != x.dims:
            message = f"the signature '{self.signature}' does not take [{' '.join(x.dims)}]"
            space = " ".join(s.space)
            raise SpecError.at((*path, "signature"), "W0402", message, f"write `{space} -> {space}`")
        weights: dict[str, Val] = {}
        for name, value in self.module.named_parameters():
            dims: list[str] = []
            for i, size in enumerate(value.shape):
                dims.append(s.low.mint(f"own_{i}", int(size), dims))
            weights[name] = s.param(f"{stem}.{name}", " ".join(dims), rule=(_like(value), path))
        key = next(k for k, module in s.low.model.modules().items() if module is self.module)
        with s.at(*path):
            op = s.ir.Opaque(key, (s.ir.Type(s.compute, tuple(sides[1])),), tuple(weights))
            return s.g.one(op, x, *weights.values(), names=[stem]), []


def _like(value: Any) -> Init:
    """How a module's own parameter starts: constant if it is, else normal with its spread."""
    value = value.detach().double()
    if value.numel() < 2 or bool((value == value.flatten()[0]).all()):
        return InitRule(constant=float(value.flatten()[0])) if value.numel() else "zeros"
    return InitRule(normal=float(value.std()))
