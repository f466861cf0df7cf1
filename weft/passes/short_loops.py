"""Loops over time made short: what does not need the carry is computed before or after the loop, for all steps at once.

before:  loop seq (c; u, x) { f = sigmoid(u + v*c); c = f*c + (1 - f)*u; h = relu(c)*x; stack h }
after:   loop seq (c; u)    { f = sigmoid(u + v*c); c = f*c + (1 - f)*u; stack c };  h = relu(c)*x

A carry that only adds up (acc = acc + e) becomes a sum; one that stays as it is, an operand. A single carry that its
step is linear in, as every elementwise cell's derivative is, becomes c = a*c + b with a and b computed before the loop.
It does not fire on bodies that hold anything but maps, nor on those that make integers. Same real-arithmetic function.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from weft.ir.backward import backward
from weft.ir.builder import Builder, rebuilt
from weft.ir.formula import operand, symbol
from weft.ir.graphs import dce
from weft.ir.loops import linear_in_state
from weft.ir.ops.op import body_of, kind
from weft.ir.ops.primitives import Loop
from weft.ir.types import Dims, Graph, Node, Type, Val
from weft.passes.rewrite import merge, unlet


def short_loops(graph: Graph) -> Graph:
    """Every loop over maps in its short form."""
    if not any(_fires(n) for n in graph.nodes):
        return graph
    read = {v for n in graph.nodes for v in n.ins} | set(graph.outputs)

    def short(g: Builder, n: Node, ins: list[Val]) -> list[Val | None] | None:
        if not _fires(n):
            return None
        found = _Split(g, n, ins, read).build()
        return [found.get(v) for v in n.outs]  # None: nothing reads it

    return merge(dce(rebuilt(graph, short)))


def _fires(n: Node) -> bool:
    body = body_of(n.op)
    return body is not None and kind(n) == "scan" and bool(body.nodes) and all(v.type.floating for v in body.outputs)


def sums(body: Graph, j: int) -> Any:
    """The expression that carry j adds at each step, as (node, formula without the carry); None if it does more."""
    carry, after = body.inputs[j], body.outputs[j]
    readers = [n for n in body.nodes if carry in n.ins]
    if len(readers) != 1 or readers[0].outs[0] != after or carry in body.outputs:
        return None
    node = readers[0]
    op: Any = node.op
    s = operand(node.ins.index(carry))
    rest = op.exprs[0] - s
    return None if s in rest.free_symbols or node.ins.count(carry) > 1 else (node, rest)


def plain(body: Graph) -> Graph:
    """Without the maps that give an operand as it is, so that a result that is a bare operand is seen to be one."""
    env: dict[Val, Val] = {v: v for v in body.inputs}
    nodes: list[Node] = []
    for n in body.nodes:
        ins = tuple(env[v] for v in n.ins)
        op: Any = n.op
        if op.exprs == (operand(0),) and ins[0].type == n.outs[0].type:
            env[n.outs[0]] = ins[0]
        else:
            env.update((v, v) for v in n.outs)
            nodes.append(replace(n, ins=ins))
    return replace(body, nodes=tuple(nodes), outputs=tuple(env[v] for v in body.outputs))


@dataclass
class _Split:
    """One loop being taken apart. Values of the body are known by themselves; `wide` holds them for all steps."""

    g: Builder
    node: Node
    ins: list[Val]
    read: set[Val]
    wide: dict[Val, Val] = field(default_factory=dict)

    def __post_init__(self) -> None:
        op: Any = self.node.op
        self.op, self.dim, self.count = op, op.dim, op.carries
        self.body = plain(merge(unlet(op.body)))
        self.maker = {v: n for n in self.body.nodes for v in n.outs}
        self.carries = list(self.body.inputs[: self.count])
        self.after = list(self.body.outputs[: self.count])
        self.added = {j: found for j in range(self.count) if (found := sums(self.body, j)) is not None}
        self.fixed = {j for j in range(self.count) if self.after[j] == self.carries[j]}
        self.moving = [c for j, c in enumerate(self.carries) if j not in self.fixed]
        self.depends = self._dependent()

    def _dependent(self) -> set[Val]:
        out = set(self.moving)
        for n in self.body.nodes:
            if not out.isdisjoint(n.ins):
                out.update(n.outs)
        return out

    def build(self) -> dict[Val, Val]:
        """The loop's results, by the values that stood for them."""
        n, k = self.node, len(self.body.outputs)
        histories = n.outs[k:]
        wanted = [v for v, o in zip(self.body.outputs[self.count :], n.outs[self.count : k]) if o in self.read]
        inside = {v for m in self.body.nodes for v in m.ins}.union(wanted)
        alone = {j for j in self.added if histories[j] not in self.read and self.after[j] not in inside}
        ends = [j for j in alone if n.outs[j] in self.read]
        parts = [x for j in ends for x in self.added[j][0].ins if x != self.carries[j]]
        others = [j for j in range(self.count) if j not in alone | self.fixed]
        used = {j for j in others if n.outs[j] in self.read or histories[j] in self.read}
        stay = self._needed([*wanted, *parts], used, alone)
        for v, outer in zip(self.body.inputs[self.count :], self.ins[self.count :]):
            self.wide[v] = outer
        self.wide |= {self.carries[j]: self.ins[j] for j in self.fixed}
        out: dict[Val, Val] = {}
        if stay:
            out |= self._loop(sorted(stay), n, k)
        for j in ends:
            out[n.outs[j]] = self._sum(j)
        for j in self.fixed:
            out[n.outs[j]] = self.ins[j]
            out[histories[j]] = self._stacked(self.carries[j], histories[j])
        for v, o in zip(self.body.outputs[self.count :], n.outs[self.count : k]):
            if o in self.read:
                out[o] = self._stacked(v, o)
        return out

    def _needed(self, values: Sequence[Val], used: set[int], alone: set[int]) -> set[int]:
        """The carries that must run step by step."""
        stay: set[int] = set()
        todo = [*values, *(self.after[j] for j in used), *(self.carries[j] for j in used)]
        seen: set[Val] = set()
        while todo:
            v = todo.pop()
            if v in seen:
                continue
            seen.add(v)
            if v in self.moving:
                j = self.carries.index(v)
                if j not in alone and j not in stay:
                    stay.add(j)
                    todo.append(self.after[j])
            elif v in self.maker:
                todo += self.maker[v].ins
        return stay

    def _order(self, dims: Dims) -> Dims:
        """Where the loop's dim stands among others: as in the first operand that has it."""
        like = next((v.dims for v in self.ins[self.count :] if self.dim in v.dims), (self.dim,))
        before = set(like[: like.index(self.dim)])
        at = max((i + 1 for i, d in enumerate(dims) if d in before), default=0)
        return (*dims[:at], self.dim, *dims[at:])

    def all_steps(self, v: Val) -> Val:
        """A value of the body for every step at once; it lacks the loop's dim where all steps agree."""
        if v not in self.wide:
            node = self.maker[v]
            self.wide[v] = self._wide_map(node, [self.all_steps(x) for x in node.ins], v.name)
        return self.wide[v]

    def _wide_map(self, node: Node, ins: list[Val], name: str) -> Val:
        op: Any = node.op
        to = self._order(op.to) if any(self.dim in x.dims for x in ins) else op.to
        return self.g.one(replace(op, to=to), *ins, names=[name])

    def _stacked(self, v: Val, like: Val) -> Val:
        """A body value as the loop stacks it: the loop's dim first."""
        return self.g.expand(self.all_steps(v), to=like.dims)

    def _sum(self, j: int) -> Val:
        """The end of a carry that adds up."""
        node, rest = self.added[j]
        ins = [x for x in node.ins if x != self.carries[j]]
        place = {operand(node.ins.index(x)): symbol(f"x{i}") for i, x in enumerate(ins)}
        given = {f"x{i}": self.all_steps(x) for i, x in enumerate(ins)}
        has = any(self.dim in v.dims for v in given.values())
        to = self._order(node.op.to) if has else node.op.to
        (each,) = self.g.maps([rest.xreplace(place)], to=to, dtype=node.op.dtype, operands=given)
        start, dtype = self.ins[j], node.op.dtype
        if has:
            total = self.g.reduce(each, to=start.dims)
        else:
            total = self.g.map(symbol("x") * symbol(f"n_{self.dim}"), x=each, to=start.dims, dtype=dtype)
        return self.g.map("a + b", a=start, b=total, to=start.dims, dtype=dtype)

    def _loop(self, stay: list[int], n: Node, k: int) -> dict[Val, Val]:
        """Run the carries `stay`; their stacks before and after each step are then known for all steps."""
        step = self._linear(stay[0]) if len(stay) == 1 else None
        body, given = step or self._core(stay)
        starts = [self.ins[j] for j in stay]
        loop = Loop(self.dim, body, len(stay), self.op.reverse)
        names = [self.carries[j].name for j in stay]
        outs = self.g.many(
            loop, *starts, *given, names=[*names, *(f"{x}_after" for x in names), *(f"{x}_before" for x in names)]
        )
        c = len(stay)
        out: dict[Val, Val] = {}
        for i, j in enumerate(stay):
            out[n.outs[j]] = outs[i]
            out[n.outs[k + j]] = outs[2 * c + i]
            self.wide.setdefault(self.after[j], outs[c + i])
            self.wide[self.carries[j]] = outs[2 * c + i]
        return out

    def _core(self, stay: list[int]) -> tuple[Graph, list[Val]]:
        """The nodes that the next carries need and that need a carry; everything else is an operand for all steps."""
        nodes: list[Node] = []
        inputs: list[Val] = []

        def visit(v: Val) -> None:
            if v in self.moving or v in inputs or any(v in n.outs for n in nodes):
                return
            if v not in self.depends:
                inputs.append(v)
                return
            for x in self.maker[v].ins:
                visit(x)
            nodes.append(self.maker[v])

        for j in stay:
            visit(self.after[j])
        given = [self.all_steps(v) for v in inputs]
        after = tuple(self.after[j] for j in stay)
        return Graph((*(self.carries[j] for j in stay), *inputs), tuple(nodes), (*after, *after)), given

    def _linear(self, j: int) -> tuple[Graph, list[Val]] | None:
        """c = a*c + b, where the step is linear in its one carry and more than that."""
        core, given = self._core([j])
        short = len(core.nodes) == 1 and len(core.inputs) <= 3
        if short or not given or not linear_in_state(Loop(self.dim, core, 1)):
            return None
        carry = self.carries[j]
        wide = Type(carry.dtype, self._order(carry.dims))
        zero = self.g.map(0, to=wide.dims, dtype=wide.dtype)
        env = dict(zip(core.inputs, [zero, *given]))
        start = len(self.g.nodes)
        for m in core.nodes:
            env[m.outs[0]] = self._wide_map(m, [env[x] for x in m.ins], m.outs[0].name)
        offset = env[core.outputs[0]]
        if offset.dims != wide.dims:
            return None
        one = self.g.map(1, to=wide.dims, dtype=wide.dtype)
        rate = backward(self.g, self.g.nodes[start:], {offset: one}).get(zero)
        if rate is None:
            return None
        b = Builder()
        c, x, y = b.input(carry.name, carry.type), b.input("rate", carry.type), b.input("shift", carry.type)
        (after,) = b.maps(["a*c + b"], a=x, c=c, b=y, to=carry.dims, dtype=carry.dtype, names=[self.after[j].name])
        return b.graph(after, after), [self.g.expand(rate, to=wide.dims), offset]
