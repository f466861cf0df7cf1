"""Spec -> program: `embed`, one loop per stage whose body is a call per layer, `head`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from weft.errors import Path, SpecError, VerifyError
from weft.frontends.blocks.kind import Aux
from weft.frontends.lower_ends import TOKENS, embed, heads
from weft.frontends.lower_scope import INPUTS, Lowering, Operand, Scope
from weft.frontends.lower_stack import X, stage
from weft.frontends.resolve import Dims, resolve
from weft.frontends.schema import Model
from weft.frontends.vocabulary import exact
from weft.ir import program as ir
from weft.ir.formula import symbol
from weft.ir.types import Type, Val


def lower(
    model: Model,
    dims: Dims | None = None,
    train: bool = True,
    places: Callable[[Path], str] | None = None,
    source: str = "",
) -> ir.Program:
    """The program of a model.

    dims: its sizes, as `resolve` gives them. train: with dropout, targets and loss. places: path of a value in the spec
    -> "spec.yaml:14". source: the spec's file name. Raises SpecError with every problem found.
    """
    low = Lowering(model, dims or resolve(model), train, places or (lambda path: ""))
    low.sizes |= {d: low.dims.sizes[d] for d in ("batch", "seq")}
    _check_width(low)
    for dim in X:
        low.plays(dim, dim)
    outputs: dict[str, Val] = {}
    try:
        outputs = _model(low)
    except VerifyError:
        if not low.problems:
            raise
    if low.problems:
        raise SpecError(low.problems)
    return _program(low, outputs, source)


def _model(low: Lowering) -> dict[str, Val]:
    """The whole graph; gives its outputs by name."""
    x = _embed(low)
    aux: Aux = []
    start = 0
    for i, part in enumerate(low.model.stack):
        x, found, start = stage(low, x, part, i, start)
        aux += found
    with low.collecting():
        return _heads(low, x, aux)
    return {}


def _check_width(low: Lowering) -> None:
    width = low.dims.sizes["width"]
    if not isinstance(width, int):
        raise SpecError.at(("dims", "width"), "W0402", "width may not depend on a run-time dim")
    low.sizes["width"] = width


def _program(low: Lowering, outputs: dict[str, Val], source: str) -> ir.Program:
    dtype = low.model.dtype
    return ir.Program(
        name=low.model.name,
        graph=low.top.graph(*outputs.values()),
        sizes={d: n for d, n in low.sizes.items() if d not in low.dims.runtime},
        runtime={d: ir.Runtime(limit.max, limit.align) for d, limit in low.dims.runtime.items()},
        params=tuple(low.params),
        inputs=tuple(name for name in INPUTS if name in low.values),
        outputs=tuple(outputs),
        train=low.train,
        source=source,
        policy=ir.Policy(dtype.params, dtype.compute, dtype.accumulate),
        roles={d: low.roles[d] for d in sorted(low.roles)},
    )


def _embed(low: Lowering) -> Val:
    scope = Scope(low, "embed.")
    with low.collecting():
        x = embed(scope, low.model.embed)
        return _once(low, "embed", scope, {}, ("embed",), x)[0]
    return low.top.input("unknown", Type(low.model.dtype.compute, X))


def _heads(low: Lowering, x: Val, aux: Aux) -> dict[str, Val]:
    """The head block: outputs by name, `loss` first when training."""
    scope = Scope(low, "")
    carried = {"x": x}
    found, losses = heads(scope, scope.carry("x", X), low.model.heads, low.model.norm, isinstance(low.model.head, list))
    outputs = (_losses(scope, losses, aux, carried) if low.train else {}) | found
    values = _once(low, "head", scope, carried, ("head",), *outputs.values())
    named = dict(zip(outputs, values))
    return {name: named[name] for name in ("loss", "logits", "classes", "aux_loss") if name in named}


def _losses(scope: Scope, losses: list[Val], aux: Aux, carried: dict[str, Val]) -> dict[str, Val]:
    """The heads' losses and the stages' own, weighted: `loss`; the stages' own, unweighted: `aux_loss`."""
    with scope.at("head"):
        terms: list[Any] = [symbol(f"l{i}") for i in range(len(losses))]
        operands = {f"l{i}": loss for i, loss in enumerate(losses)}
        sums: dict[str, Val] = {}
        for i, (value, weight) in enumerate(aux):
            carried[f"balance_{i}"] = value
            sums[f"a{i}"] = scope.g.reduce(scope.carry(f"balance_{i}", value.dims, value.dtype), to="")
            terms.append(exact(weight) * symbol(f"a{i}"))
        total = sum(terms[1:], terms[0])
        out = {"loss": scope.map("loss", total, to="", dtype=scope.accumulate, **operands, **sums)}
        if aux:
            out["aux_loss"] = scope.map("aux_loss", " + ".join(sums), to="", dtype=scope.accumulate, **sums)
        return out


def _once(
    low: Lowering, name: str, scope: Scope, carried: dict[str, Val], path: Path, *outputs: Val
) -> tuple[Val, ...]:
    """Call a finished block once, at the top of the graph."""
    call = scope.call(name, *outputs)
    with low.top.at(low.places(path)):
        ins = [_top_value(low, o, carried) for o in scope.operands]
        return low.top.many(call, *ins, names=[v.name for v in outputs])


def _top_value(low: Lowering, operand: Operand, carried: dict[str, Val]) -> Val:
    if operand.kind == "carry":
        return carried[operand.key]
    if operand.param is not None:
        known = low.values.get(operand.key)
        return known if known is not None else low.own(replace(operand.param, value=operand.key.replace(".", "_")))
    if operand.key == "layer":
        return low.top.map(0, to="", dtype="i64", names=["layer"])
    return low.public(operand.key)


__all__ = ["TOKENS", "lower"]
