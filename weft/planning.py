"""From a spec to its plan: what every verb begins with. Nothing here imports torch before it needs it."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from weft.calls import public
from weft.errors import FormulaError, Problem, SpecError, UsageError, VerifyError
from weft.targets import find
from weft.units import bytes_of

if TYPE_CHECKING:
    from weft.codegen.plan.planner import Meter, Planned
    from weft.frontends.load import Loaded
    from weft.ir.program import Program
    from weft.passes.stage import Profiler
    from weft.targets import Target

MOST_ELEMENTS = 1 << 62


def open_spec(source: Any, sets: Iterable[str] = (), small: bool = False) -> Loaded:
    """Read a spec file, or take a `weft.Model` or a spec's values as a mapping; `sets` are `DIM=VALUE` texts. SpecError
    lists all that is wrong."""
    # only when it is asked for: every verb imports this file
    from weft.frontends.load import load_mapping, load_model, load_spec
    from weft.frontends.schema import Model

    if isinstance(sets, str):
        raise TypeError(f"sets is a list of DIM=VALUE texts: sets=[{sets!r}]")
    if isinstance(source, str | os.PathLike):
        if isinstance(source, str) and "\n" in source and not os.path.exists(source):
            raise UsageError("this is the text of a spec; weft takes the path of its file, or what a YAML parser reads")
        return load_spec(source, sets, small)
    if isinstance(source, Mapping):
        return load_mapping(source, sets, small)
    if not isinstance(source, Model):
        raise TypeError(f"a spec is a path, a weft.Model or a mapping, not {_described(source)}")
    return load_model(source, sets, small)


def _described(value: Any) -> str:
    """A value that is no spec, with the way to one."""
    from weft.frontends.schema import SpecPart  # only when it is asked for: every verb imports this file

    if isinstance(value, type):
        return f"the class {value.__name__}; make one of it: {value.__name__}(...)"
    if isinstance(value, SpecPart):
        name = type(value).called or type(value).__name__
        return f"{name}; a block goes into a model: weft.Model(blocks={{'name': {name}(...)}}, ...)"
    return type(value).__name__


def program(spec: Loaded, train: bool = True) -> Program:
    """The graph of a loaded spec, verified; problems found on the way have their places."""
    from weft.frontends import meaning  # only when it is asked for: every verb imports this file
    from weft.frontends.lower.program import lower
    from weft.ir.verify import verify

    problems = meaning.problems(spec.model, spec.dims)
    try:
        made = lower(spec.model, spec.dims, train, spec.src, spec.name)
        if not problems:
            verify(made.graph)
            _countable(made)
            return made
    except SpecError as error:
        problems += error.problems
    except (VerifyError, FormulaError) as error:
        problems.append(Problem("W0404", f"the graph of this spec does not hold: {str(error).splitlines()[0]}"))
    raise spec.located(SpecError(problems))


def _countable(made: Program) -> None:
    if made.parameter_count() >= MOST_ELEMENTS:
        raise SpecError.at(("dims",), "W0204", "the model has 2**62 parameters or more", "make its dims smaller")


def planned(
    spec: Loaded,
    train: bool = True,
    target: str | None = None,
    memory: str | int | None = None,
    optimizer: str = "none",
    print_after: Collection[str] = (),
    axes: Mapping[str, int] | None = None,
) -> Planned:
    """Everything decided about a spec, at the sizes of its dims.

    target: a target's name, default the machine's own. memory: most bytes alive at once, as a number or like "60GB".
    optimizer: whose state and step count in the peak: adamw, sgd, lamb. axes: of a device mesh; the plan is then that
    of one device, and its `memory` too. Raises InfeasibleError when no plan fits. Graphs between passes go to the
    folder in WEFT_DUMP, if it is set; those after the passes `print_after` to stderr.
    """
    from weft.codegen.plan.machine import own_target, watcher  # only when it is asked for: every verb imports this file
    from weft.codegen.plan.mesh import cut, runs_alone, share
    from weft.codegen.plan.planner import plan as decide
    from weft.passes.optimizer import find as optimizer_of
    from weft.passes.pipeline import PIPELINE

    if unknown := set(print_after) - {p.name for p in PIPELINE}:
        known = ", ".join(p.name for p in PIPELINE)
        raise UsageError(f"no pass is called {', '.join(sorted(unknown))}; the passes are {known}")
    aim = find(target or own_target())
    budget = memory if memory is None else bytes_of(memory)
    made = program(spec, train)
    sizes = sizes_of(spec, made)
    parts = cut(made, axes, sizes) if axes is not None else None
    if parts is not None:
        made, sizes = share(made, parts), parts.share
    watch = watcher(os.environ.get("WEFT_DUMP"), print_after, lambda text: print(text, file=sys.stderr))
    alone = parts is None or runs_alone(made.graph, parts)
    return decide(
        made,
        sizes,
        aim,
        budget,
        _profiler(aim) if alone else None,
        watch,
        optimizer_of(optimizer),
        _meter() if alone else None,
    )


@public
def plan(
    source: Any,
    sets: Iterable[str] = (),
    small: bool = False,
    train: bool = True,
    target: str | None = None,
    memory: str | int | None = None,
    optimizer: str = "none",
    mesh: str | None = None,
    print_after: Collection[str] = (),
) -> dict[str, Any]:
    """The plan document of a spec; see `planned`. mesh: axes and sizes like "dp=2,tp=4": the plan is that of one
    device, with its collectives."""
    from weft.codegen.plan.as_json import document  # only when it is asked for: every verb imports this file
    from weft.codegen.plan.mesh import cut, parse, sharded

    axes = parse(mesh) if mesh is not None else None
    spec = open_spec(source, sets, small)
    found = planned(spec, train, target, memory, optimizer, print_after, axes)
    if axes is None:
        return document(found)
    whole = program(spec, train)
    sizes = sizes_of(spec, whole)
    return document(found) | {"mesh": sharded(cut(whole, axes, sizes), found, whole.parameter_count(**sizes))}


def sizes_of(spec: Loaded, made: Program) -> dict[str, int]:
    """Every dim's size as the spec says it, run-time dims too; a memory is full."""
    full = {s.rows: s.keep for s in made.states}
    return made.resolve(**full, **{d: spec.dims.values[d] for d in made.runtime if d in spec.dims.values})


def _profiler(target: Target) -> Profiler | None:
    """Measures blocks on torch's meta device. Without torch the plan's peaks are estimates, and it says so."""
    try:
        from weft.codegen.measure.profile import profiler  # only when it is asked for: every verb imports this file
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        return None
    return profiler(target)


def _meter() -> Meter | None:
    """Measures what kernel paths run, on torch's meta device; without torch, regions cost what fusion took them for."""
    try:
        from weft.codegen.measure import metered  # only when it is asked for: every verb imports this file
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        return None
    return metered
