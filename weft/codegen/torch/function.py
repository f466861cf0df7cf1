"""One graph as one Python function."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from weft.codegen.torch.body import Body, File
from weft.codegen.torch.chunked import MOVES
from weft.codegen.torch.composites import COMPOSITES
from weft.codegen.torch.lines import Lines
from weft.codegen.torch.loops import loop_speller
from weft.codegen.torch.memory import MEMORY
from weft.codegen.torch.opaque import OPAQUE
from weft.codegen.torch.printer import PRIMITIVES, Speller, print_nodes
from weft.ir.ops.op import Op
from weft.ir.ops.regions import Fused, Loop
from weft.ir.types import Graph, Node


def _fused(body: Body, node: Node) -> None:
    """A region as a call of its op."""
    op: Any = node.op
    body.assign(node.outs, f"OPS.{op.kernel}({', '.join(body.argument(v) for v in node.ins)})")


TABLE: dict[type[Op], Speller] = {**PRIMITIVES, **MEMORY, **MOVES, **COMPOSITES, **OPAQUE, Fused: _fused}
TABLE[Loop] = loop_speller(TABLE)


@dataclass(frozen=True)
class Function:
    """A printed function: its lines, and what each graph input is called in it.

    statements: where each begins among the lines, and the nodes that it runs, by their first results; what a statement
    takes in as an expression comes with it. The first has what stands before it, the last the results."""

    name: str
    lines: list[str]
    arguments: dict[str, str]
    statements: tuple[tuple[int, tuple[str, ...]], ...] = ()


def print_function(
    file: File,
    name: str,
    graph: Graph,
    doc: str = "",
    given: Sequence[str] = (),
    last: Mapping[int, str] | None = None,
    like: str = "",
) -> Function:
    """`def name(inputs): ... return outputs` of a prepared graph; one output is returned bare, several as a tuple.

    given: run-time dims whose sizes are further arguments. last: what is appended to the source of an output. like: for
    a graph without inputs, the last argument, a tensor whose device (and dtype, where all have one) the results take.
    """
    body = Body(file, graph.inputs, graph.outputs, graph.nodes)
    body.given = frozenset(given)
    body.take_after(like)
    print_nodes(body, graph, TABLE)
    results = [body.full(v) + (last or {}).get(i, "") for i, v in enumerate(graph.outputs)]
    lines = Lines()
    sizes = [file.sizes.names[d] for d in given]
    with lines.indent(f"def {name}({', '.join([*body.arguments(), *sizes, *([like] if like else [])])}):"):
        if doc:
            lines.text(f'"""{doc}"""')
        for statement in body.opening(*results):
            lines.add(statement)
        first = len(lines.lines)
        lines.lines += body.lines.lines
        lines.add(f"return {', '.join(results)}" if results else "return ()")
    statements = tuple((first + at, nodes) for at, nodes in body.printed)
    return Function(name, lines.lines, dict(zip((v.name for v in graph.inputs), body.arguments())), statements)
