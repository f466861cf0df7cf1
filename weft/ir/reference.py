"""The reference interpreter: a graph run node by node with plain torch, which the caller hands in.

It is the truth that passes and kernels are tested against: any float dtype, differentiable by torch autograd."""

import string
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from weft.ir.formula import operand, philox, symbol
from weft.ir.formula.evaluate import evaluate
from weft.ir.types import Dims, Graph, Node, Type, promote, torch_dtype, union

Watch = Callable[[Node, Sequence[Any]], object]


@lru_cache(maxsize=64)
def functions(torch: Any, real: Any, device: Any) -> dict[str, Callable[..., Any]]:
    """The `evaluate` table of torch values. Integers and conditions stay exact; whatever is not becomes `real`."""

    def tensor(v: Any) -> Any:
        if torch.is_tensor(v):
            return v
        return torch.tensor(v, dtype=real if isinstance(v, float) else None, device=device)

    def number(v: Any) -> Any:  # a real number, whatever came
        v = tensor(v)
        return v if v.is_floating_point() else v.to(real)

    def like(*v: Any) -> tuple[Any, ...]:  # all real, or all integer
        v = tuple(map(tensor, v))
        return tuple(map(number, v)) if any(x.is_floating_point() for x in v) else v

    def unary(f: Callable[[Any], Any]) -> Callable[[Any], Any]:
        return lambda a: f(number(a))

    def binary(f: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        return lambda a, b: f(*like(a, b))

    gelu, gelu_backward = torch.nn.functional.gelu, torch.ops.aten.gelu_backward
    names = ("sqrt", "rsqrt", "exp", "log", "tanh", "erf", "sin", "cos", "sigmoid", "relu")
    pairs = {k: k for k in ("lt", "le", "gt", "ge", "eq", "ne", "add", "sub", "mul")}
    pairs |= {"mod": "remainder", "max": "maximum", "min": "minimum"}
    return {
        **{k: unary(getattr(torch, k)) for k in names},
        **{k: binary(getattr(torch, name)) for k, name in pairs.items()},
        "const": lambda v: v,
        "div": lambda a, b: number(a) / number(b),
        "neg": lambda a: -tensor(a),
        "pow": lambda a, k: tensor(a) ** k,
        "floordiv": binary(lambda a, b: torch.div(a, b, rounding_mode="floor")),
        "floor": lambda a: torch.floor(tensor(a)) if tensor(a).is_floating_point() else a,
        "where": lambda c, a, b: torch.where(tensor(c), *like(a, b)),
        "gate": lambda c, v: torch.where(c, v, v.detach()) if torch.is_tensor(v) and v.requires_grad else v,
        "and": lambda a, b: torch.logical_and(tensor(a), tensor(b)),
        "or": lambda a, b: torch.logical_or(tensor(a), tensor(b)),
        "not": lambda a: torch.logical_not(tensor(a)),
        "abs": lambda a: torch.abs(tensor(a)),
        "sign": lambda a: torch.sign(tensor(a)),
        "softplus": unary(lambda a: torch.logaddexp(a, torch.zeros_like(a))),
        "logaddexp": lambda a, b: torch.logaddexp(*torch.broadcast_tensors(number(a), number(b))),
        "silu": unary(torch.nn.functional.silu),
        "silu_grad": unary(lambda a: a.sigmoid() * (1 + a * (-a).sigmoid())),
        "gelu": unary(gelu),
        "gelu_grad": unary(lambda a: gelu_backward(torch.ones_like(a), a)),
        "gelu_tanh": unary(lambda a: gelu(a, approximate="tanh")),
        "gelu_tanh_grad": unary(lambda a: gelu_backward(torch.ones_like(a), a, approximate="tanh")),
        "uniform": lambda *a: philox.uniform(*(tensor(v).long() for v in a)).to(real) * 2.0**-24,
    }


class Site:
    """What an op's `torch` method sees: its node, the sizes, and the helpers that names need.

    sizes: of the whole. local, offset: of one rank's part; formulas still see n_d and i_d of the whole.
    dtype: stands in for every float dtype; None: each value has its own. modules: wrapped modules by key. watch: see
    `run`."""

    def __init__(
        self,
        node: Node,
        sizes: Mapping[str, int],
        torch: Any,
        dtype: Any = None,
        local: Mapping[str, int] | None = None,
        offset: Mapping[str, int] | None = None,
        modules: Mapping[str, Any] | None = None,
        device: Any = None,
        watch: Watch | None = None,
    ) -> None:
        self.node, self.sizes, self.tc, self.dtype = node, sizes, torch, dtype
        self.local, self.offset, self.modules, self.device = local or sizes, offset or {}, modules or {}, device
        self.watch = watch

    @property
    def types(self) -> tuple[Type, ...]:
        return self.node.types

    def n(self, dim: str) -> int:
        return self.local[dim]

    def value(self, expr: Any) -> int:
        """A formula over sizes, as a number."""
        return int(expr.xreplace({symbol(f"n_{d}"): n for d, n in self.sizes.items()}))

    def real(self, dtype: str) -> Any:
        """The torch dtype that stands for `dtype`."""
        return self.dtype if self.dtype is not None and dtype not in ("i64", "bool") else torch_dtype(self.tc, dtype)

    def run(self, graph: Graph, x: Sequence[Any]) -> tuple[Any, ...]:
        return _run(graph, self.sizes, x, self.tc, self.dtype, self.modules, self.device, self.watch)

    def equation(self) -> str:
        """The node as an einsum equation."""
        letter = dict(zip(self.node.space, string.ascii_letters, strict=False))
        ins, out = (["".join(letter[n] for n in v.dims) for v in vs] for vs in (self.node.ins, self.node.outs))
        return ",".join(ins) + "->" + out[0]

    def align(self, x: Any, dims: Dims, to: Dims) -> Any:
        """Permute and unsqueeze by name."""
        x = x.permute([dims.index(n) for n in to if n in dims])
        return x[tuple(slice(None) if n in dims else None for n in to)]

    def coord(self, dim: str, to: Dims) -> Any:
        """The global coordinates along `dim`, shaped to broadcast over `to`."""
        return self.align(self.tc.arange(self.local[dim], device=self.device) + self.offset.get(dim, 0), (dim,), to)

    def formula(self, op: Any, x: Sequence[Any]) -> tuple[Any, ...]:
        """The results of a Map: computed in the widest float dtype involved, at least f32, and rounded once."""
        torch, to = self.tc, op.to
        real = self.real(promote("f32", op.dtype, *(t.dtype for t in self.types)))
        x = [v.to(real) if v.is_floating_point() else v for v in x]
        env = {operand(i): self.align(v, t.dims, to) for i, (v, t) in enumerate(zip(x, self.types))}
        used = op.symbols
        env |= {symbol(n): self.coord(n[2:], to) for n in used if n.startswith("i_")}
        env |= {symbol(n): self.sizes[n[2:]] for n in used if n.startswith("n_")}
        shape, dtype = [self.local[n] for n in to], self.real(op.dtype)
        out = evaluate(op.exprs, env, functions(torch, real, self.device), op.lets)
        return tuple(
            (v if torch.is_tensor(v) else torch.tensor(v, dtype=dtype, device=self.device)).to(dtype).expand(shape)
            for v in out
        )

    def _place(self, idx: Sequence[Any], at: Dims, dims: Dims, space: Dims) -> tuple[list[Any], Any]:
        """Local coordinates of `dims` over `space`, clamped, and where they are in range."""
        where, ok = [], self.tc.ones((), dtype=self.tc.bool, device=self.device)
        for n in dims:
            if n in at:
                k = at.index(n)
                i = self.align(idx[k], self.types[1 + k].dims, space) - self.offset.get(n, 0)
                ok = ok & (i >= 0) & (i < self.local[n])
                where.append(i.clamp(0, max(0, self.local[n] - 1)))
            else:
                where.append(self.coord(n, space) - self.offset.get(n, 0))
        return where, ok

    def gather(self, table: Any, idx: Sequence[Any], at: Dims) -> Any:
        where, ok = self._place(idx, at, self.types[0].dims, self.node.outs[0].dims)
        return self.tc.where(ok, table[tuple(where)], self.tc.zeros((), dtype=table.dtype, device=self.device))

    def scatter(self, x: Any, idx: Sequence[Any], at: Dims, to: Dims) -> Any:
        space = union(*(t.dims for t in self.types))
        where, ok = self._place(idx, at, to, space)
        zero = self.tc.zeros((), dtype=x.dtype, device=self.device)
        x = self.tc.where(ok, self.align(x, self.types[0].dims, space), zero).expand([self.local[n] for n in space])
        out = self.tc.zeros([self.local[n] for n in to], dtype=x.dtype, device=self.device)
        return out.index_put(tuple(w.expand(x.shape) for w in where), x, accumulate=True)

    def loop(self, op: Any, x: Sequence[Any]) -> tuple[Any, ...]:
        c, n = op.carries, self.sizes[op.dim]
        axis = [t.dims.index(op.dim) if op.dim in t.dims else None for t in self.types]
        carry, stacked = list(x[:c]), list[tuple[Any, ...]]()
        for i in reversed(range(n)) if op.reverse else range(n):
            rest = [v if a is None else v.select(a, i) for v, a in zip(x[c:], axis[c:])]
            out = self.run(op.body, (*carry, *rest))
            stacked.append((*out[c:], *carry))
            carry = list(out[:c])
        if op.reverse:
            stacked.reverse()
        if not stacked:
            return (*carry, *(self.empty(v.type) for v in self.node.outs[c:]))
        return (*carry, *(self.tc.stack(s) for s in zip(*stacked)))

    def empty(self, t: Type) -> Any:
        """A value of this type that some dim of size 0 leaves without numbers."""
        return self.tc.empty([self.local[d] for d in t.dims], dtype=self.real(t.dtype), device=self.device)

    def opaque(self, op: Any, x: Sequence[Any]) -> Any:
        """The wrapped module on its inputs, its parameters taken from the operands."""
        k = len(x) - len(op.params)
        call = self.tc.func.functional_call
        return call(self.modules[op.key], dict(zip(op.params, x[k:])), tuple(x[:k]))

    def opaque_grad(self, op: Any, x: Sequence[Any]) -> Any:
        live = [i for i, t in enumerate(self.types[: op.n]) if t.floating]
        with self.tc.enable_grad():
            ins = [v.detach().requires_grad_() if i in live else v for i, v in enumerate(x[: op.n])]
            out = self.opaque(op.of, ins)
            out = [v for v, h in zip(out if isinstance(out, tuple) else (out,), op.have) if h]
            got = self.tc.autograd.grad(
                out, [ins[i] for i in live], x[op.n :], allow_unused=True, materialize_grads=True
            )
        return tuple(got)


def run(
    graph: Graph,
    sizes: Mapping[str, int],
    args: Mapping[str, Any] | Sequence[Any],
    torch: Any,
    dtype: Any = None,
    modules: Mapping[str, Any] | None = None,
    watch: Watch | None = None,
) -> tuple[Any, ...]:
    """The outputs of `graph`, as torch tensors.

    sizes: every dim -> its size. args: inputs by name, or in order. dtype: a torch dtype that overrides every float
    dtype (torch.float64 is the truth). modules: the nn.Modules of Opaque ops, by key. watch: called with each node,
    those of bodies too, and its operands' values, before it runs."""
    x = [args[v.name] for v in graph.inputs] if isinstance(args, Mapping) else list(args)
    site = Site(None, sizes, torch, dtype)  # type: ignore[arg-type]
    x = [a.to(site.real(v.dtype)) for v, a in zip(graph.inputs, x, strict=True)]
    return _run(graph, sizes, x, torch, dtype, modules, x[0].device if x else None, watch)


def _run(
    graph: Graph, sizes: Mapping[str, int], x: Sequence[Any], torch: Any, dtype: Any, modules: Any, device: Any,
    watch: Watch | None,
) -> tuple[Any, ...]:  # fmt: skip
    env = {v.name: a for v, a in zip(graph.inputs, x, strict=True)}
    for n in graph.nodes:
        ins = [env[v.name] for v in n.ins]
        if watch is not None:
            watch(n, ins)
        out = n.op.torch(Site(n, sizes, torch, dtype, modules=modules, device=device, watch=watch), torch, *ins)
        env.update(zip((v.name for v in n.outs), out if isinstance(out, tuple) else (out,), strict=True))
    return tuple(env[v.name] for v in graph.outputs)
