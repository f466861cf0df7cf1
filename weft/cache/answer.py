"""What a lookup says: which configuration to run, how it is known, and which command would do better."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from weft.cache.canonical import plain
from weft.cache.key import Difference, Key
from weft.errors import CheckFailed


class Rung(Enum):
    """How a configuration is known; the better one first."""

    EXACT = ("exact", "measured for this very key, on this driver and torch")
    BUCKET = ("bucket", "measured for the nearest other shapes")
    STALE = ("stale", "measured under another driver, torch, power limit or memory size")
    OLDER = ("older triton", "measured with another Triton: the newest older one")
    SIBLING = ("sibling gpu", "measured on another GPU of the same architecture")
    ANALYTIC = ("analytic", "not measured: the best by the cost model")
    DEFAULT = ("default", "not measured: the safe default of this kernel")

    def __init__(self, text: str, means: str) -> None:
        self.text, self.means = text, means
        self.step = len(type(self).__members__)

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Answer:
    """What a lookup found.

    config: the knobs. us: its measured time in microseconds where it was measured. source: which source had it.
    key: the key that answered, or for the last two rungs the nearest there is. differs: (field, wanted, found), hard
    and soft. hit: whether the hard part was met in full by something usable. refused: how many configurations the
    space did not accept. command: what would do better.
    """

    config: dict[str, Any]
    rung: Rung
    us: float | None = None
    source: str = ""
    key: Key | None = None
    differs: tuple[Difference, ...] = ()
    hit: bool = False
    refused: int = 0
    command: str = ""

    def why(self) -> str:
        """In what the key that answered, or the nearest, is not the one asked for."""
        if self.differs:
            head = "nearest key" if self.rung in (Rung.ANALYTIC, Rung.DEFAULT) else "it"
            return f"{head} differs in " + ", ".join(f"{n} ({_short(b)}, not {_short(a)})" for n, a, b in self.differs)
        if self.refused:
            return f"the space refuses all {self.refused} known configurations"
        return "" if self.rung is Rung.EXACT else "no key is known"

    def line(self, label: str) -> str:
        """One line for people: what kernel `label` runs with and what to do about it."""
        parts = [f"{label}: {self.rung} configuration" + (f" from {self.source}" if self.source else ""), self.why()]
        text = "; ".join(part for part in parts if part)
        return f"{text}; run {self.command}" if self.command else text

    def data(self) -> dict[str, Any]:
        """As JSON data."""
        return {
            "config": self.config, "rung": self.rung.text, "us": self.us, "source": self.source,
            "key": self.key.id if self.key else None, "hit": self.hit, "refused": self.refused,
            "differs": [{"field": n, "wanted": a, "found": b} for n, a, b in self.differs], "command": self.command,
        }  # fmt: skip


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{k}={v}" for k, v in value.items()) or "none"
    return plain(str(value), 40) or "none"


def require(answers: Mapping[str, Answer]) -> None:
    """Raise CheckFailed naming every kernel whose hard key no usable measurement meets."""
    missed = {label: answer for label, answer in answers.items() if not answer.hit}
    if missed:
        head = f"{len(missed)} of {len(answers)} kernels are not tuned:"
        raise CheckFailed("\n".join([head, *(f"  {answer.line(label)}" for label, answer in missed.items())]))
