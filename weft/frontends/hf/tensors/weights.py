"""Which tensor of a checkpoint holds which parameters of ours: rows of a family's table, and what they come to.

A row names parameters of ours and a tensor of theirs, `{}` for the layer. The parameters lie one after another in the
tensor, along `axis`, once or in several `groups`, or take turns in it; each is `turned` where theirs is a torch
Linear's [out, in] and ours [in, out]. Since a parameter only moves, one row reads and writes. Nothing here imports
torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

LAYER = re.compile(r"(?<=\.)\d+(?=\.)")


@dataclass(frozen=True)
class WeightRow:
    """ours: parameters by logical name, which lie one after another. theirs: the tensor; with a `*`, one for each
    expert. groups: how often they follow each other, a number or an option of the config. given, lacking: an option
    that the config has, or is null in it, where the row holds. stacked: the tensor holds all experts, as its first dim;
    then parameters take turns along `axis`, entry by entry."""

    ours: tuple[str, ...]
    theirs: str
    turned: bool = False
    axis: int = 0
    groups: int | str = 1
    given: str = ""
    lacking: str = ""
    stacked: bool = False

    def holds(self, options: Mapping[str, Any]) -> bool:
        """Is it a row of a config with these options?"""
        return not (self.given and options[self.given] is None) and not (self.lacking and options[self.lacking])


def same(ours: str, theirs: str) -> tuple[WeightRow, ...]:
    """A tensor that is laid out as ours: a table, a vector, a matrix [in, out]."""
    return (WeightRow((ours,), theirs),)


def turned(ours: str, theirs: str) -> tuple[WeightRow, ...]:
    """The weight of a torch Linear."""
    return (WeightRow((ours,), theirs, turned=True),)


def linear(ours: str, theirs: str) -> tuple[WeightRow, ...]:
    """A torch Linear: weight and bias."""
    return (*turned(f"{ours}.weight", f"{theirs}.weight"), *same(f"{ours}.bias", f"{theirs}.bias"))


def affine(ours: str, theirs: str) -> tuple[WeightRow, ...]:
    """Weight and bias laid out as ours: of a norm, or of a product whose weight is [in, out]."""
    return (*same(f"{ours}.weight", f"{theirs}.weight"), *same(f"{ours}.bias", f"{theirs}.bias"))


def fused(stem: str, parts: tuple[str, ...], theirs: str, groups: int | str = 1) -> tuple[WeightRow, ...]:
    """One torch Linear that holds several of ours: runs of its rows."""
    names = lambda leaf: tuple(f"{stem}.{part}.{leaf}" for part in parts)  # noqa: E731
    return (
        WeightRow(names("weight"), f"{theirs}.weight", True, 0, groups),
        WeightRow(names("bias"), f"{theirs}.bias", False, 0, groups),
    )


def stacked(stem: str, parts: tuple[str, ...], theirs: str) -> tuple[WeightRow, ...]:
    """Matrices [experts, in, out] and biases [experts, out] of all experts, whose columns take turns."""
    names = lambda leaf: tuple(f"{stem}.{part}.{leaf}" for part in parts)  # noqa: E731
    return (
        WeightRow(names("weight"), theirs, axis=2, stacked=True),
        WeightRow(names("bias"), f"{theirs}_bias", axis=1, stacked=True),
    )


@dataclass(frozen=True)
class HeldPart:
    """One parameter, or one expert's share of it, as two dims or one: `shape` of [in, out] or [entries]; behind the
    experts where all of them are in one tensor.

    size: its entries along the row's axis in each group."""

    name: str
    expert: int | None
    shape: tuple[int, ...]
    size: int


@dataclass(frozen=True)
class RowRun:
    """Rows [begin, end) of a tensor that hold rows of one part, from `own` on. start: where in a group of columns, if
    that is how the tensor is shared; step: from one of its columns to the next."""

    part: HeldPart
    begin: int
    end: int
    own: int
    start: int = 0
    step: int = 1


