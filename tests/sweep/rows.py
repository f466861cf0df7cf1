"""Rows that hold documents or padding, of a spec that is drawn: and what goes with them."""

import copy
import random
from collections.abc import Iterator
from typing import Any

from tests.sweep import options as o

Spec = dict[str, Any]
SHARE = 0.3


def packed(s: Spec, draw: random.Random, told: list[str]) -> Spec:
    """The spec with rows of documents or padding in some of its streams. told: options that it took."""
    streams: dict[str, Spec] = s.get("streams", {"": s})
    rows: dict[str, Spec] = {}
    for name in streams:
        chosen = draw.random() < SHARE
        if chosen and name != s.get("memory", {"stream": None}).get("stream", ""):
            rows[name] = copy.deepcopy(draw.choice(o.ROWS))
    for at, block in placed(s):
        _fitted(block, rows.get(at, {}), rows.get(block.get("context", at), {}), draw)
    heads = s.get("head", {})
    heads = heads if isinstance(heads, list) else [heads]
    if rows.get(heads[0].get("stream", ""), {}).get("documents"):
        left = [h for h in heads if h.get("kind") != "classify"]
        s["head"] = left or {k: v for k, v in heads[0].items() if k == "stream"}
    for name, found in rows.items():
        if found.get("positions") == "given" and not _read(s, name):
            del found["positions"]
        if found:
            streams[name]["rows"] = found
            told.append(f"rows={found}")
    return s


def placed(s: Spec) -> Iterator[tuple[str, Spec]]:
    """Every block, and the stream it is on."""
    for stage in s["stack"]:
        for layer in stage.get("cycle") or [stage["layer"]]:
            for step in layer:
                for x in step.get("parallel", [step]) if isinstance(step, dict) else [step]:
                    block = x if isinstance(x, str) else x["block"]
                    changed = x.get("set", {}) if isinstance(x, dict) else {}
                    found = s["blocks"][block] if isinstance(block, str) else block
                    for part in (found, changed):
                        yield stage.get("stream", ""), part


def _fitted(block: Spec, own: Spec, other: Spec, draw: random.Random) -> None:
    """Take from a block, or from what a step changes of one, what does not go with the rows it is on."""
    if {"capacity", "capacity_factor"} & {*block} and (own.get("documents") or own.get("padding")):
        block.pop("capacity_factor", None)
        block["capacity"] = "none"
    if own.get("documents") or own.get("padding"):
        block.pop("mixed_chunk", None)
    if not own.get("documents"):
        return
    for part in (block, block.get("projection", {})):
        if "pattern" not in part or part["pattern"] == "none":
            continue
        if "context" in block:
            part["pattern"] = draw.choice(["all", "valid", "heads(all, valid)"])
        else:
            part["pattern"] = draw.choice(o.WITHIN if part["pattern"] in o.CAUSAL else [*o.WITHIN, *o.WITHIN_BOTH])
    if block.pop("plan", None) or block.pop("globals", None):
        block.setdefault("pattern", "all")
    if "score" in block:
        block["score"] = draw.choice(["0.5*s", "s*(1 + h)"] if "context" in block else o.FAR)


def _read(s: Spec, stream: str) -> bool:
    """Does anything of the model read the positions of a stream?"""
    streams = s.get("streams", {"": s})
    embed = streams[stream].get("embed", {})
    while "positions" not in embed and "like" in embed:
        embed = streams[embed["like"]].get("embed", {})
    turned = (at for at, b in placed(s) if b.get("rotary") for at in (at, b.get("context", at)))
    return bool(embed.get("positions")) or stream in turned
