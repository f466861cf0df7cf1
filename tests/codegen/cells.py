"""Recurrent cells, drawn ones and those that are nearly nothing: each as a spec's block and a plain loop in torch."""

import ast
import math
import random
import re
from collections.abc import Mapping, Sequence
from functools import partial, reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.formulas import sums
from weft.ir.formula import parse, symbol

SIZES = {"batch": 2, "seq": 5, "width": 3, "vocab": 4}
Cell = dict[str, Any]

BARE: tuple[Cell, ...] = (  # next values and outputs that are an operand, a number, or nothing new
    {"inputs": ["u"], "state": {"h": 0}, "update": {"h": "u"}, "output": "h"},
    {"inputs": [], "state": {"h": 0}, "update": {"h": "x"}, "output": "h"},
    {"inputs": ["u"], "state": {"h": 0, "g": 0}, "update": {"h": "u", "g": "h"}, "output": "g"},
    {"inputs": ["u"], "state": {"h": 0.5, "g": 0}, "update": {"h": "g", "g": "h + u"}, "output": "h"},
    {"inputs": ["u"], "state": {"h": 0.5}, "update": {"h": "h"}, "output": "u"},
    {"inputs": [], "state": {"h": 0.9}, "update": {"h": "h"}, "output": "h"},
    {"inputs": ["u"], "state": {"h": 0, "g": 0.9}, "update": {"h": "tanh(u)", "g": "tanh(u)"}, "output": "g - h"},
    {"inputs": ["u"], "state": {"h": 0.5}, "update": {"h": "h + u"}, "output": "h + u"},
    {"inputs": ["u"], "state": {"h": 0.5}, "update": {"h": "h + u"}, "output": "h"},
    {"inputs": ["u"], "state": {"h": 0}, "update": {"h": "u + h"}, "output": "u"},
    {"inputs": [], "state": {"h": 0.5}, "update": {"h": "0.9*h + x"}, "output": "h + x"},
    {"inputs": [], "state": {"h": 0.9}, "update": {"h": "1"}, "output": "h"},
    {"inputs": [], "state": {"h": 0.9}, "update": {"h": "a"}, "output": "a", "parameters": {"a": {"normal": 0.7}}},
    {"inputs": [], "state": {"h": 0.5}, "update": {"h": "0.5*h"}, "output": "tanh(h)"},
    {"inputs": [], "state": {}, "update": {}, "output": "a", "parameters": {"a": {"normal": 0.7}}},
    {"inputs": [], "state": {}, "update": {}, "output": "x"},
    {"inputs": ["u"], "state": {"h": 0.5}, "update": {"h": "0.5*h + u"}, "output": "next(h)"},
    {
        "inputs": ["u"],
        "state": {"h": 0, "g": 0.5},
        "update": {"h": "u", "g": "h - g*u"},
        "output": "next(g) - next(h)*h",
    },
    {"inputs": [], "state": {}, "update": {}, "output": "1"},
    {"inputs": ["u", "v"], "state": {}, "update": {}, "output": "u*v"},
)

WRITTEN: tuple[Cell, ...] = tuple(  # every form of a formula, where all are finite
    {"inputs": ["u"], "state": {"h": 0}, "let": {"p": "1.6 + tanh(h)"}, "update": {"h": "0.5*h + u"}, "output": text}
    for text in sums("p", 7)
)


def draw(seed: int) -> Cell:
    """Up to three inputs and states, two parameters and lets; any formula may be a bare name or a number."""
    r = random.Random(seed)
    inputs, states, parameters, lets = (
        names[: r.choice(most)]
        for names, most in (
            (["u", "v", "z"], (0, 1, 1, 2, 3)),
            (["h", "g", "k"], (0, 1, 1, 2, 3)),
            (["a", "b"], (0, 0, 1, 2)),
            (["l", "m"], (0, 0, 1, 2)),
        )
    )
    names = [*inputs, *states, *parameters, "x", "mask"]

    def formula(depth: int = 2) -> str:
        if depth == 0 or r.random() < 0.25:
            return r.choice([*names, *names, "0.5", "1", "0", "-2"])
        a, b, c, d = (formula(depth - 1) for _ in range(4))
        form = r.choice("oossffmww")
        if form == "o":
            return f"({a} {r.choice('+-*')} {b})"
        if form in "sf":
            return f"{r.choice(['sigmoid', 'tanh', 'sin'])}({a})"
        return {"m": f"max({a}, {b})", "w": f"where({a} > {b}, {c}, {d})", "t": f"({c} if {a} > {b} else {d})"}[form]

    def value() -> str:
        return r.choice(names) if r.random() < 0.3 else formula()

    let: dict[str, str] = {}
    for name in lets:
        let[name] = value()
        names.append(name)
    same = value()
    update = {s: r.choice([s, same, same, value(), value(), value(), value()]) for s in states}
    output = r.choice([value(), value(), same, *update.values(), *(f"x*next({s}) - {s}" for s in states)])
    formulas = [*let.values(), *update.values(), output]
    said = {n for n in (*inputs, *parameters) if any(re.search(rf"\b{n}\b", f) for f in formulas)}
    forms = {"next": {s: symbol(s) for s in states}}
    if not said <= {
        str(s) for f in formulas for s in parse(f, forms=forms).free_symbols
    }:  # `0*u`: a check refuses such a name
        return draw(seed + 10_000)
    made: Cell = {"inputs": [n for n in inputs if n in said], "state": {s: r.choice([0, 0.5, 0.9]) for s in states}}
    made |= {"update": update, "output": output, "let": let}
    return made | {"parameters": {n: {"normal": 0.7} for n in parameters if n in said}}


