"""Formulas over values of named dims: one step of a tensor recurrence as the body of a loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import sympy as sp

from weft.errors import Path, Problem, SpecError
from weft.frontends.blocks.chunking import chunk_dims
from weft.frontends.blocks.recurrence import starts_anew
from weft.ir.builder import Builder
from weft.ir.formula import AlongDim, Terms, parse_terms, symbol
from weft.ir.formula.functions import FUNCTIONS, where
from weft.ir.library import Softmax
from weft.ir.ops.primitives import Einsum, Loop, Rename
from weft.ir.types import Val, union

if TYPE_CHECKING:
    from weft.frontends.blocks.tensor_recurrence import TensorRecurrence
    from weft.frontends.lower.scope import Scope

ANEW = symbol("anew")
"""What a token does with the states; see `starts_anew`."""


@dataclass(frozen=True, slots=True)
class MatrixDims:
    """A matrix that formulas call: the dims that it sums, those it makes, and those that have one each."""

    weight: Any
    over: tuple[str, ...]
    to: tuple[str, ...]
    each: tuple[str, ...]


class _Values:
    """Values of formulas in one graph, by symbol, made when they are first asked for.

    lead: dims that come first. Names of the spec are symbols of our own, so that none can meet a coordinate or a size.
    """

    def __init__(self, cell: Cell, g: Builder, lead: Sequence[str]) -> None:
        self.cell, self.g, self.lead = cell, g, tuple(lead)
        self.env: dict[Any, Val] = {}

    def at(self, name: Any) -> Val:
        """The value of a symbol."""
        if name not in self.env:
            self.env[name] = self.made(name)
        return self.env[name]

    def made(self, name: Any) -> Val:
        if name in self.cell.terms:
            return self.term(self.cell.terms[name])
        return self.value(self.cell.means[name], str(name)[2:])

    def value(self, e: Any, called: str = "map") -> Val:
        """The value of a formula, over the dims of all that it reads."""
        if e.is_Symbol and not str(e).startswith("i_"):
            return self.at(e)
        names = sorted(e.free_symbols, key=str)
        given = {str(n): self.at(n) for n in names if not str(n).startswith("i_")}
        dims = self.ordered(union(*(v.dims for v in given.values()), [str(n)[2:] for n in names if str(n)[:2] == "i_"]))
        return self.g.maps([e], given, to=dims, dtype=self.cell.dtype, names=[called])[0]

    def dims(self, e: Any) -> set[str]:
        """The dims that a formula's value varies along."""
        coordinates = {str(n)[2:] for n in e.free_symbols if str(n).startswith("i_")}
        return coordinates.union(*(self.at(n).dims for n in e.free_symbols if str(n)[:2] != "i_"))

    def term(self, t: AlongDim) -> Val:
        """The value of what reads more points than one."""
        if t.form in self.cell.matrices:
            return self.product(self.cell.matrices[t.form], t)
        if t.form == "sum":
            return self.sum(t.dim, t.of)
        x = self.value(t.of, t.form)
        if t.dim not in x.dims:
            raise self.cell.refused(f"{t.form}({t.dim}, ..) of what has no dim {t.dim}", "give it a value that has it")
        if t.form == "softmax":
            return self.g.one(Softmax(t.dim), x, names=["softmax"])
        before = self.at(self.cell.until(t.dim))
        renamed = self.g.one(Rename(t.dim, self.cell.beside(t.dim)), x, names=[x.name])
        return self.g.one(Einsum(x.dims), renamed, before, names=["cumsum"])

    def product(self, m: MatrixDims, t: AlongDim) -> Val:
        """A matrix times a value, in the compute dtype."""
        x, cell = self.value(t.of, "read"), self.cell
        if missing := [d for d in m.over if d not in x.dims]:
            hint = f"give it a value over {' and '.join(m.over)}"
            raise cell.refused(f"{t.form} sums along {missing[0]}, and what it is given has no such dim", hint)
        left = [d for d in x.dims if d not in m.over]
        if twice := [d for d in m.to if d in left]:
            hint = "sum along it first, or give the result another dim"
            raise cell.refused(f"{t.form} makes the dim {twice[0]}, and what it is given has it already", hint)
        x = self.g.cast(x, cell.s.compute)
        for d in m.over:
            x = x if d not in m.to else self.g.one(Rename(d, cell.beside(d)), x, names=[x.name])
        to = self.ordered(union(left, m.each, m.to))
        return self.g.cast(self.g.one(Einsum(to), x, self.at(m.weight), names=[t.form]), cell.dtype)

    def sum(self, dim: str, e: Any) -> Val:
        """The sum of a formula along a dim: a product of its factors, those without the dim outside of it."""
        if e.is_Add and all(dim in self.dims(t) for t in e.args):
            parts = {f"t_{k}": self.sum(dim, t) for k, t in enumerate(e.args)}
            dims = self.ordered(union(*(v.dims for v in parts.values())))
            return self.g.maps([sp.Add(*map(symbol, parts))], parts, to=dims, dtype=self.cell.dtype, names=["sum"])[0]
        outside, inside = list[Any](), dict[frozenset[str], Any]()
        for f in sp.Mul.make_args(e):
            dims = frozenset(self.dims(f))
            if dim in dims:
                inside[dims] = inside.get(dims, sp.S.One) * f
            else:
                outside.append(f)
        if not inside:
            raise self.cell.refused(f"sum({dim}, ..) of what has no dim {dim}", f"leave it out, or multiply by {dim}")
        factors = [self.value(f, "factor") for f in inside.values()]
        left = self.ordered([d for d in union(*(v.dims for v in factors)) if d != dim])
        if len(factors) > 1:
            found = self.g.one(Einsum(left), *factors, names=["sum"])
        else:
            found = self.g.reduce(factors[0], to=left)
        rest: Any = sp.Mul(*outside)
        if rest == 1:
            return found
        total = symbol("t_sum")
        self.env[total] = found
        out = self.value(rest * total, "sum")
        del self.env[total]
        return out

    def ordered(self, dims: Sequence[str]) -> tuple[str, ...]:
        order = (*self.lead, *self.cell.order)
        return tuple(sorted(dims, key=order.index))


