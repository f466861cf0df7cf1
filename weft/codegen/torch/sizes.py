"""Sizes of dims as source: frozen ones are constants of the file, run-time ones variables read off a shape."""

import keyword
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import sympy as sp

from weft.codegen.torch.spelling import Src, TorchFormulas, literal
from weft.ir.formula import normal, symbol
from weft.ir.formula.evaluate import evaluate
from weft.ir.names import identifier
from weft.ir.ops.primitives import Loop, Map
from weft.ir.program import Program, Size
from weft.ir.types import Graph

MODULES = (
    *("chunked", "convolutions", "distances", "drop", "entropy", "experts", "fourier", "norms", "philox", "places"),
    *("rotary", "rows", "steps", "stretched", "tables"),
)
"""The runtime's modules, by the names that functions call them by."""


def _mentioned(graph: Graph) -> set[str]:
    """The dims of a graph's nodes, and of the sizes in their formulas."""
    out: set[str] = set()
    for n in graph.nodes:
        out |= {*n.space, *(d for v in (*n.ins, *n.outs) for d in v.dims)}
        if isinstance(n.op, Map):
            out |= {s[2:] for s in n.op.symbols if s.startswith("n_")}
        if isinstance(n.op, Loop):
            out |= {n.op.dim} | _mentioned(n.op.body)
    return out


@dataclass
class Sizes:
    """Every dim's size: a number where compiling fixes it, else an expression over the run-time dims."""

    table: Mapping[str, Size]
    runtime: Mapping[str, object]
    names: dict[str, str] = field(default_factory=dict)  # what each dim is called in source, all different
    _numbers: dict[str, int | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        taken = set(keyword.kwlist)
        for dim in sorted({*self.table, *self.runtime}):
            self.names[dim] = identifier(dim, taken if self.number(dim) is not None else {*taken, *MODULES})
            taken.add(self.names[dim])

    @classmethod
    def of(cls, program: Program) -> "Sizes":
        return cls(program.sizes, program.runtime)

    def equal(self, same: Mapping[str, str]) -> "Sizes":
        """The same sizes, but some dims have the size of another one."""
        return Sizes({**self.table, **{d: symbol(f"n_{other}") for d, other in same.items()}}, self.runtime)

    def number(self, dim: str) -> int | None:
        """The frozen size, or None for a dim that depends on a run-time one."""
        if dim not in self._numbers:
            e = self.expression(dim)
            self._numbers[dim] = int(e) if e.is_Integer else None
        return self._numbers[dim]

    def frozen(self, dim: str) -> int:
        """The frozen size; ValueError for a dim that depends on a run-time one."""
        number = self.number(dim)
        if number is None:
            raise ValueError(f"the size of {dim} is known at run time only, and here it has to be fixed")
        return number

    def expression(self, dim: str) -> Any:
        """The size over the run-time dims' symbols alone."""
        if dim in self.runtime or dim not in self.table:
            return symbol(f"n_{dim}")
        size = self.table[dim]
        if isinstance(size, int):
            return sp.Integer(size)
        return size.xreplace({s: self.expression(str(s)[2:]) for s in size.free_symbols if str(s) != f"n_{dim}"})

    def limit(self, dim: str) -> int | None:
        """The largest size a dim can have, where that is known."""
        number, told = self.number(dim), self.told(dim)
        most = getattr(self.runtime.get(told[0]), "max", None) if told else None
        return number if most is None or told is None else most + told[1]

    def most(self, dim: str) -> int:
        """The largest size a dim can have; ValueError where that is not known."""
        limit = self.limit(dim)
        if limit is None:
            raise ValueError(f"nothing says how large {dim} can be")
        return limit

    def alias(self, dim: str) -> str:
        """The run-time dim that this one simply equals, else itself."""
        e = self.expression(dim)
        return e.name[2:] if isinstance(e, sp.Symbol) else dim

    def told(self, dim: str) -> tuple[str, int] | None:
        """The run-time dim whose size this dim's tells, and by how much more this one is; None where it tells none."""
        e = self.expression(dim)
        base = next(iter(e.free_symbols), None)
        more: Any = e - base if base is not None else e
        return (base.name[2:], int(more)) if base is not None and more.is_Integer else None

    def reads(self, dims: Iterable[str], dim: str) -> tuple[int, str] | None:
        """Where among the dims of a shape the size of a run-time dim is told, and what is added to it to have it; one
        that is as large comes before those that are larger."""
        found = [(abs(t[1]), i, t[1]) for i, d in enumerate(dims) if (t := self.told(d)) is not None and t[0] == dim]
        _, i, more = min(found, default=(0, -1, 0))
        return None if i < 0 else (i, f" - {more}" if more > 0 else f" + {-more}" if more else "")

    def base(self, dim: str) -> list[str]:
        """The run-time dims that a size is computed from."""
        return sorted(s.name[2:] for s in self.expression(dim).free_symbols)

    def untold(self, graphs: Iterable[Graph]) -> tuple[str, ...]:
        """The run-time dims that some graph's nodes may need the size of and that no input of it has."""
        return tuple(sorted({d for g in graphs for d in self._untold(g)}))

    def _untold(self, graph: Graph) -> set[str]:
        told = {d for v in graph.inputs for d in v.dims}
        told |= {t[0] for d in told if (t := self.told(d)) is not None}
        found = {b for d in _mentioned(graph) if self.number(d) is None for b in self.base(d)}
        return {d for d in found & set(self.runtime) if d not in told}

    def spelled(self, expr: Any, host: object, names: Mapping[str, Src]) -> Src:
        """A formula over sizes as source of a Python integer; `names`: what each n_dim is called."""
        formulas = TorchFormulas(host, (), "f32", "n")  # type: ignore[arg-type]
        table = {k: v for k, v in formulas.table.items() if k != "share"}
        env = {symbol(f"n_{d}"): s for d, s in names.items()}
        env |= {s: literal(n) for s in expr.free_symbols if (n := self.number(s.name[2:])) is not None and s not in env}
        return evaluate([normal(expr)], env, table)[0]
