"""What decoding carries from call to call: how far each row is, and what every block keeps of earlier positions."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .module import bounded, check, refuse_autocast

Index = Tensor | Sequence[int] | int
WAY_OUT = "keep the state from before the positions to drop, and go on from that"


class Past(NamedTuple):
    """What one block keeps. A row's newest position stands last; slots before its first one are free.

    rows: [batch past ..], one per position (keys and values, experts chosen). carried: [batch ..], what all positions
    left behind (the state of a recurrent cell). kept: how many of `rows` later positions see; None: all. constant:
    [batch ..], made once of what was whole before the first position (keys and values of a cross attention)."""

    rows: tuple[Tensor, ...] = ()
    carried: tuple[Tensor, ...] = ()
    kept: tuple[int | None, ...] = ()
    constant: tuple[Tensor, ...] = ()

    def each(self, do: Callable[[Tensor], Tensor]) -> "Past":
        """With every tensor changed."""
        rows, carried, constant = (tuple(map(do, xs)) for xs in (self.rows, self.carried, self.constant))
        return Past(rows, carried, self.kept, constant)

    @property
    def spare(self) -> int:
        """How many positions its windows hold that later ones no longer see: so many can be dropped again."""
        return max(0, min((x.shape[1] - k for x, k in zip(self.rows, self.kept) if k is not None), default=0))

    def cut(self, back: Tensor | None, length: int, spare: int) -> "Past":
        """Without row b's last back[b] slots; at most `length` of them, and of a window what is seen and `spare`."""
        most = (length if k is None else min(k + max(0, spare), length) for k in self.kept)
        return self._replace(rows=tuple(_moved(x, back, n) for x, n in zip(self.rows, most, strict=True)))


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
        """The rows of several states of one model, one after the other.

        Raises ValueError where they were made of whole streams of different lengths."""
        shapes = [[x.shape[1:] for b in s.blocks for x in b.constant] for s in states]
        if any(shape != shapes[0] for shape in shapes):
            raise ValueError("join: what was whole before the first position differs in length; pad it to one")
        blocks: list[Past] = []
        for parts in zip(*(s.blocks for s in states), strict=True):
            spare = min(p.spare for p in parts)
            same = [p.cut(None, s.length, spare) for p, s in zip(parts, states)]
            rows = (_joined(xs) for xs in zip(*(p.rows for p in same), strict=True))
            carried = (torch.cat(xs) for xs in zip(*(p.carried for p in same), strict=True))
            constant = (torch.cat(xs) for xs in zip(*(p.constant for p in same), strict=True))
            blocks.append(Past(tuple(rows), tuple(carried), same[0].kept, tuple(constant)))
        return cls(torch.cat([s.lengths for s in states]), max(s.length for s in states), tuple(blocks))

    def select(self, rows: Index) -> "State":
        """These rows of the batch (numbers, or a mask), in this order; a row may be left out or stand several times."""
        chosen = self.reorder(rows)
        length = int(chosen.lengths.max()) if len(chosen.lengths) else 0
        return State(chosen.lengths, length, tuple(b.cut(None, length, length) for b in chosen.blocks))

    def reorder(self, index: Index) -> "State":
        """Row index[b] becomes row b. As `select`, without its wait for a GPU: `length` and room stay as they are."""
        rows = torch.as_tensor(index, device=self.lengths.device).reshape(-1)
        rows = rows.nonzero()[:, 0] if rows.dtype == torch.bool else rows
        return self.each(lambda x: x.index_select(0, rows))

    def crop(self, length: Index) -> "State":
        """Every row cut back to its first `length` positions (one number, or one for each row); shorter ones stay.

        Raises ValueError where that is not possible: a cell's state holds no single positions, and a window holds no
        more than it will see, beside the positions that the last call added to a state."""
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
                raise ValueError(f"crop: block {i} carries what all positions left behind; {WAY_OUT}")
            for x, k in ((x, k) for x, k in zip(block.rows, block.kept) if k):
                if bool(((gone > x.shape[1] - k) & (self.lengths > x.shape[1]) & (left > 0)).any()):
                    raise ValueError(f"crop: block {i} sees {k} positions back and no longer holds so many; {WAY_OUT}")
        longest, most = int(left.max()), int(gone.max())
        return State(left, longest, tuple(b.cut(gone, longest, b.spare - most) for b in self.blocks))

    def to(
        self, device: torch.device | torch.dtype | str | int | None = None, dtype: torch.dtype | None = None
    ) -> "State":
        """On a device, or with floats of a dtype."""
        if isinstance(device, torch.dtype):
            device, dtype = None, device
        return self.each(lambda x: x.to(device=device, dtype=dtype if x.is_floating_point() else None))

    def clone(self) -> "State":
        """A copy that shares no memory."""
        return self.each(Tensor.clone)

    def detach(self) -> "State":
        """The same, outside autograd."""
        return self.each(Tensor.detach)

    def each(self, do: Callable[[Tensor], Tensor]) -> "State":
        """With every tensor changed."""
        return State(do(self.lengths), self.length, tuple(b.each(do) for b in self.blocks))


