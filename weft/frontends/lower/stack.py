"""The layers: a loop per stage, a call per layer, a norm and a residual around each block."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from weft.errors import Path, Problem, SpecError
from weft.frontends.blocks.kind import Aux, BlockKind
from weft.frontends.lower.operands import Operand
from weft.frontends.lower.scope import Lowering, Scope
from weft.frontends.lower.top import once, top_value
from weft.frontends.schema import Layer, Norm, Parallel, Step, SubLayer
from weft.frontends.streams import of_stage
from weft.frontends.suggest import did_you_mean
from weft.frontends.validation import problems_of
from weft.ir import program as ir
from weft.ir.builder import Builder
from weft.ir.composite import Call
from weft.ir.formula import parse, symbol
from weft.ir.ops.primitives import Loop
from weft.ir.types import Type, Val


def stage(low: Lowering, index: int, start: int) -> tuple[Aux, int]:
    """One loop on its stage's stream: its body calls each layer of the cycle. Gives the stacked auxiliary losses, and
    the stream's layers so far."""
    part, path, stream = low.model.stack[index], ("stack", index), of_stage(low.model, index)
    x, low.stage = low.streams[stream], index
    with low.collecting():
        dim = low.axis(part.repeat, "layers", (*path, "repeat"), x.dims)
        stem = _stem(low, low.called(stream, part.name))
        calls: list[tuple[Call, Scope]] = []
        weights: list[float] = []
        for j, layer in enumerate(part.layers):
            scope = Scope(low, low.called(stream, "layers.{}.", "."), stream)
            where = (*path, "layer") if part.cycle is None else (*path, "cycle", j)
            out, aux = _layer(scope, layer, where)
            weights += [w for _, w in aux]
            name = stem if len(part.layers) == 1 else f"{stem}_{j}"
            low.stages.add(name)  # a later stage is called otherwise
            calls.append((scope.call(name, out, *(v for v, _ in aux), *scope.left.values()), scope))
        outs = _loop(low, stream, calls, dim, start, path)
        low.streams[stream] = outs[0]
        _left(low, calls, outs[1 + len(weights) :])
        _normed(low, stream, part.norm, f"{stem}_norm", (*path, "norm"))
        return list(zip(outs[1 : 1 + len(weights)], weights)), start + len(calls) * low.number(dim)
    return [], start


def _state(call: Call, part: str) -> str:
    """The name of what a part of a block leaves to the next call."""
    return f"{call.name}_{part}"


def _left(low: Lowering, calls: list[tuple[Call, Scope]], values: tuple[Val, ...]) -> None:
    """Note what the layers leave to the next call, stacked."""
    through = low.model.memory.through if low.model.memory else 0
    parts = [(_state(call, part), scope.handed.get(part)) for call, scope in calls for part in scope.left]
    for (name, own), value in zip(parts, values):
        rows, keep = low.remembering(own or "memory")
        start = "parameter" if own else "empty"
        state = ir.ProgramState(name, f"past_{name}", f"present_{name}", rows, keep, start, through=through)
        low.states[name] = state, value


def _normed(low: Lowering, stream: str, rule: Norm, name: str, path: Path) -> None:
    """The stream behind the norm that ends a stage, a block of its own."""
    if rule == "none":
        return
    scope = Scope(low, "", stream)
    y = scope.norm(scope.running(), rule, _stem(low, name), path)
    (low.streams[stream],) = once(low, name, scope, {"x": low.streams[stream]}, path, y)


def _stem(low: Lowering, name: str) -> str:
    """A name for blocks, different from those of earlier stages."""
    stem = next(s for s in (name, *(f"{name}_{k}" for k in range(2, len(low.stages) + 3))) if s not in low.stages)
    low.stages.add(stem)
    return stem


