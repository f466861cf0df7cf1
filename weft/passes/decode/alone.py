"""A program without its memory, for decoding: the whole sequence is one segment, in which rows see as far back as the
memory keeps.

before: (x [batch seq width], past [batch memory width], ..) { rows = concat(past, x); k = einsum(rows, w)
          to=[batch recall heads head]; o = attend(q, rename(k, recall -> key), ..) pattern=P tail=true; kept = .. }
after:  (x [batch seq width], ..) { k = einsum(x, w) to=[batch seq heads head];
          o = attend(q, rename(k, seq -> key), ..) pattern=(P and q - k <= keep) }

Decoding is a segment of length one: a new row sees itself and the rows that are kept, and so does every row here. It is
what `forward` computes, segment after segment, where the pattern looks no further back than the memory keeps.
"""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import sympy as sp

from weft.ir.builder import Builder
from weft.ir.formula import symbol
from weft.ir.graphs import dce, with_gradient
from weft.ir.library.attention import Attend
from weft.ir.ops.movement import Concat
from weft.ir.ops.op import Op, body_of
from weft.ir.pattern import Pattern
from weft.ir.program import Program, ProgramState
from weft.ir.types import Graph, Node, Val
from weft.ir.verify import verify
from weft.passes.inference import inference, narrowed


def alone(program: Program) -> Program:
    """The program without states, for inference."""
    program = inference(program)
    if not program.states:
        return program
    keep = [i for i, name in enumerate(program.outputs) if name not in program.carried]
    graph = _bodies(narrowed(program.graph, keep)[0], program.states)
    graph, _ = narrowed(graph, range(len(keep)))
    names = {v.name for v in graph.inputs}
    return replace(
        sizes_alone(program),
        graph=verify(graph),
        inputs=tuple(name for name in program.inputs if name in names),
        outputs=tuple(program.outputs[i] for i in keep),
        states=(),
    )


def sizes_alone(program: Program) -> Program:
    """The program with the sizes that it has without rows of earlier segments."""
    none: dict[Any, Any] = {symbol(f"n_{s.rows}"): sp.Integer(0) for s in program.states}
    formulas: dict[str, Any] = {d: n for d, n in program.sizes.items() if not isinstance(n, int)}
    sizes = {**program.sizes, **{d: n.xreplace(none) for d, n in formulas.items()}}
    runtime = {d: r for d, r in program.runtime.items() if d not in {s.rows for s in program.states}}
    return replace(program, sizes=sizes, runtime=runtime)


def block_alone(graph: Graph, states: tuple[ProgramState, ...]) -> Graph:
    """The graph of a block without what earlier segments left, nor what it leaves; its other outputs stay first."""
    keep = {s.rows: s.keep for s in states}
    if not any(d in keep for v in graph.inputs for d in v.dims):
        return graph
    live = with_gradient(graph, graph.outputs)
    outputs = tuple(v for v in graph.outputs if v in live or not v.type.floating)
    return _rebuilt(dce(replace(graph, outputs=outputs)), keep)


def _rebuilt(graph: Graph, keep: Mapping[str, int]) -> Graph:
    """Nodes again, without past rows: what is joined to them is what was joined, under its own dim."""
    g, same = Builder(), dict[str, str]()
    env: dict[Val, Val] = {v: g.input(v.name, v.type) for v in graph.inputs if keep.keys().isdisjoint(v.dims)}
    most = max(keep.values())
    for n in graph.nodes:
        if isinstance(n.op, Concat) and n.op.dims[0] in keep:
            same[n.op.new] = n.op.dims[1]
            env[n.outs[0]] = env[n.ins[1]]
        elif all(v in env for v in n.ins) and keep.keys().isdisjoint(n.space):
            op = _seen(_renamed(n.op, same, keep), most)
            with g.at(n.src):
                env.update(zip(n.outs, g.many(op, *(env[v] for v in n.ins), names=[v.name for v in n.outs])))
    return g.graph(*(env[v] for v in graph.outputs))


def _seen(op: Op, keep: int) -> Op:
    if not isinstance(op, Attend) or not op.tail:
        return op
    return replace(op, tail=False, layout=None, pattern=op.pattern & Pattern.parse(f"q - k <= {keep}"))


def _renamed(op: Op, same: Mapping[str, str], gone: Mapping[str, int]) -> Op:
    """The op with dims called otherwise, and with no row along those in `gone`."""
    by: dict[Any, Any] = {symbol(f"n_{d}"): sp.Integer(0) for d in gone}
    by |= {symbol(f"{c}_{d}"): symbol(f"{c}_{new}") for d, new in same.items() for c in "in"}

    def value(x: Any) -> Any:
        if isinstance(x, str):
            return same.get(x, x)
        if isinstance(x, tuple):
            return tuple(map(value, x))
        return x.xreplace(by) if isinstance(x, sp.Basic) else x

    same_op: Any = op
    changed = {f.name: value(getattr(op, f.name)) for f in fields(same_op)}
    return replace(same_op, **{k: v for k, v in changed.items() if v != getattr(op, k)})


def _bodies(graph: Graph, states: tuple[ProgramState, ...]) -> Graph:
    """The graph with the bodies of its blocks, those in loops too, without past rows; they keep their inputs."""

    def body(inner: Graph) -> Graph:
        if any(body_of(n.op) is not None for n in inner.nodes):
            return _bodies(inner, states)
        made = block_alone(inner, states)
        return inner if made is inner else replace(made, inputs=inner.inputs)

    def node(n: Node) -> Node:
        op: Any = n.op
        inner = body_of(op)
        return n if inner is None else replace(n, op=replace(op, body=body(inner)))

    return replace(graph, nodes=tuple(map(node, graph.nodes)))
