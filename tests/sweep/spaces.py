"""State spaces of a drawn spec."""

import copy
import random
from typing import Any

from tests.sweep import options as o

Spec = dict[str, Any]
SHARE = 0.09
"""Of specs."""


def space(draw: random.Random, told: list[str]) -> Spec:
    """A state space or an H3, every key of it likely. told: options that it took."""

    def some(keys: dict[str, o.Options]) -> Spec:
        return {k: copy.deepcopy(draw.choice(v)) for k, v in keys.items() if draw.random() < 0.7}

    system = some(o.SYSTEM)
    system |= copy.deepcopy(draw.choice(o.SYSTEMS)) if draw.random() < 0.6 else {}
    kind = draw.choice(["state_space", "h3"])
    found = some(o.H3) if kind == "h3" else some(o.STATE_SPACE) | copy.deepcopy(draw.choice(o.STATE_SPACES))
    told += [f"{kind}.{k}={v}" for k, v in found.items()] + [f"system.{k}={v}" for k, v in system.items()]
    return {"kind": kind, "system": system, **found}
