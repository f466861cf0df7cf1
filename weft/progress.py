"""What a person sees while a verb works: one line on the terminal, drawn anew every second; elsewhere nothing.

    with Working():                                   around a verb
        doing("verifying: gradients", 3, 9)           anywhere inside: what is being done, and how far it is

[00:12] verifying: gradients  3/9  eta 00:24
"""

from __future__ import annotations

import math
import shutil
import sys
import threading
import time
from collections.abc import Callable
from typing import ClassVar, Self, TextIO

BEAT_SECONDS = 1.0
_SILENT_SECONDS = 1.0  # of a verb that is soon done nothing is shown
Clock = Callable[[], float]
Wait = Callable[[threading.Event, float], bool]


def minutes(seconds: float) -> str:
    """mm:ss."""
    return f"{int(seconds) // 60:02d}:{int(seconds) % 60:02d}"


class Beat:
    """A line on a terminal with the time since it began, drawn by a thread; the innermost one draws. Elsewhere nothing.

    terminal: whether `out`, stderr by default, is one. wait: how the thread waits, for tests."""

    current: ClassVar[Beat | None] = None

    def __init__(
        self, out: TextIO | None = None, clock: Clock = time.monotonic, terminal: bool | None = None,
        wait: Wait = threading.Event.wait,
    ) -> None:  # fmt: skip
        self.out, self.clock, self.wait = out or sys.stderr, clock, wait
        quiet = Beat.current is not None and not Beat.current.tty
        self.tty = not quiet and _is_terminal(self.out) if terminal is None else terminal
        self.drawn, self._width, self.began = -1e9, 0, clock()
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None
        self._outer: Beat | None = None

    def state(self) -> str:
        """What is shown behind the time; "" for nothing."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        self._outer, Beat.current = Beat.current, self
        if self._outer is not None:
            self._outer.clear()
        if self.tty:
            self._thread = threading.Thread(target=self._heart, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self.clear()
        Beat.current = self._outer

    def _heart(self) -> None:
        while not self.wait(self._stop, BEAT_SECONDS):
            self.beat()

    def beat(self) -> None:
        """Show that it is alive, if nothing was shown for a while."""
        if self.clock() - self.drawn >= BEAT_SECONDS * 0.9:
            self.draw()

    def draw(self) -> None:
        """Now."""
        with self._lock:
            text = self.state()
            if not text or not self.tty or Beat.current not in (self, None):
                return
            self.drawn = self.clock()
            text = f"[{minutes(self.drawn - self.began)}] {text}"
            text = text[: max(20, shutil.get_terminal_size().columns - 1)]  # a line that wraps cannot be redrawn
            self._write("\r" + text.ljust(self._width))
            self._width = len(text)

    def clear(self) -> None:
        """Take the line away, for something else to be written."""
        with self._lock:
            if self._width:
                self._write("\r" + " " * self._width + "\r")
                self._width = 0

    def _write(self, text: str) -> None:
        try:
            self.out.write(text)
            self.out.flush()
        except (OSError, ValueError):  # whoever read it went away; the work goes on
            self._stop.set()


class Working(Beat):
    """What `doing` was told last. Nothing where stderr is no terminal."""

    def __init__(self, *args: object, **given: object) -> None:
        super().__init__(*args, **given)  # type: ignore[arg-type]
        self.what, self.done, self.total, self.since = "", 0, 0, self.began
        self.ends: float | None = None

    def state(self) -> str:
        now = self.clock()
        if not self.tty or not self.what or now - self.began < _SILENT_SECONDS:
            return ""
        parts = [self.what]
        if self.total:
            parts.append(f"{self.done}/{self.total}")
        if self.ends is not None:
            parts.append(f"eta {minutes(max(0.0, self.ends - now))}")
        elif 0 < self.done <= self.total:
            parts.append(f"eta {minutes((now - self.since) / self.done * (self.total - self.done))}")
        return "  ".join(parts)

    def to(self, what: str, done: int, total: int, left: float | None = None) -> None:
        """See `doing`."""
        if not done or total != self.total:
            self.since = self.clock()
        self.what, self.done, self.total = what, done, total
        self.ends = self.clock() + left if left is not None and left != math.inf else None
        if self.clock() - self.drawn >= BEAT_SECONDS / 4:
            self.draw()


def doing(what: str, done: int = 0, total: int = 0, left: float | None = None) -> None:
    """Say what is being done, and how many of its steps of how many are. What is left counts from the first step, or is
    so many seconds, where who says it knows better."""
    if isinstance(Beat.current, Working):
        Beat.current.to(what, done, total, left)


def clear() -> None:
    """Before something is written to the terminal: take the line away."""
    if Beat.current is not None:
        Beat.current.clear()


def _is_terminal(out: TextIO) -> bool:
    try:
        return out.isatty()
    except (AttributeError, ValueError):  # None, or closed
        return False
