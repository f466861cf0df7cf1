"""Which public inputs are numbers of rows or classes, and of which dim."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from weft.ir.ops.op import Lookup, body_of, kind
from weft.ir.program import Program
from weft.ir.types import Graph, Val


def indices(program: Program) -> tuple[Lookup, ...]:
    """Every lookup by a public input as it is given, in the order of the inputs."""
    found = [i for name in program.inputs for i in lookups(program.graph, program.input(name))]
    return tuple(dict.fromkeys(found))


def targets(program: Program) -> tuple[str, ...]:
    """The public inputs that nothing but losses read: without them there is no loss, and all else is as it is."""
    return tuple(dict.fromkeys(i.input for i in indices(program) if i.target))


def lookups(graph: Graph, v: Val) -> Iterator[Lookup]:
    """Every lookup by a value, which may be renamed and handed into bodies on the way."""
    same = {v}
    for n in graph.nodes:
        body = body_of(n.op)
        for i, x in enumerate(n.ins):
            if x not in same:
                continue
            if (found := n.op.lookup(i)) is not None:
                yield replace(found, input=v.name)
            elif kind(n) == "view":
                same.add(n.outs[0])
            elif body is not None:
                yield from (replace(inner, input=v.name) for inner in lookups(body, body.inputs[i]))


def index_range(graph: Graph, v: Val, sizes: Mapping[str, int]) -> int:
    """How many values an index input may have: the size of what it indexes; 2 where that is nothing known."""
    return min((sizes[i.dim] for i in lookups(graph, v)), default=2)


def outside(index: Lookup, x: Any, size: int) -> str:
    """What is wrong with the numbers of a tensor x, "" if nothing is."""
    bad = (x < 0) | (x >= size)
    if index.ignore is not None:
        bad &= x != index.ignore
    if not bool(bad.any()):
        return ""
    besides = "" if index.ignore is None else f" ({index.ignore} does not count)"
    return f"{index.input}: {int(x[bad][0])} is outside dim {index.dim}, 0 to {size - 1}{besides}"
