"""One walker for every backend: torch values, ONNX nodes, printed source. It calls F[key](...) once per operation."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import sympy as sp

from weft.ir.formula import local, names_in
from weft.ir.formula.functions import NAMES, where
from weft.ir.formula.scalars import SCALAR

Table = Mapping[str, Callable[..., Any]]

# key -> what the backend's function must do. Arguments are the backend's own values, except where a type is named.
KEYS: dict[str, str] = {
    "const": "const(v: bool | int | float): a literal",
    "add": "a + b",
    "sub": "a - b",
    "mul": "a * b",
    "div": "a / b, real division also of integers",
    "neg": "-a",
    "pow": "pow(a, k: int): a to a whole power k >= 2",
    "sqrt": "square root",
    "rsqrt": "1 / sqrt(a)",
    "floordiv": "floor(a / b), exact on integers",
    "mod": "a - b floor(a / b), exact on integers",
    "floor": "floor(a)",
    "where": "where(condition, a, b)",
    "max": "larger of two",
    "min": "smaller of two",
    **dict.fromkeys(("lt", "le", "gt", "ge", "eq", "ne"), "comparison of two, gives a condition"),
    "and": "both conditions",
    "or": "either condition",
    "not": "negated condition",
    "abs": "|a|",
    "sign": "-1, 0 or 1",
    **{
        k: f"{k}(a), see weft.ir.formula.functions"
        for k in ("exp", "log", "tanh", "erf", "sin", "cos", "sigmoid", "softplus")
    },
    **{k: f"{k}(a), see weft.ir.formula.functions" for k in ("relu", "silu", "gelu", "gelu_tanh")},
    **{k: f"{k}(a), see weft.ir.formula.functions" for k in ("silu_grad", "gelu_grad", "gelu_tanh_grad")},
    "logaddexp": "log(exp(a) + exp(b))",
    "uniform": "uniform(seed, op_id, layer, index): see weft.ir.formula.philox",
}
# A table may also have these; without them the walker does the obvious.
OPTIONAL: dict[str, str] = {
    "share": "share(v): a value about to be used more than once; a printer binds it to a name",
    "mul_silu_grad": "mul_silu_grad(dy, a): dy * silu_grad(a) as one operation; likewise the other two",
    "mul_gelu_grad": "see mul_silu_grad",
    "mul_gelu_tanh_grad": "see mul_silu_grad",
    "gate": "gate(condition, v): v, which takes no gradient where the condition does not hold; see `choice` below",
}

_RELATION = {sp.Lt: "lt", sp.Le: "le", sp.Gt: "gt", sp.Ge: "ge", sp.Eq: "eq", sp.Ne: "ne", sp.And: "and", sp.Or: "or"}


@lru_cache(maxsize=1 << 12)
def shared(
    exprs: tuple[Any, ...], lets: tuple[Any, ...]
) -> tuple[tuple[tuple[Any, Any], ...], tuple[Any, ...], tuple[Any, ...]]:
    """Common subexpressions of lets and expressions: (name, expression) pairs, then the lets, then the expressions."""
    cse: Any = sp.cse
    pairs, rest = cse([*lets, *exprs], symbols=sp.numbered_symbols("_c"), order="canonical", list=True)
    return tuple(pairs), tuple(rest[: len(lets)]), tuple(rest[len(lets) :])


def evaluate(exprs: Sequence[Any], env: Mapping[Any, Any], F: Table, lets: Sequence[Any] = ()) -> list[Any]:
    """The values of `exprs`, given the values of their symbols; lets are evaluated once, when first needed.

    F: a table with every key of KEYS that the formulas use. The order of the calls depends on the formulas alone."""
    pairs, bound, rest = shared(tuple(exprs), tuple(lets))
    todo = dict(pairs) | {local(i): e for i, e in enumerate(bound)}
    walk = _FormulaWalker(dict(env), todo, F)
    return [walk(e) for e in rest]


class _FormulaWalker:
    def __init__(self, env: dict[Any, Any], todo: dict[Any, Any], F: Table) -> None:
        self.env, self.todo, self.F = env, todo, F
        self.given = dict(env)

    def __call__(self, e: Any) -> Any:
        if e not in self.env and e in self.todo:
            value = self(self.todo[e])
            shared = "share" in self.F and self.todo[e].args and names_in(self.todo[e])
            self.env[e] = self.F["share"](value) if shared else value
        if e in self.env:
            return self.env[e]
        F = self.F
        if e is sp.true or e is sp.false:
            return F["const"](e is sp.true)
        if e.is_Integer:
            return F["const"](int(e))
        if e.is_Number or e.is_NumberSymbol:
            return F["const"](float(e))
        if not names_in(e) and F is not SCALAR:
            return F["const"](scalar(e))
        if e.is_Add:
            return self.sum(e)
        if e.is_Mul:
            return self.product(e)
        if e.is_Pow:
            return self.power(e.base, e.exp)
        if isinstance(e, sp.floor):
            top, below = e.args[0].as_numer_denom()
            return F["floor"](self(top)) if below == 1 else F["floordiv"](self(top), self(below))
        if isinstance(e, sp.Not):
            return F["not"](self(e.args[0]))
        if type(e) in _RELATION:
            return self.fold(_RELATION[type(e)], e.args)
        if isinstance(e, where) and "gate" in F:
            return self.choice(*e.args)
        return F[NAMES[type(e)]](*(self(a) for a in e.args))

    def choice(self, condition: Any, a: Any, b: Any) -> Any:
        """where(condition, a, b), of which the value not chosen takes no gradient.

        A backend that differentiates what it computed would multiply 0 by the slope there, which may be infinite or
        nan; so each value is computed anew, from operands that take a gradient only where it is chosen."""
        c = self(condition)
        return self.F["where"](c, self.under(c, a), self.under(self.F["not"](c), b))

    def under(self, c: Any, e: Any) -> Any:
        reads, todo = set[Any](), [e]
        for s in (s for x in todo for s in x.free_symbols):
            if s not in reads:
                reads.add(s)
                todo += [self.todo[s]] if s in self.todo else []
        gated = {s: self.F["gate"](c, self.given[s]) for s in reads & self.given.keys()}
        if all(v is self.given[s] for s, v in gated.items()):
            return self(e)
        return _FormulaWalker(self.given | gated, self.todo, self.F)(e)

    def fold(self, key: str, args: Sequence[Any]) -> Any:
        out = self(args[0])
        for a in args[1:]:
            out = self.F[key](out, self(a))
        return out

    def sum(self, e: Any) -> Any:
        """Positive terms first, then subtract the others."""
        minus = {a: a.could_extract_minus_sign() and (a.is_Mul or a.is_Number) for a in e.args}
        terms = [a for a in e.args if not minus[a]]
        out = self.fold("add", terms) if terms else None
        for a in e.args:
            if minus[a]:
                out = self(a) if out is None else self.F["sub"](out, self(-a))
        return out

    def product(self, e: Any) -> Any:
        coefficient, factors = e.as_coeff_mul()
        below = [f for f in factors if f.is_Pow and f.exp.is_Rational and f.exp < 0 and f.exp.is_Integer]
        above = [f for f in factors if f not in below]
        fused = [f for f in above if f"mul_{NAMES.get(type(f))}" in self.F]
        if fused and (len(above) > 1 or coefficient not in (1, -1)):
            above.remove(fused[0])
        else:
            fused = []
        number = [coefficient] if coefficient not in (1, -1) else []
        terms = [*above, *number]
        out = self.fold("mul", terms) if terms else self.F["const"](1)
        if fused:
            out = self.F[f"mul_{NAMES[type(fused[0])]}"](out, self(fused[0].args[0]))
        for f in below:
            out = self.F["div"](out, self(1 / f))
        return self.F["neg"](out) if coefficient == -1 else out

    def power(self, base: Any, k: Any) -> Any:
        F = self.F
        if k.is_Integer and k < 0:
            return F["div"](F["const"](1), self.power(base, -k) if k != -1 else self(base))
        if k.is_Integer:
            return F["pow"](self(base), int(k))
        if not k.is_Rational or k.q > 2:  # SymPy's own form of exp(k*log(base))
            return F["exp"](F["mul"](self(k), F["log"](self(base))))
        root = F["sqrt" if k > 0 else "rsqrt"](self(base))
        return root if abs(k.p) == 1 else F["pow"](root, abs(int(k.p)))


@lru_cache(maxsize=1 << 12)
def scalar(e: Any) -> Any:
    """The Python number of a formula without symbols."""
    return _FormulaWalker({}, {}, SCALAR)(e)


@lru_cache(maxsize=1 << 12)
def op_count(exprs: tuple[Any, ...]) -> int:
    """Operations of a tuple of formulas, common subexpressions counted once."""
    pairs, _, rest = shared(exprs, ())
    return sum(int(sp.count_ops(e)) for e in (*(e for _, e in pairs), *rest))
