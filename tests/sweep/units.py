"""Parts of gated attention units in an attention that is drawn."""

import copy
import random
from typing import Any

from tests.sweep import options as o


def unit(block: dict[str, Any], memory: bool, draw: random.Random, told: list[str]) -> None:
    """An attention with each now and then: a gate at its output, weights that no softmax makes, activations, one
    product for queries and keys, linear attention of other chunks. told: options that it took."""
    given: dict[str, tuple[float, o.Options]] = {
        "gate": (0.2, o.GATE),
        "weights": (0.2, [] if "sinks" in block else o.WEIGHTS),
        "activation": (0.15, [] if "latent" in block else o.HEAD_ACTIVATION),
    }
    if not {"latent", "globals", "context"} & {*block}:
        given |= {"shared_qk": (0.15, [True])}
        given |= {"mixed_chunk": (0.15, [] if memory or "plan" in block else o.MIXED_CHUNK)}
    for key, (share, options) in given.items():
        if options and draw.random() < share:
            block[key] = copy.deepcopy(draw.choice(options))
            told.append(f"attention.{key}={block[key]}")
    if "gate" in block and draw.random() < 0.3:
        block["bias"] = copy.deepcopy(draw.choice(o.GATE_BIAS))
