"""The layers: a loop per stage, a call per layer, a norm and a residual around each block."""

from __future__ import annotations

from dataclasses import replace

from pydantic import ValidationError

from weft.errors import Path, Problem, SpecError
from weft.frontends.blocks.kind import Aux, BlockKind
from weft.frontends.lower.scope import Lowering, Operand, Scope
from weft.frontends.lower.top import once, top_value
from weft.frontends.schema import Norm, SubLayer
from weft.frontends.streams import of_stage
from weft.frontends.suggest import did_you_mean
from weft.frontends.validation import problems_of
from weft.ir import program as ir
from weft.ir.builder import Builder
from weft.ir.composite import Call
from weft.ir.formula import symbol
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
            calls.append((scope.call(name, out, *(v for v, _ in aux)), scope))
        outs = _loop(low, stream, calls, dim, start, path)
        low.streams[stream] = outs[0]
        _normed(low, stream, part.norm, f"{stem}_norm", (*path, "norm"))
        return list(zip(outs[1 : 1 + len(weights)], weights)), start + len(calls) * low.number(dim)
    return [], start


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
    return top_value(low, operand, {})


def _layer(scope: Scope, layer: list[str | SubLayer], path: Path) -> tuple[Val, Aux]:
    """The sub-layers of one layer in order: x after them, and their auxiliary losses with weights."""
    x = scope.running()
    aux: Aux = []
    used: set[str] = set()
    for i, step in enumerate(layer):
        with scope.low.collecting():
            where = (*path, i)
            sub = SubLayer(block=step) if isinstance(step, str) else step
            block, at, name = _block(scope.low, sub, where, where if isinstance(step, str) else (*where, "block"))
            stem = next(s for s in (name, *(f"{name}_{k}" for k in range(2, i + 3))) if s not in used)
            used |= {stem, f"{stem}_norm", f"{stem}_output_norm"}
            x, found = _sublayer(scope, x, sub, block, stem, where, at)
            aux += found
    return x, aux


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


def _sublayer(
    scope: Scope, x: Val, sub: SubLayer, block: BlockKind, stem: str, path: Path, at: Path
) -> tuple[Val, Aux]:
    """pre: x + f(norm(x)); post: norm(x + f(x)); none: f(norm(x)). On f's output its own norm, then dropout."""
    default = scope.low.model.sublayer
    rule = sub.norm if sub.norm is not None else default.norm
    residual = sub.residual or default.residual
    rate = sub.dropout if sub.dropout is not None else default.dropout
    where = (*path, "norm") if sub.norm is not None else ("sublayer", "norm")
    y = x if residual == "post" else scope.norm(x, rule, f"{stem}_norm", where)
    y, aux = block.lower(scope, y, stem, at)
    with scope.at(*path):
        y = scope.dropout(_output_norm(scope, y, sub, stem, path), rate)
        if residual != "none":
            y = scope.map("x", "x + y", x=x, y=y, to=" ".join(scope.space), dtype=scope.compute)
        return (scope.norm(y, rule, f"{stem}_norm", where) if residual == "post" else y), aux


def _output_norm(scope: Scope, y: Val, sub: SubLayer, stem: str, path: Path) -> Val:
    """f's output, normalised where the sub-layer says so."""
    own = sub.output_norm is not None
    rule = sub.output_norm if sub.output_norm is not None else scope.low.model.sublayer.output_norm
    where = (*path, "output_norm") if own else ("sublayer", "output_norm")
    return scope.norm(y, rule, f"{stem}_output_norm", where)
