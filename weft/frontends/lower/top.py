"""Blocks that run once, at the top of the graph, and what each input of a block is there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from weft.errors import Path
from weft.frontends.lower.operands import Operand
from weft.frontends.lower.scope import Lowering, Scope
from weft.ir.types import Type, Val


def once(
    low: Lowering, name: str, scope: Scope, carried: Mapping[str, Val], path: Path, *outputs: Val
) -> tuple[Val, ...]:
    """Call a finished block once. carried: what its running values are."""
    call = scope.call(name, *outputs)
    with low.top.at(low.places(path)):
        ins = [top_value(low, o, v.type, carried) for o, v in zip(scope.operands, call.body.inputs)]
        return low.top.many(call, *ins, names=[v.name for v in outputs])


def top_value(low: Lowering, operand: Operand, own: Type, carried: Mapping[str, Val]) -> Val:
    """What one input of a block, of type `own`, is at the top: a value, or the graph's input."""
    if operand.kind == "carry":
        return carried[operand.key]
    if operand.kind == "stream":
        return low.streams[operand.key]
    if operand.kind == "state":
        return low.top.input(f"past_{operand.key}", own)
    if operand.kind == "counted":
        return low.counted[operand.key]
    if operand.param is not None:
        known = low.values.get(operand.key)
        return known if known is not None else low.own(replace(operand.param, value=operand.key.replace(".", "_")))
    if operand.key == "layer":
        return low.top.map(0, to="", dtype="i64", names=["layer"])
    return low.public(operand.key)
