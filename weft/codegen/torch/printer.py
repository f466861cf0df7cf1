"""Graph -> straight-line torch source, one statement a node, short single-use values inside the next statement."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import sympy as sp

from weft.codegen.torch.body import Body
from weft.codegen.torch.einsum import align, matmul, spell
from weft.codegen.torch.lines import tuple_of
from weft.codegen.torch.spelling import ATOM, PRODUCT, Src, TorchFormulas, literal, plain
from weft.ir.formula import operand, symbol
from weft.ir.formula.evaluate import evaluate
from weft.ir.formula.functions import where
from weft.ir.ops.op import Op, op_name
from weft.ir.ops.primitives import Concat, Detach, Einsum, Map, Part, Reduce, Rename, Table
from weft.ir.types import FLOATS, Dims, Graph, Node, union

Speller = Callable[[Body, Node], None]


def print_nodes(body: Body, graph: Graph, table: Mapping[type[Op], Speller]) -> None:
    """Print every node of a graph into `body`, which notes the nodes of each statement. KeyError-free: an op without a
    spelling is a NotImplementedError."""
    left, silent = dict(body.uses), list[str]()
    for i, node in enumerate(graph.nodes):
        speller = table.get(type(node.op))
        if speller is None:
            raise NotImplementedError(f"no torch spelling for {op_name(type(node.op))}")
        following = graph.nodes[i + 1].ins if i + 1 < len(graph.nodes) else ()
        body.next_reads = frozenset(v.name for v in following)
        body.src = node.src
        before = len(body.lines.lines)
        speller(body, node)
        silent.append(node.outs[0].name)
        if len(body.lines.lines) > before:
            body.printed.append((before, tuple(silent)))
            silent = []
        done: list[str] = []
        for v in node.ins:
            left[v.name] -= 1
            if not left[v.name]:
                done.append(v.name)
        body.release(done)
    if silent:
        body.printed.append((len(body.lines.lines), tuple(silent)))


def _map(body: Body, node: Node) -> None:
    op = node.op
    assert isinstance(op, Map)
    read = [(v, e) for v, e in zip(node.outs, op.exprs) if body.uses[v.name]]
    everything = (*op.lets, *(e for _, e in read))
    acc = "i64" if _chosen(op) else body.compute(op.dtype, *(v.dtype for v in node.ins))
    env: dict[sp.Basic, Src] = {}
    for i, v in enumerate(node.ins):
        src = body.loose(v)
        if not src.number and not plain(src.text) and sum(e.count(operand(i)) for e in everything) > 1:
            src = body.bind(v.name, src)
        env[operand(i)] = _cast(body, src, acc)
    for name in sorted(op.symbols):
        if name.startswith("i_"):
            env[symbol(name)] = body.coordinate(name[2:])
        elif name.startswith("n_"):
            env[symbol(name)] = body.size(name[2:])
    varies = union(*(s.dims for s in env.values() if s.dims is not None))
    space = tuple(d for d in op.to if d in varies)  # the map is constant along the rest, which broadcasting adds later
    env = {k: s.aligned(space) for k, s in env.items()}
    formulas = TorchFormulas(body, space, acc, node.outs[0].name)
    for (v, _), src in zip(read, evaluate([e for _, e in read], env, formulas.table, op.lets)):
        body.put(v, _whole(body, _result(body, src, op.dtype), space), node)


def _chosen(op: Map) -> bool:
    """Is every result one of two whole numbers?"""
    return op.dtype == "i64" and all(
        isinstance(e, where) and e.args[1].is_Integer and e.args[2].is_Integer for e in op.exprs
    )


def _whole(body: Body, src: Src, space: Dims) -> Src:
    """A result that varies along some dims of `space` only: leading dims may be missing, others are spread out."""
    if not src.dims or src.dims == space[len(space) - len(src.dims) :]:
        return src
    dims = space[min(space.index(d) for d in src.dims) :]
    return Src(f"{src.at(ATOM)}.expand({body.shape(dims)})", ATOM, dims, src.dtype)


def _cast(body: Body, src: Src, dtype: str) -> Src:
    """A float operand in the dtype a map is computed in."""
    if src.number or src.dtype not in FLOATS or src.dtype == dtype:
        return src
    return Src(f"{src.at(ATOM)}.to({body.dtype(dtype)})", ATOM, src.dims, dtype)


def _result(body: Body, src: Src, dtype: str) -> Src:
    """The computed value in the map's dtype."""
    if src.number:
        if src.value is not None and dtype in FLOATS and isinstance(src.value, bool | int):
            return literal(float(src.value)) if src.value else literal(0)
        return src
    if src.dtype == dtype:
        return src
    return Src(f"{src.at(ATOM)}.to({body.dtype(dtype)})", ATOM, src.dims, dtype)


