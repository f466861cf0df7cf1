"""What a person sees while a search runs: one line that is drawn anew, at least every second on a terminal.

attention_0  34/100  best 412.3 us  61% of roofline  rejected 12 compile, 3 wrong  eta 00:20
"""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TextIO

from weft.autotune.budget import Clock
from weft.autotune.result import curve
from weft.autotune.search import Search
from weft.autotune.types import FAULTS

BEAT_SECONDS = 1.0
"""On a terminal; elsewhere a line that cannot be drawn over is written every `_QUIET_SECONDS`."""
_QUIET_SECONDS = 30.0
_MOST_REASONS = 3


def line(search: Search) -> str:
    """The state of a search in one line, without a line end."""
    subject, budget = search.subject, search.budget
    trials = list(search.trials)
    total = min(len(subject.pool), budget.trials if budget.trials is not None else len(subject.pool))
    parts = [subject.label, f"{len(trials)}/{total}" if search.phase == "search" else "finals"]
    best = curve(trials)[-1] if trials else None
    if best is not None:
        parts.append(f"best {micros(best)}")
        if subject.roofline_us:
            parts.append(f"{subject.roofline_us / best:.0%} of roofline")
    rejected = reasons(search)
    if rejected:
        parts.append(f"rejected {rejected}")
    left = eta(search, total)
    if left is not None:
        parts.append(f"eta {int(left) // 60:02d}:{int(left) % 60:02d}")
    return "  ".join(parts)


def reasons(search: Search) -> str:
    """The most frequent reasons, of gates and of trials, with how often."""
    counts = dict(search.subject.pool.rejected)
    for trial in list(search.trials):
        status = trial.outcome.status
        if status in FAULTS:
            counts[status.value] = counts.get(status.value, 0) + 1
    most = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    named = ", ".join(f"{n:,} {reason}" for reason, n in most[:_MOST_REASONS])
    rest = sum(n for _, n in most[_MOST_REASONS:])
    return f"{named}, {rest:,} other" if rest else named


def eta(search: Search, total: int) -> float | None:
    """Seconds until the end, at most those of the budget; None while nothing is known."""
    budget, done = search.budget, len(search.trials)
    fresh = sum(not t.recorded for t in list(search.trials))
    by_trials = budget.used / fresh * max(0, total - done) if fresh else None
    known = [x for x in (by_trials, budget.left() if budget.seconds is not None else None) if x is not None]
    return max(0.0, min(known)) if known else None


def micros(us: float) -> str:
    """A time for people."""
    return f"{us:.4g} us" if us < 1e4 else f"{us / 1e3:.4g} ms" if us < 1e7 else f"{us / 1e6:.4g} s"


@dataclass
class Progress:
    """Draws the line. `watch` is given to a search; `beat` draws it again when nothing happened for a while.

    with Progress() as progress:
        Search(..., watch=progress.watch).run()
    """

    out: TextIO = field(default_factory=lambda: sys.stderr)
    clock: Clock = time.monotonic
    terminal: bool | None = None
    wait: Callable[[threading.Event, float], bool] = threading.Event.wait

    def __post_init__(self) -> None:
        self.tty = self.out.isatty() if self.terminal is None else self.terminal
        self._search: Search | None = None
        self._note = "starting"
        self._drawn, self._width, self._began = -1e9, 0, self.clock()
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Progress:
        if self.tty:
            self._thread = threading.Thread(target=self._heart, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        if self.tty and self._width:
            self._write("\n")

    def _heart(self) -> None:
        while not self.wait(self._stop, BEAT_SECONDS):
            self.beat()

    def watch(self, search: Search) -> None:
        """Something happened in a search."""
        self._search = search
        if self.clock() - self._drawn >= (0.1 if self.tty else _QUIET_SECONDS):
            self.draw()

    def note(self, text: str) -> None:
        """What to show while there is no search."""
        self._search, self._note = None, text
        self.draw()

    def beat(self) -> None:
        """Show that the search is alive."""
        if self.clock() - self._drawn >= BEAT_SECONDS * 0.9:
            self.draw()

    def draw(self) -> None:
        """Now."""
        with self._lock:
            self._drawn = self.clock()
            elapsed = int(self._drawn - self._began)
            state = line(self._search) if self._search is not None else self._note
            text = f"[{elapsed // 60:02d}:{elapsed % 60:02d}] {state}"
            if self.tty:
                text = text[: max(20, shutil.get_terminal_size().columns - 1)]  # a line that wraps cannot be redrawn
                self._write("\r" + text.ljust(self._width))
                self._width = len(text)
            else:
                self._write(text + "\n")

    def _write(self, text: str) -> None:
        try:
            self.out.write(text)
            self.out.flush()
        except (OSError, ValueError):  # whoever read it went away; the search goes on
            self._stop.set()
