"""Random valid graphs over all primitives, seeded: what the round trip, the passes and the emission are tested on."""

from random import Random
from typing import Any

from weft.ir.builder import Builder
from weft.ir.composite import Call
from weft.ir.formula import parse
from weft.ir.library import LayerNorm, Softmax
from weft.ir.types import Graph, Type, Val, union

UNARY = ("sigmoid", "tanh", "softplus", "relu", "silu", "gelu", "gelu_tanh", "gelu_sigmoid", "erf", "sin", "cos", "abs")
MOST_POINTS = 600


def random_formula(rng: Random, names: list[str], depth: int = 3) -> str:
    """A smooth, bounded-growth formula that reads every name at least once, as text."""
    return " + ".join(f"({_term(rng, n, names, depth)})" for n in names) or str(rng.randint(0, 3))


def _term(rng: Random, first: str, names: list[str], depth: int) -> str:
    if depth == 0:
        return first
    a = _term(rng, first, names, depth - 1)
    b = _term(rng, rng.choice(names), names, 0)
    return rng.choice(
        (
            f"{rng.choice(UNARY)}({a})",
            f"{a} * sigmoid({b})",
            f"{a} - {b}*{rng.randint(1, 9)}/8",
            f"({a})/(1 + ({b})**2)",
            f"max({a}, {b})",
            f"min({a}, 0.5)",
            f"where({b} > 0.25, {a}, -{b})",
            f"logaddexp({a}, {b})",
            f"(1 - sigmoid({b}))*({a})",
            f"({a})*rsqrt(1 + ({b})**2)",
        )
    )


class _Maker:
    """Appends one random node after another; keeps what later nodes may read."""

    def __init__(self, rng: Random, dtype: str) -> None:
        self.rng, self.g, self.dtype = rng, Builder(), dtype
        self.sizes = {n: rng.randint(1, 4) for n in "abcd"}
        self.floats: list[Val] = []
        self.ints: list[Val] = []

    def type(self, least: int = 0) -> Type:
        dims = self.rng.sample(sorted("abcd"), self.rng.randint(least, 3))
        return Type(self.dtype, tuple(dims))

    def float(self, least: int = 0) -> Val:
        """Some float value with at least `least` dims: mostly a recent one."""
        have = [v for v in self.floats if len(v.dims) >= least]
        if not have or self.rng.random() < 0.15:
            self.floats.append(self.g.input(self.rng.choice(("x", "w", "log", "in_", "x")), self.type(least)))
            return self.floats[-1]
        return self.rng.choice(have[-4:] if self.rng.random() < 0.7 else have)

    def points(self, dims: tuple[str, ...]) -> int:
        out = 1
        for d in dims:
            out *= self.sizes[d]
        return out

    def dim(self, size: int) -> str:
        name = f"n{len(self.sizes)}"
        self.sizes[name] = size
        return name

    def index(self, below: int) -> Val:
        """Coordinates, some out of range."""
        d = self.rng.choice(sorted("abcd"))
        n, lo = self.sizes[d], self.rng.choice((0, 0, -1))
        pick = self.rng.random()
        if pick < 0.4:
            return self.g.table([self.rng.randint(lo, below) for _ in range(n)], (d,), (n,))
        if pick < 0.7 and self.ints:
            v = self.rng.choice(self.ints)
            return self.g.map(f"mod(v, {below + 1})", v=v, to=v.dims, dtype="i64")
        return self.g.map(f"(3*i_{d} + {self.rng.randint(0, 3)}) % {below + 1} + {lo}", to=(d,), dtype="i64")

    def einsum(self) -> None:
        x, y = self.float(1), self.float(1)
        space = union(x.dims, y.dims)
        if self.points(space) <= MOST_POINTS:
            to = self.rng.sample(space, self.rng.randint(0, len(space)))
            n = self.g.map("sqrt(k)*v", v=x, let={"k": parse("1/4")}, to=x.dims)
            self.floats.append(self.g.einsum(n, y, to=to))

    def map(self) -> None:
        xs = {f"p{i}": self.float() for i in range(self.rng.randint(1, 3))}
        space = union(*(v.dims for v in xs.values()))
        if self.points(space) > MOST_POINTS:
            return
        to = list(space)
        self.rng.shuffle(to)
        names = list(xs)
        let = {"q0": random_formula(self.rng, names[:1]), "q1": random_formula(self.rng, ["q0", *names], 1)}
        formulas = [random_formula(self.rng, [*names, "q1"]), random_formula(self.rng, ["q0"], 2)]
        if to and self.rng.random() < 0.3:
            formulas[1] += f" + i_{to[0]}/n_{to[0]}"
        outs = self.g.maps(formulas[: self.rng.randint(1, 2)], let=let, to=to, **xs)
        self.floats += outs

    def other_maps(self) -> None:
        x = self.float()
        if self.rng.random() < 0.5:
            c = self.g.map("x > 0.1", x=x)
            self.floats.append(self.g.map("where(c, x, x/2)", c=c, x=x, to=x.dims))
        else:
            self.ints.append(self.g.map("floor(2*x)", x=x, to=x.dims, dtype="i64"))

    def reduce(self) -> None:
        x = self.float(1)
        kind = self.rng.choice(("sum", "max", "argmax"))
        if kind == "argmax":
            lost = self.rng.choice(x.dims)
            self.ints.append(self.g.reduce(x, to=[d for d in x.dims if d != lost], kind=kind))
        else:
            self.floats.append(
                self.g.reduce(x, to=self.rng.sample(x.dims, self.rng.randint(0, len(x.dims))), kind=kind)
            )

    def gather(self) -> None:
        x = self.float(1)
        at = self.rng.sample(x.dims, self.rng.randint(1, min(2, len(x.dims))))
        out = self.g.gather(x, *(self.index(self.sizes[d]) for d in at), at=at)
        self.floats.append(out if self.points(out.dims) <= MOST_POINTS else self.g.reduce(out, to=()))

    def scatter(self) -> None:
        x = self.float(1)
        at = [self.dim(self.rng.randint(1, 4)) for _ in range(self.rng.randint(1, 2))]
        idx = [self.index(self.sizes[d]) for d in at]
        space = union(x.dims, *(v.dims for v in idx))
        to = [*at, *self.rng.sample(space, min(1, len(space)))]
        self.rng.shuffle(to)
        self.floats.append(self.g.scatter(x, *idx, at=at, to=to))

    def rename(self) -> None:
        x = self.float(1)
        old = self.rng.choice(x.dims)
        self.floats.append(self.g.rename(x, old, self.dim(self.sizes[old])))

    def concat(self) -> None:
        x = self.float(1)
        k = self.rng.randrange(len(x.dims))
        other = self.dim(self.rng.randint(1, 3))
        y = self.g.input("y", x.type.but(other if i == k else d for i, d in enumerate(x.dims)))
        new = self.dim(self.sizes[x.dims[k]] + self.sizes[other])
        self.floats.append(self.g.concat(x, y, dims=(x.dims[k], other), new=new))

    def part(self) -> None:
        x = self.float(1)
        old = self.rng.choice(x.dims)
        n = self.sizes[old]
        size = self.rng.randint(1, n)
        start = f"n_{old} - {size}" if self.rng.random() < 0.5 else self.rng.randint(0, n - size)
        self.floats.append(self.g.part(x, old, self.dim(size), start))

    def detach(self) -> None:
        self.floats.append(self.g.detach(self.float()))

    def loop(self) -> None:
        """A cell by formula along one dim, or a stack whose body holds a call."""
        x, g = self.float(1), self.g
        dim = self.rng.choice(x.dims)
        rest = [d for d in x.dims if d != dim]
        start = g.map("tanh(x)/2", x=g.reduce(x, to=rest))
        if self.rng.random() < 0.5:
            u = self.float()
            u = u if set(u.dims) <= set(rest) else g.reduce(u, to=[d for d in u.dims if d in rest])
            got = g.scan(
                dim, {"c": ("f*c + (1 - f)*x", start)}, {"h": "c + tanh(u)*x"}, let={"f": "sigmoid(x + u)"},
                reverse=self.rng.random() < 0.5, x=x, u=u,
            )  # fmt: skip
            self.floats += [got["h"], got["c"]]
        else:
            b = Builder()
            c, w = b.input("c", start.type), b.input("w", x.type.but(rest))
            (y,) = b.many(Call("cell", _block(self.rng, c.type, w.type)), c, w)
            self.floats += g.loop(dim, b.graph(y, w), 1, start, x)[:2]

    def call(self) -> None:
        x, y = self.float(), self.float()
        if self.points(union(x.dims, y.dims)) <= MOST_POINTS:
            self.floats += self.g.many(Call(f"block_{self.rng.randint(0, 2)}", _block(self.rng, x.type, y.type)), x, y)

    def composite(self) -> None:
        x = self.float(1)
        over = self.rng.choice(x.dims)
        if self.rng.random() < 0.5:
            self.floats.append(self.g.one(Softmax(over), x))
        else:
            w = self.g.input("scale", Type(self.dtype, (over,)))
            self.floats.append(self.g.one(LayerNorm(over, parse("0.1")), x, w))


