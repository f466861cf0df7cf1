"""Decoding against the whole run at once, with the sizes that decoding keeps to: prefill, steps, and no leak. Imports
torch."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from weft.codegen.check.calling import call
from weft.codegen.check.comparing import Comparison, compare
from weft.codegen.torch.sizes import Sizes
from weft.ir.indices import index_range
from weft.ir.library import Route
from weft.ir.ops.op import Op, body_of
from weft.ir.pattern import max_distance
from weft.ir.program import Program
from weft.ir.reference_model import reference
from weft.ir.types import Graph
from weft.passes.decode.alone import alone
from weft.passes.inference import inference


class RunInputs(Protocol):
    """A program, the inputs of a run of it, and the modules that it wraps."""

    program: Program
    inputs: Mapping[str, Tensor]
    wrapped: Mapping[str, nn.Module] | None


def decoding(
    ran: RunInputs, module: nn.Module, params: Mapping[str, Tensor], sizes: Mapping[str, int], notes: list[str]
) -> list[Comparison]:
    """prefill and step against the whole sequence at once, and whether later positions leak into earlier results."""
    program, inputs, module = ran.program, ran.inputs, module.eval()
    tokens = grown(program, "tokens")
    if tokens is None:
        return []
    try:
        with torch.no_grad():
            start(module, inputs)
    except NotImplementedError as error:
        notes.append(str(error))
        return []
    with torch.no_grad():
        half = inputs[tokens].shape[1] // 2
        whole = whole_run(program, module, params, inputs, sizes, ran.wrapped)
        rows = [
            decoded(program, module, inputs, whole, half),
            *([apart(program, module, inputs, whole, half)] if half else []),
        ]
        rows += [in_segments(program, module, inputs, whole)] if seamless(program) and half else []
        return [*rows, leak(program, module, inputs, call(program, module, inputs))]


def seamless(program: Program) -> bool:
    """Is a sequence the same in segments of any lengths? Then no attention looks further back than the memory keeps,
    no expert is full sooner in a longer one, and nothing of another stream is seen by where in its segment a query is.
    """
    keep, sizes = min((s.keep for s in program.states), default=-1), program.resolve()
    every = list(ops(program.graph))
    attends: list[Any] = [op for op in every if op.attention is op]
    far = [max_distance(op.pattern, heads=op.count(sizes)) for op in attends if op.tail]
    placed = any(op.placed for op in attends if not op.tail and op.query in program.growing)
    full = any(isinstance(op, Route) for op in every)
    near = bool(far) and all(r is not None and r <= keep for r in far)
    return near and not full and not placed and not _counted(program.graph, program.growing)


def _counted(graph: Graph, dims: Sequence[str]) -> bool:
    """Is there a composite, attention apart, that goes by where along these dims something stands, as rotary positions
    do that are given none?"""
    bodies = [b for n in graph.nodes if (b := body_of(n.op)) is not None]
    here = [n for n in graph.nodes if n.op.attention is None and body_of(n.op) is None and n.op.opened(n.types)]
    return any(n.op.mentions(n.types, d) for n in here for d in dims) or any(_counted(b, dims) for b in bodies)


def ops(graph: Graph) -> Iterator[Op]:
    """Every op, those of bodies too."""
    for n in graph.nodes:
        yield n.op
        if (body := body_of(n.op)) is not None:
            yield from ops(body)


def in_segments(program: Program, module: Any, inputs: Mapping[str, Tensor], whole: Mapping[str, Tensor]) -> Comparison:
    """Segments of different lengths, each with the memory that the one before left, against the whole sequence."""
    given = {k: x for k, x in inputs.items() if k not in program.carried}
    moving = [k for k in given if {*program.input(k).dims} & {*program.growing}]
    align = max(limit.align for d, limit in program.runtime.items() if d in program.growing)
    n = given[moving[0]].shape[1] // align
    lengths = [align * part for part in (1, n - n // 2 - 1, n // 2) if part]
    parts, past = dict[str, list[Tensor]](), dict[str, Tensor]()
    for i, length in enumerate(lengths):
        first = sum(lengths[:i])
        part = {k: x[:, first : first + length] if k in moving else x for k, x in given.items()}
        out = call(program, module, {**part, **past})
        past = {s.past: out[s.value] for s in program.states}
        for k in positional(program):
            parts.setdefault(k, []).append(out[k])
    got = {k: torch.cat(ys, 1) for k, ys in parts.items()}
    return compare("segments = whole", "f64", got, {k: whole[k] for k in got})


def grown(program: Program, part: str) -> str | None:
    """The input of that part of the language of the stream that grows."""
    mine = (n for n in program.inputs if {*program.input(n).dims} & {*program.growing})
    return next((n for n in mine if program.part(n) == part), None)


def positional(program: Program) -> set[str]:
    """The outputs that have a row for each position."""
    named = zip(program.outputs, program.graph.outputs)
    return {name for name, v in named if {*v.dims} & {*program.growing}}


def start(module: Any, inputs: Mapping[str, Tensor]) -> Any:
    """The state before the first position."""
    given = _given(module.state, inputs)
    return module.state(**given) if given else module.state(next(iter(inputs.values())).shape[0])


def _given(method: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those inputs that a method takes."""
    return {k: inputs[k] for k in inspect.signature(method).parameters if k in inputs}


