"""Known miscompiles as a gate: the rules of the kernels' hazard table, asked of many configurations at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from weft.autotune.space.listed import Space, values
from weft.autotune.types import Config
from weft.cache.key import release
from weft.codegen.skeletons.common.writer.hazards import rules
from weft.ir.formula import parse


def refusals(space: Space, given: Mapping[str, int], target: str, triton: str, configs: Sequence[Config]) -> list[str]:
    """For each configuration the hazard it would meet on the target with that Triton ("3.9.0"), "" if none."""
    out = [""] * len(configs)
    columns = {n: np.asarray([space.number(n, c[n]) for c in configs]) for n in space.knobs} if configs else {}
    for name, rule in rules(target, release(triton)) if configs else ():
        condition = parse(rule)
        if {s.name for s in condition.free_symbols} <= columns.keys() | given.keys():
            clear = values([condition], {**given, **columns}, len(configs))[0]
            for z in np.flatnonzero(~clear):
                out[z] = out[z] or f"hazard {name}"
    return out
