"""The cheapest partition of a DAG into groups that can run one after another.

A partition is valid when its groups, as nodes, form no cycle; equivalently the groups in some order are a chain of
downsets. The search is dynamic programming over downsets, exact. Four things keep it small: only nodes that some legal
group holds together are searched together (the classes of that relation are solved apart, and joined again in the rare
case that their answers form a cycle); a group grows only by nodes that may share a group with every member, and along
the links that hold legal groups together; and a node that is ready when all its possible mates are done goes alone.
Past `LIMIT` groups looked at, a class is solved by greedy merging instead, and the result says so.

Nodes are 0 .. n-1 in a topological order; sets of nodes are bit masks; costs are integers, so sums are exact.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

Price = Callable[[int], int | None]  # the cost of a group, None when it is illegal
LIMIT = 100_000
WORST = 1 << 62


@dataclass(frozen=True, slots=True)
class Partition:
    """Groups in an order they can run in, their total cost, and whether it is proven least."""

    groups: tuple[int, ...]
    cost: int
    exact: bool


class _TooMany(Exception):
    """The search passed its limit."""


@dataclass(frozen=True)
class Dag:
    """The order of the nodes: `preds[v]` are the direct predecessors of v, as a mask."""

    preds: tuple[int, ...]

    def __post_init__(self) -> None:
        up, down = list(self.preds), [0] * len(self.preds)
        for v in range(len(up)):
            for u in bits(self.preds[v]):
                up[v] |= up[u]
        for v in reversed(range(len(up))):
            for u in bits(self.preds[v]):
                down[u] |= down[v] | 1 << v
        object.__setattr__(self, "above", tuple(up))
        object.__setattr__(self, "below", tuple(down))

    above: tuple[int, ...] = ()  # all ancestors
    below: tuple[int, ...] = ()  # all descendants

    def convex(self, group: int) -> bool:
        """No path leaves the group and comes back."""
        return self.hull(group) == group

    def hull(self, group: int) -> int:
        """The group with every node that lies on a path between two members."""
        up = down = 0
        for v in bits(group):
            up, down = up | self.above[v], down | self.below[v]
        return group | up & down


def bits(mask: int) -> Iterator[int]:
    """The members of a mask, ascending."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


@dataclass(frozen=True, slots=True)
class Mates:
    """may[v]: the nodes that some legal group holds together with v; a superset is fine.
    link[v]: nodes next to v, such that every legal group is connected by links; a superset is fine."""

    may: tuple[int, ...]
    link: tuple[int, ...]

    @staticmethod
    def unknown(n: int) -> "Mates":
        """Nothing is ruled out."""
        return Mates(((1 << n) - 1,) * n, ((1 << n) - 1,) * n)


def partition(
    dag: Dag,
    price: Price,
    mates: Mates | None = None,
    limit: int = LIMIT,
    together: int = 0,
    memo: dict[int, Partition] | None = None,
) -> Partition:
    """The cheapest valid partition; every single node must have a price.

    together: nodes of one legal group that are not to be parted, as a mask. memo: classes solved without that, kept
    between calls on the same DAG and prices."""
    n = len(dag.preds)
    mates = mates or Mates.unknown(n)

    @cache
    def priced(group: int) -> int | None:
        allowed = group & together in (0, together) and dag.convex(group)
        return price(group) if allowed else None

    memo = {} if memo is None else memo
    solved: dict[int, Partition] = {}
    classes = _classes(n, mates.may)
    while True:
        for c in classes:
            if c not in solved:
                store = solved if c & together else memo
                if c not in store:
                    store[c] = _solve(dag, c, priced, mates, limit, together)
                solved[c] = store[c]
        groups = [g for c in classes for g in solved[c].groups]
        loop = _cycle(dag, groups)
        if not loop:
            break
        joined = sum(c for c in classes if c & loop)
        if joined in solved:
            raise AssertionError("a class's own groups form a cycle")
        classes = [*(c for c in classes if not c & loop), joined]
    exact = all(solved[c].exact for c in classes)
    return Partition(_ordered(dag, groups), sum(solved[c].cost for c in classes), exact)


