"""A layout on a part of the sequence: its end, or its first queries and keys."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from .attention_layouts import Layout
from .attention_pieces import Piece, Span


@dataclass(frozen=True)
class Tail(Layout):
    """`inner` among the positions from `start` on; earlier queries see nothing, earlier keys are not seen."""

    start: int
    inner: Layout

    def pieces(self, n: int, m: int, backward: bool = False) -> Iterator[Piece]:
        if min(n, m) <= self.start:
            return
        for piece in self.inner.pieces(n - self.start, m - self.start, backward):
            yield replace(piece, rows=self._moved(piece.rows), keys=self._moved(piece.keys))

    def _moved(self, span: Span) -> Span:
        return replace(span, start=span.start + self.start)


@dataclass(frozen=True)
class Corner(Layout):
    """`inner` among the first `queries` queries and the first `keys` keys (None: all of them)."""

    queries: int | None
    keys: int | None
    inner: Layout

    def pieces(self, n: int, m: int, backward: bool = False) -> Iterator[Piece]:
        rows, keys = (x if most is None else min(x, most) for x, most in ((n, self.queries), (m, self.keys)))
        yield from self.inner.pieces(rows, keys, backward)
