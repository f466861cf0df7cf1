"""Layers of several kinds, as the list `layer_types` has them: one stage, a cycle and what is left of it, or runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any

from weft.frontends.hf.config.family import Spec
from weft.frontends.hf.config.options import ConfigOption, Unsaid

FULL, SLIDING = "full_attention", "sliding_attention"
PATTERNS = {FULL: "causal", SLIDING: "causal and window(window)"}
OLD = {"attention": FULL}
Layer = list[Any]


def layer_types() -> ConfigOption:
    """The kind of each layer, or null for what the other options say."""

    def read(value: Any) -> list[str] | None:
        if value is None:
            return None
        if not isinstance(value, list) or not value:
            raise Unsaid("W0105", "expected a list of kinds of layers")
        kinds = [OLD.get(str(kind), str(kind)) for kind in value]
        if odd := next((kind for kind in kinds if kind not in (FULL, SLIDING)), None):
            raise Unsaid("W0104", f"{odd[:60]!r} is no layer that a spec says", f"known: {FULL}, {SLIDING}")
        return kinds

    return ConfigOption(read, None)


def numbers() -> ConfigOption:
    """Layers by their numbers; null is none."""

    def read(value: Any) -> list[int]:
        found = [] if value is None else value
        if not isinstance(found, list) or any(type(n) is not int or n < 0 for n in found):
            raise Unsaid("W0105", "expected a list of numbers of layers")
        return found

    return ConfigOption(read, [])


def stack(kinds: Sequence[str], own: Mapping[str, Spec], second: str = "feedforward") -> tuple[str, list[Spec], Spec]:
    """The commonest of the kinds, the stages of layers of these kinds, and the dims that count them. own: by kind, keys
    of the attention; those of the commonest are the block's, the others set what differs. second: the other block of
    a layer."""
    usual = max(dict.fromkeys(kinds), key=kinds.count)

    def layer(kind: str) -> Layer:
        changed = {k: v for k, v in own[kind].items() if v != own[usual][k]}
        return [{"block": "attention", "set": changed} if changed else "attention", second]

    return usual, *stages(kinds, layer)


def stages(kinds: Sequence[str], layer: Callable[[str], Layer]) -> tuple[list[Spec], Spec]:
    """The stages of layers of these kinds, each as `layer` has it, and the dims that count them."""
    if len(set(kinds)) == 1:
        return [{"repeat": "layers", "layer": layer(kinds[0])}], {}
    period = next(p for p in range(1, len(kinds) + 1) if all(k == kinds[i % p] for i, k in enumerate(kinds)))
    times, left = divmod(len(kinds), period)
    if times == 1:
        return _runs(kinds, layer), {"layers": None}
    cycle = {"repeat": "periods", "cycle": [layer(kind) for kind in kinds[:period]]}
    return [cycle, *_runs(kinds[len(kinds) - left :], layer)], {"layers": None, "periods": times}


def _runs(kinds: Sequence[str], layer: Callable[[str], Layer]) -> list[Spec]:
    found = [(kind, len([*same])) for kind, same in groupby(kinds)]
    return [{"repeat": many, "layer": layer(kind)} if many > 1 else {"layer": layer(kind)} for kind, many in found]
