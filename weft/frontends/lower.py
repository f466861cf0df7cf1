"""Spec -> program: `embed`, one loop per stage whose body is a call per layer, `head`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from weft.errors import Path, Problem, SpecError, VerifyError
from weft.frontends.lower_attention import attention
from weft.frontends.lower_ends import TOKENS, embed, heads
from weft.frontends.lower_experts import moe, opaque
from weft.frontends.lower_parts import mlp, norm
from weft.frontends.lower_recurrence import recurrence
from weft.frontends.lower_scope import INPUTS, Lowering, Operand, Scope, exact
from weft.frontends.resolve import Dims, resolve
from weft.frontends.schema import Attention, Mlp, Model, Moe, Opaque, Recurrence, Stage, SubLayer
from weft.frontends.suggest import did_you_mean
from weft.frontends.validation import problems_of
from weft.ir import program as ir
from weft.ir.builder import Builder
from weft.ir.formula import symbol
from weft.ir.primitives import Call, Loop
from weft.ir.types import Graph, Type, Val

X = ("batch", "seq", "width")


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
    aux: list[tuple[Val, float]] = []
    start = 0
    for i, stage in enumerate(low.model.stack):
        x, found, start = _stage(low, x, stage, i, start)
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
    )


def _embed(low: Lowering) -> Val:
    scope = Scope(low, "embed.")
    with low.collecting():
        x = embed(scope, low.model.embed)
        return _once(low, "embed", scope, {}, ("embed",), x)[0]
    return low.top.input("unknown", Type(low.model.dtype.compute, X))


def _heads(low: Lowering, x: Val, aux: list[tuple[Val, float]]) -> dict[str, Val]:
    """The head block; its losses and the stages' own, weighted, make the loss."""
    model, scope = low.model, Scope(low, "")
    inner = scope.carry("x", X)
    found, losses = heads(scope, inner, model.heads, model.norm, isinstance(model.head, list))
    carried = {"x": x}
    outputs: dict[str, Val] = {}
    if low.train:
        with scope.at("head"):
            terms: list[Any] = []
            operands: dict[str, Val] = {}
            for i, loss in enumerate(losses):
                terms, operands = [*terms, symbol(f"l{i}")], operands | {f"l{i}": loss}
            for i, (value, weight) in enumerate(aux):
                stacked = scope.carry(f"balance_{i}", value.dims, value.dtype)
                carried[f"balance_{i}"] = value
                total = scope.g.reduce(stacked, to="")
                terms, operands = [*terms, exact(weight) * symbol(f"a{i}")], operands | {f"a{i}": total}
            outputs["loss"] = scope.map("loss", sum(terms[1:], terms[0]), to="", dtype=scope.accumulate, **operands)
            if aux:
                sums = {n: v for n, v in operands.items() if n.startswith("a")}
                outputs["aux_loss"] = scope.map("aux_loss", " + ".join(sums), to="", dtype=scope.accumulate, **sums)
    outputs |= found
    values = _once(low, "head", scope, carried, ("head",), *outputs.values())
    order = sorted(outputs, key=("loss", "logits", "classes", "aux_loss").index)
    named = dict(zip(outputs, values))
    return {name: named[name] for name in order}


def _once(
    low: Lowering, name: str, scope: Scope, carried: dict[str, Val], path: Path, *outputs: Val
) -> tuple[Val, ...]:
    """Call a finished block once, at the top of the graph."""
    call, _ = scope.call(name, *outputs)
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


def _stage(low: Lowering, x: Val, stage: Stage, index: int, start: int) -> tuple[Val, list[tuple[Val, float]], int]:
    """One loop: its body calls each layer of the cycle. Gives x, the stacked auxiliary losses, the layers so far."""
    path: Path = ("stack", index)
    with low.collecting():
        dim = low.axis(stage.repeat, "layers", (*path, "repeat"), X)
        names = _call_names(low, stage)
        calls: list[tuple[Call, Scope]] = []
        weights: list[float] = []
        for j, layer in enumerate(stage.layers):
            scope = Scope(low, "layers.{}.")
            where = (*path, "layer") if stage.cycle is None else (*path, "cycle", j)
            out, aux = _layer(scope, layer, where)
            weights += [w for _, w in aux]
            calls.append((scope.call(names[j], out, *(v for v, _ in aux))[0], scope))
        outs = _loop(low, x, calls, dim, start, path)
        after = start + len(calls) * low.number(dim)
        return outs[0], list(zip(outs[1 : 1 + len(weights)], weights)), after
    return x, [], start


def _call_names(low: Lowering, stage: Stage) -> list[str]:
    """Names of the blocks, different from those of earlier stages."""
    many = len(stage.layers)
    stem, k = stage.name, 2
    while stem in low.stages:
        stem, k = f"{stage.name}_{k}", k + 1
    low.stages.add(stem)
    return [stem if many == 1 else f"{stem}_{j}" for j in range(many)]


