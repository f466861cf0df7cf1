"""What is to be tuned, as data: the kernels' folder, how to run one of them, its space, its sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from weft.autotune.space.listed import Space
from weft.autotune.types import Config


@dataclass(frozen=True)
class Workload:
    """How a worker finds a kernel's wrapper.

    folder: of kernels, see `weft.autotune.workers.launches`. provider: "module:function" that makes the case, see
    `weft.autotune.workers.cases`; never from a file of somebody else. params: JSON data for it.
    """

    folder: str
    provider: str = "weft.autotune.workers.cases:RegionCase"
    params: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def data(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def parse(cls, data: Mapping[str, Any]) -> Workload:
        return cls(**data)


@dataclass(frozen=True)
class TuningProblem:
    """One kernel on one target.

    name: for people. sizes: every dim, at which it is timed. checks: other sizes, at which results are compared with
    the truth: ragged, of length 1, two blocks and one. given: what the space's formulas must know. dtype: of floats.
    default: the configuration it has untuned.
    """

    name: str
    space: Space
    workload: Workload
    target: str
    sizes: Mapping[str, int]
    checks: tuple[Mapping[str, int], ...]
    given: Mapping[str, int]
    dtype: str
    default: Config