class _StepValues(_Values):
    """Values of one step; what depends on no state comes from outside the loop."""

    def __init__(self, cell: Cell, g: Builder, lead: Sequence[str], outside: _Values) -> None:
        super().__init__(cell, g, lead)
        self.outside = outside
        self.given: list[Val] = []

    def made(self, name: Any) -> Val:
        if self.cell.moves(name):
            return super().made(name)
        v = self.outside.at(name)
        self.given.append(v)
        return self.g.input(v.name, v.type.but(d for d in v.dims if d != self.cell.time))


class Cell:
    """A tensor recurrence on its way to a loop, from the last position to the first where it is `backward`.

    means: what lets and next values are; terms: see `parse_terms`."""

    def __init__(
        self, s: Scope, block: TensorRecurrence, path: Path, stem: str, axes: dict[str, str], x: Val, backward: bool
    ) -> None:
        self.s, self.block, self.path, self.axes, self.backward = s, block, path, axes, backward
        self.time, self.dtype = s.length, s.accumulate
        self.order = tuple(axes.values())
        self.shapes = {n: tuple(axes[d] for d in dims) for n, (_, dims) in block.shapes.items()}
        self.terms: Terms = {}
        self.matrices = {
            name: MatrixDims(symbol(f"m_{name}"), *(tuple(axes[d] for d in dims) for dims in (m.over, m.to, m.each)))
            for name, m in block.multiplied.items()
        }
        self.means: dict[Any, Any] = {}
        self.names: dict[str, Any] = {n: symbol(f"v_{n}") for n in self.shapes}
        self.states = {n: self.names[n] for n in block.state}
        self.after = {n: symbol(f"u_{n}") for n in block.state}
        self.where: Path = path
        self.outside = _Values(self, s.g, ("batch", s.length))
        if (anew := starts_anew(s, backward)) is not None:
            self.outside.env[ANEW] = anew
        self._read()
        self._given(x, stem)

    def refused(self, message: str, hint: str) -> SpecError:
        return SpecError.at(self.where, "W0402", message, hint)

    def beside(self, dim: str) -> str:
        """A dim under the name that it has where it is summed and made at once."""
        found = self.s.low.mint(f"{dim}_from", self.s.low.sizes[dim], (*self.s.space, *self.axes.values()))
        self.order = tuple(dict.fromkeys((*self.order, found)))
        return found

    def until(self, dim: str) -> Any:
        """The symbol of what is 1 where a place along `beside(dim)` is not behind that along `dim`."""
        found = symbol(f"w_until_{dim}")
        self.means[found] = where(symbol(f"i_{self.beside(dim)}") <= symbol(f"i_{dim}"), 1, 0)
        return found

    def _formula(self, text: str, *where: str, after: bool = False) -> Any:
        forms = {"i": {d: symbol(f"i_{axis}") for d, axis in self.axes.items()}}
        forms |= {"next": self.after} if after else {}
        sizes = {d: sp.Integer(n) for d, n in self.s.low.dims.most.items()}
        read = partial(parse_terms, over=self.axes, terms=self.terms, forms=forms, matrices=self.matrices)
        return self.s.low.read(text, (*self.path, *where), sizes | self.names, self.names, read)

    def _read(self) -> None:
        """Every formula, in order: a let may read those before it, the output what comes after the step too. A state
        that may start anew is in formulas what it then is."""
        for name, first in self.block.starts.items() if ANEW in self.outside.env else ():
            self.means[symbol(f"b_{name}")] = where(ANEW > 0, self.s.ir.exact(first), self.states[name])
            self.names[name] = symbol(f"b_{name}")
        for name in self.matrices:
            if name in FUNCTIONS:
                hint = "give it another name"
                self.s.low.tell(
                    Problem("W0403", f"'{name}' is a function of formulas", (*self.path, "matrices", name), hint)
                )
        for name, text in self.block.let.items():
            self.means[symbol(f"w_{name}")] = self._formula(text, "let", name)
            self.names[name] = symbol(f"w_{name}")
        for name, text in self.block.update.items():
            self.means[self.after[name]] = self._formula(text, "update", name)
        self.gate = None if self.block.gate is None else self._formula(self.block.gate, "gate")
        self.output = self._formula(self.block.output, "output", after=True)
        if self.gate is not None and self.moves(self.gate):
            if not self.s.low.problems:  # else what stands for a refused formula may
                message, hint = "the gate reads a state", "read it in `output`"
                raise SpecError.at((*self.path, "gate"), "W0403", message, hint)
            self.gate = sp.S.One
        self._idle()

    def _idle(self) -> None:
        """A matrix or a parameter that no formula reads is a mistake, most likely a misspelt name."""
        if self.s.low.problems:
            return
        read = self.below(sp.Add(self.output, *self.after.values(), self.gate or 0))
        called = {self.terms[name].form for name in read if name in self.terms}
        at = {n: where[:2] for n, (where, _) in self.block.shapes.items() if n not in self.block.state}
        idle = [at[n] for n in at if self.names[n] not in read]
        idle += [("matrices", n) for n in self.matrices if n not in called]
        hint = "use it or leave it out"
        if idle:
            raise SpecError([Problem("W0403", f"no formula reads '{w[1]}'", (*self.path, *w), hint) for w in idle])

    def below(self, e: Any) -> set[Any]:
        """All symbols that a formula comes to, through what they mean."""
        found, todo = set[Any](), list(e.free_symbols)
        while todo:
            name = todo.pop()
            if name not in found:
                found.add(name)
                meaning = self.terms[name].of if name in self.terms else self.means.get(name)
                todo += [] if meaning is None else meaning.free_symbols
        return found

    def moves(self, e: Any) -> bool:
        """Does a formula depend on a state?"""
        return not self.below(e).isdisjoint(self.states.values())

    def _given(self, x: Val, stem: str) -> None:
        """The projected inputs [batch seq ..] and the parameters, in the accumulate dtype; and the matrices."""
        s = self.s
        for name in self.block.inputs:
            own = " ".join(self.shapes[name])
            y = s.linear(name, x, f"width {own}".strip(), f"{s.rows} {own}".strip(), f"{stem}.{name}")
            self.outside.env[self.names[name]] = s.g.cast(y, self.dtype)
        for name, parameter in self.block.parameters.items():
            rule = (parameter.init, (*self.path, "parameters", name, "init"))
            own = " ".join(self.shapes[name])
            self.outside.env[self.names[name]] = s.param(
                f"{stem}.{name}", own, rule=rule, dtype=self.dtype, rates=parameter.rates
            )
        for name, m in self.matrices.items():
            over = " ".join(self.beside(d) if d in m.to else d for d in m.over)
            own, init = " ".join((*m.each, over, *m.to)), self.block.multiplied[name].init
            rule = None if init is None else (init, (*self.path, "matrices", name, "init"))
            self.outside.env[m.weight] = s.param(f"{stem}.{name}.weight", own, fan_in=over, rule=rule)

    def run(self) -> Val:
        """The output, [batch seq ..]."""
        self.where = (*self.path, "output")
        if not self.moves(self.output):
            found = self.outside.value(self.output)
            return self.s.g.expand(found, to=self.outside.ordered(union(self.outside.lead, found.dims)))
        body = Builder(self.s.g.src)
        step = _StepValues(self, body, ("batch",), self.outside)
        starts = [self._start(name, first) for name, first in self.block.starts.items()]
        for name, v in zip(self.block.state, starts):
            step.env[self.states[name]] = body.input(name, v.type)
        following = [self._next(step, name) for name in self.block.state]
        self.where = (*self.path, "output")
        out = step.value(self.output, "read")
        graph = body.graph(*following, out)
        given = tuple(v for v in graph.inputs if v.name not in self.block.state)
        loop = Loop(
            self.time, graph, len(starts), self.backward, chunk_dims(self.s, self.block.chunk, self.order, self.path)
        )
        assert len(given) == len(step.given)
        return self.s.g.many(loop, *starts, *step.given)[len(starts)]

    def _start(self, name: str, first: float) -> Val:
        dims = ("batch", *self.shapes[name])
        return self.s.map(f"{name}_first", self.s.ir.exact(first), to=" ".join(dims), dtype=self.dtype)

    def _next(self, step: _StepValues, name: str) -> Val:
        """A state's next value, over the state's dims."""
        self.where = (*self.path, "update", name)
        found, dims = step.at(self.after[name]), ("batch", *self.shapes[name])
        if more := [d for d in found.dims if d not in dims]:
            hint = f"sum along it, or add it to the dims of {name}"
            raise self.refused(f"the next value of {name} has the dim {more[0]}, which {name} has not", hint)
        if ANEW in self.outside.env:  # padding leaves it alone
            found = step.value(where(ANEW < 0, self.states[name], self.after[name]), name)
        return step.g.expand(found, to=dims)

    def gated(self, out: Val) -> Val:
        """The output times the gate."""
        assert self.gate is not None
        factor = self.outside.value(self.gate, "gate")
        to = self.outside.ordered(union(out.dims, factor.dims))
        return self.s.map("gated", "o*g", to=" ".join(to), o=out, g=factor, dtype=self.s.compute)