def _classes(n: int, near: Sequence[int]) -> list[int]:
    out: list[int] = []
    for v in range(n):
        mine = 1 << v | near[v]
        touching = [c for c in out if c & mine]
        out = [c for c in out if not c & mine]
        out.append(1 << v | sum(touching))
    return out


def _solve(dag: Dag, inside: int, price: Price, mates: Mates, limit: int, together: int) -> Partition:
    if inside & (inside - 1) == 0:
        return Partition((inside,), _single(price, inside), True)
    try:
        cost, _, groups = _Exact(dag, inside, price, mates, limit).best(0)
        return Partition(groups, cost, True)
    except _TooMany:
        groups = _greedy(dag, inside, price, together)
        return Partition(groups, sum(_single(price, g) for g in groups), False)


def _single(price: Price, group: int) -> int:
    cost = price(group)
    assert cost is not None, f"group {group:b} has no price"
    return cost


class _Exact:
    """Dynamic programming over the downsets of the nodes `inside`, in the order of the whole DAG."""

    def __init__(self, dag: Dag, inside: int, price: Price, mates: Mates, limit: int) -> None:
        self.inside, self.price, self.left = inside, price, limit
        n = len(dag.preds)
        self.members = tuple((v, 1 << v) for v in bits(inside))
        self.need = [dag.above[v] & inside for v in range(n)]
        self.may = [(mates.may[v] & inside) | 1 << v for v in range(n)]
        self.link = [mates.link[v] & self.may[v] for v in range(n)]
        self.known: dict[int, tuple[int, int, tuple[int, ...]]] = {inside: (0, 0, ())}

    def best(self, done: int) -> tuple[int, int, tuple[int, ...]]:
        """(cost, number of groups, groups) of the best way to finish from a downset."""
        if done not in self.known:
            out = (WORST, 0, ())
            for g in self.groups(done):
                cost, count, rest = self.known.get(done | g) or self.best(done | g)
                out = min(out, (cost + _single(self.price, g), count + 1, (g, *rest)))
            self.known[done] = out
        return self.known[done]

    def groups(self, done: int) -> list[int]:
        """Legal groups that may run next; only the first node that must go alone, if there is one."""
        todo = list[tuple[int, int, int]]()  # a group, the nodes linked to it, those that may be with all of it
        for v, bit in self.members:
            if not done & bit and not self.need[v] & ~done:
                if self.may[v] & ~done == bit and self.price(bit) is not None:
                    return [bit]
                todo.append((bit, self.link[v], self.may[v]))
        seen, out = {g for g, _, _ in todo}, list[int]()
        while todo:
            grown = todo.pop()
            self.left -= 1
            if self.left < 0:
                raise _TooMany
            if self.price(grown[0]) is not None:
                out.append(grown[0])
            todo += self.larger(*grown, done, seen)
        return out

    def larger(self, group: int, links: int, may: int, done: int, seen: set[int]) -> Iterator[tuple[int, int, int]]:
        """The group with one linked node more, and what that node needs, where that was not seen."""
        need, mates, link = self.need, self.may, self.link
        outside = ~(done | group)
        near = links & may & outside
        while near:
            bit = near & -near
            near ^= bit
            v = bit.bit_length() - 1
            more = (bit | need[v]) & outside
            if more & ~may or group | more in seen:
                continue
            all_links, all_may, left = links, may, more
            while left:
                u = (left & -left).bit_length() - 1
                left &= left - 1
                all_links, all_may = all_links | link[u], all_may & mates[u]
            if not more & ~all_may:
                seen.add(group | more)
                yield group | more, all_links, all_may