def _block(rng: Random, x: Type, y: Type) -> Graph:
    b = Builder("block.yaml:3")
    u, v = b.input("u", x), b.input("v", y)
    return b.graph(b.map(random_formula(rng, ["u", "s"], 2), u=u, s=b.reduce(v, to=[d for d in y.dims if d in x.dims])))


KINDS = (
    *("einsum", "map", "map", "other_maps", "reduce", "gather", "scatter", "rename"),
    *("concat", "part", "detach", "loop", "call", "composite"),
)


def random_graph(
    rng: Random, nodes: int = 10, dtype: str = "f32", kinds: tuple[str, ...] = KINDS
) -> tuple[Graph, dict[str, int]]:
    """A graph of about `nodes` nodes and the sizes of its dims. Its float outputs depend smoothly on its inputs,
    apart from kinks of measure zero. Same rng state, same graph."""
    m = _Maker(rng, dtype)
    m.float(1)
    while len(m.g.nodes) < nodes:
        with m.g.at(rng.choice(("", "spec.yaml:7", "my spec.yaml:12"))):
            getattr(m, rng.choice(kinds))()
    outs = dict.fromkeys([*rng.sample(m.floats, min(2, len(m.floats))), m.floats[-1]])
    return m.g.graph(*outs, *m.ints[-1:]), m.sizes


def random_args(graph: Graph, sizes: dict[str, int], torch: Any, seed: int = 0, dtype: Any = None) -> list[Any]:
    """Standard normal floats and small integers for the graph's inputs."""
    gen = torch.Generator().manual_seed(seed)
    out: list[Any] = []
    for v in graph.inputs:
        shape = [sizes[d] for d in v.dims]
        if v.type.floating:
            out.append(torch.randn(shape, generator=gen, dtype=dtype or torch.float64))
        else:
            out.append(torch.randint(0, 3, shape, generator=gen))
    return out
