"""One trial: a configuration and what became of it. Rows come from files anyone may have written, so every field is
checked; a row that does not pass is no row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property, lru_cache
from typing import Any

from weft.cache.canonical import canonical, digest, is_text, plain

Value = int | float | str | None  # bool is an int
Pairs = tuple[tuple[str, Value], ...]
MOST_TIMES = 4096
_MOST_KNOBS, _MOST_FEATURES = 64, 64
_MICROSECONDS = 1e12
_EXACT = 2**53


class RowInvalid(ValueError):
    """Data that is no row; the message names the field."""


class Status(StrEnum):
    """What became of a trial."""

    OK = "ok"  # ran, right; without times: survived the gates and waits for a GPU
    STATIC = "static"  # refused by arithmetic before it was compiled
    COMPILE = "compile"  # did not compile
    TIMEOUT = "timeout"  # a deadline passed, in compiling or running
    LAUNCH = "launch"  # compiled, but the device refused it
    WRONG = "wrong"  # ran, and the result was not the reference's
    NON_FINITE = "non_finite"  # NaN or infinity where the reference has none
    CRASH = "crash"  # took its worker down
    OOM = "oom"  # out of device memory
    SLOW = "slow"  # given up early: too far behind the best
    INVALID_TIME = "invalid_time"  # the clock gave nothing that can be believed


class Source(StrEnum):
    """Which step measured it."""

    TUNE = "tune"
    RACE = "race"  # interleaved finals
    FINAL = "final"  # the winner the finals declared, ties and all
    PREPARE = "prepare"  # on a machine without the GPU: gates and features, no times
    IMPORT = "import"  # from another tool's file


WRONG = frozenset({Status.WRONG, Status.NON_FINITE})
"""One of these bars a configuration for its key."""
STRIKES = frozenset({Status.TIMEOUT, Status.LAUNCH, Status.CRASH, Status.OOM, Status.INVALID_TIME})
"""Two of these do."""


@dataclass(frozen=True)
class Row:
    """A trial. Make one with `Row.of`.

    cfg: the knobs, sorted. times_us: samples in microseconds. compile_s: seconds. shared, stack: bytes; regs: per
    thread. error: relative error against the reference. clock_mhz: the GPU's clock while timed. round: which finals
    it belongs to, counted per key; 0 outside them. soft: id of the soft part it was measured under. cubin: content
    hash in the private local store. features: what the compiler knows of it. t: seconds since 1970, for people only.
    """

    cfg: Pairs
    status: Status
    reason: str = ""
    times_us: tuple[float, ...] = ()
    compile_s: float | None = None
    shared: int | None = None
    regs: int | None = None
    stack: int | None = None
    error: float | None = None
    clock_mhz: float | None = None
    src: Source = Source.TUNE
    round: int = 0
    soft: str = ""
    cubin: str = ""
    features: Pairs = ()
    t: float = 0.0

    @classmethod
    def of(
        cls,
        cfg: Mapping[str, Value],
        status: str,
        *,
        reason: str = "",
        times_us: Sequence[float] = (),
        features: Mapping[str, Value] | None = None,
        src: str = Source.TUNE,
        **more: Any,
    ) -> Row:
        """The row of a mapping; RowInvalid where a value cannot be stored. The reason is cut and made one line."""
        try:
            row = cls(
                pairs(cfg), Status(status), plain(reason), tuple(float(t) for t in times_us), src=Source(src),
                features=pairs(features or {}), **more,
            )  # fmt: skip
        except (TypeError, ValueError) as error:
            raise RowInvalid(str(error)) from None
        return cls.parse(row.data())

    @property
    def config(self) -> dict[str, Value]:
        """The knobs as a dictionary."""
        return dict(self.cfg)

    @cached_property
    def cfg_id(self) -> str:
        return config_id(self.config)

    @cached_property
    def us(self) -> float | None:
        """The median of the samples, in microseconds; None without any."""
        return lower_median(self.times_us) if self.times_us else None

    @property
    def winnable(self) -> bool:
        """Whether this row shows its configuration right and timed."""
        return self.status is Status.OK and bool(self.times_us)

    def under(self, soft: str) -> Row:
        """The same row, measured under the soft part of that id."""
        return self if self.soft == soft else replace(self, soft=soft)

    def data(self) -> dict[str, Any]:
        """As JSON data; what has its default is left out."""
        out: dict[str, Any] = {"v": 1, "cfg": dict(self.cfg), "cfg_id": self.cfg_id, "status": self.status.value}
        for name in _OPTIONAL:
            value = getattr(self, name)
            if value != _DEFAULTS[name]:
                out[name] = value
        if self.times_us:
            out["times_us"] = list(self.times_us)
        if self.features:
            out["features"] = dict(self.features)
        if self.src is not Source.TUNE:
            out["src"] = self.src.value
        return out

    @cached_property
    def text(self) -> str:
        """The canonical line of it: what makes two rows the same row."""
        return canonical(self.data())

    @classmethod
    def parse(cls, data: Any) -> Row:
        """Of untrusted data; RowInvalid names the field. `cfg_id` is not believed but made again."""
        if not isinstance(data, dict) or data.get("v") != 1 or type(data["v"]) is not int:
            raise RowInvalid("not a row of version 1")
        if not _FIELDS.issuperset(data):
            raise RowInvalid(f"unknown field {sorted(map(str, set(data) - _FIELDS))[0][:40]!r}")
        status, src = _STATUS.get(_key(data.get("status"))), _SOURCE.get(_key(data.get("src", "tune")))
        if status is None or src is None:
            raise RowInvalid("field 'status' or 'src' is not one of its values")
        more: dict[str, Any] = {name: check(name, data[name]) for name, check in _OPTIONAL.items() if name in data}
        return cls(
            pairs(data.get("cfg"), _MOST_KNOBS, "cfg"), status, times_us=_times(data.get("times_us", ())), src=src,
            features=pairs(data.get("features", {}), _MOST_FEATURES, "features"), **more,
        )  # fmt: skip


def _key(value: Any) -> str:
    return value if isinstance(value, str) else ""


def pairs(data: Any, most: int = _MOST_KNOBS, name: str = "cfg") -> Pairs:
    """A mapping of names to numbers, truths, short texts or None, sorted; RowInvalid for any other data."""
    if type(data) is not dict:
        if not isinstance(data, Mapping):
            raise RowInvalid(f"field {name!r} is not an object")
        data = dict(data)
    if len(data) > most:
        raise RowInvalid(f"field {name!r} is not a short object")
    for knob, value in data.items():
        if not _is_name(knob) or not ((type(value) is int and -_EXACT <= value <= _EXACT) or _is_value(value)):
            raise RowInvalid(f"field {name!r} has a knob that is no number, truth, short text or null")
    return tuple(sorted(data.items()))


@lru_cache(maxsize=4096)
def _is_name(knob: Any) -> bool:
    return is_text(knob, 64) and knob != ""


def _is_value(value: Any) -> bool:
    if type(value) is float:
        return math.isfinite(value)
    return value is None or type(value) is bool or is_text(value, 100)


def _times(data: Any) -> tuple[float, ...]:
    if type(data) not in (list, tuple) or len(data) > MOST_TIMES:
        raise RowInvalid("field 'times_us' is not a list")
    for t in data:
        if not (type(t) is float or type(t) is int) or not 0 < t <= _MICROSECONDS:
            raise RowInvalid("field 'times_us' holds what is no time")
    return tuple(map(float, data))


def _integer(name: str, value: Any) -> int:
    if type(value) is not int or not 0 <= value <= 2**53:
        raise RowInvalid(f"field {name!r} is not a count")
    return value


def _number(name: str, value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value <= 1e18:
        raise RowInvalid(f"field {name!r} is not a number from 0")
    return float(value)


def _text(name: str, value: Any) -> str:
    if not is_text(value, 500):
        raise RowInvalid(f"field {name!r} is not a text in one line")
    return value


def _hex(name: str, value: Any) -> str:
    if not isinstance(value, str) or len(value) > 64 or not set(value) <= _HEX:
        raise RowInvalid(f"field {name!r} is not a hash")
    return value


_HEX = frozenset("0123456789abcdef")
_STATUS = {s.value: s for s in Status}
_SOURCE = {s.value: s for s in Source}
_OPTIONAL = {
    "reason": _text, "compile_s": _number, "shared": _integer, "regs": _integer, "stack": _integer, "error": _number,
    "clock_mhz": _number, "round": _integer, "soft": _hex, "cubin": _hex, "t": _number,
}  # fmt: skip
_DEFAULTS = {name: getattr(Row, name) for name in _OPTIONAL}
_FIELDS = frozenset({"v", "cfg", "cfg_id", "status", "times_us", "features", "src", *_OPTIONAL})


def config_id(config: Mapping[str, Value]) -> str:
    """The identity of a configuration: a hash of its canonical spelling."""
    return digest(dict(config), 16)


def lower_median(values: Sequence[float]) -> float:
    """The middle value; of an even count the lower of the two, so that it is one of the values."""
    return sorted(values)[(len(values) - 1) // 2]