class Fed(NamedTuple):
    """Where the positions of one call stand.

    pos: i64[batch], how many came before. at: i64[batch seq], the new ones; real: bool[batch seq], false (and `at` -1)
    where there is none: padding behind a row's last. padding: i64[batch], how many of those, None without any.
    spare: how many of the new ones can be dropped again. length: of the longest row, afterwards. one: were the inputs
    given without their dim of positions?"""

    pos: Tensor
    at: Tensor
    real: Tensor
    padding: Tensor | None
    spare: int
    length: int
    one: bool

    def left(self, now: Sequence[Tensor], kept: tuple[int | None, ...], constant: Sequence[Tensor] = ()) -> Past:
        """What a block leaves behind, of past and new rows and then of what it carries: no padding, of a window what
        later positions see. constant: what was made once."""
        n = len(kept)
        past = Past(tuple(now[:n]), tuple(now[n:]), kept, tuple(constant))
        return past.cut(self.padding, self.length, self.spare)

    def shown(self, result: Tensor, axis: int = 1) -> Tensor:
        """A result as the inputs were given."""
        return result.select(axis, 0) if self.one else result

    def after(self, blocks: Iterable[Past]) -> State:
        """The state after the call."""
        return State(self.pos + self.real.sum(1), self.length, tuple(blocks))


def check_whole(
    inputs: Mapping[str, Any],
    signature: Mapping[str, tuple[torch.dtype, tuple[str, ...]]],
    fixed: Mapping[str, int],
    limits: Mapping[str, tuple[int, int]],
    ranges: Iterable[tuple[str, str, int, int | None]],
) -> None:
    """Raises TypeError, ValueError or IndexError that names the input and the dim, of what is read whole."""
    check(inputs, {name: signature[name] for name in inputs}, fixed, limits, ranges)
    first, *_ = inputs.values()
    refuse_autocast(first)


def feed(
    inputs: Mapping[str, Any],
    time: str,
    signature: Mapping[str, tuple[torch.dtype, tuple[str, ...]]],
    fixed: Mapping[str, int],
    limits: Mapping[str, tuple[int, int]],
    ranges: Iterable[tuple[str, str, int, int | None]],
    lengths: Index | None = None,
    state: Any = None,
) -> tuple[Fed, tuple[Tensor, ...]]:
    """Where new positions stand, and the inputs of those, [batch time] each; what is padding reads 0.

    time: the dim of positions. lengths: [batch], how many positions are each row's own (None: all). state: what came
    before (None: nothing); then the inputs may be [batch], one position. ranges: as for `bounded`. Raises TypeError,
    ValueError or IndexError that names the input and the dim."""
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
        spare = new if state is not None else 0
        fed = Fed(pos, at, torch.ones_like(at, dtype=torch.bool), None, spare, length, one)
    else:
        own = _own(lengths, batch, new, pos.device)
        real = torch.arange(new, device=pos.device) < own[:, None]
        spare = int(own.min()) if state is not None else 0
        fed = Fed(pos, at.masked_fill(~real, -1), real, new - own, spare, int((pos + own).max()), one)
        given = {name: x.masked_fill(~real, 0) for name, x in given.items()}
    bounded(given, ranges)
    return _within(fed, time, limits), tuple(given.values())


def _own(lengths: Index, batch: int, new: int, device: torch.device) -> Tensor:
    """How many of `new` positions are each row's own: i64[batch]."""
    own = torch.as_tensor(lengths, dtype=torch.int64, device=device)
    if own.shape != (batch,):
        raise ValueError(f"lengths must be [batch], {batch} whole numbers, got shape {list(own.shape)}")
    if bool(((own < 0) | (own > new)).any()):
        raise ValueError(f"lengths: {own.tolist()} are not all within the {new} positions given")
    return own


def _within(fed: Fed, time: str, limits: Mapping[str, tuple[int, int]]) -> Fed:
    """Raises ValueError past the declared maximum, after the length is counted (it may be too large from `reorder`)."""
    limit = limits.get(time)
    if limit is None or fed.length <= limit[0]:
        return fed
    fed = fed._replace(length=int((fed.pos + fed.real.sum(1)).max()))
    if fed.length > limit[0]:
        raise ValueError(f"dim {time} would be {fed.length}, over its declared maximum {limit[0]}")
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