def spec(cells: Sequence[Cell], dtype: str = "f64", **more: Any) -> dict[str, Any]:
    """A model whose layer i is cell i and nothing else."""
    return {
        "name": "cells",
        "dims": SIZES,
        "dtype": {"params": dtype, "compute": dtype, "accumulate": dtype},
        "sublayer": {"norm": "none", "residual": "none"},
        "init": {"weight": {"normal": 0.7}},
        "blocks": {f"c{i}": {"kind": "recurrence", **c} for i, c in enumerate(cells)},
        "stack": [{"name": f"k{i}", "layer": [f"c{i}"]} for i in range(len(cells))],
        **more,
    }


def wide(x: Any) -> Tensor:
    return x if isinstance(x, Tensor) else torch.tensor(x, dtype=torch.float64)


_TORCH: dict[str, Any] = {n: getattr(torch, n) for n in ("exp", "log", "erf", "sqrt", "rsqrt", "cos", "abs", "sign")}
_TORCH |= {n: getattr(torch, n) for n in ("floor", "ceil", "sigmoid", "tanh", "sin", "relu", "logaddexp")}
_TORCH |= {n: getattr(F, n) for n in ("softplus", "logsigmoid", "silu", "gelu")}
_TORCH |= {
    "max": torch.maximum,
    "min": torch.minimum,
    "mod": torch.remainder,
    "relu2": lambda x: torch.relu(x) ** 2,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_sigmoid": lambda x: x * torch.sigmoid(1.702 * x),
}
FUNCTIONS: dict[str, Any] = {n: partial(lambda f, *x: f(*map(wide, x)), f) for n, f in _TORCH.items()}
FUNCTIONS |= {"where": lambda c, a, b: torch.where(torch.as_tensor(c), wide(a), wide(b)), "pi": math.pi}


def loop(cell: Cell, x: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    """The cell step by step in torch. x: [batch seq width]; weights: by the names of inputs and parameters."""
    batch, steps, width = x.shape

    def whole(text: Any, env: Mapping[str, Any]) -> Tensor:
        return wide(eval(_spelled(str(text)), {}, dict(env))).expand(batch, width)

    given = {n: x @ weights[n] for n in cell["inputs"]} | {"x": x}
    state = {n: torch.full((batch, width), float(v), dtype=x.dtype) for n, v in cell["state"].items()}
    out: list[Tensor] = []
    for t in range(steps):
        env: dict[str, Any] = {**FUNCTIONS, "mask": 1.0, **weights, **{n: v[:, t] for n, v in given.items()}, **state}
        for name, text in cell.get("let", {}).items():
            env[name] = whole(text, env)
        state = {n: whole(text, env) for n, text in cell["update"].items()}
        out.append(whole(cell["output"], env | {f"next_{n}": v for n, v in state.items()}))
    return torch.stack(out, 1)


class _Tensors(ast.NodeTransformer):
    """`a if c else b`, `and`, `or`, `not`, `a < b < c` and `//` of tensors; `next(h)`."""

    def visit_IfExp(self, node: ast.IfExp) -> ast.AST:
        self.generic_visit(node)
        return ast.Call(ast.Name("where", ast.Load()), [node.test, node.body, node.orelse], [])

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.AST:
        self.generic_visit(node)
        both = ast.BitAnd() if isinstance(node.op, ast.And) else ast.BitOr()
        return reduce(lambda a, b: ast.BinOp(a, both, b), node.values)

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        self.generic_visit(node)  # torch has no derivative of //
        quotient = ast.BinOp(node.left, ast.Div(), node.right)
        return ast.Call(ast.Name("floor", ast.Load()), [quotient], []) if isinstance(node.op, ast.FloorDiv) else node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        of = node.args[0]
        after = isinstance(node.func, ast.Name) and node.func.id == "next" and isinstance(of, ast.Name)
        return ast.Name(f"next_{of.id}", ast.Load()) if after else node

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        self.generic_visit(node)
        return ast.UnaryOp(ast.Invert(), node.operand) if isinstance(node.op, ast.Not) else node

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        self.generic_visit(node)
        sides = [node.left, *node.comparators]
        pairs: list[ast.expr] = [ast.Compare(a, [o], [b]) for a, o, b in zip(sides, node.ops, sides[1:])]
        return reduce(lambda a, b: ast.BinOp(a, ast.BitAnd(), b), pairs)


def _spelled(text: str) -> str:
    return ast.unparse(ast.fix_missing_locations(_Tensors().visit(ast.parse(text, mode="eval"))))
