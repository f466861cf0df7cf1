"""Sizes: the spec's dims with `small:` and `--set` applied, every expression worked out, run-time dims kept symbolic.

`settings` reads `--set`, `with_overrides` gives the model a person asked for, `resolve` its sizes. Problems are
reported by their path in the spec ("dims", "inner"), so the front door can point at it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from weft.errors import FormulaError, Path, Place, Problem, SpecError, UsageError
from weft.frontends import expressions, memories, streams
from weft.frontends.suggest import did_you_mean

if TYPE_CHECKING:
    from weft.frontends.schema import Model
    from weft.ir.program import Runtime

LARGEST = 2**31 - 1
_NAME = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True)
class Dims:
    """The sizes of a model.

    `values` holds every dim as a number, run-time dims at the size the spec gives them; `most` the same with run-time
    dims at their largest, which is what a fixed size, a formula or a pattern that reads one means. `sizes` holds them
    with `batch` and `seq` as the SymPy symbols `n_batch` and `n_seq`, and expressions over them where a dim reads one.
    `length` is the dim that the stream at hand is as long as.
    """

    values: Mapping[str, int]
    sizes: Mapping[str, Any]
    runtime: Mapping[str, Runtime]
    most: Mapping[str, int]
    length: str = "seq"

    def on(self, length: str) -> Dims:
        """The same, seen from a stream that is as long as this dim."""
        return replace(self, length=length)

    @property
    def named(self) -> dict[str, int]:
        """What a pattern may name: `seq` is the length of the stream at hand, whatever that is called."""
        return {**self.most, "seq": self.longest}

    @property
    def longest(self) -> int:
        """The most positions that the stream at hand has."""
        return self.most[self.length]

    def size(self, text: int | str) -> int:
        """The number a size of the spec stands for; FormulaError when it is not one."""
        return _size(text, self.most)

    def symbolic(self, text: int | str) -> Any:
        """The same, kept over `n_batch` and `n_seq` where it depends on them."""
        return text if isinstance(text, int) else _evaluate(text, self.sizes)


def runtime_symbol(dim: str) -> Any:
    """The SymPy symbol that stands for a run-time dim's size."""
    from weft.ir.formula import symbol  # SymPy, which the language alone does without

    return symbol(f"n_{dim}")


def with_overrides(model: Model, changes: Mapping[str, int | str] | None = None, small: bool = False) -> Model:
    """The model with its `small:` map and then `changes` applied; SpecError when one names no dim.

    A run-time dim changed this way gets the new size as its maximum as well.
    """
    new = (dict(model.small) if small else {}) | dict(changes or {})
    problems = [_unknown(name, model.dims, ("small", name)) for name in new if name not in model.dims]
    if problems:
        raise SpecError(problems)
    if not new:
        return model
    runtime = {
        dim: limit.model_copy(update={"max": None}) if dim in new else limit for dim, limit in model.runtime.items()
    }
    return model.model_copy(update={"dims": {**model.dims, **new}, "runtime": runtime})


def settings(texts: Iterable[str], dims: Iterable[str]) -> dict[str, tuple[int | str, Place]]:
    """Read `DIM=VALUE` texts; UsageError for one that names no dim. The place is that of the value in its text."""
    known = list(dims)
    out: dict[str, tuple[int | str, Place]] = {}
    for number, text in enumerate(texts, 1):
        name, equals, value = text.partition("=")
        if not equals or not _NAME.fullmatch(name):
            raise UsageError(f"--set takes DIM=VALUE, not '{text}'")
        if name not in known:
            raise UsageError(f"--set: the spec has no dim '{name}'; {did_you_mean(name, known, 'its dims: ')}")
        place = Place("--set", number, len(name) + 2, max(1, len(value)), text)
        out[name] = (int(value) if re.fullmatch(r"[0-9]{1,18}", value) else value, place)
    return out


def resolve(model: Model) -> Dims:
    """Work out every dim; SpecError with all that is wrong."""
    problems = [*streams.problems(model), *_out_of_range(model)]
    problems += memories.problems(model) if not problems else []
    runtime = model.runtime_dims
    outside = {p.path[-1] for p in problems}
    found = {name: _tree(name, size, model.dims, problems) for name, size in model.dims.items()}
    trees = {name: tree for name, tree in found.items() if tree is not None}
    values = {n: size for n, size in model.dims.items() if isinstance(size, int) and n not in outside}
    sizes: dict[str, Any] = {name: runtime_symbol(name) if name in runtime else size for name, size in values.items()}
    for name in _order(trees, problems):
        text = str(model.dims[name])
        try:
            values[name] = _check(expressions.evaluate(trees[name], values, text), text)
            sizes[name] = runtime_symbol(name) if name in runtime else expressions.evaluate(trees[name], sizes, text)
        except FormulaError as error:
            problems.append(Problem("W0201", f"{name}: {error.message}", ("dims", name), error.hint, error.column - 1))
        except KeyError:
            continue  # it reads a dim that is already reported
    if problems:
        raise SpecError(problems)
    values, sizes = ({name: of[name] for name in model.dims} for of in (values, sizes))
    limits = _limits(model, values)
    return Dims(values, sizes, limits, _most(values, limits, trees), runtime[1])


