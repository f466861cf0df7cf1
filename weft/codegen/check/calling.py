"""Calls of an emitted module by the names of its program, whose states are one argument and one result there."""

from collections.abc import Mapping
from typing import Any

from weft.ir.program import Program


def call(program: Program, module: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The results by name, of inputs by name; states that are left out are those of a first call."""
    given = {name: x for name, x in inputs.items() if name not in program.carried}
    past = [inputs[s.past] for s in program.states if s.past in inputs]
    return results(program, module(**given, **({"memory": past} if past else {})))


def results(program: Program, out: Any) -> dict[str, Any]:
    """What a module returned, by name."""
    plain = [name for name in program.outputs if name not in program.carried]
    left = out[len(plain)] if program.states else ()
    return dict(zip(plain, out)) | {s.value: x for s, x in zip(program.states, left)}