def _einsum(body: Body, node: Node) -> None:
    op = node.op
    assert isinstance(op, Einsum)
    if any(body.loose(v).number and body.loose(v).value == 0 for v in node.ins):
        body.put(node.outs[0], literal(0), node)
        return
    dims = [v.dims for v in node.ins]

    def size(dim: str) -> str:
        return body.size(dim).text

    product = matmul([body.full(v) for v in node.ins], dims, op.to, size)
    elementwise = not product and len(node.ins) == 2 and set(op.to) == set(union(*dims))
    if elementwise:
        a, b = (body.loose(v) for v in node.ins)
        have = tuple(d for d in op.to if d in union(a.dims or (), b.dims or ()))
        a, b = a.aligned(have), b.aligned(have)
        text = f"{a.at(PRODUCT)} * {b.at(PRODUCT + 1)}"
        body.put(node.outs[0], Src(text, PRODUCT, have, node.outs[0].dtype), node)
        return
    text = spell([body.full(v) for v in node.ins], dims, op.to, size)
    rank = PRODUCT if _loose_product(text) else ATOM
    body.put(node.outs[0], Src(text, rank, op.to, node.outs[0].dtype, product=product), node)


def _loose_product(text: str) -> bool:
    depth = 0
    for i, c in enumerate(text):
        depth += (c in "([") - (c in ")]")
        if depth == 0 and text.startswith((" @ ", " * "), i):
            return True
    return False


def _reduce(body: Body, node: Node) -> None:
    op, (x,), out = node.op, node.ins, node.outs[0]
    assert isinstance(op, Reduce)
    src = body.loose(x)
    if op.kind == "sum" and src.number and src.value == 0:
        body.put(out, literal(0), node)
        return
    over = [i for i, d in enumerate(x.dims) if d not in op.to]
    left = tuple(d for d in x.dims if d in op.to)
    text = body.full(x)
    if over:
        at = str(over[0]) if len(over) == 1 else tuple_of(map(str, over))
        at = "-1" if over == [len(x.dims) - 1] and len(x.dims) > 1 else at
        name = {"sum": "sum", "max": "amax", "argmax": "argmax"}[op.kind]
        text = f"{text}.{name}({at if left or op.kind != 'sum' else ''})"
    text = align(text, left, op.to)
    body.put(out, Src(text, ATOM, op.to, out.dtype), node)


def _rename(body: Body, node: Node) -> None:
    op, (x,), out = node.op, node.ins, node.outs[0]
    assert isinstance(op, Rename)
    src = body.loose(x)
    dims = None if src.dims is None else tuple(op.new if d == op.old else d for d in src.dims)
    body.alias(out, replace(src, dims=dims, product=None))


def _detach(body: Body, node: Node) -> None:
    body.alias(node.outs[0], body.loose(node.ins[0]))


def _concat(body: Body, node: Node) -> None:
    op, out = node.op, node.outs[0]
    assert isinstance(op, Concat)
    axis = node.ins[0].dims.index(op.dims[0])
    parts = tuple_of(body.argument(v) for v in node.ins)
    body.put(out, Src(f"torch.cat({parts}, {axis})", ATOM, out.dims, out.dtype), node)


def _part(body: Body, node: Node) -> None:
    op, (x,), out = node.op, node.ins, node.outs[0]
    assert isinstance(op, Part)
    names = {str(s)[2:]: body.size(str(s)[2:]) for s in op.start.free_symbols}
    start = body.sizes.spelled(op.start, body, names).text
    text = f"{body.full(x)}.narrow({x.dims.index(op.old)}, {start}, {body.size(op.new).text})"
    body.put(out, Src(text, ATOM, out.dims, out.dtype), node)


def _table(body: Body, node: Node) -> None:
    op, out = node.op, node.outs[0]
    assert isinstance(op, Table)
    body.put(out, constant_table(body, op.values, op.shape, out.dims), node)


def constant_table(body: Body, values: Sequence[int], shape: Sequence[int], dims: Dims) -> Src:
    """A constant i64 tensor; an arithmetic progression is said as a range."""
    step = values[1] - values[0] if len(values) > 1 else 1
    if len(shape) == 1 and step > 0 and list(values) == list(range(values[0], values[0] + step * len(values), step)):
        ends = (values[0], values[-1] + 1) if values[0] or step > 1 else (values[-1] + 1,)
        text = ", ".join(map(str, (*ends, *([step] if step > 1 else []))))
        return Src(f"torch.arange({text}, device={body.device()})", ATOM, dims, "i64")
    flat = f"torch.tensor([{', '.join(map(str, values))}], device={body.device()})"
    text = flat if len(shape) == 1 else f"{flat}.view({', '.join(map(str, shape)) or '()'})"
    return Src(text, ATOM, dims, "i64")


PRIMITIVES: dict[type[Op], Speller] = {
    Map: _map,
    Einsum: _einsum,
    Reduce: _reduce,
    Rename: _rename,
    Detach: _detach,
    Concat: _concat,
    Part: _part,
    Table: _table,
}