def _loop(
    low: Lowering, stream: str, calls: list[tuple[Call, Scope]], dim: str, start: int, path: Path
) -> tuple[Val, ...]:
    """Loop over `dim`; every layer's parameters are stacked along it, the rest is shared by all."""
    body = Builder(low.places(path))
    x = low.streams[stream]
    inner = body.input(stream if low.several else "x", x.type)
    inside: dict[str, Val] = {}
    operands = [x]
    extra, left = list[Val](), list[Val]()
    with low.top.at(low.places(path)):
        for j, (call, scope) in enumerate(calls):
            ins: list[Val] = []
            for operand, own in zip(scope.operands, call.body.inputs):
                if operand.kind == "carry":
                    ins.append(inner)
                    continue
                param, key = operand.param, operand.key.replace(".", "_")
                if operand.kind == "common":
                    param = None
                if param is not None or operand.kind == "state":
                    key = f"{call.name}_{own.name}"
                if param is not None:
                    param = replace(param, stack=dim, start=start + j, step=len(calls), value=key)
                if key not in inside:
                    inside[key] = body.input(key, own.type)
                    operands.append(_stacked(low, operand, dim, param, f"past_{_state(call, operand.key)}", own.type))
                ins.append(inside[key])
            inner, *more = body.many(call, *ins, names=[v.name for v in call.body.outputs])
            extra += more[: len(more) - len(scope.left)]
            left += more[len(more) - len(scope.left) :]
        return low.top.many(Loop(dim, body.graph(inner, *extra, *left), 1), *operands)


def _stacked(low: Lowering, operand: Operand, dim: str, param: ir.Param | None, past: str, own: Type) -> Val:
    """What a loop over `dim` is given for one input of its body, of type `own`. past: its name where it is a state."""
    if operand.kind == "state":
        return low.top.input(past, own.but((dim, *own.dims)))
    if param is not None:
        # The same logical name in another stage or place of the cycle is another parameter: rows tell them apart.
        value = low.top.input(param.value, Type(param.dtype, (dim, *param.dims)))
        low.params.append(replace(param, value=value.name))
        return value
    if operand.key == "layer":
        return low.top.map(symbol(f"i_{dim}"), to=dim, dtype="i64", names=["layer"])
    return top_value(low, operand, own, {})


def _layer(scope: Scope, layer: Layer, path: Path) -> tuple[Val, Aux]:
    """The sub-layers of one layer in order: x after them, and their auxiliary losses with weights."""
    x = scope.running()
    aux: Aux = []
    used: set[str] = set()
    for i, step in enumerate(layer):
        with scope.low.collecting():
            if isinstance(step, Parallel):
                x, found = _beside(scope, x, step, used, (*path, i))
            else:
                x, found = _sublayer(scope, x, _branch(scope.low, step, used, (*path, i)))
            aux += found
    return x, aux


@dataclass(frozen=True)
class Branch:
    """One sub-layer with its defaults filled in. stem: what its parameters are called; path: where it is written; at:
    where its block is; the places of its norms."""

    block: BlockKind
    stem: str
    path: Path
    at: Path
    residual: str
    dropout: float
    norm: tuple[Norm, Path]
    output_norm: tuple[Norm, Path]
    scale: Any


def _branch(low: Lowering, step: Step, used: set[str], path: Path) -> Branch:
    """What a step says and what it leaves to the defaults. used: names that the layer has given, to which it adds."""
    sub = SubLayer(block=step) if isinstance(step, str) else step
    block, at, name = _block(low, sub, path, path if isinstance(step, str) else (*path, "block"))
    stem = _unused(name, used)
    used |= {stem, f"{stem}_norm", f"{stem}_output_norm"}
    default = low.model.sublayer

    def said(key: str) -> tuple[Any, Path]:
        own = getattr(sub, key)
        return (own, (*path, key)) if own is not None else (getattr(default, key), ("sublayer", key))

    residual, dropout, scale = said("residual")[0], said("dropout")[0], low.constant(*said("residual_scale"))
    return Branch(block, stem, path, at, residual, dropout, said("norm"), said("output_norm"), scale)


def _unused(name: str, used: set[str]) -> str:
    return next(s for s in (name, *(f"{name}_{k}" for k in range(2, len(used) + 3))) if s not in used)


