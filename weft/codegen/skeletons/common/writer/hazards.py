"""Known faults of compilers, by target and Triton version: what emission must not print, and no configuration may be.

A hazard with a `rule` is about configurations: the rule is a condition on a configuration's knobs and on what its
family says of the region (`facts`), in the language of search-space constraints, that keeps clear of it; one that asks
what nobody says holds. Defaults keep clear on every Triton that a package runs with; the tuner asks too
(`weft.autotune.space.hazards`). A hazard without is about source: skeletons and the printer of holes avoid it, as
`avoid` says, and a test holds them to it where text can show it (`pattern`, a regular expression that no emitted or
skeleton file matches).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from weft.codegen.skeletons import families
from weft.codegen.skeletons.common.writer.configs import Configs
from weft.ir.formula import parse, symbol

Version = tuple[int, ...]
EVER: Version = (99,)
OLDEST: Version = (3, 6)
"""The oldest Triton that packages run with: what a package holds must keep clear of every hazard from there on."""


@dataclass(frozen=True)
class Hazard:
    """since <= version < before, on `targets` (empty: on all). remedy: knobs that make any configuration keep the
    rule."""

    id: str
    what: str
    avoid: str
    source: str
    targets: tuple[str, ...] = ()
    since: Version = (0,)
    before: Version = EVER
    rule: str = ""
    pattern: str = ""
    remedy: tuple[tuple[str, int], ...] = ()

    def on(self, target: str) -> bool:
        return not self.targets or target in self.targets

    def applies(self, target: str, version: Version) -> bool:
        return self.on(target) and self.since <= version < self.before

    def meets(self, target: str) -> bool:
        """Whether it applies with some version that packages run with."""
        return self.on(target) and self.before > OLDEST


HAZARDS: tuple[Hazard, ...] = (
    Hazard(
        "transposed-dot-result",
        "dot(trans(x), y) with x the result of a dot is computed wrongly",
        "compute the transposed product directly: S^T = dot(k, trans(q)) from memory",
        "fla-org/flash-linear-attention #640, PR #826, #983; unslothai/unsloth #5276",
        ("sm_90",), (3, 4), (3, 7, 1),
    ),
    Hazard(
        "reversed-scan",
        "associative_scan(reverse=True) gives wrong results",
        "scan forward over reversed indices",
        "triton-lang/triton #4362",
        pattern=r"associative_scan\([^)]*reverse\s*=\s*True",
    ),
    Hazard(
        "cumsum-and-sum-eight-warps",
        "a kernel with cumsum and sum crashes with 8 warps",
        "at most 4 warps in kernels with cumsum",
        "fla-org/flash-linear-attention #734",
        (), (3, 6), (3, 7), rule="scans == 0 or num_warps < 8", remedy=(("num_warps", 4),),
    ),
    Hazard(
        "cast-to-own-dtype",
        "a cast that changes nothing, before a dot, changes layouts and with them results",
        "cast only what has another dtype, which Triton then drops; compare numbers on the device",
        "vllm-project/vllm #42076",
        ("sm_90",), (3, 6), (3, 9),
    ),
    Hazard(
        "specialized-warps",
        "warp_specialize crashes the compiler with pointer loads or two loops, and is silently off with 8 warps",
        "not used; where it is: device descriptors, 4 warps, one unflattened loop, and setmaxnreg in the PTX",
        "triton-lang/triton #9728, #8311, #7354",
        ("sm_90",), pattern=r"warp_specialize\s*=\s*True",
    ),
    Hazard(
        "holes-of-one-name",
        "two functions of the same module and name in one kernel both compile as the first",
        "a name is used once in a package",
        "measured, 3.6.0 and 3.9.0",
    ),
    Hazard(
        "truncated-division",
        "// and % of Triton integers round towards zero",
        "add a multiple of the divisor first, or ((x % m) + m) % m",
        "Triton's language semantics",
    ),
    Hazard(
        "comprehension-over-constants",
        "a comprehension over a constexpr tuple does not compile",
        "a static_range loop that appends to a tuple",
        "measured, 3.6.0",
        (), (0,), (3, 9), pattern=r"\(\s*\w+\s+for\s+\w+\s+in\s+[A-Z]+\s*\)",
    ),
    Hazard(
        "fp-fusion-default",
        "enable_fp_fusion is on by default before 3.10 and off from then on",
        "every launch passes it",
        "Triton's own warning, 3.9.0",
    ),
    Hazard(
        "interpreted-bf16",
        "the interpreter computes on the bits of bf16 as if they were integers",
        "interpret in fp32 or fp64, or with the test suite's shim",
        "measured, 3.6.0 and 3.9.0",
        ("cpu",),
    ),
)  # fmt: skip


def every() -> tuple[Hazard, ...]:
    """Those of all kernels, then each family's own."""
    return (*HAZARDS, *(h for f in families().values() for h in f.hazards))


def rules(target: str, version: Version) -> tuple[tuple[str, str], ...]:
    """(id, condition on a configuration) of the hazards of a target ("sm_90") and a Triton version ((3, 9, 0))."""
    return tuple((h.id, h.rule) for h in every() if h.rule and h.applies(target, version))


def offences(text: str) -> tuple[tuple[str, int], ...]:
    """(id, line) of every hazard that a source file shows, whatever the target."""
    found = ((h.id, m.start()) for h in every() if h.pattern for m in re.finditer(h.pattern, text))
    return tuple((name, text.count("\n", 0, at) + 1) for name, at in found)


def broken(config: Mapping[str, Any], target: str, about: Mapping[str, int]) -> tuple[Hazard, ...]:
    """The hazards whose rule a configuration breaks on a target, with some Triton from the oldest on."""
    known = {**about, **config}
    return tuple(h for h in every() if h.rule and h.meets(target) and not _keeps(h.rule, known))


def _keeps(rule: str, known: Mapping[str, Any]) -> bool:
    names, _ = _read(rule)
    return not known.keys() >= set(names) or _holds(rule, tuple(int(known[n]) for n in names))


@cache
def _holds(rule: str, values: tuple[int, ...]) -> bool:
    names, condition = _read(rule)
    return bool(condition.subs({symbol(n): x for n, x in zip(names, values)}))


@cache
def _read(rule: str) -> tuple[tuple[str, ...], Any]:
    condition = parse(rule)
    return tuple(sorted(s.name for s in condition.free_symbols)), condition


def clear(configs: Configs, about: Mapping[str, int]) -> Configs:
    """The configurations, in parts or whole, with the remedies of the hazards that they would meet."""
    return {t: {d: _clear(one, t, about) for d, one in own.items()} for t, own in configs.items()}


def _clear(config: Mapping[str, Any], target: str, about: Mapping[str, int]) -> dict[str, Any]:
    parts = {k: _clear(v, target, about) for k, v in config.items() if isinstance(v, Mapping)}
    found = {**config, **parts}
    for hazard in broken(found, target, about):
        found |= hazard.remedy
    return found
