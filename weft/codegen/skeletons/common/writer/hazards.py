"""Default configurations kept clear of known faults of compilers, on every Triton that a package runs with.

The table is `kernels/hazards.py`; the tuner asks it too (`weft.autotune.hazards`).
"""

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from weft.codegen.sizes import Sizes
from weft.codegen.skeletons.common.writer.table import HAZARDS, ORDINARY, Hazard
from weft.ir.formula import parse, symbol
from weft.ir.types import Graph, Node

if TYPE_CHECKING:
    from weft.codegen.skeletons.common.writer.configs import Configs


def facts(graph: Graph, sizes: Sizes) -> dict[str, int]:
    """What rules ask of a region."""
    found = [w for n in graph.nodes for d in heads(n) for w in [widths(sizes.frozen(d))]]
    if not found:
        return dict(ORDINARY)
    return {**ORDINARY, "tiles": max(map(len, found)), "narrowest": min(map(min, found))}


def heads(n: Node) -> tuple[str, ...]:
    """The head dims of an attention: of queries and keys, and of values; () of any other node."""
    of = n.op.attention
    if of is None:
        return ()
    own = [d for d in n.ins[2].dims if d not in n.ins[1].dims or d == of.contract]
    return (of.contract, *own[-1:])


def widths(d: int) -> list[int]:
    """Widths of the power-of-two tiles of a head dim, as the attention kernels cut it: 80 is 64 and 16."""
    left, out = -(-d // 16) * 16, list[int]()
    while left:
        out.append(1 << (left.bit_length() - 1))
        left -= out[-1]
    return out


def broken(config: Mapping[str, Any], target: str, about: Mapping[str, int]) -> tuple[Hazard, ...]:
    """The hazards whose rule a configuration breaks on a target, with some Triton from the oldest on."""
    known = {**about, **config}
    return tuple(h for h in HAZARDS if h.rule and h.meets(target) and not _keeps(h.rule, known))


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


def clear(configs: "Configs", about: Mapping[str, int]) -> "Configs":
    """The configurations, in parts or whole, with the remedies of the hazards that they would meet."""
    return {t: {d: _clear(one, t, about) for d, one in own.items()} for t, own in configs.items()}


def _clear(config: Mapping[str, Any], target: str, about: Mapping[str, int]) -> dict[str, Any]:
    parts = {k: _clear(v, target, about) for k, v in config.items() if isinstance(v, Mapping)}
    found = {**config, **parts}
    for hazard in broken(found, target, about):
        found |= hazard.remedy
    return found
