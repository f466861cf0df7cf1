"""Pieces of source that writers put together: tuples, operands of a launch, what holes read besides their arguments."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from weft.codegen.skeletons.common.writer.iteration import IterationSpace
from weft.codegen.skeletons.common.writer.wrapper import Wrapper
from weft.codegen.torch.lines import tuple_of
from weft.ir.types import Dims, Val


def pair(values: Iterable[str]) -> str:
    """A tuple display of sources."""
    return tuple_of(values) if (values := list(values)) else "()"


def nested(value: Any) -> str:
    """Tuples of tuples of words, numbers and None as source."""
    if isinstance(value, tuple):
        return pair(map(nested, value))
    return f'"{value}"' if isinstance(value, str) else str(value)


def operand(w: Wrapper, space: IterationSpace, v: Val) -> str:
    """An operand or result of a launch, with its axes in the groups of the space, as `host.laid` takes them."""
    return pair((w.name(v), *map(nested, space.axes(v))))


def operands(w: Wrapper, space: IterationSpace, values: Iterable[Val]) -> str:
    """Several."""
    return pair(operand(w, space, v) for v in values)


def strided(w: Wrapper, space: IterationSpace, v: Val) -> str:
    """An operand as holes read it through X: its pointer and its strides along the groups of the space."""
    return f"host.strided({', '.join((w.name(v), *map(nested, space.axes(v))))})"


def points(w: Wrapper, groups: Iterable[Dims]) -> str:
    """The sizes of groups of dims."""
    return pair(map(w.points, groups))


def named(**given: str) -> dict[str, str]:
    """Arguments of a launch by keyword, less those that are empty."""
    return {name: text for name, text in given.items() if text not in ("", "()", "None")}


@dataclass
class Reads:
    """X, the tuple of what holes read besides their arguments, as it fills up: source in the wrapper -> place."""

    items: list[str] = field(default_factory=list)

    def at(self, source: str) -> str:
        """The item as source of a hole."""
        if source not in self.items:
            self.items.append(source)
        return f"X[{self.items.index(source)}]"

    @property
    def text(self) -> str:
        return pair(self.items) if self.items else "None"
