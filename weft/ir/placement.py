"""Placements on values and the collectives that follow from them.

A mesh maps each axis to dim names in order of preference: {"tp": ("heads", "inner", "seq"), "dp": ("batch",)}. Where a
value lies follows from its dims, where an op runs from its roles; a collective is a change of placement. Nothing is
declared per op, and the walk that counts collectives is the walk that runs them.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import sympy as sp

from weft.ir.builder import flatten
from weft.ir.formula import symbol
from weft.ir.ops.op import size
from weft.ir.ops.regions import Loop
from weft.ir.types import Dims, Graph, Node, Val

REPLICATED, SUM, MAX = "replicated", "partial sum", "partial max"
"""Placements along one mesh axis. Any other placement is the name of the dim that is split."""

SPLITS = ("parallel", "sum", "max")  # the roles along which a node can be split

Mesh = Mapping[str, Dims]
Place = tuple[str, ...]
"""One placement per mesh axis, in the mesh's order."""


@dataclass(frozen=True, slots=True)
class Collective:
    """One change of placement. `times` is how often it runs (loops around it), `bytes` its whole value, all runs."""

    kind: str
    axis: str
    value: str
    dims: Dims
    times: sp.Expr
    bytes: sp.Expr
    src: str = ""


class Ranks(Protocol):
    """What the walk tells whoever holds the numbers of all ranks."""

    def move(self, v: Val, axis: int, src: Place, want: Place) -> None: ...
    def node(self, n: Node, picks: tuple[str | None, ...], at: Mapping[Val, Place]) -> None: ...
    def loop(self, n: Node, at: Mapping[Val, Place], walk: "Callable[[Any], object]") -> None: ...


def natural(dims: Iterable[str], mesh: Mesh) -> Place:
    """Where a value with these dims lies when nothing says otherwise: each axis splits its most preferred free dim."""
    out, dims = list[str](), tuple(dims)
    for order in mesh.values():
        out.append(next((d for d in order if d in dims and d not in out), REPLICATED))
    return tuple(out)


def shard(graph: Graph, mesh: Mesh, times: sp.Expr = sp.S.One, ranks: Ranks | None = None) -> list[Collective]:
    """The collectives of a flat graph, in order. With `ranks`, the same walk also runs them on numbers."""
    return _PlacementWalk(mesh, times, ranks).run(graph)


def collectives(graph: Graph, mesh: Mesh) -> list[Collective]:
    """The collectives of any graph: calls and composites are opened first."""
    return shard(flatten(graph), mesh)


def counts(found: Iterable[Collective]) -> dict[tuple[str, str], int]:
    """(kind, axis) -> how many, loops counted once."""
    return dict(Counter((c.kind, c.axis) for c in found))


def derived_role(flat: Graph, dim: str) -> str:
    """The role of a dim of what a flat graph does as a whole: what splitting the graph along it takes.

    No collective inside: "parallel" when every result keeps the dim, else "sum" or "max" by what the others are
    partial in. Anything else: "whole".
    """
    walk = _PlacementWalk({"rank": (dim,)}, sp.S.One, None)
    walk.nodes(flat)
    rest = {p for v in flat.outputs if dim not in v.dims for (p,) in walk.have[v]}
    if walk.out or any((dim,) not in walk.have[v] for v in flat.outputs if dim in v.dims):
        return "whole"
    if not rest:
        return "parallel"
    return "sum" if rest == {SUM} else "max" if rest == {MAX} else "whole"


