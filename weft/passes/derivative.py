"""The joint forward-backward graph, from each op's `vjp`: what a backward needs is an edge of it.

before:
    (x: f32[batch width], w: f32[width inner]) {
      h: f32[batch inner] = einsum(x, w) to=[batch inner]
      y: f32[batch inner] = map(h) exprs=["tanh(h)"] to=[batch inner]
      return y
    }
after:
    (x: f32[batch width], w: f32[width inner], d_y: f32[batch inner]) {
      h: f32[batch inner] = einsum(x, w) to=[batch inner]
      y: f32[batch inner] = map(h) exprs=["tanh(h)"] to=[batch inner]
      d_h: f32[batch inner] = map(h, d_y) exprs=["d_y*(1 - tanh(h)**2)"] to=[batch inner]
      d_x: f32[batch width] = einsum(d_h, w) to=[batch width]
      d_w: f32[width inner] = einsum(d_h, x) to=[width inner]
      return y, d_x, d_w
    }

A loop's derivative is a loop the other way, so a stack of layers stays one region; a call's or a composite's is one
`grad` op (or a declared one, as `attend_grad`), so blocks stay blocks. `flatten` opens all of them.

It does not fire on: integer and bool inputs, which have no gradient, nor on one that `detach` alone reads; values
behind a `detach`, an `argmax` or an index; outputs that a `detach` makes or that are no floats, which get no cotangent
input. An input that no output depends on gets zeros.

Source: reverse mode over straight-line code (Griewank and Walther, Evaluating Derivatives, 2008, chapter 3); loops as
in Pearlmutter and Siskind, Reverse-mode AD in a functional framework, 2008.
"""

from collections.abc import Iterable

from weft.errors import UsageError
from weft.ir import derive
from weft.ir.graphs import with_gradient
from weft.ir.types import Graph


def float_inputs(graph: Graph) -> tuple[str, ...]:
    """Names of the inputs that a gradient can be asked of; it is 0 where nothing depends on one."""
    return tuple(v.name for v in graph.inputs if v.type.floating)


def joint(graph: Graph, wrt: Iterable[str] | None = None) -> Graph:
    """Forward and backward in one graph.

    Inputs: the graph's, then a cotangent `d_<name>` for each float output that can have a gradient. Outputs: the
    graph's, then the gradients of `wrt` in the order given (default: every float input that can have one). The
    cotangent of a value x is called d_x, where that is free. Raises UsageError for a name that has no gradient.
    """
    names = tuple(v.name for v in with_gradient(graph, graph.inputs)) if wrt is None else tuple(wrt)
    for name in names:
        if name not in float_inputs(graph):
            raise UsageError(f"{name!r} is no float input; those are {', '.join(float_inputs(graph)) or 'none'}")
    return derive.joint(graph, names, named=True)
