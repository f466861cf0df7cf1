"""One graph as one Python function."""

from collections.abc import Mapping, Sequence

from weft.ir.op import Op
from weft.ir.types import Graph

from .body import Body, File
from .composites import COMPOSITES
from .lines import Lines
from .memory import MEMORY
from .prepare import prepare
from .printer import PRIMITIVES, Speller, print_nodes

TABLE: Mapping[type[Op], Speller] = {**PRIMITIVES, **MEMORY, **COMPOSITES}


def function(file: File, name: str, graph: Graph, doc: str = "", extra: Sequence[str] = ()) -> list[str]:
    """The source lines of `def name(inputs): ... return outputs`; graph is `prepare`d. extra: further arguments."""
    body = Body(file, graph.inputs, graph.outputs, graph.nodes)
    print_nodes(body, graph, TABLE)
    results = [body.full(v) for v in graph.outputs]
    lines = Lines()
    with lines.indent(f"def {name}({', '.join([*body.arguments(), *extra])}):"):
        if doc:
            lines.text(f'"""{doc}"""')
        for statement in body.opening():
            lines.add(statement)
        lines.lines += ["    " + line if line else "" for line in body.lines.lines]
        lines.add(f"return {', '.join(results)}" if results else "return ()")
    return lines.lines


__all__ = ["TABLE", "function", "prepare"]