class _PlacementWalk:
    def __init__(self, mesh: Mesh, times: sp.Expr, ranks: Ranks | None):
        self.mesh, self.times, self.ranks = mesh, times, ranks
        self.out: list[Collective] = []
        self.have: dict[Val, dict[Place, None]] = {}  # the placements in which a value exists, oldest first
        self.readers: dict[Val, list[Node]] = {}
        self.results: set[Val] = set()

    def run(self, graph: Graph) -> list[Collective]:
        self.nodes(graph)
        for v in graph.outputs:
            self.get(v, natural(v.dims, self.mesh), "")
        return self.out

    def nodes(self, graph: Graph) -> None:
        """Everything but the outputs, which stay as they come."""
        self.readers, self.results = {}, {*graph.outputs}
        for n in graph.nodes:
            for v in n.ins:
                self.readers.setdefault(v, []).append(n)
        for v in graph.inputs:
            self.have[v] = {natural(v.dims, self.mesh): None}
        for n in graph.nodes:
            (self.loop if isinstance(n.op, Loop) else self.node)(n)

    def get(self, v: Val, want: Place, src: str) -> None:
        """Make `v` available as `want`, axis by axis; a collective runs once per value and placement."""
        if want in self.have[v]:
            return
        talks = {p: sum(a not in (b, REPLICATED) for a, b in zip(p, want)) for p in self.have[v]}
        now = min(talks, key=lambda p: (talks[p], sum(a != b for a, b in zip(p, want))))
        while now != want:
            now = self.step(v, now, want, src)

    def step(self, v: Val, now: Place, want: Place, src: str) -> Place:
        """Change one axis. No dim is ever split by two axes, so an axis may have to give its dim up first."""
        changes = [i for i in range(len(want)) if now[i] != want[i]]
        free = [i for i in changes if want[i] not in now or want[i] in (REPLICATED, SUM, MAX)]
        i = free[0] if free else changes[0]
        then = (*now[:i], want[i] if free else REPLICATED, *now[i + 1 :])
        if then not in self.have[v]:
            self.change(v, i, now, then, src)
        return then

    def change(self, v: Val, i: int, now: Place, then: Place, src: str) -> None:
        if self.ranks:
            self.ranks.move(v, i, now, then)
        self.have[v][then] = None
        if now[i] != REPLICATED:  # from a replicated value each rank cuts its part without talking
            axis = list(self.mesh)[i]
            moved = self.times * size(v)
            self.out.append(Collective(_kind(now[i], then[i]), axis, v.name, v.dims, self.times, moved, src))

    def node(self, n: Node) -> None:
        picks, lost = list[str | None](), list[str]()
        for i, order in enumerate(self.mesh.values()):
            if n.op.linear() and self.adds_up(n, i):
                picks.append(None)
                lost.append(SUM)
                continue
            can = [d for d in order if d in n.space and d not in picks and n.op.role(n, d) in SPLITS]
            pick = next(iter(sorted(can, key=lambda d: not n.op.prefer(d))), None)
            picks.append(pick)
            lost.append(REPLICATED if pick is None else MAX if n.op.role(n, pick) == "max" else SUM)
        needs = [SUM if pick is None and where == SUM else REPLICATED for pick, where in zip(picks, lost)]
        at = {v: _place(v, picks, needs) for v in n.ins} | {v: _place(v, picks, lost) for v in n.outs}
        for v in n.ins:
            self.get(v, at[v], n.src)
        for v in n.outs:
            self.have[v] = {at[v]: None}
        if self.ranks:
            self.ranks.node(n, tuple(picks), at)

    def adds_up(self, n: Node, i: int) -> bool:
        """Does a linear node work on partial sums along axis i?

        It does where all operands are such, and no other reader wants them whole, as a product wants the cotangent
        whose sum over rows is a bias's; and where the others are whole, which then count on one rank alone, in a chain
        of sums, such as a cotangent's, and in a sum of several such terms, such as sub-layers beside each other: the
        last sum is reduced in place of each term."""
        at = [{p[i] for p in self.have[v]} for v in n.ins]
        partial = [places == {SUM} for places in at]
        if all(partial):
            others = (r for v in n.ins for r in self.readers.get(v, []) if r is not n)
            return bool(at) and all(r.op.linear() for r in others)
        if not any(partial) or not all(p or REPLICATED in places for p, places in zip(partial, at)):
            return False
        linked = [r for v in n.outs for r in self.readers.get(v, [])]
        if len(linked) == 1 and type(linked[0].op) is type(n.op) and linked[0].op.linear():
            return True
        terms = {v for v, p in zip(n.ins, partial) if p and {*v.dims} == {*n.outs[0].dims} and v not in self.results}
        return sum(all(r is n for r in self.readers[v]) for v in terms) > 1

    def loop(self, n: Node) -> None:
        """Operands and results lie as their slices do inside; the loop's own dim is never split."""
        op: Any = n.op
        at = {v: natural((d for d in v.dims if d != op.dim), self.mesh) for v in (*n.ins, *n.outs)}
        for v in n.ins:
            self.get(v, at[v], n.src)
        for v in n.outs:
            self.have[v] = {at[v]: None}
        if self.ranks:
            self.ranks.loop(n, at, lambda inner: shard(op.body, self.mesh, ranks=inner))
        self.out += shard(op.body, self.mesh, self.times * symbol(f"n_{op.dim}"))


def _place(v: Val, picks: list[str | None], otherwise: list[str]) -> Place:
    """Each axis splits the dim the node picked, where v has it."""
    return tuple(pick if pick is not None and pick in v.dims else other for pick, other in zip(picks, otherwise))


def _kind(src: str, want: str) -> str:
    if src == SUM:
        return "all_reduce" if want == REPLICATED else "reduce_scatter"
    if src == MAX:
        return "all_reduce_max"
    return "all_gather" if want == REPLICATED else "all_to_all"
