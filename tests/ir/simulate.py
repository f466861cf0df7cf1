"""All ranks of a mesh on numbers, in one process, driven by the walk that counts the collectives."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from weft.errors import CheckFailed
from weft.ir.builder import flatten
from weft.ir.ops.primitives import Loop
from weft.ir.placement import MAX, SUM, Collective, Mesh, Place, natural, shard
from weft.ir.reference import Site
from weft.ir.types import Graph, Node, Val


class Grid:
    """The parts that every rank holds. Ranks are the points of the mesh, one count per axis, in row-major order."""

    def __init__(self, counts: Sequence[int], sizes: Mapping[str, int], torch: Any, dtype: Any):
        self.counts, self.sizes, self.torch, self.dtype = tuple(counts), dict(sizes), torch, dtype
        self.points = list(itertools.product(*(range(c) for c in self.counts)))
        self.at: dict[tuple[Val, Place], dict[tuple[int, ...], Any]] = {}

    def put(self, v: Val, full: Any, place: Place) -> None:
        """Hand each rank its part of a whole value."""
        self.at[v, place] = {p: self.cut(v, full, place, p) for p in self.points}

    def cut(self, v: Val, full: Any, place: Place, point: tuple[int, ...]) -> Any:
        for where, count, i in zip(place, self.counts, point):
            if where in v.dims:
                full = self.chunk(v, full, where, count)[i]
        return full

    def chunk(self, v: Val, part: Any, dim: str, count: int) -> Sequence[Any]:
        axis = v.dims.index(dim)
        return part.split(self.share(dim, part.shape[axis], count, v), axis)

    def share(self, dim: str, size: int, count: int, v: Val) -> int:
        if size % count:
            raise CheckFailed(f"{count} ranks cannot share {dim} = {size} of {v.name}: {v.type}")
        return size // count

    def whole(self, v: Val, place: Place) -> Any:
        """The value that the ranks hold together. Raises CheckFailed where ranks that must agree do not."""
        parts = self.at[v, place]
        for i in range(len(place)):
            parts = {p: self.joined(v, place[i], [parts[_with(p, i, r)] for r in range(self.counts[i])]) for p in parts}
        return parts[self.points[0]]

    def joined(self, v: Val, where: str, parts: list[Any]) -> Any:
        if where in v.dims:
            return self.torch.cat(parts, v.dims.index(where))
        if where == SUM:
            return sum(parts[1:], parts[0])
        if where == MAX:
            return self.torch.stack(parts).amax(0)
        for other in parts[1:]:
            if not self.torch.allclose(parts[0].double(), other.double(), rtol=1e-9, atol=1e-9, equal_nan=True):
                raise CheckFailed(f"{v.name}: {v.type} should be the same on every rank and is not")
        return parts[0]

    def move(self, v: Val, axis: int, src: Place, want: Place) -> None:
        """One collective: the ranks that differ in `axis` join their parts and take new ones."""
        have, out = self.at[v, src], dict[tuple[int, ...], Any]()
        for p in self.points:
            full = self.joined(v, src[axis], [have[_with(p, axis, r)] for r in range(self.counts[axis])])
            if want[axis] in v.dims:
                full = self.chunk(v, full, want[axis], self.counts[axis])[p[axis]]
            out[p] = full * 0 if want[axis] == SUM and p[axis] else full
        self.at[v, want] = out

    def node(self, n: Node, picks: tuple[str | None, ...], at: Mapping[Val, Place]) -> None:
        """Run one node on every rank, on its part of the picked dims; formulas still see global sizes and indices."""
        outs = {v: dict[tuple[int, ...], Any]() for v in n.outs}
        for p in self.points:
            local, offset = dict(self.sizes), dict[str, int]()
            for dim, count, r in zip(picks, self.counts, p):
                if dim is not None:
                    local[dim] = self.share(dim, self.sizes[dim], count, n.outs[0])
                    offset[dim] = r * local[dim]
            site = Site(n, self.sizes, self.torch, self.dtype, local, offset)
            got = n.op.torch(site, self.torch, *(self.at[v, at[v]][p] for v in n.ins))
            for v, x in zip(n.outs, got if isinstance(got, tuple) else (got,)):
                outs[v][p] = x
        for v, parts in outs.items():
            self.at[v, at[v]] = parts

    def loop(self, n: Node, at: Mapping[Val, Place], walk: Callable[[Any], object]) -> None:
        """Walk the body once per step, each rank carrying its own part."""
        op = n.op
        assert isinstance(op, Loop)
        c, steps = op.carries, range(self.sizes[op.dim])
        carry = [self.at[v, at[v]] for v in n.ins[:c]]
        rows = list[list[Any]]()
        for i in reversed(steps) if op.reverse else steps:
            inner = Grid(self.counts, self.sizes, self.torch, self.dtype)
            for k, (own, v) in enumerate(zip(op.body.inputs, n.ins)):
                parts = carry[k] if k < c else self.at[v, at[v]]
                if k >= c and op.dim in v.dims:
                    parts = {p: x.select(v.dims.index(op.dim), i) for p, x in parts.items()}
                inner.at[own, at[v]] = parts
            walk(inner)
            out = [inner.at[own, at[v]] for own, v in zip(op.body.outputs, n.outs)]
            rows.append(out[c:] + carry)
            carry = out[:c]
        if op.reverse:
            rows.reverse()
        for v, parts in zip(n.outs[:c], carry):
            self.at[v, at[v]] = parts
        for k, v in enumerate(n.outs[c:]):
            axis = v.dims.index(op.dim)
            self.at[v, at[v]] = {p: self.torch.stack([row[k][p] for row in rows], axis) for p in self.points}


def _with(point: tuple[int, ...], axis: int, value: int) -> tuple[int, ...]:
    return (*point[:axis], value, *point[axis + 1 :])


def simulate(
    graph: Graph,
    mesh: Mesh,
    counts: Sequence[int],
    sizes: Mapping[str, int],
    args: Sequence[Any],
    torch: Any,
    dtype: Any = None,
) -> tuple[tuple[Any, ...], list[Collective]]:
    """(outputs put together from all ranks, the collectives that ran).

    `counts` is the number of ranks along each mesh axis; `args` are whole values, cut by their natural placements.
    Raises CheckFailed when a size does not divide or when ranks that hold the same value differ.
    """
    flat, grid = flatten(graph), Grid(counts, sizes, torch, dtype)
    for v, full in zip(flat.inputs, args, strict=True):
        grid.put(v, full, natural(v.dims, mesh))
    found = shard(flat, mesh, ranks=grid)
    return tuple(grid.whole(v, natural(v.dims, mesh)) for v in flat.outputs), found
