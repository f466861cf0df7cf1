"""The verifier. Recomputing every type is the type check; the rules of each op stand in its `infer`."""

from collections.abc import Mapping

from weft.errors import VerifyError
from weft.ir.ops.op import body_of, op_name, tupled
from weft.ir.types import Graph, Node, Val, checked, need


def verify(graph: Graph, sizes: Mapping[str, int] | None = None) -> Graph:
    """Returns the graph; raises VerifyError naming the node and the rule it breaks.

    Graph rules:
    1. the name of a value or dim is an ASCII identifier;
    2. a dtype is one of DTYPES;
    3. a type has a dim at most once;
    4. a name is bound once;
    5. an operand is bound before use, with the type it is used at;
    6. an op accepts its operands (its own rules, see `infer`);
    7. a node's results have the types that its op gives;
    8. an output is bound;
    9. the bodies of loops and calls obey all of this.
    With sizes: 10. every dim has one, at least 0; 11. a concat is as long as its operands; 12. a part lies within
    its operand; 13. a table fills its dims; 14. the pieces of a chunk hold its dim, and no piece is empty."""
    seen: dict[str, Val] = {}
    n = None
    try:  # around all nodes, and messages only when there is one: this runs on every graph after every pass
        for v in graph.inputs:
            _bind(seen, v, sizes)
        for n in graph.nodes:
            _node(seen, n, sizes)
    except VerifyError as e:
        raise VerifyError(f"{_where(n) if n else 'input'}: {e}") from None
    for body in filter(None, (body_of(n.op) for n in graph.nodes)):
        verify(body, sizes)
    for v in graph.outputs:
        need(seen.get(v.name) == v, f"output {v.name} is not bound")
    return graph


def _node(seen: dict[str, Val], n: Node, sizes: Mapping[str, int] | None) -> None:
    for v in n.ins:
        got = seen.get(v.name)
        if got != v:
            raise VerifyError(
                f"operand {v.name} is not bound before use"
                if got is None
                else f"operand {v.name} is {got.type}, used as {v.type}"
            )
    types = tupled(n.op.infer(*n.types))
    if types != (want := tuple(v.type for v in n.outs)):
        raise VerifyError(f"the op gives {_types(types)}, the graph says {_types(want)}")
    for v in n.outs:
        _bind(seen, v, sizes)
    if sizes is not None:
        n.op.fits(sizes)


def _where(n: Node) -> str:
    """How messages call a node."""
    return f"{n.outs[0].name if n.outs else '?'} = {op_name(type(n.op))}" + (f" ({n.src})" if n.src else "")


def _bind(seen: dict[str, Val], v: Val, sizes: Mapping[str, int] | None) -> None:
    checked(v)
    if v.name in seen:
        raise VerifyError(f"{v.name} is bound twice")
    if sizes is not None:
        for d in v.dims:
            need(sizes.get(d, -1) >= 0, f"dim {d} of {v.name} has no size")
    seen[v.name] = v


def _types(types: tuple[object, ...]) -> str:
    return ", ".join(map(str, types)) or "nothing"
