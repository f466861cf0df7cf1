"""Group the nodes of a block into regions, one kernel each, so that the modelled time is least.

    h = einsum(x, w) ; a = map(h) "gelu(h)"          ->   region matmul { h; epilogue a }
    y = layer_norm(x) ; q = einsum(y, wq)            ->   two regions: a row must end before the first product

A region must fit a skeleton (`legality`) and costs launch + max(bytes / bandwidth, FLOPs / rate), where bytes are what
crosses its border; what stands before a matmul's first product is computed again for each tile of its columns. The
search is exact (`downsets`), and falls back to greedy merging past its guard; the result says which. Every pair of
nodes where one reads the other gets exactly one verdict. It does not look across blocks, and changes no node: regions
and verdicts are decisions on the graph.

Source: downset dynamic programming over operator DAGs; the price is the roofline (Williams et al. 2009).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property

from weft.ir.types import Decision, Graph, Node, Val
from weft.passes.dispatch import dispatches
from weft.passes.fusion.downsets import Mates, Partition, bits, partition
from weft.passes.fusion.legality import No, Number, Reason, Work
from weft.passes.fusion.price import MATRIX, Prices, dtype
from weft.passes.fusion.skeleton import DISPATCH, TILE, Skeleton
from weft.targets import Target

LIMIT = 20_000  # groups looked at in one class of a block before merging is greedy: about a second
PICO = 10**12


@dataclass(frozen=True, slots=True)
class Region:
    """Nodes, by their first result, that run as one kernel, or as torch's operators.

    skeleton: its name, empty when none holds this work. core, before, after: the nodes in its core and holes.
    bytes and flops: what it moves and computes; seconds: its modelled time; launches: of kernels; busy: seconds at the
    target's peak that its FLOPs alone take."""

    id: str
    nodes: tuple[str, ...]
    skeleton: str
    core: tuple[str, ...]
    before: tuple[str, ...]
    after: tuple[str, ...]
    bytes: int
    flops: int
    seconds: float
    src: str = ""
    launches: int = 1
    busy: float = 0.0

    def ran(self, launches: int, nbytes: int, target: Target) -> "Region":
        """The same as one that launches and moves this."""
        seconds = target.launch * launches + max(nbytes / target.bandwidth, self.busy) / target.reach
        return replace(self, bytes=nbytes, launches=launches, seconds=seconds)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why a producer and its reader are in one region or not. microseconds: what fusing them gains, or would lose."""

    producer: str
    consumer: str
    fused: bool
    reason: Reason | None = None
    microseconds: float = 0.0
    numbers: tuple[Number, ...] = ()

    def __str__(self) -> str:
        pair = f"{self.producer} + {self.consumer}"
        if self.fused:
            return f"{pair}: fused, saves {self.microseconds:.2f} us"
        if self.reason in (Reason.SLOWER, Reason.VENDOR):
            lead = ": the vendor's product is ahead" if self.reason is Reason.VENDOR else ""
            return f"{pair}: legal, but {self.microseconds:.2f} us slower{lead}"
        numbers = ", ".join(f"{k} {v}" for k, v in self.numbers)
        return f"{pair}: no, {self.reason}" + (f" ({numbers})" if numbers else "")


@dataclass(frozen=True, slots=True)
class Fusion:
    """The regions in the order they run, one verdict per adjacent pair, modelled seconds, before and after."""

    regions: tuple[Region, ...]
    verdicts: tuple[Verdict, ...]
    seconds: float
    unfused: float
    exact: bool


def fuse(graph: Graph, prices: Prices, skeletons: tuple[Skeleton, ...], limit: int = LIMIT) -> Fusion:
    """The best grouping of one block's nodes."""
    return _Search(graph, prices, skeletons, limit).run()


def grouped(graph: Graph, found: Fusion) -> Graph:
    """The graph with its regions and verdicts as decisions."""
    return replace(graph, decisions=(*graph.decisions, *decisions(found, graph)))


