"""What a block kind is: a part of the spec language and what it means."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from weft.errors import Path, Problem
from weft.frontends.schema_values import SpecPart

if TYPE_CHECKING:
    from weft.frontends.lower.scope import Scope
    from weft.frontends.resolve import Dims
    from weft.ir.types import Val

Aux = list[tuple["Val", float]]
"""Auxiliary losses f32[] and their weights."""


class BlockKind(SpecPart):
    """What one sub-layer computes between its norm and its residual. Its fields are its keys in a spec."""

    either: ClassVar[tuple[tuple[str, str], ...]] = ()
    """Pairs of keys of which a block has one: setting the one takes the other away."""

    @property
    def wrapped(self) -> Any:
        """The module that the block wraps, if it does."""
        return None

    def lower(self, s: Scope, x: Val, stem: str, path: Path) -> tuple[Val, Aux]:
        """x [batch seq width] -> the same, and auxiliary losses. stem: what its parameters' names begin with; path: of
        the block in the spec. Raises SpecError."""
        raise NotImplementedError

    def problems(self, dims: Dims, path: Path) -> Iterator[Problem]:
        """What the block says and yet cannot mean. Sizes and formulas that do not work out are told in lowering."""
        yield from ()

    def warnings(self, dims: Dims, path: Path, predicts: bool) -> Iterator[Problem]:
        """What is probably not meant. predicts: is it a model of next tokens alone, and on their stream?"""
        yield from ()
