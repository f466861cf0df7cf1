"""The body of a loop over small matrices as a hole: every value a tile of rows and columns."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from weft.codegen.skeletons.common.writer.holes import Hole, HoleBody, ir_line
from weft.codegen.skeletons.common.writer.maps import kind
from weft.codegen.skeletons.common.writer.spelling import ATOM, Tri
from weft.codegen.skeletons.common.writer.wrapper import Refused, Why
from weft.ir.ops.matrix_cell import MatrixCell
from weft.ir.ops.primitives import Detach, Einsum, Map, Reduce, Rename
from weft.ir.types import Dims, Node, Val

Axes = tuple[str | None, str | None]
"""The dims of a tile's rows and columns; None for an axis of size 1."""


@dataclass(frozen=True)
class Dim:
    """A dim as an axis: the size of its tile as source and where it is known, and its own size as source."""

    tile: str
    known: int | None
    size: str

    @property
    def ragged(self) -> bool:
        """Can a tile hold more than there is?"""
        return self.known is None or str(self.known) != self.size


class CellBody:
    """Values of a cell under way.

    size(d): of any dim, as source of the hole. lanes: the groups of dims that are walked as lanes."""

    def __init__(
        self, hole: Hole, own: Mapping[str, Dim], cell: MatrixCell, size: Callable[[str], str], lanes: Sequence[Dims]
    ) -> None:
        self.hole, self.own, self.cell, self.lanes = hole, own, cell, lanes
        self.body = HoleBody(hole, {}, lambda d: Tri(size(d), ATOM, "int", None, 0), self.missing)
        self.held: dict[str, tuple[Tri, Axes]] = {}
        self.turned: dict[str, Tri] = {}
        self.fixed: set[str] = set()
        self.loaded: set[str] = set()

    def missing(self, v: Val) -> Tri:
        raise Refused(Why.SPACES, v.name)

    def take(self, source: str, values: Sequence[Val]) -> None:
        """Unpack an argument of the hole."""
        names = [self.hole.mint(v.name) for v in values]
        if names:
            one = len(names) == 1
            self.hole.add(f"{names[0]} = {source}[0]" if one else f"{', '.join(names)} = {source}")
        for name, v in zip(names, values):
            self.keep(v, Tri(name, ATOM, kind(v)), self.natural(v), computed=source == "s")
            self.loaded |= set() if source == "s" else {v.name}

    def natural(self, v: Val) -> Axes:
        first, second, *_ = (*self.cell.own(v.dims), None, None)
        return first, second

    def axes(self, v: Val) -> Axes:
        return self.held[v.name][1]

    def at(self, v: Val, axes: Axes) -> Tri:
        """A value with these axes."""
        src, have = self.held[v.name]
        if have == axes or src.number:
            return src
        if have != axes[::-1] or v.name in self.fixed:
            raise Refused(Why.SPACES, v.name)
        if v.name not in self.turned:
            self.turned[v.name] = self.hole.bind(f"{v.name}_turned", Tri(f"tl.trans({src.text})", ATOM, src.kind))
        return self.turned[v.name]

    def can(self, v: Val, axes: Axes) -> bool:
        src, have = self.held[v.name]
        return bool(src.number) or have == axes or (have == axes[::-1] and v.name not in self.fixed)

    def keep(self, v: Val, src: Tri, axes: Axes, computed: bool = True) -> None:
        """Record a value; computed: a product or what is made of one, which is not turned where it has two axes."""
        self.held[v.name] = src, axes
        if computed and None not in axes:
            self.fixed.add(v.name)

    def run(self, nodes: Iterable[Node]) -> None:
        for n in nodes:
            if isinstance(n.op, Map):
                self.map(n)
            elif isinstance(n.op, Einsum | Reduce):
                self.sum(n)
            elif isinstance(n.op, Rename):
                src, (r, c) = self.held[n.ins[0].name]
                new = {n.op.old: n.op.new}
                self.keep(n.outs[0], src, (new.get(r or "", r), new.get(c or "", c)), n.ins[0].name in self.fixed)
            elif isinstance(n.op, Detach):
                src, axes = self.held[n.ins[0].name]
                self.keep(n.outs[0], src, axes, n.ins[0].name in self.fixed)
            else:
                raise Refused(Why.NOT_POINTWISE)

    def over(self, dims: Dims, operands: Iterable[Val]) -> Axes:
        """The axes of a space of own dims: of an operand that cannot be turned, of one that has all, or their order."""
        found = [self.axes(v) for v in operands if len(self.cell.own(v.dims)) == len(dims) and v.name in self.held]
        fixed = [self.axes(v) for v in operands if v.name in self.fixed and len(dims) == 2]
        first, second, *_ = (*dims, None, None)
        for axes in (*fixed, *found):
            if set(axes) - {None} == set(dims):
                return axes
        return first, second

    def fitted(self, v: Val, axes: Axes) -> Tri:
        """An operand of a space that lies so."""
        own = set(self.cell.own(v.dims))
        if not own <= set(axes):
            raise Refused(Why.SPACES, v.name)
        return self.at(v, without(axes, *(d for d in axes if d not in own)))

    def map(self, n: Node) -> None:
        axes = self.over(self.cell.own(n.outs[0].dims), n.ins)
        body = self.body
        body.env = {v.name: self.fitted(v, axes) for v in n.ins}
        body.coordinates = self.coordinates(axes)
        body.node(n)
        covered = {d for v in n.ins for d in self.cell.own(v.dims) if not body.env[v.name].number}
        read = {str(s)[2:] for s in n.op.symbols if str(s).startswith("i_")}  # type: ignore[attr-defined]
        for v in n.outs:
            src = body.env[v.name]
            if src.number or not set(axes) - {None} <= covered | read:
                shape = f"[{', '.join('1' if d is None else self.own[d].tile for d in axes)}]"
                full = f"tl.full({shape}, {src.text}, {self.hole.acc})"
                said = full if src.number else f"tl.broadcast_to({src.text}, {shape})"
                src = self.hole.bind(v.name, Tri(said, ATOM, src.kind))
            self.keep(v, src, axes, any(x.name in self.fixed for x in n.ins))

    def coordinates(self, axes: Axes) -> dict[str, Tri]:
        """What may be read of places: of own dims where they lie, of lanes, of time."""
        found = {d: Tri(self.line(d, axis), ATOM, "int", None, 0) for axis, d in enumerate(axes) if d is not None}
        return found | {g[0]: Tri(f"c[{k}]", ATOM, "int", None, 0) for k, g in enumerate(self.lanes) if len(g) == 1}

    def line(self, d: str, axis: int) -> str:
        """The coordinates of a dim along an axis."""
        said = f"tl.arange(0, {self.own[d].tile}){('[:, None]', '[None, :]')[axis]}"
        return f"(first + {said})" if d == self.cell.divided else said

    def masked(self, src: Tri, summed: str, axis: int, loaded: bool) -> str:
        """A tile about to be summed along an axis, 0 where there is nothing, as what is loaded is."""
        if loaded or not self.own[summed].ragged:
            return src.text
        return f"tl.where({self.line(summed, axis)} < {self.own[summed].size}, {src.text}, 0.0)"

    def sum(self, n: Node) -> None:
        """A product of matrices, or a sum of products element by element."""
        own = self.cell.own(dict.fromkeys(d for v in n.ins for d in v.dims))
        kept = self.cell.own(n.outs[0].dims)
        if len(own) == 3:
            self.product(n, next(d for d in own if d not in kept))
            return
        axes = self.over(own, n.ins)
        self.hole.note(ir_line(n))
        text = " * ".join(self.fitted(v, axes).text for v in n.ins)
        summed = [d for d in own if d not in kept]
        src = self.hole.bind(n.outs[0].name, Tri(text, ATOM)) if len(n.ins) > 1 else Tri(text, ATOM)
        loaded = any(v.name in self.loaded for v in n.ins if set(summed) <= set(v.dims))
        for d in summed:
            axis = axes.index(d)
            said = self.masked(src, d, axis, loaded)
            src = self.hole.bind(n.outs[0].name, Tri(f"tl.sum({said}, {axis}, keep_dims=True)", ATOM))
            axes = without(axes, d)
        self.keep(n.outs[0], src, axes, any(v.name in self.fixed for v in n.ins))

    def product(self, n: Node, k: str) -> None:
        """out[a, b] = left[a, k] right[k, b], whichever of the two stands left."""
        sides: list[tuple[Val, str]] = []
        for v in n.ins:
            sides.append((v, next(d for d in self.cell.own(v.dims) if d != k)))
        for (left, a), (right, b) in (sides, sides[::-1]):
            if self.can(left, (a, k)) and self.can(right, (k, b)):
                self.hole.note(ir_line(n))
                x, y = self.at(left, (a, k)), self.at(right, (k, b))
                x_said = self.masked(x, k, 1, left.name in self.loaded)
                y_said = self.masked(y, k, 0, right.name in self.loaded)
                said = f"tl.dot({x_said}.to(DOT), {y_said}.to(DOT), input_precision=PREC, out_dtype={self.hole.acc})"
                self.keep(n.outs[0], self.hole.bind(n.outs[0].name, Tri(said, ATOM)), (a, b))
                return
        raise Refused(Why.SPACES, n.outs[0].name)

    def state(self, v: Val, like: Val) -> str:
        """A state after the step, lying as before it."""
        return f"{self.at(v, self.axes(like)).text}.to(s[0].dtype)"

    def result(self, v: Val) -> tuple[str, Any]:
        src, axes = self.held[v.name]
        return src.text, axes


def without(axes: Axes, *dims: str | None) -> Axes:
    """Axes less those of some dims."""
    rows, columns = axes
    return None if rows in dims else rows, None if columns in dims else columns
