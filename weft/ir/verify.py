"""The verifier. Recomputing every type is the type check; the rules of each op stand in its `infer`."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager

from weft.errors import VerifyError
from weft.ir.ops.op import body_of, op_name, tupled
from weft.ir.types import Graph, Val, checked, need


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
    its operand; 13. a table fills its dims."""
    seen: dict[str, Val] = {}
    for v in graph.inputs:
        _bind(seen, v, "input", sizes)
    for n in graph.nodes:
        where = f"{n.outs[0].name if n.outs else '?'} = {op_name(type(n.op))}" + (f" ({n.src})" if n.src else "")
        for v in n.ins:
            got = seen.get(v.name)
            need(got is not None, f"{where}: operand {v.name} is not bound before use")
            need(got == v, f"{where}: operand {v.name} is {got and got.type}, used as {v.type}")
        with _telling(where):
            types = tupled(n.op.infer(*n.types))
        want = tuple(v.type for v in n.outs)
        need(types == want, f"{where}: the op gives {_types(types)}, the graph says {_types(want)}")
        for v in n.outs:
            _bind(seen, v, where, sizes)
        if (body := body_of(n.op)) is not None:
            verify(body, sizes)
        if sizes is not None:
            with _telling(where):
                n.op.fits(sizes)
    for v in graph.outputs:
        need(seen.get(v.name) == v, f"output {v.name} is not bound")
    return graph


@contextmanager
def _telling(where: str) -> Generator[None]:
    """What an op refuses inside is told of the node."""
    try:
        yield
    except VerifyError as e:
        raise VerifyError(f"{where}: {e}") from None


def _bind(seen: dict[str, Val], v: Val, where: str, sizes: Mapping[str, int] | None) -> None:
    checked(v, where)
    need(v.name not in seen, f"{where}: {v.name} is bound twice")
    for d in v.dims:
        need(sizes is None or sizes.get(d, -1) >= 0, f"{where}: dim {d} of {v.name} has no size")
    seen[v.name] = v


def _types(types: tuple[object, ...]) -> str:
    return ", ".join(map(str, types)) or "nothing"