def _block(low: Lowering, sub: SubLayer, path: Path, named: Path) -> tuple[BlockKind, Path, str]:
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
    replaced = {other for a, b in block.either for key, other in ((a, b), (b, a)) if key in sub.set}
    given = {k: v for k, v in block.model_dump(exclude_unset=True).items() if k not in replaced} | sub.set
    try:
        return type(block).model_validate(given), at, name
    except ValidationError as error:
        raise SpecError(problems_of(error, given, type(block), (*path, "set"))) from None


def _sublayer(scope: Scope, x: Val, b: Branch) -> tuple[Val, Aux]:
    """pre: x + f(norm(x)); post: norm(x + f(x)); none: f(norm(x)); each times its scale."""
    y = x if b.residual == "post" else scope.norm(x, b.norm[0], f"{b.stem}_norm", b.norm[1])
    y, aux = _output(scope, y, b)
    with scope.at(*b.path):
        if b.residual != "none":
            y = scope.map("x", _scaled("x + y", b.scale), x=x, y=y, to=" ".join(scope.space), dtype=scope.compute)
        elif b.scale != 1:
            y = scope.map("x", _scaled("y", b.scale), y=y, to=" ".join(scope.space), dtype=scope.compute)
        return (scope.norm(y, b.norm[0], f"{b.stem}_norm", b.norm[1]) if b.residual == "post" else y), aux


def _scaled(formula: str, scale: Any) -> Any:
    return formula if scale == 1 else scale * parse(formula)


def _output(scope: Scope, x: Val, b: Branch) -> tuple[Val, Aux]:
    """f(x), on it its own norm, and then dropout."""
    y, aux = b.block.lower(scope, x, b.stem, b.at)
    with scope.at(*b.path):
        return scope.dropout(scope.norm(y, b.output_norm[0], f"{b.stem}_output_norm", b.output_norm[1]), b.dropout), aux


def _beside(scope: Scope, x: Val, step: Parallel, used: set[str], path: Path) -> tuple[Val, Aux]:
    """x + f(norm(x)) + g(norm(x)) ..., with one norm where the step has it, else each sub-layer's own."""
    shared = None
    if step.norm is not None:
        stem = _unused("parallel_norm", used)
        used.add(stem)
        shared = scope.norm(x, step.norm, stem, (*path, "norm"))
    added: dict[str, Val] = {}
    aux: Aux = []
    for i, each in enumerate(step.parallel):
        b = _branch(scope.low, each, used, (*path, "parallel", i))
        _fits_beside(b, each, step)
        y = scope.norm(x, b.norm[0], f"{b.stem}_norm", b.norm[1]) if shared is None else shared
        added[f"y{i}"], found = _output(scope, y, b)
        aux += found
    with scope.at(*path):
        scale = scope.low.constant(scope.low.model.sublayer.residual_scale, ("sublayer", "residual_scale"))
        formula = _scaled(" + ".join(["x", *added]), scale)
        return scope.map("x", formula, x=x, to=" ".join(scope.space), dtype=scope.compute, **added), aux


def _fits_beside(b: Branch, each: Step, step: Parallel) -> None:
    """A sub-layer among others is added to x, and has no norm of its own where they share one."""
    if b.residual != "pre":
        message = f"sub-layers beside each other are added to x, and this one's residual is {b.residual}"
        own = isinstance(each, SubLayer) and each.residual is not None
        path = (*b.path, "residual") if own else b.path
        raise SpecError.at(path, "W0403", message, "`residual: pre` in each of them, or no `parallel`")
    if isinstance(each, SubLayer) and each.residual_scale is not None:
        message = "sub-layers beside each other are added to x at once, so none has a factor of its own"
        raise SpecError.at((*b.path, "residual_scale"), "W0403", message, "write it in `sublayer`")
    if step.norm is not None and isinstance(each, SubLayer) and each.norm is not None:
        message = "sub-layers beside each other that share a norm have none of their own"
        raise SpecError.at((*b.path, "norm"), "W0403", message, "leave out this one, or the shared one")
