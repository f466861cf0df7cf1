"""A program as data: `graph.weft` holds its graph, `program.json` what stands beside it; a package is checked by it."""

import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

from weft.codegen.package.reading import SHAPES, data, first_line, text, unchanged
from weft.errors import FileError, TextError, UsageError, WeftError
from weft.ir.formula import parse as formula
from weft.ir.formula import show as formula_text
from weft.ir.program import Init, Param, Policy, Program, ProgramState, ProgramStream, Runtime
from weft.ir.text import parse
from weft.ir.types import FLOATS, Graph, Type
from weft.ir.verify import verify

PROGRAM, GRAPH = "program.json", "graph.weft"
SCHEMA = "weft.program/1"


def to_data(program: Program) -> dict[str, Any]:
    """Everything of a program but its graph, for JSON."""
    return {
        "schema": SCHEMA,
        "name": program.name,
        "source": program.source,
        "train": program.train,
        "inputs": list(program.inputs),
        "outputs": list(program.outputs),
        "sizes": {d: n if isinstance(n, int) else formula_text(n) for d, n in program.sizes.items()},
        "runtime": {d: [r.max, r.align, *([r.least] if r.least != 1 else [])] for d, r in program.runtime.items()},
        "policy": [program.policy.params, program.policy.compute, program.policy.accumulate],
        "params": [_param(p) for p in program.params],
        "roles": {d: list(roles) for d, roles in program.roles.items()},
        "streams": [[s.name, s.length, s.once] for s in program.streams],
        **({"states": [_state(s) for s in program.states]} if program.states else {}),
    }


def _state(s: ProgramState) -> dict[str, Any]:
    return {f.name: getattr(s, f.name) for f in fields(s)}


def _param(p: Param) -> dict[str, Any]:
    init = [p.init.kind, p.init.value, list(p.init.fan_in), *([p.init.high] if p.init.high else [])]
    stack = None if p.stack is None else [p.stack, p.start, p.step]
    more = ({"fixed": True} if p.fixed else {}) | ({"rates": dict(p.rates)} if p.rates else {})
    return {
        "value": p.value, "name": p.name, "dims": list(p.dims), "dtype": p.dtype, "init": init, "stack": stack, **more
    }  # fmt: skip


def from_data(data: Mapping[str, Any], graph: str) -> Program:
    """The program of such data and its graph's text. Raises TextError, VerifyError or one of SHAPES when they are not
    what weft wrote."""
    return _program(data, verify(parse(graph)))


def _program(data: Mapping[str, Any], graph: Graph) -> Program:
    return Program(
        name=str(data["name"]),
        graph=graph,
        sizes={str(d): n if isinstance(n, int) else formula(n) for d, n in data["sizes"].items()},
        runtime={str(d): Runtime(*map(int, r)) for d, r in data["runtime"].items()},
        params=tuple(map(_read_param, data["params"])),
        inputs=tuple(map(str, data["inputs"])),
        outputs=tuple(map(str, data["outputs"])),
        train=bool(data["train"]),
        source=str(data["source"]),
        policy=Policy(*map(str, data["policy"])),
        roles={str(d): tuple(map(str, roles)) for d, roles in data.get("roles", {}).items()},
        streams=tuple(_read_stream(*s) for s in data.get("streams", [["seq", "seq", False]])),
        states=tuple(map(_read_state, data.get("states", []))),
    )


def _fits(program: Program) -> None:
    """ValueError where what stands beside a graph is not about that graph."""
    inputs = {v.name: v.type for v in program.graph.inputs}
    for p in program.params:
        dims = (p.stack, *p.dims) if p.stack else p.dims
        if inputs.get(p.value) != Type(p.dtype, dims):
            raise ValueError(f"the parameter {p.name} is no input of the graph")
        if p.init.kind not in get_args(Init.__annotations__["kind"]):
            raise ValueError(f"{p.init.kind!r:.40} is no initialisation")
        if unknown := {k for k, _ in p.rates} - {"lr", "weight_decay"}:
            raise ValueError(f"{min(unknown)!r:.40} is no rate")
        p.logical(0)
    named = [*program.inputs, *(p.value for p in program.params)]
    if sorted(named) != sorted(inputs) or len(program.outputs) != len(program.graph.outputs):
        raise ValueError("the inputs, parameters and outputs are not the graph's")
    if {program.policy.params, program.policy.compute, program.policy.accumulate} - {*FLOATS}:
        raise ValueError("its policy names no float dtypes")
    sizes = program.resolve()
    if unknown := program.carried.difference((*program.inputs, *program.outputs)):
        raise ValueError(f"the state {min(unknown)!r:.40} is no input or output")
    if missing := [s.length for s in program.streams if s.length not in sizes]:
        raise ValueError(f"the length {missing[0]!r:.40} has no size")


def _read_state(data: Mapping[str, Any]) -> ProgramState:
    name, past, value, rows = (str(data[f]) for f in ("name", "past", "value", "rows"))
    found = ProgramState(name, past, value, rows, int(data["keep"]), data["start"], data["life"], int(data["through"]))
    if found.start not in ("empty", "parameter") or found.life != "sequence":
        raise ValueError("no such state")
    return found


def _read_stream(name: str, length: str, once: bool) -> ProgramStream:
    return ProgramStream(str(name), str(length), bool(once))


def _read_param(data: Mapping[str, Any]) -> Param:
    kind, value, fan_in, *high = data["init"]
    stack, start, step = data["stack"] or (None, 0, 1)
    init = Init(kind, float(value), tuple(fan_in), *map(float, high[:1]))
    rates = tuple((str(k), float(v)) for k, v in dict(data.get("rates", {})).items())
    where = stack, int(start), int(step), bool(data.get("fixed", False)), rates
    return Param(data["value"], data["name"], tuple(data["dims"]), init, data["dtype"], *where)


def read(folder: str | os.PathLike[str]) -> Program:
    """The program that the package in `folder` was emitted from."""
    folder = Path(folder)
    if not any((folder / name).exists() for name in (PROGRAM, GRAPH)):
        raise UsageError(f"{folder} holds no package that weft wrote: no {PROGRAM}, no {GRAPH}")
    found, graph = data(folder / PROGRAM, SCHEMA), text(folder / GRAPH)
    try:
        parsed = verify(parse(graph))
    except TextError as error:
        raise FileError(folder / GRAPH, str(error).removeprefix(f"line {error.line}: "), error.line) from None
    except (WeftError, *SHAPES) as error:
        raise FileError(folder / GRAPH, f"not the graph that weft wrote: {first_line(error)}") from None
    try:
        program = _program(found, parsed)
        _fits(program)
    except (WeftError, *SHAPES) as error:
        raise FileError(folder / PROGRAM, f"not what weft wrote: {first_line(error)}") from None
    for name in (PROGRAM, GRAPH):
        unchanged(folder, name)
    return program
