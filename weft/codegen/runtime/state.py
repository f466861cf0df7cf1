"""What decoding carries from call to call: how far each row is, and what every block keeps of earlier positions."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .module import check, refuse_autocast

Index = Tensor | Sequence[int] | int
WAY_OUT = "keep the state from before the positions to drop, and go on from that"


class Past(NamedTuple):
    """What one block keeps. A row's newest position stands last; slots before its first one are free.

    rows: [batch past ..], one per position (keys and values). carried: [batch ..], what all positions left behind (the
    state of a recurrent cell, the lengths of experts' queues)."""

    rows: tuple[Tensor, ...]
    carried: tuple[Tensor, ...]


class State(NamedTuple):
    """What later positions need of earlier ones. A value: no call changes it, and it can be gone on from many times.

    lengths: i64[batch], how many positions each row has had. length: the most of them. blocks: what each block keeps.
    """

    lengths: Tensor
    length: int
    blocks: tuple[Past, ...]

    @classmethod
    def first(cls, batch: int, limit: tuple[int, int] | None, blocks: Iterable[Past], device: torch.device) -> "State":
        """Before the first position. Raises ValueError for a batch over its declared maximum."""
        if batch < 1 or (limit is not None and batch > limit[0]):
            most = f"over its declared maximum {limit[0]}" if limit is not None and batch > 0 else "not positive"
            raise ValueError(f"state: dim batch is {batch}, {most}")
        return cls(torch.zeros(batch, dtype=torch.int64, device=device), 0, tuple(blocks))

    @classmethod
    def join(cls, states: Sequence["State"]) -> "State":
        """The rows of several states of one model, one after the other."""
        blocks: list[Past] = []
        for parts in zip(*(s.blocks for s in states), strict=True):
            rows = (_joined(xs) for xs in zip(*(p.rows for p in parts), strict=True))
            carried = (torch.cat(xs) for xs in zip(*(p.carried for p in parts), strict=True))
            blocks.append(Past(tuple(rows), tuple(carried)))
        return cls(torch.cat([s.lengths for s in states]), max(s.length for s in states), tuple(blocks))

    def select(self, rows: Index) -> "State":
        """These rows of the batch (numbers, or a mask), in this order; a row may be left out or stand several times."""
        chosen = self.reorder(rows)
        length = int(chosen.lengths.max()) if len(chosen.lengths) else 0
        blocks = (Past(tuple(_moved(x, None, length) for x in b.rows), b.carried) for b in chosen.blocks)
        return State(chosen.lengths, length, tuple(blocks))

    def reorder(self, index: Index) -> "State":
        """Row index[b] becomes row b. As `select`, without its wait for a GPU: `length` and room stay as they are."""
        rows = torch.as_tensor(index, device=self.lengths.device).reshape(-1)
        rows = rows.nonzero()[:, 0] if rows.dtype == torch.bool else rows
        return self._each(lambda x: x.index_select(0, rows))

    def crop(self, length: Index) -> "State":
        """Every row cut back to its first `length` positions (one number, or one for each row); shorter ones stay.

        Raises ValueError where that is not possible: a cell's state and an expert's queue hold no single positions, and
        a full window has let go of those that the last ones left would see."""
        most = torch.as_tensor(length, device=self.lengths.device)
        if most.dim() and most.shape != self.lengths.shape:
            raise ValueError(f"crop: {len(most)} lengths for dim batch of {len(self.lengths)}")
        if bool((most < 0).any()):
            raise ValueError(f"crop: a length is at least 0, not {int(most.min())}")
        left = torch.minimum(self.lengths, most)
        gone = self.lengths - left
        if not bool(gone.any()):
            return self
        for i, block in enumerate(self.blocks):
            if block.carried:
                raise ValueError(f"crop: block {i} carries what all positions left behind (a cell, queues); {WAY_OUT}")
            held = min((x.shape[1] for x in block.rows if x.shape[1]), default=self.length)
            if bool(((gone > 0) & (left > 0) & (self.lengths > held)).any()):
                raise ValueError(f"crop: block {i} holds no more than a window, the last {held} positions; {WAY_OUT}")
        longest = int(left.max())
        blocks = (Past(tuple(_moved(x, gone, longest) for x in b.rows), b.carried) for b in self.blocks)
        return State(left, longest, tuple(blocks))

    def to(
        self, device: torch.device | torch.dtype | str | int | None = None, dtype: torch.dtype | None = None
    ) -> "State":
        """On a device, or with floats of a dtype."""
        if isinstance(device, torch.dtype):
            device, dtype = None, device
        return self._each(lambda x: x.to(device=device, dtype=dtype if x.is_floating_point() else None))

    def clone(self) -> "State":
        """A copy that shares no memory."""
        return self._each(Tensor.clone)

    def detach(self) -> "State":
        """The same, outside autograd."""
        return self._each(Tensor.detach)

    def _each(self, do: Callable[[Tensor], Tensor]) -> "State":
        blocks = (Past(tuple(map(do, b.rows)), tuple(map(do, b.carried))) for b in self.blocks)
        return State(do(self.lengths), self.length, tuple(blocks))


class Fed(NamedTuple):
    """Where the positions of one call stand.

    pos: i64[batch], how many came before. at: i64[batch seq], the new ones; real: bool[batch seq], false (and `at` -1)
    where there is none: padding behind a row's last. padding: i64[batch], how many of those, None without any.
    length: of the longest row, afterwards. one: were the inputs given without their dim of positions?"""

    pos: Tensor
    at: Tensor
    real: Tensor
    padding: Tensor | None
    length: int
    one: bool

    def held(self, rows: Sequence[Tensor], kept: Sequence[int | None]) -> tuple[Tensor, ...]:
        """Past and new rows as they are kept: no padding behind the newest, and of a window only what it will see."""
        most = (self.length if k is None else min(k, self.length) for k in kept)
        return tuple(_moved(x, self.padding, n) for x, n in zip(rows, most, strict=True))

    def shown(self, result: Tensor, axis: int = 1) -> Tensor:
        """A result as the inputs were given."""
        return result.select(axis, 0) if self.one else result

    def after(self, blocks: Iterable[Past]) -> State:
        """The state after the call."""
        return State(self.pos + self.real.sum(1), self.length, tuple(blocks))


def feed(
    inputs: Mapping[str, Any],
    signature: Mapping[str, tuple[torch.dtype, tuple[str, ...]]],
    fixed: Mapping[str, int],
    limits: Mapping[str, tuple[int, int]],
    lengths: Index | None = None,
    state: Any = None,
) -> tuple[Fed, tuple[Tensor, ...]]:
    """Where new positions stand, and the inputs of those, [batch seq] each; what is padding reads 0.

    lengths: [batch], how many positions are each row's own (None: all). state: what came before (None: nothing); then
    the inputs may be [batch], one position. Raises TypeError or ValueError that names the input and the dim."""
    if state is not None and not isinstance(state, State):
        raise TypeError(f"state must be a State, as state(batch) and every call give one, got {type(state).__name__}")
    one = state is not None and all(isinstance(x, Tensor) and x.dim() == 1 for x in inputs.values())
    given = {name: x.unsqueeze(1) if one else x for name, x in inputs.items()}
    most = {dim: (limit, 1) for dim, (limit, _) in limits.items()}
    check(given, {name: signature[name] for name in given}, fixed, most)
    first, *_ = given.values()
    refuse_autocast(first)
    batch, new = first.shape[:2]
    if state is not None and len(state.lengths) != batch:
        raise ValueError(f"state: dim batch is {len(state.lengths)}, but {batch} in the inputs")
    pos = state.lengths if state is not None else torch.zeros(batch, dtype=torch.int64, device=first.device)
    at = pos[:, None] + torch.arange(new, device=pos.device)
    length = new + (state.length if state is not None else 0)
    if lengths is None:
        fed = Fed(pos, at, torch.ones_like(at, dtype=torch.bool), None, length, one)
    else:
        own = _own(lengths, batch, new, pos.device)
        real = torch.arange(new, device=pos.device) < own[:, None]
        fed = Fed(pos, at.masked_fill(~real, -1), real, new - own, int((pos + own).max()), one)
        given = {name: x.masked_fill(~real, 0) for name, x in given.items()}
    return _within(fed, limits), tuple(given.values())


def _own(lengths: Index, batch: int, new: int, device: torch.device) -> Tensor:
    """How many of `new` positions are each row's own: i64[batch]."""
    own = torch.as_tensor(lengths, dtype=torch.int64, device=device)
    if own.shape != (batch,):
        raise ValueError(f"lengths must be [batch], {batch} whole numbers, got shape {list(own.shape)}")
    if bool(((own < 0) | (own > new)).any()):
        raise ValueError(f"lengths: {own.tolist()} are not all within the {new} positions given")
    return own


def _within(fed: Fed, limits: Mapping[str, tuple[int, int]]) -> Fed:
    """Raises ValueError past the declared maximum, after the length is counted (it may be too large from `reorder`)."""
    limit = limits.get("seq")
    if limit is None or fed.length <= limit[0]:
        return fed
    fed = fed._replace(length=int((fed.pos + fed.real.sum(1)).max()))
    if fed.length > limit[0]:
        raise ValueError(f"dim seq would be {fed.length}, over its declared maximum {limit[0]}")
    return fed


def _moved(rows: Tensor, back: Tensor | None, most: int) -> Tensor:
    """The last rows, no more than `most`; where row b of the batch ends back[b] slots early, those before its end."""
    slots = rows.shape[1]
    keep = min(slots, most)
    if back is None:
        last = rows[:, slots - keep :]
        return last.clone() if 2 * keep < slots else last  # a small view would keep all of it in memory
    slot = torch.arange(slots - keep, slots, device=rows.device) - back[:, None]
    return rows[torch.arange(len(rows), device=rows.device)[:, None], slot.clamp(min=0)]


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """Rows of several batches, free slots before the shorter ones."""
    most = max(x.shape[1] for x in parts)
    room = ((0, 0) * (x.dim() - 2) + (most - x.shape[1], 0) for x in parts)
    return torch.cat([F.pad(x, pad) for x, pad in zip(parts, room)])
