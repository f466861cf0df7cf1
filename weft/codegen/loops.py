"""Loops as Python loops over unbound steps; a loop that only adds up is a cumulative sum."""

from collections.abc import Mapping

from weft.ir.formula import operand
from weft.ir.op import Op
from weft.ir.primitives import Loop, Map
from weft.ir.types import Dims, Graph, Node

from .body import Body
from .printer import Speller, print_nodes
from .spelling import ATOM, Src, plain


def loop_speller(table: Mapping[type[Op], Speller]) -> Speller:
    """The speller of loops; `table` prints their bodies."""
    return lambda body, node: _loop(body, node, table)


def _loop(body: Body, node: Node, table: Mapping[type[Op], Speller]) -> None:
    op = node.op
    assert isinstance(op, Loop)
    if _adds(op.body) and op.carries == 1 and not op.reverse and op.dim in node.ins[1].dims:
        _cumulative(body, node, op)
        return
    c, k = op.carries, len(op.body.outputs)
    carries = [body.mint(v.name) for v in op.body.inputs[:c]]
    for name, v in zip(carries, node.ins):
        src = body.loose(v)
        body.lines.add(f"{name} = {src.text if src.dims == v.dims else body.full(v)}")
    env = {v.name: Src(name, ATOM, v.dims, v.dtype) for v, name in zip(op.body.inputs, carries)}
    steps = _operands(body, op, node, env)
    stacks = _stacks(body, op, node, k)
    for name in stacks.values():
        body.lines.add(f"{name} = []")
    start = len(body.lines.lines)
    with body.lines.indent(_head(body, op, steps)):
        head = len(body.lines.lines)
        child = body.child(op.body, env)
        for i in range(c):
            if k + i in stacks:
                body.lines.add(f"{stacks[k + i]}.append({carries[i]})")
        print_nodes(child, op.body, table)
        _turn(body, child, op.body, carries, {j: name for j, name in stacks.items() if j < k})
        body.noted = ""
        if len(body.lines.lines) == head:  # every carry stays as it is, and nothing is stacked
            del body.lines.lines[start:]
    for i, name in enumerate(carries):
        v = node.outs[i]
        body.env[v.name] = Src(name, ATOM, v.dims, v.dtype)
        body.own(name, v)
    for j, name in stacks.items():
        _stack(body, op, node, j, name)


def _turn(body: Body, child: Body, inner: Graph, carries: list[str], stacks: dict[int, str]) -> None:
    """The end of a step: its results go onto their stacks, then its carries become the next step's.

    A result may read the carries as they were, or be one of them, so nothing is replaced before everything is stacked;
    but where all results are one value, made by the last line, that line may make the carry itself.
    """
    after = [child.full(v) for v in inner.outputs]
    last = body.lines.lines[-1].strip()
    if len(carries) == 1 and len(set(after)) == 1 and last.startswith(f"{after[0]} = "):
        body.lines.lines[-1] = body.lines.lines[-1].replace(f"{after[0]} = ", f"{carries[0]} = ", 1)
        after = carries * len(after)
    for j, name in stacks.items():
        body.lines.add(f"{name}.append({after[j]})")
    if carries and after[: len(carries)] != carries:
        body.lines.add(f"{', '.join(carries)} = {', '.join(after[: len(carries)])}")


def _operands(body: Body, op: Loop, node: Node, env: dict[str, Src]) -> list[tuple[str, str]]:
    """Fill `env` with what the body's operands are; gives (variable, source of the steps) of those that are sliced."""
    steps: list[tuple[str, str]] = []
    for inner, v in zip(op.body.inputs[op.carries :], node.ins[op.carries :]):
        src = body.loose(v)
        if src.dims is not None and op.dim in src.dims:
            name = body.mint(inner.name)
            steps.append((name, f"{src.at(ATOM)}.unbind({src.dims.index(op.dim)})"))
            env[inner.name] = Src(name, ATOM, tuple(d for d in src.dims if d != op.dim), v.dtype)
        else:
            if not src.number and not plain(src.text):
                src = body.bind(v.name, src)
            env[inner.name] = src
    return steps


def _head(body: Body, op: Loop, steps: list[tuple[str, str]]) -> str:
    turn = (lambda s: f"reversed({s})") if op.reverse else (lambda s: s)
    if not steps:
        return f"for _ in range({body.size(op.dim).text}):"
    if len(steps) == 1:
        return f"for {steps[0][0]} in {turn(steps[0][1])}:"
    return f"for {', '.join(n for n, _ in steps)} in zip({', '.join(turn(s) for _, s in steps)}):"


def _stacks(body: Body, op: Loop, node: Node, k: int) -> dict[int, str]:
    """Lists for the results that are read: place among the loop's results -> name."""
    return {j: body.mint(f"{v.name}_steps") for j, v in enumerate(node.outs) if j >= op.carries and body.uses[v.name]}


def _stack(body: Body, op: Loop, node: Node, j: int, name: str) -> None:
    """Join a list of steps; the loop's dim stands where the operands have it, so that nothing is transposed."""
    v = node.outs[j]
    like = next((x.dims for x in node.ins[op.carries :] if op.dim in x.dims), (op.dim,))
    before = set(like[: like.index(op.dim)])
    inner = v.dims[1:]
    at = max((i + 1 for i, d in enumerate(inner) if d in before), default=0)
    steps = f"{name}[::-1]" if op.reverse else name
    dims = (*inner[:at], op.dim, *inner[at:])
    src = body.statement(v, Src(f"torch.stack({steps}, {at})", ATOM, dims, v.dtype))
    body.env[v.name] = src
    body.own(src.text, v)
    body.lines.add(f"del {name}")


def _adds(body: Graph) -> bool:
    """carry = carry + x, and nothing else."""
    if len(body.nodes) != 1 or len(body.inputs) != 2 or set(body.outputs) - {body.nodes[0].outs[0], body.inputs[0]}:
        return False
    op = body.nodes[0].op
    return (
        isinstance(op, Map)
        and not op.lets
        and op.exprs == (operand(0) + operand(1),)
        and body.nodes[0].outs[0] == body.outputs[0]
    )


def _cumulative(body: Body, node: Node, op: Loop) -> None:
    start, x = node.ins
    k, dims = len(op.body.outputs), x.dims
    at = dims.index(op.dim)
    name = body.named(x)
    total = body.bind("total", Src(f"{name}.cumsum({at})", ATOM, dims, x.dtype))
    first = body.loose(start)

    def with_start(text: str, to: Dims) -> str:
        return text if first.number and first.value == 0 else f"{text} + {first.aligned(to).text}"

    for j, v in enumerate(node.outs):
        if not body.uses[v.name]:
            continue
        if j == 0:
            text, to = f"{total.text}.select({at}, -1)", tuple(d for d in dims if d != op.dim)
        else:
            before = j >= k or op.body.outputs[j] == op.body.inputs[0]
            text, to = (f"{total.text} - {name}" if before else total.text), dims
        src = body.statement(v, Src(with_start(text, to), ATOM, to, v.dtype))
        body.env[v.name] = src
        body.own(src.text, v)
