"""The modes of a program whose gradient goes through borders of segments: what earlier segments keep is alive too.

Of a memory that a gradient goes `through`, as many earlier segments stand with all that their backwards read when the
last one runs. A choice of modes is that of every segment, so what it keeps counts as often. The budget of one segment
is then the largest whose choice fits with those: found by halving, and each that is taken was counted.
"""

from collections.abc import Callable
from dataclasses import replace

from weft.errors import InfeasibleError
from weft.passes.memory.solver import smallest_budget, solve
from weft.passes.schedule import Choice, Kept, Schedule

HALVINGS = 30
GRADIENTS = 3
"""Copies of a state that its gradient takes: what enters, what a layer adds, their sum."""


def solved(
    schedule: Schedule, budget: int | None, through: int, each: int, states: int, step: int
) -> tuple[Choice, int]:
    """The choice, earlier segments in its peak, and the smallest budget there is.

    each: bytes of a segment's inputs and results; states: of what it is handed; step: of an optimizer's. Raises
    InfeasibleError with that smallest budget."""
    if not through:
        return solve(schedule, budget), max(smallest_budget(schedule), step)

    def counted(one: int | None) -> Choice:
        choice = solve(schedule, one)
        more = through * (kept(schedule, choice) + each) + GRADIENTS * states
        return replace(choice, peak=choice.peak + more, alive=replace(choice.alive, kept=choice.alive.kept + more))

    least = smallest_budget(schedule)
    smallest = max(counted(least).peak, step)
    if budget is None or counted(None).peak <= budget:
        return counted(None), smallest
    if smallest > budget:
        message = f"no plan of {through + 1} segments fits in {budget:,} bytes; the smallest budget that has one is"
        raise InfeasibleError(f"{message} {smallest:,}: --memory {smallest}B", smallest)
    return counted(_largest(lambda one: counted(one).peak <= budget, least, budget)), smallest


def _largest(fits: Callable[[int], bool], low: int, high: int) -> int:
    """A number that fits, near the largest one between; `low` does."""
    for _ in range(HALVINGS):
        mid = (low + high + 1) // 2
        low, high = (mid, high) if fits(mid) else (low, mid - 1)
        if low >= high:
            break
    return low


def kept(schedule: Schedule, choice: Choice) -> int:
    """Bytes that stand between a forward and its backward."""
    values = Kept()
    saved = 0
    for run, m in zip(schedule.runs, choice.modes, strict=True):
        mode = run.profile.modes[m]
        saved, values = saved + mode.saved, values | run.kept(mode)
    return saved + schedule.size(values)