def _greedy(dag: Dag, inside: int, price: Price, together: int) -> tuple[int, ...]:
    """Merge the two groups that save most, while some pair saves anything and no cycle appears."""
    whole = dag.hull(together) if together & inside else 0
    groups = [*(1 << v for v in bits(inside & ~whole)), *([whole] if whole else [])]
    need, needing = _paths(dag, groups)
    gains: dict[tuple[int, int], int] = {}
    for i, b in enumerate(groups):
        gains |= _gains(groups[:i], b, price)
    while True:
        free = (p for p in gains if not (need[p[0]] & needing[p[1]] | need[p[1]] & needing[p[0]]) & ~(p[0] | p[1]))
        place = {g: i for i, g in enumerate(groups)}
        pick = max(free, key=lambda p: (gains[p], -place[p[0]], -place[p[1]]), default=None)
        if pick is None:
            return tuple(groups)
        groups = [g for g in groups if g not in pick]
        gains = {p: gain for p, gain in gains.items() if not {*p} & {*pick}}
        both = _merged(need, needing, *pick)
        gains |= _gains(groups, both, price)
        groups.append(both)


def _gains(groups: Sequence[int], b: int, price: Price) -> dict[tuple[int, int], int]:
    """What each group saves when it is merged with b, where it saves anything."""
    both = {a: price(a | b) for a in groups}
    found = {(a, b): _single(price, a) + _single(price, b) - cost for a, cost in both.items() if cost is not None}
    return {pair: gain for pair, gain in found.items() if gain > 0}


def _paths(dag: Dag, groups: Sequence[int]) -> tuple[dict[int, int], dict[int, int]]:
    """Of groups without a cycle: the nodes that each needs, and the groups that need it by way of any others.

    Two groups merged make a cycle just where one needs a third that needs the other."""
    need, needing, left = _needs(dag, groups), dict.fromkeys(groups, 0), list(groups)
    while left:
        wanted = _union(need[g] for g in left)
        for g in (last := [g for g in left if not wanted & g]):
            for h in groups:
                if need[g] & h:
                    needing[h] |= g | needing[g]
        left = [g for g in left if g not in last]
    return need, needing


def _merged(need: dict[int, int], needing: dict[int, int], a: int, b: int) -> int:
    """Two groups as one, in what `_paths` gave too."""
    both = a | b
    need[both] = (need.pop(a) | need.pop(b)) & ~both
    needing[both] = (needing.pop(a) | needing.pop(b)) & ~both
    for g, after in needing.items():
        if after & both:
            needing[g] |= both | needing[both]
    return both


def _after(dag: Dag, groups: Sequence[int]) -> list[int]:
    """Per group, the mask of all nodes that its members directly need."""
    return [_union(dag.preds[v] for v in bits(g)) & ~g for g in groups]


def _union(masks: Iterator[int]) -> int:
    out = 0
    for m in masks:
        out |= m
    return out


def _ordered(dag: Dag, groups: Sequence[int]) -> tuple[int, ...]:
    """The groups in an order they can run in: of those ready, the one with the lowest member."""
    left, done, out = dict(zip(groups, _after(dag, groups))), 0, list[int]()
    while True:
        ready = [g for g, need in left.items() if not need & ~done]
        if not ready:
            return tuple(out)
        g = min(ready, key=lambda g: g & -g)
        out.append(g)
        done |= g
        del left[g]


def _needs(dag: Dag, groups: Sequence[int]) -> dict[int, int]:
    """Per group, the mask of all nodes that come before one of its members."""
    return {g: _union(dag.above[v] for v in bits(g)) & ~g for g in groups}


def _cycle(dag: Dag, groups: Sequence[int]) -> int:
    """The nodes of all groups on, or between, cycles; 0 when the groups can be ordered.

    Groups that cover part of the DAG are ordered by paths through the rest too."""
    needs = _needs(dag, groups)
    left = list(groups)
    while True:
        alive = _union(iter(left))
        keep = [g for g in left if needs[g] & alive and any(needs[h] & g for h in left if h != g)]
        if len(keep) == len(left):
            return alive
        left = keep