def decisions(found: Fusion, graph: Graph) -> tuple[Decision, ...]:
    """Regions and verdicts as decisions. Fusing rounds fewer intermediate values: exact unless one is 16 bits wide."""
    dtypes = {n.outs[0].name: n.outs[0].dtype for n in graph.nodes}
    src = {n.outs[0].name: n.src for n in graph.nodes}
    search = "exact" if found.exact else "greedy"
    numbers = _microseconds(found.seconds), ("apart", round(found.unfused * 1e6, 3)), ("search", search)
    out = [Decision("fusion", "regions", str(len(found.regions)), "cost", numbers, found=found)]
    out += [
        Decision(
            "fusion", "+".join(r.nodes), r.skeleton or "torch ops", "cost",
            (("bytes", r.bytes), ("flops", r.flops), _microseconds(r.seconds)), (), r.src,
        )
        for r in found.regions
    ]  # fmt: skip
    for v in found.verdicts:
        subject, microseconds = f"{v.producer}+{v.consumer}", ("microseconds", round(v.microseconds, 3))
        if v.fused:
            kind = "numerics" if dtypes[v.producer] in ("f16", "bf16") else "exact"
            out.append(Decision("fusion", subject, "fused", kind, (microseconds,), (), src[v.consumer]))
        else:
            numbers = v.numbers or (microseconds,)
            rejected = (("fused", str(v.reason), numbers),)
            out.append(Decision("fusion", subject, "apart", "exact", (), rejected, src[v.consumer]))
    return tuple(out)


def _microseconds(seconds: float) -> Number:
    return "microseconds", round(seconds * 1e6, 3)


