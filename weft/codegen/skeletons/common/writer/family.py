"""What a family of kernels says of itself: the SKELETON of its `writer` folder."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from weft.codegen.skeletons.common.writer.job import Job, Written
from weft.ir.types import Graph
from weft.passes.fusion.skeleton import Skeleton

if TYPE_CHECKING:
    from weft.codegen.skeletons.common.writer.hazards import Hazard


def _nothing(graph: Graph, size: Callable[[str], int]) -> dict[str, int]:
    return {}


@dataclass(frozen=True)
class Family:
    """rank: rows are asked in its order, heavier work first, and so are families that take regions of one row.

    write: a region's holes and launch from its nodes; raises Refused. row: what fusion must know. of: the name of the
    row, where it is another family's. needs: families whose files its own import. spaces: what may be tuned of its
    kernels, by name, as `weft.autotune.space.listed` reads it. hazards: faults of compilers that its configurations
    keep clear of; facts: numbers of a region that their rules and the spaces ask for, by name."""

    rank: int
    write: Callable[[Job], Written]
    row: Skeleton | None = None
    of: str = ""
    needs: tuple[str, ...] = ()
    spaces: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])
    hazards: "tuple[Hazard, ...]" = ()
    facts: Callable[[Graph, Callable[[str], int]], Mapping[str, int]] = _nothing

    @property
    def takes(self) -> str:
        """The row whose regions it writes."""
        return self.row.name if self.row else self.of
