"""What a person sees while a search runs: one line that is drawn anew, every second at least.

attention_0  34/100  best 412.3 us  61% of roofline  rejected 12 compile, 3 wrong  eta 00:20
"""

from __future__ import annotations

from weft.autotune.search.kernel import Search
from weft.autotune.search.result import curve
from weft.autotune.types import FAULTS
from weft.progress import Working, minutes

_OFTEN_SECONDS = 0.1
_MOST_REASONS = 3


def line(search: Search) -> str:
    """The state of a search in one line, without a line end."""
    subject, budget = search.subject, search.budget
    trials = list(search.trials)
    total = min(len(subject.pool), budget.trials if budget.trials is not None else len(subject.pool))
    label = f"{subject.label}, {search.part.place} of {search.part.of}" if search.part.of > 1 else subject.label
    parts = [label, f"{len(trials)}/{total}" if search.phase == "search" else "finals"]
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
        parts.append(f"eta {minutes(left)}")
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
    """Seconds until the end, of all searches that share a budget, at most those of the budget; None while nothing is
    known."""
    budget, done = search.budget, len(search.trials)
    fresh = sum(not t.recorded for t in list(search.trials))
    by_trials = budget.used / fresh * max(0, total - done) if fresh else None
    known = [x for x in (by_trials, budget.left() if budget.seconds is not None else None) if x is not None]
    return max(0.0, search.part.left(min(known))) if known else None


def micros(us: float) -> str:
    """A time for people."""
    return f"{us:.4g} us" if us < 1e4 else f"{us / 1e3:.4g} ms" if us < 1e7 else f"{us / 1e6:.4g} s"


class Progress(Working):
    """The line of a search, and what `doing` is told while there is none.

    with Progress() as progress:
        Search(..., watch=progress.watch).run()
    """

    _search: Search | None = None

    def state(self) -> str:
        return line(self._search) if self._search is not None else super().state()

    def watch(self, search: Search) -> None:
        """Something happened in a search."""
        self._search = search
        if self.clock() - self.drawn >= _OFTEN_SECONDS:
            self.draw()

    def to(self, what: str, done: int, total: int, left: float | None = None) -> None:
        self._search = None
        super().to(what, done, total, left)
