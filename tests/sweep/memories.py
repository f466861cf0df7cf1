"""Memories of a spec that is drawn: gradients through borders, memory tokens, block recurrence."""

import copy
import random
from typing import Any

from tests.sweep import options as o
from tests.sweep.rows import placed

Spec = dict[str, Any]


def hand_on(s: Spec, draw: random.Random, told: list[str]) -> None:
    """Let a gradient through the memory, or give the model one of these, now and then. told: options that it took."""
    if "memory" in s:
        if draw.random() < 0.3:
            s["memory"]["through"] = draw.choice([1, 2])
            told.append("memory.through")
    elif "streams" not in s and draw.random() < 0.04:
        _windows(s, draw, told)
    elif draw.random() < 0.08:
        own = "target" if "streams" in s else ""
        if any(at == own and b.get("kind") == "attention" and "context" not in b for at, b in placed(s)):
            _tokens(s, draw, told)


def _layers(s: Spec) -> list[list[Any]]:
    return [x for stage in s["stack"] for x in (stage.get("cycle") or [stage["layer"]])]


def _blocks(s: Spec) -> list[Spec]:
    written = [x["block"] for layer in _layers(s) for x in layer if isinstance(x, dict)]
    return [*s.get("blocks", {}).values(), *(b for b in written if isinstance(b, dict))]


def _plain(block: Spec) -> None:
    """Take from a block what goes with no memory."""
    if block["kind"] not in ("attention", "mlp", "moe"):
        block.clear()
        block |= {"kind": "mlp"}
    for key in ("plan", "globals", "score"):
        block.pop(key, None)


def _windows(s: Spec, draw: random.Random, told: list[str]) -> None:
    """Put a block recurrence into a layer."""
    s["memory"] = {"keep": 2} | ({"through": 1} if draw.random() < 0.5 else {})
    s["dims"] |= {"seq": 8, "most": 8}
    s["runtime"] = s.get("runtime", {}) | {"seq": {"max": 8, "align": 2}}
    s.get("embed", {}).pop("positions", None)
    for block in _blocks(s):
        _plain(block)
        if block["kind"] == "attention":
            block["pattern"] = draw.choice(["strict_causal", "window(3)", "window_before(2)", "causal"])
    found: Spec = {"kind": "block_recurrence", "window": 2, "states": 3}
    found |= {k: draw.choice(v) for k, v in o.WINDOWS.items() if draw.random() < 0.7}
    draw.choice(_layers(s)).append({"block": found})
    told.append(f"windows={found}")


def _tokens(s: Spec, draw: random.Random, told: list[str]) -> None:
    """Give the model memory tokens."""
    s["memory"] = {"of": "tokens", **copy.deepcopy(draw.choice(o.MEMORY_TOKENS))}
    s["memory"] |= {"stream": "target"} if "streams" in s else {}
    told.append(f"memory={s['memory']}")
    for block in _blocks(s):
        _plain(block)
        if block["kind"] == "attention":
            own = block.get("context") is None
            block["pattern"] = draw.choice(o.AMONG) if own else "all"
            block |= {"score": draw.choice(o.FAR)} if own and draw.random() < 0.3 else {}
