"""Whether a group of nodes can be one kernel, and if not, why: read off dim roles and the skeletons' holes.

Views (renames, detaches) are no work of their own: a reader of one reads what it shows. Dims that a rename makes the
same are one dim here.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from math import prod

from weft.ir.ops.op import kind
from weft.ir.types import Graph, Node, Val
from weft.ir.views import renamings
from weft.passes.fusion.downsets import Dag, bits
from weft.passes.fusion.price import Prices
from weft.passes.fusion.skeleton import TILE, Skeleton


class Reason(StrEnum):
    """Why two nodes are not in one kernel. Closed: a plan holds no other reason."""

    NO_SKELETON = "no skeleton holds this kind of work"
    TWO_CORES = "two cores without a shared operand"
    CHAINED_CORES = "one core reads the other's result"
    TOO_MANY = "more cores than the skeleton has"
    ROW_OF_TILE = "a row reduction needs the whole row of the core's output tile"
    ROW_PROLOGUE = "a row reduction must end before the core's first product"
    NO_HOLE = "the skeleton has no hole there"
    OTHER_SPACE = "the iteration spaces differ"
    OTHER_ROWS = "the reductions run over different dims"
    PATH_OUTSIDE = "a path leaves the pair and comes back"
    UNRELATED = "the nodes share no value"
    SLOWER = "slower"
    VENDOR = "the vendor's product is faster than what fusing saves"
    TWO_PROLOGUES = "a product has one operand that is computed on the way in"
    LEAVES = "others read what is only a tile of the kernel"
    TORCH = "the target runs torch ops"


Number = tuple[str, int | float | str]


@dataclass(frozen=True, slots=True)
class No:
    """A refusal: the reason and its numbers."""

    reason: Reason
    numbers: tuple[Number, ...] = ()


@dataclass(frozen=True)
class Work:
    """The nodes of a graph that do work, views looked through."""

    graph: Graph
    prices: Prices
    skeletons: tuple[Skeleton, ...]

    @cached_property
    def heavy(self) -> frozenset[str]:
        """The kinds of work that are a heavy skeleton's core."""
        return frozenset(s.core for s in self.skeletons if s.heavy)

    @cached_property
    def products(self) -> frozenset[str]:
        """The kinds of work that are products."""
        return frozenset(s.core for s in self.skeletons if s.product)

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        return tuple(n for n in self.graph.nodes if kind(n) != "view")

    @cached_property
    def shown(self) -> dict[Val, Val]:
        """View -> the value it shows."""
        out: dict[Val, Val] = {}
        for n in self.graph.nodes:
            if kind(n) == "view":
                out[n.outs[0]] = out.get(n.ins[0], n.ins[0])
        return out

    @cached_property
    def same(self) -> dict[str, str]:
        """Dim -> the name of the dim it is a renaming of."""
        return renamings(self.graph)

    def dims(self, names: Iterable[str]) -> frozenset[str]:
        """Dims under one name each."""
        return frozenset(self.same.get(d, d) for d in names)

    @cached_property
    def ins(self) -> tuple[tuple[Val, ...], ...]:
        """Operands of each node, views looked through, each once."""
        return tuple(tuple(dict.fromkeys(self.shown.get(v, v) for v in n.ins)) for n in self.nodes)

    @cached_property
    def maker(self) -> dict[Val, int]:
        """Value -> the node that makes it."""
        return {v: i for i, n in enumerate(self.nodes) for v in n.outs}

    @cached_property
    def kept(self) -> frozenset[Val]:
        """The graph's outputs, views looked through."""
        return frozenset(self.shown.get(v, v) for v in self.graph.outputs)

    @cached_property
    def dag(self) -> Dag:
        preds = tuple(_mask(self.maker[v] for v in ins if v in self.maker) for ins in self.ins)
        return Dag(preds)

    @cached_property
    def readers(self) -> dict[Val, int]:
        """Value -> the nodes that read it, as a mask."""
        out: dict[Val, int] = {}
        for i, ins in enumerate(self.ins):
            for v in ins:
                out[v] = out.get(v, 0) | 1 << i
        return out

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        return tuple(kind(n) for n in self.nodes)

    @cached_property
    def crossed(self) -> tuple[frozenset[str], ...]:
        """Dims of each node along which an element of its results needs other elements of its operands."""
        return tuple(self.dims(n.op.crossed(n)) for n in self.nodes)

    @cached_property
    def spaces(self) -> tuple[frozenset[str], ...]:
        return tuple(self.dims(n.space) for n in self.nodes)

    @cached_property
    def made(self) -> tuple[frozenset[str], ...]:
        """Dims of each node's results."""
        return tuple(self.dims(d for v in n.outs for d in v.dims) for n in self.nodes)

    def skeleton(self, group: int) -> Skeleton | None:
        """The skeleton whose core kind the group's heaviest work is."""
        kinds = {self.kinds[i] for i in bits(group)}
        return next((s for s in self.skeletons if s.core in kinds), None)

    def cores(self, group: int) -> list[int]:
        """The group's core nodes."""
        s = self.skeleton(group)
        return [i for i in bits(group) if s is not None and self.kinds[i] == s.core]

    def refuse(self, group: int) -> No | None:
        """Why the group cannot be one kernel; None: it can. A single node always can (as torch ops at worst)."""
        if group & (group - 1) == 0:
            return None
        if not self.dag.convex(group):
            between = self.dag.hull(group) & ~group
            return No(Reason.PATH_OUTSIDE, (("through", self.name(next(bits(between)))),))
        members, s = list(bits(group)), self.skeleton(group)
        for i in members:
            if s is None or self.kinds[i] not in (s.core, *s.before, *s.after):
                heavy = s is not None and self.kinds[i] in self.heavy
                return No(Reason.TWO_CORES if heavy else Reason.NO_SKELETON, (("node", self.name(i)),))
        assert s is not None
        if not self._related(group):
            return No(Reason.UNRELATED)
        if s.heavy:
            return self._refuse_heavy(group, s)
        return self._refuse_light(members)

    def _refuse_heavy(self, group: int, s: Skeleton) -> No | None:
        cores, dag = self.cores(group), self.dag
        if len(cores) > 1:
            if any(dag.above[i] >> j & 1 for i in cores for j in cores):
                return No(Reason.CHAINED_CORES)
            if not self._shared(cores):
                return No(Reason.TWO_CORES)
            if len(cores) > s.cores:
                return No(Reason.TOO_MANY, (("cores", len(cores)), ("most", s.cores)))
        ahead = [i for i in bits(group) if i not in cores and any(dag.above[c] >> i & 1 for c in cores)]
        for i in bits(group):
            if i not in cores and (no := self._hole(i, i in ahead, cores, s)):
                return no
        return self._refuse_product(group, cores, ahead) if s.product else None

    def _refuse_product(self, group: int, cores: Sequence[int], ahead: Sequence[int]) -> No | None:
        """What a kernel of tiles of rows and columns cannot hold: its cores have one left factor and one space; what
        comes before them stays inside, and what it stores has all rows and columns."""
        if any(len(self.ins[c]) != 2 or len(self.nodes[c].ins) != 2 for c in cores):
            return No(Reason.NO_HOLE, (("operands", max(len(self.ins[c]) for c in cores)),))
        if any(self.made[c] != self.made[cores[0]] for c in cores):
            return No(Reason.OTHER_SPACE, _spaces(*sorted({self.made[c] for c in cores}, key=sorted)[:2]))
        fed = {v for c in cores for v in self.ins[c] if self.maker.get(v, -1) in ahead}
        scatters = [i for i in ahead if self.kinds[i] == "scatter"]
        if scatters:
            if no := self._refuse_dispatch(scatters, cores, ahead, fed):
                return no
        elif len(fed) > 1 or any(v not in self.ins[c] for v in fed for c in cores):
            return No(Reason.TWO_PROLOGUES, (("operands", len(fed)),))
        inner = _mask((*ahead, *cores))
        for i in bits(group):
            if i in ahead and (self._leaves(i, group) or self._readers(i) & group & ~inner):
                return No(Reason.LEAVES, (("node", self.name(i)),))
            if i not in ahead and self.made[i] != self.made[cores[0]] and self._leaves(i, group):
                return No(Reason.OTHER_SPACE, _spaces(self.made[i], self.made[cores[0]]))
        room = frozenset[str]().union(*(self.dims(v.dims) for v in fed))
        over = [i for i in ahead if not scatters and not self.spaces[i] <= room]
        return No(Reason.OTHER_SPACE, _spaces(self.spaces[over[0]], room)) if over else None

    def _refuse_dispatch(
        self, scatters: Sequence[int], cores: Sequence[int], ahead: Sequence[int], fed: set[Val]
    ) -> No | None:
        """What a grouped product cannot hold of dispatches: all by one routing, each a factor as it is."""
        first, *others = (self.nodes[i] for i in scatters)
        at, places = first.op.at, first.ins[1:]  # type: ignore[attr-defined]
        numbers = (("node", self.name(scatters[0])),)
        sent = [v for i in scatters for v in self.nodes[i].outs]
        if len(at) != 2 or any(n.op.at != at or n.ins[1:] != places for n in others):  # type: ignore[attr-defined]
            return No(Reason.NO_HOLE, numbers)
        expert, slot = (next(iter(self.dims((d,)))) for d in at)
        kept = self.made[cores[0]]
        if expert not in kept or not fed <= set(sent) or not set(sent) <= fed:
            return No(Reason.NO_HOLE, numbers)
        if slot in kept and (len(sent) > 1 or any(sent[0] not in self.ins[c] for c in cores)):
            return No(Reason.TWO_PROLOGUES, (("operands", len(sent)),))
        others_ahead = [i for i in ahead if i not in scatters]
        tokens = frozenset[str]().union(*(self.dims(self.nodes[i].ins[0].dims) for i in scatters))
        if any(self._readers(i) & _mask(cores) or not self.spaces[i] <= tokens for i in others_ahead):
            return No(Reason.NO_HOLE, numbers)
        return None

    def _readers(self, i: int) -> int:
        """The nodes that read what a node makes, as a mask."""
        out = 0
        for v in self.nodes[i].outs:
            out |= self.readers.get(v, 0)
        return out

    def _leaves(self, i: int, group: int) -> bool:
        """Does anything outside the group read what the node makes?"""
        return bool(self._readers(i) & ~group) or not self.kept.isdisjoint(self.nodes[i].outs)

    def _hole(self, i: int, ahead: bool, cores: Sequence[int], s: Skeleton) -> No | None:
        """Whether node i fits the hole before or after the cores."""
        kind = self.kinds[i]
        if kind not in (s.before if ahead else s.after):
            if kind == "rowwise":
                numbers = (("row", self.extent(self.crossed[i])), ("tile", s.row or TILE))
                return No(Reason.ROW_PROLOGUE if ahead else Reason.ROW_OF_TILE, numbers)
            return No(Reason.NO_HOLE, (("node", self.name(i)),))
        if kind == "rowwise" and self.extent(self.crossed[i]) > s.row:
            return No(Reason.ROW_OF_TILE, (("row", self.extent(self.crossed[i])), ("tile", s.row)))
        room = frozenset[str]().union(*(self.spaces[c] if ahead else self.made[c] for c in cores))
        if not (ahead and s.product) and not self.spaces[i] <= room:
            return No(Reason.OTHER_SPACE, _spaces(self.spaces[i], room))
        return None

    def _refuse_light(self, members: Sequence[int]) -> No | None:
        whole = frozenset[str]().union(*(self.spaces[i] for i in members))
        if all(self.spaces[i] != whole for i in members):
            a, b = (self.spaces[i] for i in members[:2])
            return No(Reason.OTHER_SPACE, _spaces(a, b))
        rows = {self.crossed[i] for i in members if self.kinds[i] == "rowwise"}
        if len(rows) > 1:
            return No(Reason.OTHER_ROWS, _spaces(*sorted(rows, key=sorted)[:2]))
        reduced = whole - next(iter(rows), frozenset[str]())
        for i in members:
            if self.spaces[i] not in (whole, reduced) and self.ins[i]:
                return No(Reason.OTHER_SPACE, _spaces(self.spaces[i], whole))
        return None

    def _shared(self, cores: Sequence[int]) -> bool:
        """Do all cores read one same operand over the same summed dims?"""
        common = set(self.ins[cores[0]]).intersection(*(self.ins[i] for i in cores[1:]))
        return bool(common) and len({self.crossed[i] for i in cores}) == 1

    def _related(self, group: int) -> bool:
        """Are the nodes connected by values that they make or read?"""
        members = list(bits(group))
        touched = {i: {*self.ins[i], *self.nodes[i].outs} for i in members}
        seen, todo = {members[0]}, [members[0]]
        while todo:
            i = todo.pop()
            for j in members:
                if j not in seen and not touched[i].isdisjoint(touched[j]):
                    seen.add(j)
                    todo.append(j)
        return len(seen) == len(members)

    def extent(self, dims: Iterable[str]) -> int:
        return prod(self.prices.sizes[d] for d in dims)

    def name(self, i: int) -> str:
        return self.nodes[i].outs[0].name


def _spaces(a: frozenset[str], b: frozenset[str]) -> tuple[Number, ...]:
    return ("one", " ".join(sorted(a))), ("other", " ".join(sorted(b)))


def _mask(nodes: Iterable[int]) -> int:
    out = 0
    for i in nodes:
        out |= 1 << i
    return out
