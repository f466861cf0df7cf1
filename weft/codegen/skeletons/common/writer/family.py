"""What a family of kernels says of itself: the SKELETON of its `writer` folder."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from weft.codegen.skeletons.common.writer.job import Job, Written


@dataclass(frozen=True)
class Family:
    """write: a region's holes and launch from its nodes; raises Refused. serves: the skeleton whose regions it takes.

    rank: of two families that serve one skeleton the lower is asked first. needs: families whose files its own import.
    spaces: what may be tuned of its kernels, by name, as `weft.autotune.space` reads it."""

    rank: int
    serves: str
    write: Callable[[Job], Written]
    needs: tuple[str, ...] = ()
    spaces: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])
