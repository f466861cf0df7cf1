# ruff: noqa: E501 -- a fault a line
"""Generated regions of products and of experts, and faults that their emitted files may have."""

from dataclasses import replace
from random import Random

import torch
from torch import Tensor

from tests.kernels.emitted import Emitted
from tests.kernels.test_regions import draw
from weft.ir.builder import Builder
from weft.ir.formula import parse
from weft.ir.library import Dropout
from weft.ir.ops.primitives import Einsum, Scatter
from weft.ir.types import Graph, Type, Val


def floats(dims: str) -> Type:
    return Type("f32", tuple(dims.split()))


class Products:
    """A block of one to three products with maps in front and behind, from one seed."""

    def __init__(self, seed: int) -> None:
        rng = self.rng = Random(seed)
        g = self.g = Builder()
        self.sizes = {"batch": rng.choice((1, 2)), "seq": rng.choice((1, 5, 17)), "heads": 3, "head": 4}
        self.sizes |= {"width": rng.choice((1, 12, 33)), "inner": rng.choice((7, 20))}
        self.z = rng.random() < 0.25  # a product for each head
        self.k, self.n = rng.choice(("width", "width", "heads head")), rng.choice(("inner", "inner", "heads head"))
        if self.z:
            self.k, self.n = "width", "inner"
        if self.k == self.n:
            self.n = "inner"
        rows = "batch seq heads" if self.z else "batch seq"
        self.a, self.out = f"{rows} {self.k}", f"{rows} {self.n}"
        self.weight = f"heads {self.k} {self.n}" if self.z else f"{self.k} {self.n}"
        x = self.factor(g.input("x", floats(self.a)))
        self.cores = [
            g.one(Einsum(tuple(self.out.split())), x, g.input(f"w{j}", floats(self.weight)), names=[f"core{j}"])
            for j in range(rng.choice((1, 1, 2, 3)))
        ]
        self.graph = self.results()

    def noise(self, x: Val, number: int) -> Val:
        g = self.g
        seed, layer = (g.input(f"{n}{number}", Type("i64", ())) for n in ("seed", "layer"))
        return g.one(Dropout(parse("0.25"), number, ()), x, seed, layer)

    def factor(self, x: Val) -> Val:
        """What is multiplied: the input, or maps of it."""
        g, kind = self.g, self.rng.choice(("none", "act", "scaled", "noise"))
        if kind == "act":
            return g.map("x*sigmoid(x)", x=x, names=["left"])
        if kind == "scaled":
            s, b = g.input("s", floats("batch seq")), g.input("b", floats(self.k.split()[-1]))
            return g.map("x*s + b + i_seq/8", x=x, s=s, b=b, to=x.dims, dtype="f32", names=["left"])
        return self.noise(x, 0) if kind == "noise" else x

    def results(self) -> Graph:
        g, rng = self.g, self.rng
        kind, c = rng.choice(("none", "bias", "gated", "noise", "many")), self.cores
        to, last = c[0].dims, self.n.split()[-1]
        if kind == "none":
            return g.graph(*c)
        y = c[0]
        if kind == "bias":
            y = g.map("tanh(y + b)", y=y, b=g.input("bias", floats(self.n)), to=to, dtype="f32")
        elif kind == "gated" and len(c) > 1:
            y = g.map("silu(a)*b", a=c[0], b=c[1], to=to, dtype="f32")
        elif kind == "noise":
            y = g.map("y + r", y=self.noise(y, 1), r=g.input("r", floats(self.out)), to=to, dtype="f32")
        for j in range(len(c)):
            y = g.map(f"y + tanh(c + i_{last}/9)", y=y, c=c[j], to=to, dtype="f32")
        return g.graph(y, *(c if kind == "many" else ()))

    def args(self, seed: int) -> dict[str, Tensor]:
        return draw(self.graph, self.sizes, seed)


