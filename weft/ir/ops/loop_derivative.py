"""The derivative of a loop."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from weft.ir.backward import backward
from weft.ir.graphs import dce
from weft.ir.ops.op import kind
from weft.ir.types import Dims, Graph, Node, Type, Val, union

if TYPE_CHECKING:
    from weft.ir.builder import Builder
    from weft.ir.ops.regions import Loop


def loop_vjp(
    op: "Loop", g: "Builder", x: tuple[Val, ...], y: tuple[Val, ...], dy: Sequence[Val | None]
) -> list[Val | None]:
    """The derivative of a loop is a loop the other way.

    It carries d(carry) and the sums for the operands that are not sliced, and slices d(output), the sliced operands and
    the carries saved before each step; the body is done again, but for what the loop has stacked; `loops.keep` stacks
    more. Of a matrix that the body multiplies by, it stacks d(product) instead, and one product of all steps follows:
    loop (h; w) { h' = tanh(h @ w) } -> loop (dh; ..) { dy = dh * (1 - h'*h'); stack dy }; dw = before^T @ dy.
    """
    return _Reverse(op, g, x, y, dy).build()


class _Reverse:
    """One derivative under construction. Indices i count operands of the loop, j its carries."""

    def __init__(self, op: "Loop", g: "Builder", x: tuple[Val, ...], y: tuple[Val, ...], dy: Sequence[Val | None]):
        self.op, self.g, self.x, self.y, self.dy = op, g, x, y, dy
        c, k = op.carries, len(op.body.outputs)
        self.sliced = [i for i in range(c, len(x)) if op.dim in x[i].dims]
        self.shared = [i for i in range(c, len(x)) if op.dim not in x[i].dims]
        self.products = {i: found for i in self.shared if (found := self.multiplied(i))}
        self.summed = [i for i in self.shared if x[i].type.floating and i not in self.products]
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

    def multiplied(self, i: int) -> list[Node]:
        """The matrix products that alone read a shared operand, if what is stacked for them is no wider than a carry,
        of which every step is kept too."""
        body, v = self.op.body, self.op.body.inputs[i]
        read = [n for n in body.nodes if v in n.ins]
        wide = max((len(c.dims) for c in body.inputs[: self.op.carries]), default=0)
        fits = all(
            kind(n) in ("contraction", "grouped")
            and n.ins.count(v) == 1
            and all(len(o.dims) <= wide for o in (*n.outs, *(o for o in n.ins if o != v and self.known(o) is None)))
            for n in read
        )
        return read if fits and v.type.floating and v not in body.outputs else []

    def known(self, v: Val) -> Val | None:
        """A value of the body at every step, where the loop's operands and carries are it under other names."""
        body, c = self.op.body, self.op.carries
        if v in body.inputs:
            i = body.inputs.index(v)
            return self.x[i] if i >= c else self.y[len(body.outputs) + i]
        n = next(n for n in body.nodes if v in n.outs)
        of = self.known(n.ins[0]) if kind(n) == "view" and len(n.ins) == 1 else None
        return None if of is None else self.g.one(n.op, of)

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
        grads |= self.of_products(out)
        sums, out = out[len(self.carried) : len(start)], out[len(start) :]
        grads |= {i: g.cast(g.reduce(v, to=x[i].dims), x[i].dtype) for i, v in zip(self.summed, sums)}
        floats = [i for i in self.sliced if x[i].type.floating]
        grads |= {i: g.reduce(v, to=x[i].dims) for i, v in zip(floats, out)}  # stacks have the loop's dim first
        return [grads.get(i) for i in range(len(x))]

    def of_products(self, out: Sequence[Val]) -> dict[int, Val]:
        """The derivative of each matrix, from what the reversed loop has stacked at the places `stacked`."""
        g, places, found = self.g, iter(self.stacked), dict[int, Val]()
        for i, nodes in self.products.items():
            for n in nodes:
                factors = [out[next(places)]]
                for v in n.ins:
                    if v != self.op.body.inputs[i]:
                        factors.append(self.known(v) or out[next(places)])
                dims = self.x[i].dims
                have = union(*(f.dims for f in factors))
                d = g.expand(g.einsum(*factors, to=[e for e in dims if e in have]), to=dims)
                found[i] = d if i not in found else g.map("a + d", a=found[i], d=d, to=dims, dtype=d.dtype)
        return found

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
        made = zip((v for n in op.body.nodes for v in n.outs), (v for n in b.nodes[start:] for v in n.outs))
        inner = dict(made)
        cot = backward(b, b.nodes[start:], self.seeds(b, out, dcs, douts))

        def grad(i: int) -> Val:
            return cot.get(ins[i]) or b.zeros(ins[i])

        def plus(a: Val, d: Val) -> Val:
            return b.map("a + d", a=a, d=d, to=a.dims, dtype=a.dtype)

        before = [plus(grad(j), dbefore[j]) if j in dbefore else grad(j) for j in self.carried]
        sums = [plus(s, grad(i)) for s, i in zip(sums, self.summed)]
        first = [*before, *sums]
        results = [*first, *(grad(i) for i in self.sliced if x[i].type.floating)]
        self.stacked = self.stack(b, inner, cot, results, len(first))
        return b.graph(*results), out

    def stack(
        self, b: "Builder", inner: dict[Val, Val], cot: dict[Val, Val], results: list[Val], first: int
    ) -> list[int]:
        """Add to the results of a step what products need of it, d(product) and factors, each value once; gives their
        places. Results of one map with one formula are one value; results before `first` are not stacked."""
        once: dict[object, Val] = {}
        for n in b.nodes if self.products else ():
            for v, e in zip(n.outs, n.op.attrs().get("exprs", ())):
                once[v] = once.setdefault((n.outs[0], e), v)
        at = {once.get(v, v): first + k for k, v in enumerate(results[first:])}
        places: list[int] = []
        for i, nodes in self.products.items():
            for n in nodes:
                others = [v for v in n.ins if v != self.op.body.inputs[i] and self.known(v) is None]
                for v in (cot.get(inner[n.outs[0]]) or b.zeros(inner[n.outs[0]]), *(inner[v] for v in others)):
                    if once.get(v, v) not in at:
                        at[once.get(v, v)] = len(results)
                        results.append(v)
                    places.append(at[once.get(v, v)])
        return places

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