@dataclass(frozen=True)
class Tensor:
    """A tensor of a checkpoint and the parts that it is made of."""

    name: str
    shape: tuple[int, ...]
    parts: tuple[HeldPart, ...]
    turned: bool
    axis: int
    groups: int
    stacked: bool = False

    def walk(self, most: int) -> Iterator[RowRun]:
        """The tensor in runs of at most `most` rows (of a vector, entries) which lie together in it."""
        if self.axis == 0:
            at = 0
            for group in range(self.groups):
                for part in self.parts:
                    for a in range(0, part.size, most):
                        b = min(part.size, a + most)
                        yield RowRun(part, at + a, at + b, group * part.size + a)
                    at += part.size
            return
        for a in range(0, self.shape[0], most):
            b, start = min(self.shape[0], a + most), 0
            for i, part in enumerate(self.parts):
                where = (i, len(self.parts)) if self.stacked else (start, 1)
                yield RowRun(part, a, b, a, *where)
                start += part.size


def asked(rows: tuple[WeightRow, ...], program: Any) -> int:
    """How many parameters a program has, one for each expert's share: at least as many as tensors."""
    sizes = program.resolve()
    each = {LAYER.sub("{}", ours): "*" in row.theirs for row in rows for ours in row.ours}
    return sum(
        p.rows(sizes) * (sizes[p.dims[0]] if each.get(LAYER.sub("{}", p.logical(0), count=1)) else 1)
        for p in program.params
    )


def tensors(
    rows: tuple[WeightRow, ...], program: Any, options: Mapping[str, Any]
) -> tuple[dict[str, Tensor], list[str]]:
    """Every tensor that the parameters of a program lie in, by name, and the parameters that no row names.

    options: of the config, for groups that go by one."""
    sizes, names = program.resolve(), program.logical_names()
    by_name = {ours: row for row in rows if row.holds(options) for ours in row.ours}
    found: dict[str, Tensor] = {}
    unnamed: list[str] = []
    for name, (param, _) in names.items():
        layers = LAYER.findall(name)
        pattern = LAYER.sub("{}", name, count=1) if layers and LAYER.sub("{}", name, count=1) in by_name else name
        row = by_name.get(pattern)
        if row is None:
            unnamed.append(name)
            continue
        layer = layers[0] if pattern != name else ""
        experts = sizes[param.dims[0]] if "*" in row.theirs else 0
        for e in range(max(1, experts)):
            theirs = row.theirs.format(layer).replace("*", str(e))
            if theirs not in found:
                found[theirs] = _tensor(theirs, row, layer, e if experts else None, names, sizes, options)
    return found, unnamed


def _tensor(
    theirs: str,
    row: WeightRow,
    layer: str,
    expert: int | None,
    names: Mapping[str, Any],
    sizes: Mapping[str, int],
    options: Mapping[str, Any],
) -> Tensor:
    shapes: dict[str, tuple[int, ...]] = {}
    for ours in row.ours:
        name = ours.format(layer)
        if name in names:
            dims = names[name][0].dims
            flat = _flat(name, dims[expert is not None or row.stacked :], sizes, row.turned)
            shapes[name] = (sizes[dims[0]], *flat) if row.stacked else flat
    laid = {n: (s[::-1] if row.turned else s) for n, s in shapes.items()}
    axis = row.axis % len(next(iter(laid.values())))
    groups = options[row.groups] if isinstance(row.groups, str) else row.groups
    parts = tuple(HeldPart(n, expert, shapes[n], laid[n][axis] // groups) for n in laid)
    shape = list(next(iter(laid.values())))
    shape[axis] = sum(p.size for p in parts) * groups
    return Tensor(theirs, tuple(shape), parts, row.turned, axis, groups, row.stacked)


def _flat(name: str, dims: tuple[str, ...], sizes: Mapping[str, int], turned: bool) -> tuple[int, ...]:
    """A parameter's shape as [in, out], or [entries] of a bias, sinks or a norm. What is turned and a vector is
    [in, 1]."""
    count = lambda some: math.prod(sizes[d] for d in some)  # noqa: E731
    if len(dims) == 1 and turned:
        return (count(dims), 1)
    if len(dims) == 1 or name.endswith((".bias", ".sinks")) or "_norm." in name:
        return (count(dims),)
    split = len(dims) - 1 if dims[-1] == "width" else 1
    return count(dims[:split]), count(dims[split:])
