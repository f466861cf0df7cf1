"""Independent meaning of pattern text: Python's own operators on whole numpy grids. And a generator of patterns."""

import ast
import random

import numpy as np

from weft.ir.pattern import NAMED

BODIES = {n.name: (n.params, n.body) for n in NAMED}
_COMPARE = {ast.Lt: np.less, ast.LtE: np.less_equal, ast.Gt: np.greater, ast.GtE: np.greater_equal}
_COMPARE |= {ast.Eq: np.equal, ast.NotEq: np.not_equal}
_BINARY = {ast.Add: np.add, ast.Sub: np.subtract, ast.Mult: np.multiply, ast.FloorDiv: np.floor_divide, ast.Mod: np.mod}


def grid(text: str, n: int, nk: int | None = None, head: int = 0) -> np.ndarray:
    """bool [n, nk]: the pattern's value at every (q, k)."""
    q, k = np.arange(n)[:, None], np.arange(nk or n)[None]

    def go(t, env):
        match t:
            case ast.BoolOp(op=op, values=values):
                parts = [go(v, env) for v in values]
                out = parts[0]
                for p in parts[1:]:
                    out = out & p if isinstance(op, ast.And) else out | p
                return out
            case ast.UnaryOp(op=ast.Not(), operand=x):
                return ~go(x, env)
            case ast.UnaryOp(operand=x):
                return -go(x, env)
            case ast.Compare(left=left, ops=ops, comparators=rest):
                values = [go(left, env), *(go(x, env) for x in rest)]
                out = np.True_
                for op, a, b in zip(ops, values, values[1:]):
                    out = out & _COMPARE[type(op)](a, b)
                return out
            case ast.Call(func=ast.Name(id="heads"), args=args):
                return go(args[head % len(args)], env)
            case ast.Call(func=ast.Name(id="on_heads"), args=[lo, hi, part]):
                return go(part, env) & (go(lo, env) <= head) & (head < go(hi, env))
            case ast.Call(func=ast.Name(id=name), args=args):
                params, body = BODIES[name]
                return go(ast.parse(body, mode="eval").body, base | dict(zip(params, [go(a, env) for a in args])))
            case ast.Name(id="true" | "false" as name):
                return np.bool_(name == "true")
            case ast.Name(id=name) if name in env:
                return env[name]
            case ast.Name(id=name):
                return go(ast.parse(BODIES[name][1], mode="eval").body, base)
            case ast.Constant(value=value):
                return value
            case ast.BinOp(left=a, op=op, right=b):
                return _BINARY[type(op)](go(a, env), go(b, env))
        raise AssertionError(ast.dump(t))

    base = {"q": q, "k": k, "h": head}
    return np.broadcast_to(go(ast.parse(text, mode="eval").body, base), (n, nk or n))


def expression(r: random.Random, depth: int) -> str:
    if depth == 0 or r.random() < 0.3:
        return r.choice(["q", "k", "q", "k", "q-k", str(r.randint(-6, 20))])
    op = r.choice("++--*/%%")
    if op in "+-":
        return f"({expression(r, depth - 1)} {op} {expression(r, depth - 1)})"
    if op == "*":
        return f"({r.randint(-3, 4)}*{expression(r, depth - 1)})"
    return f"({expression(r, depth - 1)} {'//' if op == '/' else '%'} {r.choice([2, 3, 4, 5, 6, 7, 8, 12, 16])})"


def predicate(r: random.Random, depth: int = 2) -> str:
    """A random pattern: comparisons and named patterns under and, or, not."""
    x = r.random()
    if depth == 0 or x < 0.25:
        if r.random() < 0.5:
            named = r.choice([n for n in NAMED if n.name != "fixed_heads"])
            args = ", ".join(str(r.randint(1, 24)) for _ in named.params)
            return f"{named.name}({args})" if args else named.name
        return f"({expression(r, 2)} {r.choice(['<=', '<', '==', '!=', '>', '>='])} {expression(r, 2)})"
    if x < 0.4:
        return f"(not {predicate(r, depth - 1)})"
    return f"({predicate(r, depth - 1)} {r.choice(['and', 'or'])} {predicate(r, depth - 1)})"
