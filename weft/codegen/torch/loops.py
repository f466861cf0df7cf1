"""Loops as functions that go through unbound steps; a loop that only adds up is a cumulative sum.

A function of its own lets a compiler take the loop as one op, which keeps the number of steps open (`runtime/steps`).
"""

import ast
from collections.abc import Mapping, Set
from dataclasses import dataclass

from weft.codegen.torch.body import RESERVED, Body
from weft.codegen.torch.lines import Lines, tuple_of
from weft.codegen.torch.printer import Speller, print_nodes
from weft.codegen.torch.spelling import ATOM, Src, plain
from weft.ir.formula import operand
from weft.ir.ops.op import Op
from weft.ir.ops.primitives import Loop, Map
from weft.ir.types import Dims, Graph, Node, Val


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
    env = {v.name: Src(name, ATOM, v.dims, v.dtype) for v, name in zip(op.body.inputs, carries)}
    sliced = _operands(body, op, node, env)
    starts = [_start(body, v) for v in node.ins[:c]]
    stacks = _stacks(body, op, node, k)
    used = [i for i in range(c) if body.uses[node.outs[i].name]]
    outer, body.lines = body.lines, Lines(1)
    for name in stacks.values():
        body.lines.add(f"{name} = []")
    with body.lines.indent(_head(op, sliced)):
        idle = not _step(body, op, carries, stacks, body.child(op.body, env), table)
    at = {j: _stack(body, op, node, j, name) for j, name in stacks.items()}
    inside, body.lines, body.noted = body.lines, outer, ""
    results = [*(carries[i] for i in used), *(body.env[node.outs[j].name].text for j in stacks)]
    if idle:
        for i in used:
            body.lines.add(f"{carries[i]} = {starts[i]}")
    elif results:
        given = [*((s.given, s.source) for s in sliced), *zip(carries, starts)]
        inside.add(f"return {tuple_of(results)}")
        name = _function(body, op.dim, inside.lines, given)
        axes = tuple_of(str(s.axis) for s in sliced), tuple_of([*("None" for _ in used), *map(str, at.values())])
        loop = body.file.object(f"{op.dim}_loop", f"steps.Steps({name}, {axes[0]}, {axes[1]})")
        body.note()
        made = ", ".join(results) if len(results) > 1 else tuple_of(results)
        body.lines.add(f"{made} = {loop}({', '.join(source for _, source in given)})")
    for i in used:
        v = node.outs[i]
        body.env[v.name] = Src(carries[i], ATOM, v.dims, v.dtype)
        body.own(carries[i], v)


def _function(body: Body, dim: str, lines: list[str], given: list[tuple[str, str]]) -> str:
    """The name of a module-level function of these lines; what they read of the caller's joins (argument, source)."""
    given += [(name, name) for name in _free(lines, body.taken - {name for name, _ in given})]
    head = Lines()
    with head.indent(f"def {{}}({', '.join(name for name, _ in given)}):"):
        head.text(f'"""A loop over {body.sizes.names[dim]}."""')
    return body.file.function(f"over_{dim}", [*head.lines, *lines])


def _start(body: Body, v: Val) -> str:
    """The source of a carry before the first step."""
    src = body.loose(v)
    return src.text if src.dims == v.dims else body.full(v)


def _step(
    body: Body,
    op: Loop,
    carries: list[str],
    stacks: dict[int, str],
    child: Body,
    table: Mapping[type[Op], Speller],
) -> bool:
    """Print one step and say whether it does anything: not where every carry stays as it is and nothing is stacked."""
    c, k, before = op.carries, len(op.body.outputs), len(body.lines.lines)
    for i in range(c):
        if k + i in stacks:
            body.lines.add(f"{stacks[k + i]}.append({carries[i]})")
    print_nodes(child, op.body, table)
    _turn(body, child, op.body, carries, {j: name for j, name in stacks.items() if j < k})
    body.noted = ""
    return len(body.lines.lines) > before


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


@dataclass(frozen=True)
class _Sliced:
    """An operand that the loop goes through: variable of a step, argument of the loop, its source, the loop's axis."""

    each: str
    given: str
    source: str
    axis: int


def _operands(body: Body, op: Loop, node: Node, env: dict[str, Src]) -> list[_Sliced]:
    """Fill `env` with what the body's operands are; gives those that are sliced, or else the steps' own numbers."""
    sliced: list[_Sliced] = []
    for inner, v in zip(op.body.inputs[op.carries :], node.ins[op.carries :]):
        src = body.loose(v)
        if src.dims is not None and op.dim in src.dims:
            name = body.mint(inner.name)
            own = src.text.isidentifier() and src.text not in {s.given for s in sliced}
            given = src.text if own else body.mint(f"{inner.name}s")
            sliced.append(_Sliced(name, given, src.text, src.dims.index(op.dim)))
            env[inner.name] = Src(name, ATOM, tuple(d for d in src.dims if d != op.dim), v.dtype)
        else:
            if not src.number and not plain(src.text):
                src = body.bind(v.name, src)
            env[inner.name] = src
    if not sliced:
        count = body.coordinate(op.dim).text
        sliced.append(_Sliced("_", count, count, 0))
    return sliced


def _head(op: Loop, sliced: list[_Sliced]) -> str:
    turn = "reversed({})".format if op.reverse else "{}".format
    steps = [turn(f"{s.given}.unbind({s.axis})") for s in sliced]
    if len(steps) == 1:
        return f"for {sliced[0].each} in {steps[0]}:"
    return f"for {', '.join(s.each for s in sliced)} in zip({', '.join(steps)}):"


def _free(lines: list[str], names: Set[str]) -> list[str]:
    """Those of `names` that the lines of a function read and do not set, in order."""
    tree = ast.walk(ast.parse("\n".join(["def f():", *lines])))
    found = sorted((n for n in tree if isinstance(n, ast.Name)), key=lambda n: (n.lineno, n.col_offset))
    made = {n.id for n in found if isinstance(n.ctx, ast.Store)}
    return list(dict.fromkeys(n.id for n in found if n.id in names - made - RESERVED))


def _stacks(body: Body, op: Loop, node: Node, k: int) -> dict[int, str]:
    """Lists for the results that are read: place among the loop's results -> name."""
    return {j: body.mint(f"{v.name}_steps") for j, v in enumerate(node.outs) if j >= op.carries and body.uses[v.name]}


def _stack(body: Body, op: Loop, node: Node, j: int, name: str) -> int:
    """Join a list of steps and say along which axis: where the operands have the loop's dim, so nothing is copied."""
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
    return at


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
