"""Rotary positions as the configs of many families have them, and as a spec says them.

transformers 5 has one map, `rope_parameters`; before there were `rope_theta`, `rope_scaling` and a factor for the part
of a head that turns. All are read, and each of transformers' types that has one set of frequencies for every length.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from weft.frontends.hf.config.family import SMALL, Values
from weft.frontends.hf.config.options import REQUIRED, ConfigOption, Unsaid, default, flag, number, size

Turns = dict[str, Any]
"""`base`, `part` of a head, `scaling`, `every`: what a config says of them; the last is YaRN's `mscale_all_dim`."""
TYPES: Mapping[str, Mapping[str, tuple[str, ConfigOption]]] = {
    "default": {},
    "linear": {"factor": ("factor", number())},
    "llama3": {
        "factor": ("factor", number()),
        "original_max_position_embeddings": ("original", size()),
        "low_freq_factor": ("low_frequency", number(1.0)),
        "high_freq_factor": ("high_frequency", number(4.0)),
    },
    "yarn": {
        "factor": ("factor", number()),
        "original_max_position_embeddings": ("original", size()),
        "beta_fast": ("beta_fast", default(number(None), 32.0)),
        "beta_slow": ("beta_slow", default(number(None), 1.0)),
        "attention_factor": ("attention_factor", number(None)),
        "mscale": ("one", number(None)),
        "mscale_all_dim": ("every", number(None)),
        "truncate": ("truncate", flag(True)),
    },
}
"""The types of transformers, and the keys of each: the spec's name of it, and how it is read."""
USUAL = {"beta_fast": 32, "beta_slow": 1, "truncate": True, "low_frequency": 1, "high_frequency": 4}
REFUSED = {
    "dynamic": "its frequencies follow the length of a run: scaling: {kind: ntk, factor: ...} has those of the longest",
    "longrope": "factors for each frequency are not in the spec language",
}


def _turns(value: Any) -> Turns | None:
    """A map of `rope_parameters` or `rope_scaling`."""
    if value is None:
        return None
    if not isinstance(value, dict):
        raise Unsaid("W0105", "expected a map, or null")
    kind = value.get("rope_type", value.get("type", "default"))
    if not isinstance(kind, str) or kind not in TYPES:
        why = REFUSED.get(kind, "") if isinstance(kind, str) else ""
        raise Unsaid(
            "W0104", f"rope_type {str(kind)[:40]!r} is nothing that a spec says", why or f"known: {', '.join(TYPES)}"
        )
    keys = TYPES[kind]
    common = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
    if odd := sorted(set(map(str, value)) - common - set(keys)):
        known = ", ".join(["rope_theta", "partial_rotary_factor", *keys])
        raise Unsaid(
            "W0104", f"{', '.join(odd)[:80]} of rope_type {kind!r} is nothing that a spec says", f"known: {known}"
        )
    if missing := [key for key, (_, option) in keys.items() if key not in value and option.default is REQUIRED]:
        raise Unsaid("W0102", f"rope_type {kind!r} needs {', '.join(missing)}", "add it")
    read = {own: whole(option.read(value.get(key, option.default))) for key, (own, option) in keys.items()}
    one, every = (read.pop(key, None) for key in ("one", "every"))
    if one and every and read["attention_factor"] is None:
        read["attention_factor"] = _grown(read["factor"], one) / _grown(read["factor"], every)
    said = {own: x for own, x in read.items() if x is not None and x != USUAL.get(own)}
    base = number(None, least=1.0).read(value.get("rope_theta"))
    return {
        "base": base,
        "part": share(None).read(value.get("partial_rotary_factor")),
        "scaling": None if kind == "default" else {"kind": kind, **said},
        "every": every,
    }


def _grown(factor: float, by: float) -> float:
    """YaRN's factor on what turns (Peng et al. 2023), in the form that DeepSeek gave it."""
    return 1.0 if factor <= 1 else 0.1 * by * math.log(factor) + 1


def share(of: float | None) -> ConfigOption:
    """The part of a head that turns: over 0, up to 1."""

    def read(value: Any) -> Any:
        found = number(None).read(value)
        if found is not None and found > 1:
            raise Unsaid("W0106", f"{found} is over 1, the whole head")
        return found

    return ConfigOption(read, of)


def options(base: float) -> dict[str, ConfigOption]:
    """The options of rotary positions, in the spelling of transformers 5 (`rope_parameters`) and of those before."""
    return {
        "rope_parameters": ConfigOption(_turns, None),
        "rope_theta": number(base, least=1.0),
        "rope_scaling": ConfigOption(_turns, None),
    }


def nested(kinds: tuple[str, ...]) -> ConfigOption:
    """`rope_parameters` of layers of several kinds: a map for each, or one for all."""

    def read(value: Any) -> dict[str, Turns] | None:
        if isinstance(value, dict) and set(value) <= set(kinds):
            return {kind: found for kind, one in value.items() if (found := _turns(one))}
        found = _turns(value)
        return None if found is None else dict.fromkeys(kinds, found)

    return ConfigOption(read, None)


def turns(c: Values) -> Turns:
    """What the options say together."""
    found = c["rope_parameters"] or c["rope_scaling"] or {"base": None, "part": None, "scaling": None}
    return found | {
        "base": found["base"] or c["rope_theta"],
        "part": found["part"] or c.get("partial_rotary_factor") or 1,
    }


def spelled(found: Turns, head: int) -> Any:
    """The key `rotary` of an attention with heads of that size."""
    part, scaling = found["part"] or 1, found["scaling"]
    said: dict[str, Any] = {} if found["base"] == 10000 else {"base": whole(found["base"])}
    if int(head * part) != head:
        divisor = round(1 / part)
        said["dims"] = f"head // {divisor}" if head == divisor * int(head * part) else int(head * part)
    return said | ({"scaling": scaling} if scaling else {}) or True


def rotary(c: Values) -> Any:
    """The same, by the config's options."""
    return spelled(turns(c), head_of(c))


def head_of(c: Values) -> int:
    """The size of a head."""
    return c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"]


def kept(rotary: Any, head: int) -> dict[str, int]:
    """The size of a head that `small` keeps, where so few dims turn that a smaller one has no pair of them."""
    turning = rotary.get("dims") if isinstance(rotary, dict) else None
    if turning is None or (isinstance(turning, str) and SMALL["head"] % (2 * int(turning.rpartition(" ")[2])) == 0):
        return {}
    return {"head": head}


def whole(x: Any) -> Any:
    """A number without a fraction as one."""
    return int(x) if isinstance(x, float) and x.is_integer() else x
