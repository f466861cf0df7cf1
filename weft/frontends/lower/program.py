"""Spec -> program: `embed`, one loop per stage whose body is a call per layer, `head`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from weft.errors import Path, Problem, SpecError, VerifyError
from weft.frontends.blocks.kind import Aux
from weft.frontends.lower import memory_tokens
from weft.frontends.lower.ends import embed, heads
from weft.frontends.lower.rows import count, unread
from weft.frontends.lower.scope import Lowering, Scope
from weft.frontends.lower.stack import stage
from weft.frontends.lower.top import once
from weft.frontends.memories import stream_of
from weft.frontends.resolve import Dims, resolve
from weft.frontends.schema import Model
from weft.frontends.streams import of_heads, of_stage
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
    low.sizes |= {d: low.dims.sizes[d] for d in model.runtime_dims}
    _check_width(low)
    for dim, role in {"batch": "batch", "width": "width", **dict.fromkeys(model.runtime_dims[1:], "seq")}.items():
        low.plays(dim, role)
    outputs: dict[str, Val] = {}
    try:
        memory_tokens.lengthen(low)
        outputs = _model(low)
    except VerifyError:
        if not low.problems:
            raise
    if low.problems:
        raise SpecError(low.problems)
    return _program(low, outputs, source)


def _model(low: Lowering) -> dict[str, Val]:
    """The whole graph; gives its outputs by name."""
    aux: Aux = []
    layers = dict.fromkeys(low.model.sequences, 0)
    on = [of_stage(low.model, i) for i in range(len(low.model.stack))]
    for stream in (s for s in layers if s not in on):
        low.streams[stream] = _embed(low, stream)
    for i, stream in enumerate(on):
        if stream not in low.streams:
            low.streams[stream] = _embed(low, stream)
        found, layers[stream] = stage(low, i, layers[stream])
        aux += found
    if not low.problems:
        _all_read(low)
        _remembered(low)
        for problem in unread(low):
            low.tell(problem)
    with low.collecting():
        return _heads(low, of_heads(low.model), aux) | {state.value: v for state, v in low.states.values()}
    return {}


def _all_read(low: Lowering) -> None:
    """A stream that neither a block of another one nor a head reads is a mistake, most likely a misspelt name."""
    for name in (s for s in low.model.sequences if s not in {*low.contexts, of_heads(low.model)}):
        hint = f"give a block `context: {name}`, the heads `stream: {name}`, or leave it out"
        low.tell(Problem("W0403", f"nothing reads the stream '{name}'", ("streams", name), hint, on_key=True))


def _remembered(low: Lowering) -> None:
    """A memory that no attention has is a mistake."""
    stream = stream_of(low.model)
    if stream is not None and stream not in low.remembers:
        hint = "give a stage of its stream an attention, or leave it out"
        low.tell(Problem("W0403", "no attention has this memory", ("memory",), hint, on_key=True))


def _check_width(low: Lowering) -> None:
    width = low.dims.sizes["width"]
    if not isinstance(width, int):
        raise SpecError.at(("dims", "width"), "W0402", "width may not depend on a run-time dim")
    low.sizes["width"] = width


def _program(low: Lowering, outputs: dict[str, Val], source: str) -> ir.Program:
    dtype, states = low.model.dtype, tuple(state for state, _ in low.states.values())
    runtime = {d: ir.Runtime(limit.max, limit.align) for d, limit in low.dims.runtime.items()}
    runtime |= {dim: ir.Runtime(keep, 1, 0) for dim, keep in low.memory.values()}
    return ir.Program(
        name=low.model.name,
        graph=low.top.graph(*outputs.values()),
        sizes={d: n for d, n in low.sizes.items() if d not in runtime},
        runtime=runtime,
        params=tuple(low.params),
        inputs=(*(name for name in low.inputs if name in low.values), *(s.past for s in states)),
        outputs=tuple(outputs),
        train=low.train,
        source=source,
        policy=ir.Policy(dtype.params, dtype.compute, dtype.accumulate),
        roles={d: low.roles[d] for d in sorted(low.roles)},
        streams=tuple(ir.ProgramStream(name, s.length, s.once) for name, s in low.model.sequences.items()),
        states=states,
    )


def _embed(low: Lowering, stream: str) -> Val:
    path: Path = ("streams", stream, "embed") if low.model.streams else ("embed",)
    scope = Scope(low, low.called(stream, "embed.", "."), stream, ends=True)
    rows = count(scope, (*path[:-1], "rows"))
    with low.collecting():
        x = memory_tokens.joined(scope, embed(scope, path))
        x, *values = once(low, low.called(stream, "embed"), scope, {}, path, x, *rows.values())
        low.counted |= dict(zip(rows, values))
        return x
    low.counted |= {name: low.top.input(name.replace(".", "_"), v.type) for name, v in rows.items()}
    space = ("batch", low.rows(stream), "width")
    return low.top.input(low.called(stream, "unknown"), Type(low.model.dtype.compute, space))


def _heads(low: Lowering, stream: str, aux: Aux) -> dict[str, Val]:
    """The head block: outputs by name, `loss` first when training."""
    scope = Scope(low, "", stream, ends=True)
    carried = {"x": low.streams[stream]}
    x = scope.norm(scope.carry("x", low.streams[stream].dims), low.model.norm, "norm", ("norm",))
    found, losses = heads(scope, memory_tokens.parted(scope, x), low.model.heads, isinstance(low.model.head, list))
    outputs = (_losses(scope, losses, aux, carried) if low.train else {}) | found
    values = once(low, "head", scope, carried, ("head",), *outputs.values(), *scope.left.values())
    memory_tokens.note(low, scope, values[len(outputs) :])
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
