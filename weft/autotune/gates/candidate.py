"""A configuration on its way through the gates, and what they say of it in the end."""

from __future__ import annotations

from dataclasses import dataclass, field

from weft.autotune.gates.features import Facts
from weft.autotune.types import Config, Status
from weft.autotune.workers.compile_pool import Built
from weft.autotune.workers.launches import KernelLaunch

STEPS = ("wrapper", "shared", "compile", "interpreter")
"""The gates that look at one configuration after another; `upto` names the last one that is asked."""


@dataclass(frozen=True)
class GateVerdict:
    """What the gates say of a configuration. gate: that refused it, "" where none did. reason: of a closed list, by
    which refusals are counted; detail: for people. error: largest relative error that the interpreter saw. cubins:
    names in the private store, where kernels are kept."""

    config: Config
    gate: str = ""
    reason: str = ""
    detail: str = ""
    status: Status = Status.OK
    facts: Facts = field(default_factory=dict[str, float])
    error: float | None = None
    cubins: tuple[str, ...] = ()
    compile_s: float | None = None

    @property
    def ok(self) -> bool:
        return not self.gate

    @property
    def line(self) -> str:
        """The refusal in one line."""
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


@dataclass
class Candidate:
    """A configuration on its way. seen: the last gate it passed; refused: once it is; recalled: facts that were found
    out on another machine."""

    config: Config
    launches: tuple[KernelLaunch, ...] = ()
    builts: tuple[Built, ...] = ()
    seen: str = ""
    error: float | None = None
    refused: GateVerdict | None = None
    recalled: Facts = field(default_factory=dict[str, float])
    cubins: tuple[str, ...] = ()

    def refuse(self, gate: str, reason: str, detail: str = "", status: Status = Status.STATIC) -> None:
        self.refused = GateVerdict(self.config, gate, reason, detail, status, error=self.error)

    def past(self, gate: str) -> bool:
        """Whether it was asked at a gate of `STEPS`."""
        return self.seen != "" and STEPS.index(self.seen) >= STEPS.index(gate)
