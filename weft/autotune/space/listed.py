"""Search spaces: which configurations a kernel could have, from data that stands beside its skeleton.

    space = Space("attention_forward", {"BM": (64, 128), "num_stages": (2, 3)}, {"tile": "BM*dk <= 16384"}, ...)
    found = space.enumerate("sm_90", {"dk": 64, "bytes": 2})
    found.configs, found.rejected          what may be tried; how many were refused, by reason

Constraints are formulas over knobs, sizes of the kernel at hand and limits of the target, read by `weft.ir.formula` and
evaluated for all configurations at once. A knob's values are joined one knob after another, and each constraint is
applied as soon as it can be, so what is refused early is never multiplied out; still every configuration of the product
is counted once, at the first constraint that refuses it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weft.autotune.types import Config, Value
from weft.errors import UsageError
from weft.ir.formula import parse, symbol
from weft.ir.formula.evaluate import evaluate
from weft.targets import LIMITS

Column = NDArray[Any]

CAP = 50_000
"""Most configurations of a list; of a larger space a seeded sample is taken."""
_WIDE = 2_000_000  # rows that may stand at once while the product is formed


def limits(target: str) -> Mapping[str, int]:
    """Of a target; UsageError lists the known ones."""
    if target not in LIMITS:
        raise UsageError(f"nothing can be tuned for {target!r}; known: {', '.join(LIMITS)}")
    return LIMITS[target]


@dataclass(frozen=True)
class ListedSpace:
    """Configurations that arithmetic lets pass, in the order of the knobs' values.

    rejected: reason -> how many. size: how many there were in all. sampled: whether configs are a sample of those
    that pass, and the counts estimates. columns: the knobs as numbers, one array each, in the order of configs.
    """

    configs: tuple[Config, ...]
    rejected: Mapping[str, int]
    size: int
    sampled: bool = False
    columns: Mapping[str, Column] = field(default_factory=dict[str, Column])

    def __len__(self) -> int:
        return len(self.configs)

    def __iter__(self) -> Iterator[Config]:
        return iter(self.configs)


@dataclass(frozen=True)
class Space:
    """The data of one kernel's search.

    knobs: name -> values, in order; None, numbers, truths or short texts. constraints: reason -> formula over knobs
    (None and texts count as their place among the values), `sizes` and `LIMITS`. shared: target -> formula, a lower
    bound of the bytes of shared memory. sizes: names of what the kernel at hand must say. kernels: names of the
    @triton.jit functions that it configures. part: the part of the region's configuration it stands in, "" for all.
    defaults: knobs left as they are by a narrower space.
    """

    name: str
    knobs: Mapping[str, tuple[Value, ...]]
    constraints: Mapping[str, str] = field(default_factory=dict[str, str])
    shared: Mapping[str, str] = field(default_factory=dict[str, str])
    sizes: tuple[str, ...] = ()
    kernels: tuple[str, ...] = ()
    part: str = ""

    @property
    def size(self) -> int:
        """Configurations before any constraint."""
        out = 1
        for values in self.knobs.values():
            out *= len(values)
        return out

    @cached_property
    def names(self) -> frozenset[str]:
        """All that a formula of this space may name."""
        return frozenset((*self.knobs, *self.sizes, *LIMITS["sm_90"]))

    def formulas(self, target: str) -> list[tuple[str, Any]]:
        """(reason, condition) of every constraint for a target, cheapest to know first."""
        out = [(reason, self._parse(text)) for reason, text in self.constraints.items()]
        bound = self.shared.get(target)
        if bound is not None:
            out.append(("shared memory (closed form)", self._parse(f"({bound}) <= shared_limit")))
        return sorted(out, key=lambda pair: len(_names(pair[1])))

    def _parse(self, text: str) -> Any:
        return parse(text, self.names)

    def bound(self, target: str, sizes: Mapping[str, int], config: Mapping[str, Value]) -> int:
        """The least bytes of shared memory that a configuration can take; 0 where nothing is known."""
        text = self.shared.get(target)
        if text is None:
            return 0
        return int(self._values([self._parse(text)], self._row(target, sizes, config))[0][0])

    def refusal(self, target: str, sizes: Mapping[str, int], config: Mapping[str, Value]) -> str:
        """Why a configuration is not one of the list, "" if it is: an unknown value, or the constraint's reason."""
        if config.keys() != self.knobs.keys():
            return "other knobs than the space has"
        for name, value in config.items():
            if not any(type(v) is type(value) and v == value for v in self.knobs[name]):
                return f"{name} has no value {value!r}"
        row = self._row(target, sizes, config)
        for reason, condition in self.formulas(target):
            if not self._values([condition], row)[0][0]:
                return reason
        return ""

    def enumerate(self, target: str, sizes: Mapping[str, int], cap: int = CAP, seed: int = 0) -> ListedSpace:
        """All configurations that pass, or of more than `cap` a seeded sample. Raises UsageError for a missing size."""
        state = _Product(self, self._known(target, sizes), self.formulas(target), np.random.default_rng(seed))
        state.refuse()
        for name in self.knobs:
            state.join(name)
            state.refuse()
        return state.listed(cap)

    def _known(self, target: str, sizes: Mapping[str, int]) -> dict[str, Any]:
        missing = [s for s in self.sizes if s not in sizes]
        if missing:
            raise UsageError(f"the space of {self.name} needs the sizes {', '.join(missing)}")
        return {**limits(target), **{s: sizes[s] for s in self.sizes}}

    def _row(self, target: str, sizes: Mapping[str, int], config: Mapping[str, Value]) -> dict[str, Any]:
        return {**self._known(target, sizes), **{n: self.number(n, v) for n, v in config.items()}}

    def _values(self, formulas: Sequence[Any], known: Mapping[str, Any]) -> list[Any]:
        return values(formulas, {n: np.asarray([v]) for n, v in known.items()}, 1)

    def number(self, name: str, value: Value) -> float:
        """A knob's value as formulas see it."""
        if value is None:
            return 0
        return self.knobs[name].index(value) if isinstance(value, str) else value


