"""Which public inputs are numbers of rows or classes, and of which dim."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from weft.ir.library.loss import CrossEntropy
from weft.ir.primitives import Gather, Rename
from weft.ir.program import Program
from weft.ir.types import Graph, Val


@dataclass(frozen=True, slots=True)
class Index:
    """Elements of `input` are coordinates of `dim`, or `ignore`, which counts for nothing. target: of a loss."""

    input: str
    dim: str
    ignore: int | None = None
    target: bool = False


def indices(program: Program) -> tuple[Index, ...]:
    """Every lookup by a public input as it is given, in the order of the inputs."""
    found = [i for name in program.inputs for i in lookups(program.graph, program.input(name))]
    return tuple(dict.fromkeys(found))


def targets(program: Program) -> tuple[str, ...]:
    """The public inputs that nothing but losses read: without them there is no loss, and all else is as it is."""
    return tuple(dict.fromkeys(i.input for i in indices(program) if i.target))


def lookups(graph: Graph, v: Val) -> Iterator[Index]:
    """Every lookup by a value, which may be renamed and handed into bodies on the way."""
    same = {v}
    for n in graph.nodes:
        body: Any = getattr(n.op, "body", None)
        for i, x in enumerate(n.ins):
            if x not in same:
                continue
            if isinstance(n.op, Gather) and i:
                yield Index(v.name, n.op.at[i - 1])
            elif isinstance(n.op, CrossEntropy) and i == 1:
                yield Index(v.name, n.op.over, n.op.ignore, True)
            elif isinstance(n.op, Rename):
                same.add(n.outs[0])
            elif isinstance(body, Graph):
                yield from (replace(found, input=v.name) for found in lookups(body, body.inputs[i]))


def outside(index: Index, x: Any, size: int) -> str:
    """What is wrong with the numbers of a tensor x, "" if nothing is."""
    bad = (x < 0) | (x >= size)
    if index.ignore is not None:
        bad &= x != index.ignore
    if not bool(bad.any()):
        return ""
    besides = "" if index.ignore is None else f" ({index.ignore} does not count)"
    return f"{index.input}: {int(x[bad][0])} is outside dim {index.dim}, 0 to {size - 1}{besides}"