class _Search:
    """One block's search: prices of groups, the best partition, the verdicts."""

    def __init__(self, graph: Graph, prices: Prices, skeletons: tuple[Skeleton, ...], limit: int) -> None:
        self.work, self.prices, self.limit = Work(graph, prices, skeletons), prices, limit
        self.kept = self.work.kept
        self.price = cache(self._price)
        self.memo: dict[int, Partition] = {}

    def run(self) -> Fusion:
        n = len(self.work.nodes)
        if not n:
            return Fusion((), (), 0.0, 0.0, True)
        best = self._best(self.limit)
        regions = tuple(self._region(k, g) for k, g in enumerate(best.groups))
        single = sum(self._single(1 << i) for i in range(n))
        return Fusion(regions, self._verdicts(best), best.cost / PICO, single / PICO, best.exact)

    def _best(self, limit: int, together: int = 0) -> Partition:
        """The best partition, or the best that holds all of `together` in one group."""
        return partition(self.work.dag, self.price, self.mates, limit, together, self.memo)

    @cached_property
    def mates(self) -> Mates:
        """Per node, the nodes that some legal group may hold with it, and those that share a value with it."""
        w, n = self.work, len(self.work.nodes)
        may, link = [0] * n, [0] * n
        touched = [{*w.ins[i], *w.nodes[i].outs} for i in range(n)]
        for i in range(n):
            for j in range(i):
                if self._may(j, i):
                    may[i], may[j] = may[i] | 1 << j, may[j] | 1 << i
                if not touched[i].isdisjoint(touched[j]):
                    link[i], link[j] = link[i] | 1 << j, link[j] | 1 << i
        return Mates(tuple(_connected(may, link)), tuple(link))

    def _may(self, a: int, b: int) -> bool:
        """Could any legal group hold both? Every test here is one that a larger group cannot pass either."""
        w = self.work
        kinds = {w.kinds[a], w.kinds[b]}
        fits = [s for s in w.skeletons if kinds <= {s.core, *s.before, *s.after}]
        if not fits:
            return False
        heavy = [i for i in (a, b) if w.kinds[i] in w.heavy]
        if len(heavy) == 2:
            return w.refuse(1 << a | 1 << b) is None
        if "rowwise" in kinds and heavy:
            (row,) = (i for i in (a, b) if w.kinds[i] == "rowwise")
            return not w.dag.above[heavy[0]] >> row & 1 and w.extent(w.crossed[row]) <= max(s.row for s in fits)
        if self._blocked(a, b):
            return False
        if kinds == {"rowwise"}:
            return w.crossed[a] == w.crossed[b] or all(w.extent(w.crossed[i]) <= TILE for i in (a, b))
        return True

    def _blocked(self, a: int, b: int) -> bool:
        """Does every path between two ordered nodes lie under work that fits no group with both? A hull tells."""
        hull = self.work.dag.hull(1 << a | 1 << b)
        kinds = {self.work.kinds[i] for i in bits(hull)}
        fits = [s for s in self.work.skeletons if kinds <= {s.core, *s.before, *s.after}]
        return not fits or sum(self.work.kinds[i] in self.work.heavy for i in bits(hull)) > max(s.cores for s in fits)

    def _price(self, group: int) -> int | None:
        """Picoseconds of the group as one kernel."""
        if self.work.refuse(group) is not None:
            return None
        nbytes, launches, _, busy = self._cost(group)
        target = self.prices.target
        return round((target.launch * launches + max(nbytes / target.bandwidth, busy) / target.reach) * PICO)

    def _single(self, group: int) -> int:
        cost = self.price(group)
        assert cost is not None
        return cost

    def _cost(self, group: int) -> tuple[int, int, int, float]:
        """Of the group as one kernel: bytes across its border, launches, FLOPs, seconds that these take at the peak."""
        w, p, target = self.work, self.prices, self.prices.target
        nodes = [w.nodes[i] for i in bits(group)]
        inside = {v for n in nodes for v in n.outs}
        read = {v: self._read(v, nodes) for i in bits(group) for v in w.ins[i] if v not in inside}
        written = [v for v in inside if v in self.kept or w.readers.get(v, 0) & ~group]
        nbytes = sum(read.values()) + sum(p.size(v) for v in written)
        cores = [i for i in w.cores(group) if w.kinds[i] in w.heavy]
        flops, seconds = 0, 0.0
        s = w.skeleton(group) if group & (group - 1) else None  # alone, a product is the vendor's op
        tiles = self._tiles(group, cores)
        for i in bits(group):
            again = tiles if any(w.dag.above[c] >> i & 1 for c in cores) else 1
            rate = target.matrix if w.kinds[i] in MATRIX else target.vector
            f, share = p.flops(w.nodes[i]) * again, s.ratio if s and i in cores else 1.0
            flops, seconds = flops + f, seconds + f / (rate.get(dtype(w.nodes[i]), rate["f32"]) * share)
        launches = 1
        if any(map(dispatches, nodes)):
            launches = 1 + s.more if s else DISPATCH
        return nbytes, launches, flops, seconds

    def _read(self, v: Val, nodes: Sequence[Node]) -> int:
        """Bytes read of an operand: of a gathered table, the rows."""
        if v not in self.gathered:
            return self.prices.size(v)
        shown = self.work.shown
        readers = [n for n in nodes if v in (shown.get(x, x) for x in n.ins)]
        if all(n.op.gathers and shown.get(n.ins[0], n.ins[0]) == v for n in readers):
            return min(self.prices.size(v), sum(self.prices.size(n.outs[0]) for n in readers))
        return self.prices.size(v)

    @cached_property
    def gathered(self) -> set[Val]:
        """The tables that some node gathers rows of."""
        shown = self.work.shown
        return {shown.get(n.ins[0], n.ins[0]) for n in self.work.nodes if n.op.gathers}

    def _tiles(self, group: int, cores: Sequence[int]) -> int:
        """How often a matmul's programs compute what comes before its products: once per tile of output columns, the
        dims of the result that the factor so computed does not have."""
        w = self.work
        if not cores or w.kinds[cores[0]] not in w.products:
            return 1
        made = [v for v in w.ins[cores[0]] if v in w.maker and group >> w.maker[v] & 1]
        columns = max((w.extent(w.made[cores[0]] - w.dims(v.dims)) for v in made), default=1)
        return -(-columns // TILE)

    def _region(self, k: int, group: int) -> Region:
        w = self.work
        nbytes, launches, flops, busy = self._cost(group)
        s, cores = w.skeleton(group), w.cores(group) or list(bits(group))
        ahead = [i for i in bits(group) if i not in cores and any(w.dag.above[c] >> i & 1 for c in cores)]
        after = [i for i in bits(group) if i not in cores and i not in ahead]

        def names(members: Iterable[int]) -> tuple[str, ...]:
            return tuple(w.name(i) for i in members)

        src = next((w.nodes[i].src for i in (*cores, *bits(group)) if w.nodes[i].src), "")
        bare = Region(
            f"r{k}", names(bits(group)), s.name if s else "", names(cores), names(ahead), names(after),
            0, flops, 0.0, src, busy=busy,
        )  # fmt: skip
        return bare.ran(launches, nbytes, self.prices.target)

    def _verdicts(self, best: Partition) -> tuple[Verdict, ...]:
        w, out = self.work, list[Verdict]()
        home = {i: g for g in best.groups for i in bits(g)}
        for j in range(len(w.nodes)):
            for i in bits(w.dag.preds[j]):
                out.append(self._verdict(i, j, home, best))
        return tuple(out)

    def _verdict(self, i: int, j: int, home: dict[int, int], best: Partition) -> Verdict:
        w, pair = self.work, 1 << i | 1 << j
        a, b = w.name(i), w.name(j)
        if home[i] == home[j]:  # the gain of the whole region over its nodes apart
            apart = sum(self._single(1 << k) for k in bits(home[i]))
            return Verdict(a, b, True, None, (apart - self._single(home[i])) / 1e6)
        no = self._no(pair)
        if no is not None:
            return Verdict(a, b, False, no.reason, 0.0, no.numbers)
        forced = self._best(self.limit if best.exact else 0, pair)
        loss = max(0, forced.cost - best.cost) / 1e6
        together = next(g for g in forced.groups if not pair & ~g)
        reason = Reason.VENDOR if 0 < loss <= self._lead(together) else Reason.SLOWER
        return Verdict(a, b, False, reason, loss)

    def _lead(self, group: int) -> float:
        """Microseconds that the vendor's products are ahead of the group's own."""
        w, target = self.work, self.prices.target
        s, cores = w.skeleton(group), [i for i in w.cores(group) if w.kinds[i] in w.products]
        if s is None or not cores:
            return 0.0
        of = [(self.prices.flops(w.nodes[i]), dtype(w.nodes[i])) for i in cores]
        seconds = sum(f / target.matrix.get(d, target.matrix["f32"]) for f, d in of)
        return seconds * (1 / s.ratio - 1) / target.reach * 1e6

    def _no(self, pair: int) -> No | None:
        """Why no group holds the pair: the pair's own refusal, unless what lies between them makes it legal."""
        no = self.work.refuse(pair)
        hull = self.work.dag.hull(pair)
        return no if no is None or hull == pair or self.work.refuse(hull) is not None else None


def _connected(may: list[int], link: list[int]) -> list[int]:
    """Only pairs that links join through nodes which may be with both: legal groups are connected. To a fixpoint."""
    may, changed = list(may), True
    while changed:
        changed = False
        for u in range(len(may)):
            for v in bits(may[u] >> u + 1 << u + 1):
                common, seen, todo = may[u] & may[v] | 1 << v, 1 << u, 1 << u
                while todo and not seen >> v & 1:
                    grown = 0
                    for w in bits(todo):
                        grown |= link[w]
                    todo = grown & common & ~seen
                    seen |= todo
                if not seen >> v & 1:
                    may[u], may[v], changed = may[u] & ~(1 << v), may[v] & ~(1 << u), True
    return may
