"""A region's iteration space as a kernel walks it: dims in order, neighbours that no operand tells apart merged."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from weft.codegen.skeletons.common.writer.spelling import ATOM, Tri
from weft.codegen.skeletons.common.writer.wrapper import Refused, Why
from weft.ir.ops.op import kind
from weft.ir.types import Dims, Node, Val
from weft.ir.views import renamings as renamings


def tell_apart(nodes: Iterable[Node], same: Mapping[str, str]) -> None:
    """Refused where a node has a dim and its new name side by side, which would be walked as one."""
    for n in nodes:
        if kind(n) != "view" and len({same.get(d, d) for d in n.space}) < len(n.space):
            raise Refused(Why.SPACES)


@dataclass(frozen=True)
class IterationSpace:
    """groups: the merged dims in order, as tuples of dims; the first `rows` of them are rows, the rest columns.

    same: what renames make the same, see `renamings`."""

    groups: tuple[Dims, ...]
    rows: int
    same: Mapping[str, str] = field(default_factory=dict[str, str])

    def one(self, dims: Iterable[str]) -> Dims:
        """Dims under their one name."""
        return tuple(self.same.get(d, d) for d in dims)

    @property
    def dims(self) -> Dims:
        return tuple(d for g in self.groups for d in g)

    @property
    def sides(self) -> "tuple[IterationSpace, IterationSpace]":
        """The rows alone, and the columns alone."""
        rows, columns = self.groups[: self.rows], self.groups[self.rows :]
        return IterationSpace(rows, len(rows), self.same), IterationSpace(columns, 0, self.same)

    def axes(self, v: Val) -> tuple[tuple[int, ...] | None, ...]:
        """For each group, the axes of the value that it walks; None where the value does not have it."""
        own = self.one(v.dims)
        return tuple(tuple(own.index(d) for d in g) if set(g) <= set(own) else None for g in self.groups)

    def flags(self, v: Val) -> tuple[int, ...]:
        """Which of the groups a value has."""
        own = set(self.one(v.dims))
        return tuple(int(set(g) <= own) for g in self.groups)

    def coordinates(self) -> dict[str, Tri]:
        """Source of the coordinate of each dim that is a group of its own, and of its other names."""
        at = {g[0]: Tri(f"c[{k}]", ATOM, "int", None, 0) for k, g in enumerate(self.groups) if len(g) == 1}
        return at | {d: at[one] for d, one in self.same.items() if one in at}


def merged(dims: Sequence[str], operands: Iterable[Dims], alone: Iterable[str] = ()) -> tuple[Dims, ...]:
    """Neighbouring dims joined where every operand has both side by side in this order, or neither."""
    operands, alone = [tuple(o) for o in operands], set(alone)
    out: list[list[str]] = []
    for d in dims:
        if out and d not in alone and out[-1][-1] not in alone and _together(out[-1][-1], d, operands):
            out[-1].append(d)
        else:
            out.append([d])
    return tuple(map(tuple, out))


def _together(a: str, b: str, operands: Sequence[Dims]) -> bool:
    for own in operands:
        if (a in own) != (b in own):
            return False
        if a in own and own.index(b) != own.index(a) + 1:
            return False
    return True


def coordinated(nodes: Iterable[Node], order: Dims, same: Mapping[str, str]) -> set[str]:
    """Dims whose coordinates the nodes read. Dropout over all dims in order reads the place instead."""
    return {same.get(d, d) for n in nodes if not by_place(n, order, same) for d in n.op.coordinates(n)}


def by_place(node: Node, order: Dims, same: Mapping[str, str]) -> bool:
    """Is a node's logical index, if it is a dropout, the row-major place in the space?"""
    op: Any = node.op
    return op.regularizes and not op.shared and tuple(same.get(d, d) for d in node.ins[0].dims) == tuple(order)
