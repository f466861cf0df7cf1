"""What a measurement holds for: the hard part of the key, where any difference makes another key, and the soft part,
where a difference makes a result stale but still usable.

A key is its fields in clear text; its id is a hash of them. Nothing here looks at the machine: the tuner fills it in.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

from weft.cache.canonical import digest, is_count, is_text

SCHEMA = 1
Difference = tuple[str, Any, Any]
"""A field, its value in the key asked for, its value in the key found."""


class KeyInvalid(ValueError):
    """Data that is no key; the message names the field."""


@dataclass(frozen=True)
class Device:
    """The part of a GPU that decides which configuration is fast.

    arch: "sm_90". gpu: its full name, "NVIDIA H200"; "" when only the architecture is known, as on a machine that
    prepares for another. sms: multiprocessors. shared: bytes of shared memory a block may opt in to. partition: the
    MIG profile, "" for a whole GPU.
    """

    arch: str
    gpu: str = ""
    sms: int = 0
    shared: int = 0
    partition: str = ""

    @cached_property
    def id(self) -> str:
        return digest(["device", self.arch, self.gpu, self.sms, self.shared, self.partition])

    @property
    def slug(self) -> str:
        """The name as part of a path: "NVIDIA H200" -> "nvidia-h200"."""
        kept = "".join(c if c.isascii() and c.isalnum() else "-" for c in self.gpu.lower())
        return "-".join(part for part in kept.split("-") if part) or self.arch


@dataclass(frozen=True)
class Soft:
    """What may change under a result and leave it usable. power_w: the limit in watts. memory: bytes."""

    driver: str = ""
    torch: str = ""
    power_w: int = 0
    memory: int = 0

    @cached_property
    def id(self) -> str:
        return digest(["soft", self.driver, self.torch, self.power_w, self.memory], 16)

    def flat(self) -> dict[str, Any]:
        """The fields as data."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def parse(cls, data: Any) -> Soft:
        """Of untrusted data; KeyInvalid names the field."""
        return cls(**_checked(data, _SOFT_TYPES))


@dataclass(frozen=True)
class Key:
    """The hard part: what the generated code and its speed depend on.

    skeleton: which kernel file, "attention_forward". kernel: the hash of its region (see `weft.cache.kernel`).
    codegen: version of the emitter. dtypes: "bf16,bf16,f32". layout, alignment: classes of strides and addresses.
    bucket: the shape class as (dim, size) pairs. triton, ptxas: versions. policy: how it was timed, such as
    "eager,cold,randn". fp_fusion: whether the compiler may fuse a multiply and an add.
    """

    skeleton: str
    kernel: str
    device: Device
    bucket: tuple[tuple[str, int], ...] = ()
    dtypes: str = ""
    layout: str = ""
    alignment: str = ""
    codegen: str = ""
    triton: str = ""
    ptxas: str = ""
    policy: str = ""
    fp_fusion: bool = True
    schema: int = SCHEMA

    @cached_property
    def id(self) -> str:
        return digest(self.flat())

    def flat(self) -> dict[str, Any]:
        """Every hard field by its name, the device's among them."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("device", "bucket")}
        device = {f.name: getattr(self.device, f.name) for f in fields(self.device)}
        return {**own, **device, "bucket": dict(sorted(self.bucket))}

    def on(self, device: Device) -> Key:
        """The same kernel on another device."""
        return replace(self, device=device)

    def differs(self, other: Key) -> tuple[Difference, ...]:
        """Every hard field in which the other key differs, with both values, by name."""
        mine, theirs = self.flat(), other.flat()
        return tuple((name, mine[name], theirs[name]) for name in HARD if mine[name] != theirs[name])

    @classmethod
    def parse(cls, data: Any) -> Key:
        """Of untrusted data, as `flat` gives it; KeyInvalid names the field."""
        given = _checked(data, FIELDS)
        device = Device(**{f.name: given.pop(f.name) for f in fields(Device)})
        bucket = tuple(sorted(given.pop("bucket").items()))
        return cls(**given, device=device, bucket=bucket)


def _is_bucket(value: Any) -> bool:
    if not isinstance(value, dict) or len(value) > 32:
        return False
    return all(is_text(name, 64) and is_count(size) for name, size in value.items())


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


_CHECKS = {"str": is_text, "int": is_count, "bool": _is_bool}
_SOFT_TYPES = {f.name: _CHECKS[f.type] for f in fields(Soft)}  # pyright: ignore[reportArgumentType]
FIELDS = {
    **{f.name: _CHECKS[f.type] for f in (*fields(Key), *fields(Device)) if f.type in _CHECKS},  # pyright: ignore
    "bucket": _is_bucket,
}
HARD = tuple(FIELDS)
"""The names of all hard fields."""


def _checked(data: Any, types: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise KeyInvalid("not an object")
    for name in data:
        if name not in types:
            raise KeyInvalid(f"unknown field {str(name)[:40]!r}")
    for name, check in types.items():
        if name not in data:
            raise KeyInvalid(f"field {name!r} is missing")
        if not check(data[name]):
            raise KeyInvalid(f"field {name!r} is not of its type")
    return dict(data)


def release(version: str) -> tuple[int, ...]:
    """The numbers of a version, to compare by: "3.10.0+git" -> (3, 10, 0)."""
    out: list[int] = []
    for part in version.split("+")[0].split("."):
        digits = part[: next((i for i, c in enumerate(part) if not c.isdecimal() or not c.isascii()), len(part))]
        if not digits:
            break
        out.append(int(digits[:9]))
    return tuple(out)