def _most(
    values: Mapping[str, int], limits: Mapping[str, Runtime], trees: Mapping[str, expressions.Expr]
) -> dict[str, int]:
    """Every dim with the run-time dims at their largest; SpecError for one that is no size there."""
    most = dict(values) | {dim: limit.max for dim, limit in limits.items()}
    problems: list[Problem] = []
    for name in (n for n in _order(trees, problems) if n not in limits):
        try:
            most[name] = _check(expressions.evaluate(trees[name], most), "")
        except FormulaError as error:
            message = f"{name}: {error.message}, with {' and '.join(f'{d} = {n.max}' for d, n in limits.items())}"
            hint = f"fixed sizes are those at the largest {' and '.join(f'`{d}`' for d in limits)}"
            problems.append(Problem("W0201", message, ("dims", name), hint, error.column - 1))
    if problems:
        raise SpecError(problems)
    return most


def _tree(name: str, size: int | str, dims: Mapping[str, Any], problems: list[Problem]) -> expressions.Expr | None:
    if isinstance(size, int):
        return None
    path: Path = ("dims", name)
    try:
        tree = expressions.parse(size)
    except FormulaError as error:
        problems.append(Problem("W0201", f"{name}: {error.message}", path, error.hint, error.column - 1))
        return None
    missing = [n for n in expressions.names(tree) if n.args[0] not in dims]
    problems += [_unknown(n.args[0], dims, path, n.column) for n in missing]
    return None if missing else tree


def _unknown(name: str, dims: Mapping[str, Any], path: Path, column: int = 0) -> Problem:
    width = len(name)
    on_key = path[0] == "small"
    return Problem("W0202", f"unknown dim '{name}'", path, did_you_mean(name, dims, "dims: "), column, width, on_key)


def _order(trees: Mapping[str, expressions.Expr], problems: list[Problem]) -> list[str]:
    """Dims in an order in which each comes after those it reads; reports the dims that read themselves."""
    done: list[str] = []
    waiting = {name: {n.args[0] for n in expressions.names(tree)} & set(trees) for name, tree in trees.items()}
    while ready := [name for name, reads in waiting.items() if not reads]:
        done += ready
        waiting = {name: reads - set(ready) for name, reads in waiting.items() if name not in ready}
    hint = "give one of them a number"
    for name, reads in waiting.items():
        others = ", ".join(sorted(reads - {name})) or "itself"
        problems.append(Problem("W0203", f"the dim '{name}' depends on itself through {others}", ("dims", name), hint))
    return done


def _out_of_range(model: Model) -> list[Problem]:
    bad = {name: size for name, size in model.dims.items() if isinstance(size, int) and not 1 <= size <= LARGEST}
    return [
        Problem("W0204", f"{name} is {size}; a size lies in 1 .. 2**31 - 1", ("dims", name))
        for name, size in bad.items()
    ]


def _limits(model: Model, values: Mapping[str, int]) -> dict[str, Runtime]:
    """The largest size and the alignment of each run-time dim."""
    from weft.ir.program import Runtime  # SymPy, which the language alone does without

    problems: list[Problem] = []
    limits: dict[str, Runtime] = {}
    for dim in model.runtime_dims:
        given = model.runtime.get(dim)
        value = values[dim]
        sizes = {"max": value, "align": 1}
        for key in sizes:
            text = getattr(given, key, None)
            try:
                sizes[key] = sizes[key] if text is None else _size(text, values)
            except FormulaError as error:
                path = ("runtime", dim, key)
                problems.append(Problem("W0201", f"{key}: {error.message}", path, error.hint, error.column - 1))
        hint = f"change {dim}, or `runtime.{dim}`"
        if value > sizes["max"]:
            problems.append(
                Problem("W0205", f"{dim} = {value} is over its maximum {sizes['max']}", ("dims", dim), hint)
            )
        if value % sizes["align"]:
            message = f"{dim} = {value} is not a multiple of its alignment {sizes['align']}"
            problems.append(Problem("W0205", message, ("dims", dim), hint))
        limits[dim] = Runtime(sizes["max"], sizes["align"])
    if problems:
        raise SpecError(problems)
    return limits


def _evaluate(text: str, sizes: Mapping[str, Any]) -> Any:
    tree = expressions.parse(text)
    for found in expressions.names(tree):
        if found.args[0] not in sizes:
            hint = did_you_mean(found.args[0], sizes, "dims: ")
            raise FormulaError(f"unknown dim '{found.args[0]}'", text, found.column + 1, hint)
    return expressions.evaluate(tree, sizes, text)


def _size(text: int | str, values: Mapping[str, int]) -> int:
    return text if isinstance(text, int) else _check(_evaluate(text, values), text)


def _check(value: int, text: str) -> int:
    if not 1 <= value <= LARGEST:
        raise FormulaError(f"the size is {value}; a size lies in 1 .. 2**31 - 1", text)
    return value
