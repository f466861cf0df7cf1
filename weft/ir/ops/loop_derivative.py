"""The derivative of a loop."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from weft.ir.backward import backward
from weft.ir.graphs import dce
from weft.ir.types import Dims, Graph, Type, Val, union

if TYPE_CHECKING:
    from weft.ir.builder import Builder
    from weft.ir.ops.regions import Loop


def loop_vjp(
    op: "Loop", g: "Builder", x: tuple[Val, ...], y: tuple[Val, ...], dy: Sequence[Val | None]
) -> list[Val | None]:
    """The derivative of a loop is a loop the other way.

    It carries d(carry) and the sums for the operands that are not sliced, and slices d(output), the sliced operands and
    the carries saved before each step; the body is done again, but for what the loop has stacked; `loops.keep` stacks
    more.
    """
    return _Reverse(op, g, x, y, dy).build()


class _Reverse:
    """One derivative under construction. Indices i count operands of the loop, j its carries."""

    def __init__(self, op: "Loop", g: "Builder", x: tuple[Val, ...], y: tuple[Val, ...], dy: Sequence[Val | None]):
        self.op, self.g, self.x, self.y, self.dy = op, g, x, y, dy
        c, k = op.carries, len(op.body.outputs)
        self.sliced = [i for i in range(c, len(x)) if op.dim in x[i].dims]
        self.shared = [i for i in range(c, len(x)) if op.dim not in x[i].dims]
        self.summed = [i for i in self.shared if x[i].type.floating]
        self.carried = [j for j in range(c) if x[j].type.floating]
        self.dout = [i for i in range(c, k) if dy[i] is not None]
        self.dhist = [j for j in self.carried if dy[k + j] is not None]
        space = self.space()
        self.acc = [Type(_wide(x[i].dtype), union(space, x[i].dims)) for i in self.summed]

    def space(self) -> Dims:
        """The dims of an elementwise cell: its sums stay apart at every point, to be added up once, after the loop."""
        body = self.op.body
        space = union(*(n.space for n in body.nodes))
        cell = all(n.op.core == "pointwise" and set(n.outs[0].dims) == set(space) for n in body.nodes)
        given_back = any(body.inputs[i] in body.outputs for i in self.shared)
        return space if cell and not given_back else ()

    def build(self) -> list[Val | None]:
        op, g, x, y, dy = self.op, self.g, self.x, self.y, self.dy
        c, k = op.carries, len(op.body.outputs)
        slices = [v for i in (*self.dout, *(k + j for j in self.dhist)) if (v := dy[i]) is not None]
        slices += [x[i] for i in self.sliced] + list(y[k : k + c])
        others = [x[i] for i in self.shared]
        wide, redone = self.step()
        body, kept = self.narrow(wide, redone, others)
        start = [dy[j] or g.zeros(x[j]) for j in self.carried] + [g.map(0, to=t.dims, dtype=t.dtype) for t in self.acc]
        out = g.loop(op.dim, body, len(start), *start, *slices, *others, *kept, reverse=not op.reverse)
        grads: dict[int, Val] = dict(zip(self.carried, out))
        sums, out = out[len(self.carried) : len(start)], out[len(start) :]
        grads |= {i: g.cast(g.reduce(v, to=x[i].dims), x[i].dtype) for i, v in zip(self.summed, sums)}
        floats = [i for i in self.sliced if x[i].type.floating]
        grads |= {i: g.reduce(v, to=x[i].dims) for i, v in zip(floats, out)}  # stacks have the loop's dim first
        return [grads.get(i) for i in range(len(x))]

    def step(self) -> tuple[Graph, tuple[Val, ...]]:
        """One step backwards, shared operands typed as wide as their sums; and the body's results redone in it.

        Inputs: d(carry) and sums carried; d(output), d(carry before), sliced operands, carries before; shared operands.
        """
        op, x, c = self.op, self.x, self.op.carries
        b = self.g.body()
        dcs = [b.input("dc", x[j].type) for j in self.carried]
        sums = [b.input("sum", t) for t in self.acc]
        douts = [b.input("dy", op.body.outputs[i].type) for i in self.dout]
        dbefore = {j: b.input("dbefore", x[j].type) for j in self.dhist}
        ins = {i: b.input(op.body.inputs[i].name, op.inner(x[i].type)) for i in self.sliced}
        ins |= {j: b.input(op.body.inputs[j].name, x[j].type) for j in range(c)}
        wide = dict(zip(self.summed, self.acc))
        for i in self.shared:
            dims = wide[i].dims if i in wide else x[i].dims
            ins[i] = b.input(op.body.inputs[i].name, x[i].type.but(dims))
        start = len(b.nodes)
        out = b.inline(op.body, [ins[i] for i in range(len(x))])
        cot = backward(b, b.nodes[start:], self.seeds(b, out, dcs, douts))

        def grad(i: int) -> Val:
            return cot.get(ins[i]) or b.zeros(ins[i])

        def plus(a: Val, d: Val) -> Val:
            return b.map("a + d", a=a, d=d, to=a.dims, dtype=a.dtype)

        before = [plus(grad(j), dbefore[j]) if j in dbefore else grad(j) for j in self.carried]
        sums = [plus(s, grad(i)) for s, i in zip(sums, self.summed)]
        return b.graph(*before, *sums, *(grad(i) for i in self.sliced if x[i].type.floating)), out

    def seeds(self, b: "Builder", out: tuple[Val, ...], dcs: list[Val], douts: list[Val]) -> dict[Val, Val]:
        """Cotangents of the body's results; one value may be several of them."""
        seeds: dict[Val, Val] = {}
        for v, d in zip((out[i] for i in (*self.carried, *self.dout)), (*dcs, *douts)):
            seeds[v] = d if v not in seeds else b.map("a + d", a=seeds[v], d=d, to=v.dims, dtype=v.dtype)
        return seeds

    def narrow(self, wide: Graph, redone: tuple[Val, ...], others: list[Val]) -> tuple[Graph, list[Val]]:
        """The step on the shared operands' own types, reading what is stacked instead of doing it again."""
        c, k, b = self.op.carries, len(self.op.body.outputs), self.g.body()
        cut = len(wide.inputs) - len(others)
        ins = [b.input(v.name, v.type) for v in wide.inputs[:cut]]
        ins += [b.input(w.name, v.type) for w, v in zip(wide.inputs[cut:], others)]
        own = {v.name for v in wide.inputs}
        stacked = {redone[i].name: self.y[i] for i in range(c, k) if redone[i].name not in own}
        given = {n: b.input(f"kept_{n}", self.op.inner(v.type)) for n, v in stacked.items()}
        body = dce(b.graph(*b.inline(wide, ins, given=given)))
        used = {v for n in body.nodes for v in n.ins} | set(body.outputs)
        read = [n for n, v in given.items() if v in used]
        inputs = tuple(v for v in body.inputs if v in used or v not in given.values())
        return replace(body, inputs=inputs), [stacked[n] for n in read]


def _wide(dtype: str) -> str:
    """Sums over the steps are fp32 at least."""
    return "f32" if dtype in ("f16", "bf16") else dtype