class Experts:
    """Tokens to experts, gated or not, with or without biases, one choice or two; back, weighted."""

    def __init__(self, seed: int) -> None:
        rng, g = Random(seed), Builder()
        self.sizes = {"batch": rng.choice((1, 3)), "seq": rng.choice((1, 7, 20)), "width": rng.choice((5, 16))}
        self.sizes |= {"experts": rng.choice((1, 3)), "capacity": rng.choice((1, 4, 18)), "inner": 9, "choice": 2}
        self.choices = rng.random() < 0.5
        tokens = "batch seq choice" if self.choices else "batch seq"
        x = g.input("x", floats("batch seq width"))
        if rng.random() < 0.4:
            x = g.map("x*s", x=x, s=g.input("s", floats("batch seq")), to=x.dims, dtype="f32", names=["scaled"])
        routing = [g.input(n, Type("i64", tuple(tokens.split()))) for n in ("expert", "place")]
        slots = ("batch", "experts", "capacity")
        sent = g.one(Scatter(slots[1:], (*slots, "width")), x, *routing, names=["sent"])
        matrices = [g.input(n, floats("experts width inner")) for n in ("wg", "wu")[: rng.choice((1, 2))]]
        made = [g.one(Einsum((*slots, "inner")), sent, w, names=[f"core{j}"]) for j, w in enumerate(matrices)]
        bias = g.input("bias", floats("experts inner"))
        formula = "silu(a)*b + c" if len(made) > 1 else "silu(a + c)"
        hidden = g.map(formula, **dict(zip("ab", made)), c=bias, to=(*slots, "inner"), dtype="f32", names=["hidden"])
        down = g.one(Einsum((*slots, "width")), hidden, g.input("wd", floats("experts inner width")), names=["down"])
        back = g.gather(down, *routing, at="experts capacity")
        self.graph = g.graph(g.einsum(back, g.input("gate", floats(tokens)), to="batch seq width"))

    def args(self, seed: int) -> dict[str, Tensor]:
        """A routing as queues give it: no two tokens of a batch row share a slot, some have none."""
        args = draw(self.graph, self.sizes, seed)
        shape = args["expert"].shape
        expert = torch.randint(
            self.sizes["experts"], (shape[0], shape[1:].numel()), generator=torch.Generator().manual_seed(seed)
        )
        hot = torch.nn.functional.one_hot(expert, self.sizes["experts"])
        place = ((hot.cumsum(1) - 1) * hot).sum(-1)
        return args | {"expert": expert.view(shape), "place": place.view(shape)}


FAULTS = (
    ("products", "results exchanged", "core0, core1 = acc", "core1, core0 = acc"),
    ("products", "an operand without its rows", "more=((einsum, (0, 1),", "more=((einsum, None,"),
    ("products", "results in one column", "outs=((core0, (0, 1), (2,))", "outs=((core0, (0, 1), None)"),
    ("products", "the first weight twice", "(w1, (", "(w0, ("),
    ("products", "a step too few", ", (WIDTH,)),\n", ", (WIDTH - 1,)),\n"),
    ("products", "the factor as it is loaded", "before=before, ", ""),
    ("products", "the products as they are", "epilogue=epilogue", ""),
    ("products", "place of another column", "c[1]", "(c[1] + 1)"),
    ("products", "bits of another place", ", i)", ", i + 1)"),
    ("products", "rows counted as columns", "NM=nm, NN=nn", "NM=nn, NN=nn"),
    ("products", "strides of the left factor twice", "right.strides, more", "left.strides, more"),
    ("experts", "slots of the first batch row", "((1,) * token.dim(),)", "((1, 0, *(1,) * (token.dim() - 2)),)"),
    ("experts", "slots of another expert", "(bias, (0,)", "(bias, None"),
    ("experts", "weights of the first expert", "(wg, (0,)", "(wg, None"),
    ("experts", "one slot less", "Routing(expert, place, 1, EXPERTS, CAPACITY)", "Routing(expert, place, 1, EXPERTS, CAPACITY - 1)"),
    ("experts", "experts exchanged for places", "Routing(expert, place", "Routing(place, expert"),
    ("experts", "tokens unscaled", "scaled = x_2 * s", "scaled = x_2"),
    ("experts", "activation lost", "elementwise.silu(", "("),
)  # fmt: skip
"""(of, name, what stands in a region's file or a launch, what a faulty writer or hand would have put there)."""


def faulty(made: Emitted, old: str, new: str) -> Emitted | None:
    """The block with a fault in the first file of products that can have it, None where none can."""
    forward, backward, kernels = made.kernels
    again = replace(made)
    again.__dict__["kernels"] = (forward, backward, kernels)
    for key, file in kernels.files.items():
        if file.skeleton in ("matmul", "grouped_matmul") and old in file.text:
            kernels.files[key] = replace(file, text=file.text.replace(old, new))
            return again
    for path, text in made.ships.items():
        if path in ("matmul/launch.py", "grouped_matmul/launch.py") and old in text:
            again.__dict__["ships"] = {**made.ships, path: text.replace(old, new)}
            return again
    return None
