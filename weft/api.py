"""What the verbs do, as functions. Nothing here imports torch before it needs it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from weft.errors import FormulaError, Problem, SpecError, VerifyError

if TYPE_CHECKING:
    from weft.frontends.load import Loaded
    from weft.ir.program import Program


MOST_ELEMENTS = 1 << 62


def open_spec(source: Any, sets: Iterable[str] = (), small: bool = False) -> Loaded:
    """Read a spec file, or take a `weft.Model`; `sets` are `DIM=VALUE` texts. SpecError lists all that is wrong."""
    from weft.frontends.load import load_model, load_spec

    if isinstance(source, str | os.PathLike):
        return load_spec(source, sets, small)
    return load_model(source, sets, small)


def program(spec: Loaded, train: bool = True) -> Program:
    """The graph of a loaded spec, verified; problems found on the way have their places."""
    from weft.frontends import meaning
    from weft.frontends.lower import lower
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


def check(source: Any, sets: Iterable[str] = (), small: bool = False, train: bool = True) -> dict[str, Any]:
    """Validate a spec down to its verified graph: form, sizes, formulas, patterns, types. Never imports torch."""
    from weft.frontends import meaning

    spec = open_spec(source, sets, small)
    made = program(spec, train)
    values = spec.dims.values
    return {
        "spec": spec.name,
        "name": spec.model.name,
        "dims": dict(values),
        "parameters": made.parameter_count(),
        "layers": sum(spec.dims.size(s.repeat) * len(s.layers) for s in spec.model.stack),
        "inputs": list(made.inputs),
        "outputs": list(made.outputs),
        "notes": meaning.notes(spec.model),
    }