def decoded(
    program: Program, module: Any, inputs: Mapping[str, Tensor], whole: Mapping[str, Tensor], first: int
) -> Comparison:
    """The first positions by `prefill` (none: from an empty state), the others by `step`, against the whole run."""
    given, once = _given(module.step, inputs), _given(module.state, inputs)
    n = next(iter(given.values())).shape[1]
    parts, rows = dict[str, list[Tensor]](), positional(program)
    state = start(module, inputs)
    if first:
        out, state = module.prefill(**once, **{k: x[:, :first] for k, x in given.items()})
        parts = {k: [y] for k, y in out._asdict().items()}
    for t in range(first, n):
        out, state = module.step(**{k: x[:, t] for k, x in given.items()}, state=state)
        for k, y in out._asdict().items():
            parts[k] = [*parts.get(k, []), y[:, None]] if k in rows else [y]
    got = {k: torch.cat(ys, 1) for k, ys in parts.items()}
    return compare("decode = parallel", "f64", got, {k: whole[k] for k in got})


def apart(
    program: Program, module: Any, inputs: Mapping[str, Tensor], whole: Mapping[str, Tensor], first: int
) -> Comparison:
    """Rows of different lengths, none longer than `first`, and then the rest of each in one call."""
    given, once = _given(module.step, inputs), _given(module.state, inputs)
    batch, n = next(iter(given.values())).shape[:2]
    own = torch.arange(first, first - batch, -1).clamp(min=1)
    early, state = module.prefill(**once, **{k: x[:, :first] for k, x in given.items()}, lengths=own)
    place = (own[:, None] + torch.arange(n - int(own.min()))).clamp(max=n - 1)
    none = dict.fromkeys(once)
    rest = {k: x.gather(1, place) for k, x in given.items()}
    late, _ = module.prefill(**none, **rest, lengths=n - own, state=state)
    got: dict[str, Tensor] = {}
    for k, y in ((k, y) for k, y in early._asdict().items() if k in positional(program)):
        rows = zip(y, getattr(late, k), own.tolist(), strict=True)
        got[k] = torch.stack([torch.cat((a[:m], b[: n - m])) for a, b, m in rows])
    return compare("rows apart = parallel", "f64", got, {k: whole[k] for k in got})


def leak(program: Program, module: Any, inputs: Mapping[str, Tensor], whole: Mapping[str, Tensor]) -> Comparison:
    """Tokens and metadata from the middle on are changed: results before it must not move."""
    names = {part: grown(program, part) for part in ("tokens", "positions", "segments", "valid")}
    changed = {k: inputs[k].clone() for k in names.values() if k is not None}
    tokens = names["tokens"]
    assert tokens is not None
    n = changed[tokens].shape[1]
    for name, x in changed.items():
        later = x[:, n // 2 :]
        many = index_range(program.graph, program.input(name), program.resolve())
        more = later + 1 if name == names["segments"] else (later + 1) % many
        later.copy_(~later if x.dtype == torch.bool else more)
    after = call(program, module, {**inputs, **changed})
    rows = positional(program)
    got, want = ({k: y[k][:, : n // 2] for k in rows} for y in (after, whole))
    return compare("no leak from later", "f64", got, want)


def whole_run(
    program: Program,
    module: nn.Module,
    params: Mapping[str, Tensor],
    inputs: Mapping[str, Tensor],
    sizes: Mapping[str, int],
    wrapped: Mapping[str, nn.Module] | None = None,
) -> dict[str, Tensor]:
    """The module's results for all positions; the interpreter's where a size grows with the run, as a capacity may.

    A step cannot know how long the run will be: such a size is then that of the longest run."""
    if program.states:  # every row sees what the memory keeps, wherever a segment would begin
        program = alone(program)
        inputs = {name: inputs[name] for name in program.inputs}
        sizes = program.resolve(**{d: sizes[d] for d in program.runtime})
        longer = {**sizes, **_longer(program, sizes)}
        return reference(program, torch, params, inputs, longer, torch.float64, wrapped)
    grown = _longer(program, sizes)
    if not grown:
        return call(program, module, inputs)
    with torch.no_grad():
        return reference(inference(program), torch, params, inputs, {**sizes, **grown}, torch.float64, wrapped)


def _longer(program: Program, sizes: Mapping[str, int]) -> dict[str, int]:
    """The sizes at the longest run that differ from these, the length and the dims that have it apart."""
    (time,), known = program.growing, Sizes.of(program)
    limit = program.runtime.get(time)
    longest = program.resolve(**{d: sizes[d] for d in program.runtime} | ({time: limit.max} if limit else {}))
    return {d: n for d, n in longest.items() if n != sizes[d] and known.alias(d) != time}
