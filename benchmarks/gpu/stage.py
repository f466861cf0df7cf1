"""What every stage of the GPU run has: its device, its time, and rows that are on disk as soon as they are known."""

import json
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass
class Stage:
    """One stage while it runs.

    device: "cuda", or "cpu" for a rehearsal with interpreted kernels at toy sizes. seconds: after so many no new case
    is begun. path: of its rows, a JSON object a line. share, shares: which cases are this process's.
    """

    name: str
    device: str
    seconds: float
    path: Path
    share: int = 0
    shares: int = 1

    def __post_init__(self) -> None:
        self.end = time.monotonic() + self.seconds

    @property
    def rehearsal(self) -> bool:
        return self.device == "cpu"

    @property
    def left(self) -> float:
        return self.end - time.monotonic()

    def row(self, case: str, ok: bool | None = None, **found: Any) -> None:
        """Keep a row. ok: whether a check held; None where the row only measures."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"case": case, **({} if ok is None else {"ok": ok}), **found}) + "\n")

    def cases(self, every: Iterable[tuple[str, T]]) -> Iterator[T]:
        """Those of this process, while there is time; a row for each that there was none for."""
        for k, (name, case) in enumerate(every):
            if k % self.shares != self.share:
                continue
            if self.left <= 0:
                self.row(name, skipped="no time was left")
            else:
                yield case

    @contextmanager
    def guarded(self, case: str) -> Iterator[None]:
        """What goes wrong inside is a row that failed, and the stage goes on."""
        try:
            yield
        except Exception as error:
            self.row(case, ok=False, why=f"{type(error).__name__}: {error}"[:500])
