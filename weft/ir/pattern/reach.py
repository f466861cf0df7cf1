"""What a stack of layers can see: the ordered product of their patterns, residual connections included.

Layer order matters: block-local then summary columns reaches everything, summary columns then block-local a quarter. A
recurrent layer reaches every earlier position, but through a state of fixed size, so its reach is told apart.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from weft.ir.pattern.bounds import is_causal
from weft.ir.pattern.formula import BatchCondition, Formula, leaves, relax
from weft.ir.pattern.meaning import holds_formula
from weft.ir.pattern.pattern import Pattern
from weft.ir.pattern.plan import Shape
from weft.ir.pattern.solver import solve_formula

if TYPE_CHECKING:
    from weft.ir.pattern.table import Bools

BLOCKS, TOKENS = 256, 8192


@dataclass(frozen=True)
class State:
    """A recurrent or state-space layer: every earlier position reaches a later one through `size` numbers."""

    size: int = 0


Layer = Pattern | State


@dataclass(frozen=True)
class Path:
    """How position `tokens[0]` (a key) reaches the last (a query): the position after each layer.

    block: 1 if these are tokens; else block numbers, and the path says where tokens may meet, not that they do.
    state: does it pass through a recurrent state?
    """

    tokens: tuple[int, ...]
    block: int = 1
    state: bool = False

    def __str__(self) -> str:
        hops = [t for i, t in enumerate(self.tokens) if i == 0 or t != self.tokens[i - 1]]
        unit = "" if self.block == 1 else f" (blocks of {self.block})"
        through = ", through a state" if self.state else ""
        return f"{' -> '.join(map(str, hops))} in {len(self.tokens) - 1} layers{unit}{through}"


@dataclass(frozen=True)
class Reach:
    """What each block of `block` positions reaches after all layers.

    exact: block is 1, so blocks are tokens. Else a block that is not reached has no token that is; one that is may.
    causal: is a later position out of the question? fraction, by_attention: reached pairs of those in question, with
    all layers, and without the recurrent ones. full_after: the layers after which nothing is missing, or None.
    """

    layers: tuple[Layer, ...]
    n: int
    block: int
    heads: int
    causal: bool
    fraction: float
    by_attention: float
    full_after: int | None
    _steps: "tuple[Bools, ...]" = field(repr=False, compare=False)
    _edges: "tuple[Bools, ...]" = field(repr=False, compare=False)

    @property
    def full(self) -> bool:
        return self.fraction == 1.0

    @property
    def exact(self) -> bool:
        return self.block == 1

    def path(self, key: int, query: int) -> Path | None:
        """A witness that position `key` reaches position `query`, or None if it does not.

        In tokens where n is at most 8192 (then None is a proof); else in blocks.
        """
        if self.block > 1 and self.n <= TOKENS:
            return _token_path(self, key, query)
        i, j = query // self.block, key // self.block
        if not self._steps[-1][i, j]:
            return None
        at, state = [i], False
        for edges, before, layer in zip(self._edges[::-1], self._steps[-2::-1], self.layers[::-1]):
            if not before[i, j]:
                i = int((edges[i] & before[:, j]).argmax())
                state = state or isinstance(layer, State)
            at.append(i)
        return Path(tuple(at[::-1]), self.block, state)


def reach(stack: Sequence[Layer | str], n: int, block: int | None = None, heads: int = 1) -> Reach:
    """Follow a stack of layers, first layer first, over n positions in blocks (default: at most 256 of them).

    A layer is a pattern, of which a query reaches what any of its `heads` sees, or a State. Every layer keeps what it
    had (residual). Metadata is taken to hide nothing.
    """
    import numpy as np  # the IR itself does without NumPy

    layers = tuple(Pattern.parse(x) if isinstance(x, str) else x for x in stack)
    block = block or max(1, -(-n // BLOCKS))
    size = -(-n // block)
    causal = all(isinstance(x, State) or is_causal(x, n, heads) for x in layers)
    edges = {x: _edges(x, n, block, heads) for x in set(layers)}
    asked = np.tril(np.ones((size, size), bool)) if causal else np.ones((size, size), bool)
    steps, only = [np.eye(size, dtype=bool)], np.eye(size, dtype=bool)
    full_after = None
    for depth, layer in enumerate(layers, 1):
        steps.append(_product(edges[layer], steps[-1]))
        if not isinstance(layer, State):
            only = _product(edges[layer], only)
        if full_after is None and steps[-1][asked].all():
            full_after = depth
    fraction, by_attention = (float(x[asked].mean()) for x in (steps[-1], only))
    adjacent = tuple(edges[x] for x in layers)
    return Reach(layers, n, block, heads, causal, fraction, by_attention, full_after, tuple(steps), adjacent)


def _product(edges: "Bools", before: "Bools") -> "Bools":
    """What is reached through one more layer, and what was before: rows of bits joined by or."""
    import numpy as np  # the IR itself does without NumPy

    bits = np.packbits(before, axis=1)
    out = bits.copy()
    for i in range(len(edges)):
        out[i] |= np.bitwise_or.reduce(bits[edges[i]], axis=0, initial=0)
    return np.unpackbits(out, axis=1, count=before.shape[1]).astype(bool)


def _edges(layer: Layer, n: int, block: int, heads: int) -> "Bools":
    """Which blocks of keys a block of queries sees any of. [blocks, blocks]"""
    import numpy as np  # the IR itself does without NumPy

    size = -(-n // block)
    if isinstance(layer, State):
        return np.tril(np.ones((size, size), bool))
    out = np.zeros((size, size), bool)
    for f in _formulas(layer, n, heads):
        plan = solve_formula(f, Shape(n, n, block, block))
        for i in range(size):
            out[i, [j for j, _, _ in plan.blocks(i)]] = True
    return out


def _formulas(layer: Pattern, n: int, heads: int) -> list[Formula]:
    """Of each head, metadata taken to hide nothing."""
    out: list[Formula] = []
    for _, _, f in layer.at(n).groups(heads):
        out.append(relax(f, True, frozenset(leaf for leaf in leaves(f) if isinstance(leaf, BatchCondition))))
    return out


def _token_path(r: Reach, key: int, query: int) -> Path | None:
    """The same over tokens, from one key on: which tokens it has reached after each layer."""
    import numpy as np  # the IR itself does without NumPy

    reached = [np.arange(r.n) == key]
    for layer in r.layers:
        now = reached[-1].copy()
        if isinstance(layer, State):
            now |= np.maximum.accumulate(now)
        else:
            for rows, seen in _rows(layer, r.n, r.heads):
                now[rows] |= (seen & reached[-1]).any(1)
        reached.append(now)
    if not reached[-1][query]:
        return None
    at, state = [query], False
    for layer, before in zip(r.layers[::-1], reached[-2::-1]):
        if not before[query]:
            state = state or isinstance(layer, State)
            query = _previous(layer, before, query, r)
        at.append(query)
    return Path(tuple(at[::-1]), 1, state)


def _previous(layer: Layer, before: "Bools", query: int, r: Reach) -> int:
    """A position reached before, that the query sees."""
    import numpy as np  # the IR itself does without NumPy

    if isinstance(layer, State):
        return int(before.argmax())
    seen = np.zeros(r.n, bool)
    for f in _formulas(layer, r.n, r.heads):
        seen |= np.asarray(holds_formula(f, query, np.arange(r.n)), bool)
    return int((seen & before).argmax())


def _rows(layer: Pattern, n: int, heads: int) -> "Iterator[tuple[slice, Bools]]":
    """What every query sees on any head, some rows at a time: (rows, [rows, n])."""
    import numpy as np  # the IR itself does without NumPy

    for first in range(0, n, BLOCKS):
        rows = slice(first, min(first + BLOCKS, n))
        q, k = np.arange(rows.start, rows.stop)[:, None], np.arange(n)[None]
        seen = np.zeros((len(q), n), bool)
        for f in _formulas(layer, n, heads):
            seen |= np.asarray(holds_formula(f, q, k), bool)
        yield rows, seen
