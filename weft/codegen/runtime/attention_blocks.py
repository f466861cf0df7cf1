"""Attention over a static set of blocks, chosen for each head: BigBird's random blocks (Zaheer et al. 2020)."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from .attention_core import accumulate_dtype, attend, attend_backward
from .attention_drop import attend_dropped, attend_dropped_backward
from .attention_layouts import Layout
from .attention_pieces import Gradients, Operands, Output, Saved, Span

Table = tuple[tuple[tuple[int, ...], ...], ...]  # [heads][query blocks] -> key blocks; one head serves all
GATHERED_AT_ONCE = 1 << 22  # elements of gathered keys of one call


@dataclass(frozen=True)
class Blocks(Layout):
    """Query block i of head h sees the key blocks table[h][i], whole; a block listed twice counts twice.

    Blocks have `block` positions; a table of one row serves every head; a query block past its row sees nothing. Query
    blocks (of whatever head) that see equally many key blocks are gathered and run as one call.
    """

    block: int
    table: Table

    def run(self, into: Output, x: Operands) -> None:
        batch, heads, n, _ = x.q.shape
        tiles, keys, values = (self._tiles(y) for y in (x.q, x.k, x.v))
        out = x.q.new_zeros(batch, tiles.shape[1], self.block, x.v.shape[-1])
        lse = into.buffers()[1].new_full((batch, tiles.shape[1], self.block), -torch.inf)
        for rows, columns, mask in self._calls(x):
            q, k, v = tiles[:, rows], _pick(keys, columns), _pick(values, columns)
            left = self._left(x, rows, columns)
            made = attend(q, k, v, x.scale, mask=mask) if left is None else attend_dropped(q, k, v, x.scale, left, mask)
            out[:, rows], lse[:, rows] = made
        out, lse = (y.unflatten(1, (heads, -1)).flatten(2, 3)[:, :, None, :n] for y in (out, lse))
        into.put(Span(0, n), out, lse, False, slice(None))

    def run_backward(self, into: Gradients, x: Saved) -> None:
        tiles, keys, values = [self._tiles(y) for y in (x.do, x.of.q, x.out)], self._tiles(x.of.k), self._tiles(x.of.v)
        row_lse = self._tiles(x.lse[..., None])[..., 0]
        dq, dk, dv = (torch.zeros_like(y, dtype=x.lse.dtype) for y in (tiles[1], keys, values))
        for rows, columns, mask in self._calls(x.of):
            do, q, out = (y[:, rows] for y in tiles)
            k, v = _pick(keys, columns), _pick(values, columns)
            saved, left = (do, q, k, v, out, row_lse[:, rows], x.of.scale), self._left(x.of, rows, columns)
            part = attend_backward(*saved, mask=mask) if left is None else attend_dropped_backward(*saved, left, mask)
            dq[:, rows] = part[0].to(dq.dtype)
            for total, y in zip((dk, dv), part[1:]):
                y = y.unflatten(2, (columns.shape[1], -1)).flatten(1, 2)
                total.index_add_(1, columns.flatten(), y.to(total.dtype))
        for total, y, operand in zip(into, (dq, dk, dv), (x.of.q, x.of.k, x.of.v)):
            n = operand.shape[2]
            total.add(Span(0, n), y.unflatten(1, (operand.shape[1], -1)).flatten(2, 3)[:, :, None, :n])

    def _tiles(self, x: Tensor) -> Tensor:
        """[B, H, N, D] -> [B, H blocks, block, D], the last block filled up with zeros."""
        x = F.pad(x, (0, 0, 0, -x.shape[2] % self.block))
        return x.unflatten(2, (x.shape[2] // self.block, self.block)).flatten(1, 2)

    def _calls(self, x: Operands) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """(query tiles [P], key tiles [P, c], mask of the keys past the end or None): one batched call each."""
        q, k = x.q, x.k
        blocks, key_blocks = -(-q.shape[2] // self.block), -(-k.shape[2] // self.block)
        group, ragged = q.shape[1] // k.shape[1], k.shape[2] % self.block
        alike: dict[tuple[int, bool], list[tuple[int, list[int]]]] = {}
        for head, own in enumerate(x.heads):
            for i, seen in enumerate(self.table[own % len(self.table)][:blocks]):
                seen = [b for b in seen if b < key_blocks]
                cut = bool(ragged) and key_blocks - 1 in seen
                tiles = [head // group * key_blocks + b for b in seen]
                alike.setdefault((len(seen), cut), []).append((head * blocks + i, tiles))
        for (count, cut), tiles in alike.items():
            step = max(1, GATHERED_AT_ONCE // max(1, q.shape[0] * count * self.block * k.shape[3]))
            for at in range(0, len(tiles) if count else 0, step):
                rows, columns = zip(*tiles[at : at + step])
                rows, columns = (torch.tensor(x, device=q.device) for x in (rows, columns))
                yield rows, columns, self._mask(columns, key_blocks, ragged, q) if cut else None

    def _left(self, x: Operands, rows: Tensor, columns: Tensor) -> Tensor | None:
        """What is left of the weights [B, P, block, c block] of query tiles [P] and key tiles [P, c]."""
        if x.bits is None:
            return None
        device, blocks, key_blocks = x.q.device, *(-(-y.shape[2] // self.block) for y in (x.q, x.k))
        b = torch.arange(x.q.shape[0], device=device).view(-1, 1, 1, 1)
        h = torch.arange(x.heads.start, x.heads.stop, x.heads.step, device=device)[rows // blocks]
        q = (rows % blocks * self.block)[:, None] + torch.arange(self.block, device=device)
        k, dtype = columns % key_blocks * self.block, accumulate_dtype(x.q)
        return x.bits.along(b, h[:, None, None], q[..., None], k[:, None], self.block, dtype).flatten(3)

    def _mask(self, columns: Tensor, key_blocks: int, ragged: int, q: Tensor) -> Tensor:
        """Additive mask [1, P, block, c block] that hides what lies past the last key."""
        past = torch.arange(self.block, device=q.device) >= ragged
        hidden = ((columns % key_blocks == key_blocks - 1)[..., None] & past).flatten(1)
        mask = torch.where(hidden, -torch.inf, 0.0).to(q.dtype)
        return mask[None, :, None].expand(1, -1, self.block, -1)


def _pick(x: Tensor, columns: Tensor) -> Tensor:
    """Tiles [B, T, block, D] at [P, c] -> [B, P, c block, D]."""
    return x.index_select(1, columns.flatten()).unflatten(1, columns.shape).flatten(2, 3)


EVERY, NONE = -2, -1  # in place of a key block: the row lists every block once; the row is shorter than the longest


@dataclass(frozen=True)
class Listed:
    """How often a table lists the pair of blocks of `block` positions that query q and key k of head h lie in.

    Called with index tensors that broadcast together; int64. For masks: what sees whole blocks alone runs as `Blocks`.
    """

    block: int
    table: Table
    slots: Table = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        every = tuple(range(len(self.table[0])))
        rows = [[(EVERY,) if row == every else row for row in head] for head in self.table]
        longest = max(1, *(len(row) for head in rows for row in head))
        slots = tuple(tuple((*row, *(NONE,) * (longest - len(row))) for row in head) for head in rows)
        object.__setattr__(self, "slots", slots)

    def __call__(self, q: Tensor, k: Tensor, h: Tensor) -> Tensor:
        rows = torch.tensor(self.slots, device=q.device)[h % len(self.slots), q // self.block]
        first, *rest = rows.unbind(-1)
        blocks = k // self.block
        count = ((first == EVERY) | (first == blocks)).long()
        for slot in rest:
            count = count + (slot == blocks)
        return count
