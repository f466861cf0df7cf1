"""How many configurations each gate refused, why, and what it cost to find out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

GATES = ("arithmetic", "hazard", "wrapper", "shared", "compile", "interpreter", "launch", "race")
"""From the cheapest to the dearest. arithmetic: constraints of the space, and the closed form of shared memory. hazard:
known miscompiles. wrapper: what the launch wrapper makes of it, and whether another configuration launches the same.
shared: TTGIR. compile: down to machine code. interpreter: against the reference in float64. launch: once on the device,
poisoned and fenced. race: timed."""


@dataclass
class GateCount:
    """One gate: how many came to it, how many it refused by reason, CPU-seconds of all processes."""

    entered: int = 0
    rejected: dict[str, int] = field(default_factory=dict[str, int])
    cpu_s: float = 0.0

    @property
    def refused(self) -> int:
        return sum(self.rejected.values())

    def refuse(self, reason: str, n: int = 1) -> None:
        self.rejected[reason] = self.rejected.get(reason, 0) + n

    def data(self) -> dict[str, Any]:
        return {
            "entered": self.entered, "refused": self.refused,
            "reasons": dict(sorted(self.rejected.items(), key=lambda pair: -pair[1])), "cpu_s": round(self.cpu_s, 3),
        }  # fmt: skip


@dataclass
class Funnel:
    """All gates of one kernel on one target."""

    stages: dict[str, GateCount] = field(default_factory=lambda: {name: GateCount() for name in GATES})

    def __getitem__(self, gate: str) -> GateCount:
        return self.stages[gate]

    @property
    def rejected(self) -> dict[str, int]:
        """Reason -> how many, of all gates."""
        out: dict[str, int] = {}
        for stage in self.stages.values():
            for reason, n in stage.rejected.items():
                out[reason] = out.get(reason, 0) + n
        return out

    @property
    def seconds(self) -> dict[str, float]:
        """CPU-seconds by gate."""
        return {name: stage.cpu_s for name, stage in self.stages.items() if stage.cpu_s}

    def data(self) -> dict[str, Any]:
        """As JSON data: the gates that something came to."""
        return {name: stage.data() for name, stage in self.stages.items() if stage.entered}


def table(funnels: Mapping[str, Funnel]) -> str:
    """For people: one line a kernel, configurations left after each gate."""
    used = [g for g in GATES if any(f[g].entered for f in funnels.values())]
    head = ["kernel", "all", *used, "CPU-s"]
    rows = [head]
    for name, funnel in funnels.items():
        left = [str(s.entered - s.refused) if s.entered else "" for s in (funnel[g] for g in used)]
        first = funnel[used[0]].entered if used else 0
        rows.append([name, str(first), *left, f"{sum(funnel.seconds.values()):.1f}"])
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    shown = [
        [cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths))] for row in rows
    ]
    return "\n".join("  ".join(row).rstrip() for row in shown)