class _Product:
    """The product of the knobs as it grows: rows of indices into their values."""

    def __init__(
        self, space: Space, known: dict[str, Any], formulas: list[tuple[str, Any]], rng: np.random.Generator
    ) -> None:
        self.space, self.known, self.formulas, self.rng = space, known, formulas, rng
        self.rows: dict[str, NDArray[np.intp]] = {}
        self.numbers = {n: np.asarray([space.number(n, v) for v in values]) for n, values in space.knobs.items()}
        self.count, self.left, self.weight = 1, space.size, 1.0
        self.rejected: dict[str, float] = {}
        self.sampled = False

    def join(self, name: str) -> None:
        """Every row once for each value of one more knob."""
        n = len(self.space.knobs[name])
        if self.count * n > _WIDE:
            self.sample(_WIDE // n)
        self.rows = {k: np.repeat(rows, n) for k, rows in self.rows.items()}
        self.rows[name] = np.tile(np.arange(n), self.count)
        self.count *= n
        self.left //= n

    def sample(self, n: int) -> None:
        """Only n of the rows, in their order."""
        if self.count > n:
            chosen = np.sort(self.rng.choice(self.count, n, replace=False))
            self.rows = {k: rows[chosen] for k, rows in self.rows.items()}
            self.weight *= self.count / n
            self.count, self.sampled = n, True

    def refuse(self) -> None:
        """Apply the constraints whose names are all known by now."""
        have = self.rows.keys() | self.known.keys()
        for reason, condition in [f for f in self.formulas if _names(f[1]) <= have]:
            self.formulas.remove((reason, condition))
            keep = values([condition], self.known | {k: self.numbers[k][i] for k, i in self.rows.items()}, self.count)[
                0
            ]
            gone = self.count - int(np.count_nonzero(keep))
            if gone:
                self.rejected[reason] = self.rejected.get(reason, 0) + gone * self.left * self.weight
                self.rows = {k: rows[keep] for k, rows in self.rows.items()}
                self.count -= gone

    def listed(self, cap: int) -> ListedSpace:
        rejected = {reason: round(n) for reason, n in self.rejected.items()}
        self.sample(cap)
        columns = {k: self.numbers[k][i] for k, i in self.rows.items()}
        chosen = [[self.space.knobs[k][z] for z in i.tolist()] for k, i in self.rows.items()]
        configs = tuple(dict(zip(self.rows, row)) for row in zip(*chosen))
        return ListedSpace(configs, rejected, self.space.size, self.sampled, columns)


def _names(formula: Any) -> set[str]:
    return {s.name for s in formula.free_symbols}


def values(formulas: Sequence[Any], env: Mapping[str, Any], count: int) -> list[Column]:
    """The values of formulas for `count` rows; env: a number or an array of so many by name."""
    found = evaluate(formulas, {symbol(n): np.asarray(v) for n, v in env.items()}, NUMPY)
    return [np.broadcast_to(np.asarray(v), (count,)) for v in found]


NUMPY: dict[str, Callable[..., Any]] = {
    "const": lambda v: v,
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.true_divide,
    "neg": np.negative,
    "pow": np.power,
    "sqrt": np.sqrt,
    "rsqrt": lambda a: 1 / np.sqrt(a),
    "floordiv": np.floor_divide,
    "mod": np.mod,
    "floor": np.floor,
    "where": np.where,
    "max": np.maximum,
    "min": np.minimum,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "eq": np.equal,
    "ne": np.not_equal,
    "and": np.logical_and,
    "or": np.logical_or,
    "not": np.logical_not,
    "abs": np.abs,
    "sign": np.sign,
    "exp": np.exp,
    "log": np.log,
}
"""The `evaluate` table whose values are arrays of whole numbers, one element a configuration."""
