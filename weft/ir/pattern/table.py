"""Static block sets: for each block of queries, the blocks of keys it sees, each as often as it is listed.

Two kinds: rows written out (`blocks`), and BigBird's, drawn by an integer hash that anyone can recompute (`bigbird`).
Zaheer et al. 2020, "Big Bird: Transformers for Longer Sequences", section 2: global, window and random blocks.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from weft.errors import FormulaError

if TYPE_CHECKING:
    import numpy as np

    Ints = np.ndarray[Any, np.dtype[np.int64]]
    Bools = np.ndarray[Any, np.dtype[np.bool_]]

Row = tuple[int, ...] | None
"""Key blocks, sorted, with repeats; None: every block once."""


@dataclass(frozen=True)
class PatternTable:
    """Rows of key blocks, one list of rows per head (head h reads `heads[h % len(heads)]`).

    block: tokens per block. swap: queries and keys exchanged.
    """

    block: int
    heads: tuple[tuple[Row, ...], ...]
    swap: bool = False

    def __post_init__(self) -> None:
        rows = len(self.heads[0])
        if any(len(h) != rows for h in self.heads):
            raise FormulaError("blocks needs the same number of rows for every head")
        worst = max((b for h in self.heads for row in h for b in row or ()), default=0)
        if worst >= rows:
            message = f"blocks has {rows} rows, so key blocks 0 to {rows - 1}, not {worst}"
            raise FormulaError(message, hint="give every block a row")

    @property
    def per_head(self) -> bool:
        return len(self.heads) > 1

    @property
    def multiset(self) -> bool:
        """Is any block listed twice in a row?"""
        return any(row is not None and len(set(row)) < len(row) for h in self.heads for row in h)

    @property
    def needs_length(self) -> bool:
        return False

    def at(self, n: int) -> "PatternTable":
        """The table for sequences of up to n tokens."""
        rows = len(self.heads[0])
        if n > rows * self.block:
            hint = f"give {-(-n // self.block)} rows, or lower the largest seq"
            raise FormulaError(f"blocks has {rows} rows of {self.block} tokens, too few for {n} tokens", hint=hint)
        return self

    def at_head(self, head: int) -> "PatternTable":
        return replace(self, heads=(self.heads[head % len(self.heads)],))

    def swapped(self) -> "PatternTable":
        return replace(self, swap=not self.swap)

    def rows(self, head: int) -> tuple[Row, ...]:
        return self.heads[head % len(self.heads)]

    def text(self) -> str:
        def row(r: Row) -> str:
            return "all" if r is None else f"[{', '.join(map(str, r))}]"

        return f"blocks({self.block}, {', '.join('[' + ', '.join(map(row, h)) + ']' for h in self.heads)})"

    def entries(self, head: int = 0) -> "tuple[Ints, Ints]":
        """Query block and key block of every entry, repeats kept; all-rows written out. int64 [entries] each."""
        import numpy as np  # the IR itself does without NumPy

        rows = self.rows(head)
        every = tuple(range(len(rows)))
        lists = [every if r is None else r for r in rows]
        keys = np.fromiter((b for r in lists for b in r), np.int64)
        queries = np.repeat(np.arange(len(rows)), [len(r) for r in lists])
        return (keys, queries) if self.swap else (queries, keys)


@dataclass(frozen=True)
class BigBird:
    """BigBird's table at n tokens, block by block of `block`.

    The first and the last block row see everything. Any other row i sees blocks 0, i-1, i, i+1, the last, and up to
    `random` of the M blocks left, all different: those are put in order and cut into `random` equal runs, and slot s
    takes number mix(seed, head, i, s) mod (length of the run) of run s. Every block counts once.
    """

    block: int
    random: int
    seed: int
    n: int | None = None
    head: int | None = None
    swap: bool = False

    @property
    def per_head(self) -> bool:
        return self.head is None and self.random > 0

    @property
    def multiset(self) -> bool:
        return False

    @property
    def needs_length(self) -> bool:
        return self.n is None

    def at(self, n: int) -> "BigBird":
        """The table for n tokens; one made for more keeps its own length."""
        if self.n is not None and n > self.n:
            hint = f"leave out the {self.n}, or lower the largest seq"
            raise FormulaError(f"{self.text()} is a table for {self.n} tokens, too few for {n}", hint=hint)
        return replace(self, n=n) if self.n is None else self

    def at_head(self, head: int) -> "BigBird":
        return self if self.head is not None else replace(self, head=head)

    def text(self) -> str:
        return f"bigbird({self.block}, {self.random}, {self.seed}{'' if self.n is None else f', {self.n}'})"

    def swapped(self) -> "BigBird":
        return replace(self, swap=not self.swap)

    def count(self) -> int:
        """Block rows."""
        if self.n is None:
            raise FormulaError(f"{self.text()} depends on the length of the sequence: give it as a fourth value")
        return -(-self.n // self.block)

    def rows(self, head: int) -> tuple[Row, ...]:
        """The same in the form of a `PatternTable`."""
        picked, total = self.draw(head), self.count()
        fixed = ({0, i - 1, i, i + 1, total - 1} for i in range(total))
        middle = tuple(tuple(sorted(f | {b for b in r if b >= 0})) for f, r in zip(fixed, picked.tolist()))
        return tuple(None if i in (0, total - 1) else row for i, row in enumerate(middle))

    def draw(self, head: int) -> "Ints":
        """The random blocks of every row; -1 where there is none to draw. int64 [rows, random]"""
        import numpy as np  # the IR itself does without NumPy

        total, head = self.count(), head if self.head is None else self.head
        i, s = np.arange(total)[:, None], np.arange(self.random)[None]
        first, last = np.maximum(i - 1, 1), np.minimum(i + 1, total - 2)  # the window, among the middle blocks
        left = np.maximum(total - 2 - (last - first + 1), 0)
        slots = np.minimum(self.random, left)
        low = s * left // np.maximum(slots, 1)
        size = (s + 1) * left // np.maximum(slots, 1) - low
        rank = low + mix(self.seed, head, i, s) % np.maximum(size, 1)
        block = 1 + rank + np.where(1 + rank >= first, last - first + 1, 0)
        return np.where((s < slots) & (i > 0) & (i < total - 1), block, -1)

    def entries(self, head: int = 0) -> "tuple[Ints, Ints]":
        """Query block and key block of every entry. int64 [entries] each."""
        import numpy as np  # the IR itself does without NumPy

        picked, total = self.draw(head), self.count()
        i = np.arange(total)[:, None]
        near = np.concatenate([0 * i, i - 1, i, i + 1, 0 * i + total - 1], 1)
        near[:, 1:4] = np.where((near[:, 1:4] < 1) | (near[:, 1:4] > total - 2), -1, near[:, 1:4])
        keys = np.concatenate([near, picked], 1)[1:-1]
        rows, columns = np.nonzero(keys >= 0)
        ends = [0] if total == 1 else [0, total - 1]
        queries = np.concatenate([rows + 1, np.repeat(ends, total)])
        seen = np.concatenate([keys[rows, columns], np.tile(np.arange(total), len(ends))])
        return (seen, queries) if self.swap else (queries, seen)


AnyTable = PatternTable | BigBird


def mix(seed: int, head: int, row: Any, slot: Any) -> Any:
    """A 32-bit hash of four integers: a product each, summed, then the finaliser of MurmurHash3. Arrays broadcast."""
    import numpy as np  # the IR itself does without NumPy

    mask, i, s = np.uint64(0xFFFFFFFF), np.asarray(row, np.uint64), np.asarray(slot, np.uint64)
    x = np.uint64((seed * 0x9E3779B1 + head * 0x85EBCA77) & 0xFFFFFFFF)
    x = (x + i * np.uint64(0xC2B2AE3D) + s * np.uint64(0x27D4EB2F)) & mask
    x = ((x ^ (x >> np.uint64(16))) * np.uint64(0x85EBCA6B)) & mask
    x = ((x ^ (x >> np.uint64(13))) * np.uint64(0xC2B2AE35)) & mask
    return (x ^ (x >> np.uint64(16))).astype(np.int64)


def slots(table: AnyTable, heads: int) -> "Ints":
    """The listed key blocks of every row, -1 where there are fewer, -2 first in a row that sees all.

    int64 [heads, rows, slots], slots = the longest row that is written out.
    """
    import numpy as np  # the IR itself does without NumPy

    per_head = [table.rows(h) for h in range(heads)]
    width = max(1, *(len(r) for rows in per_head for r in rows if r is not None), 1)
    out = np.full((heads, len(per_head[0]), width), -1, np.int64)
    for h, rows in enumerate(per_head):
        for i, row in enumerate(rows):
            out[h, i, : 1 if row is None else len(row)] = -2 if row is None else row
    return out