def _loop(low: Lowering, x: Val, calls: list[tuple[Call, Scope]], dim: str, start: int, path: Path) -> tuple[Val, ...]:
    """Loop over `dim`; every layer's parameters are stacked along it, the rest is shared by all."""
    body = Builder(low.places(path))
    inner = body.input("x", x.type)
    inside: dict[str, Val] = {}
    operands = [x]
    extra: list[Val] = []
    with low.top.at(low.places(path)):
        for j, (call, scope) in enumerate(calls):
            ins: list[Val] = []
            for operand, own in zip(scope.operands, call.body.inputs):
                if operand.kind == "carry":
                    ins.append(inner)
                    continue
                param, key = operand.param, operand.key
                if param is not None:
                    key = f"{call.name}_{own.name}"
                    param = replace(param, stack=dim, start=start + j, step=len(calls), value=key)
                if key not in inside:
                    inside[key] = body.input(key, own.type)
                    operands.append(_stacked(low, operand, dim, param))
                ins.append(inside[key])
            inner, *more = body.many(call, *ins, names=[v.name for v in call.body.outputs])
            extra += more
        return low.top.many(Loop(dim, body.graph(inner, *extra), 1), *operands)


def _stacked(low: Lowering, operand: Operand, dim: str, param: ir.Param | None) -> Val:
    """What a loop over `dim` is given for one input of its body."""
    if param is not None:
        # The same logical name in another stage or place of the cycle is another parameter: rows tell them apart.
        value = low.top.input(param.value, Type(param.dtype, (dim, *param.dims)))
        low.params.append(replace(param, value=value.name))
        return value
    if operand.key == "layer":
        return low.top.map(symbol(f"i_{dim}"), to=dim, dtype="i64", names=["layer"])
    return low.public(operand.key)


def _layer(scope: Scope, layer: list[str | SubLayer], path: Path) -> tuple[Val, list[tuple[Val, float]]]:
    """The sub-layers of one layer in order: x after them, and their auxiliary losses with weights."""
    x = scope.carry("x", X)
    aux: list[tuple[Val, float]] = []
    used: set[str] = set()
    for i, step in enumerate(layer):
        with scope.low.collecting():
            where = (*path, i)
            sub = SubLayer(block=step) if isinstance(step, str) else step
            block, at, name = _block(scope.low, sub, where, where if isinstance(step, str) else (*where, "block"))
            stem = next(s for s in (name, *(f"{name}_{k}" for k in range(2, i + 3))) if s not in used)
            used |= {stem, f"{stem}_norm"}
            x, found = _sublayer(scope, x, sub, block, stem, where, at)
            aux += found
    return x, aux


def _block(low: Lowering, sub: SubLayer, path: Path, named: Path) -> tuple[Any, Path, str]:
    """The block of a sub-layer with its changes applied, where it is written, and its name, which stands at `named`."""
    if not isinstance(sub.block, str):
        if sub.set:
            raise SpecError.at(
                (*path, "set"), "W0403", "`set` changes a named block", "write the keys in the block itself"
            )
        return sub.block, (*path, "block"), sub.block.kind
    name, blocks = sub.block, low.model.blocks
    if name not in blocks:
        raise SpecError(
            [Problem("W0401", f"no block is called '{name}'", named, did_you_mean(name, blocks, "blocks: "))]
        )
    block, at = blocks[name], ("blocks", name)
    if not sub.set:
        return block, at, name
    replaced = {other for a, b in EITHER for key, other in ((a, b), (b, a)) if key in sub.set}
    given = {k: v for k, v in block.model_dump(exclude_unset=True).items() if k not in replaced} | sub.set
    try:
        return type(block).model_validate(given), at, name
    except ValidationError as error:
        raise SpecError(problems_of(error, given, type(block), (*path, "set"))) from None


EITHER = (("pattern", "plan"), ("capacity", "capacity_factor"))
"""Keys of which a block has one: setting the one takes the other away."""

KINDS: dict[type, Callable[..., Val]] = {Attention: attention, Mlp: mlp, Recurrence: recurrence, Opaque: opaque}


def _sublayer(
    scope: Scope, x: Val, sub: SubLayer, block: Any, stem: str, path: Path, at: Path
) -> tuple[Val, list[tuple[Val, float]]]:
    """pre: x + f(norm(x)); post: norm(x + f(x)); none: f(norm(x)). Dropout on f's output."""
    default = scope.low.model.sublayer
    rule = sub.norm if sub.norm is not None else default.norm
    residual = sub.residual or default.residual
    rate = sub.dropout if sub.dropout is not None else default.dropout
    where = (*path, "norm") if sub.norm is not None else ("sublayer", "norm")
    y = x if residual == "post" else norm(scope, x, rule, f"{stem}_norm", where)
    aux: list[tuple[Val, float]] = []
    if isinstance(block, Moe):
        y, balance = moe(scope, y, block, stem, at)
        aux.append((balance, block.aux_loss))
    else:
        y = KINDS[type(block)](scope, y, block, stem, at)
    with scope.at(*path):
        y = scope.dropout(y, rate)
        if residual != "none":
            y = scope.map("x", "x + y", x=x, y=y, to=" ".join(X), dtype=scope.compute)
        return (norm(scope, y, rule, f"{stem}_norm", where) if residual == "post" else y), aux


def graph_of(model: Model, **options: Any) -> Graph:
    """The graph alone."""
    return lower(model, **options).graph


__all__ = ["TOKENS", "lower"]
