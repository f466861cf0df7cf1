"""How the kernels of a region walk the parts of its pattern, whatever blocks their configuration has.

    FORWARD0 = {2: Walk(causal_pieces, None, (True, False)), 1: Walk(causal_masked, None, (False,))}
    FORWARD1 = plans("16x16 full run 0 end 1 1 0 0 0 1 1 0 0 1 partial 0 end 1 1 0 1 1 1 1 0 0 1;")
    FORWARD2 = table(Walk(table_pieces, table_block, (False,), (1, 64, 1), (first, blocks), keep=False), 64)
    PATTERN = Pattern((None, (Walked(forward=FORWARD0), Walked(forward=FORWARD1, keep=keep))), ...)    by query heads
    parts = PATTERN.parts(config, device)

Walks stand under the number of loops where a closed form holds for blocks of any size, under (BM, BN) where a solver's
plan does; a table (under None) is made for square blocks of one size, and recut for any other.
"""

import re
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any, NamedTuple

import torch

from .launch import AT, EMPTY, Part, Walk
from .pieces import flat, plan_block, plan_pieces

END = 1 << 30
SHIFT = 24  # of the head in an entry of a packed table

Blocks = tuple[int, int, int]


class Table(NamedTuple):
    """A walk by lists of square blocks of `grain`. back: its rows are blocks of keys."""

    walk: Walk
    grain: int
    back: bool = False


class Walked(NamedTuple):
    """A part of a pattern, of which every kernel is walked in blocks of whatever size; the rest as in `Part`."""

    forward: Mapping[Any, Any] | None = None
    dkdv: Mapping[Any, Any] | None = None
    dq: Mapping[Any, Any] | None = None
    keep: Any = None
    classes: int = 1
    q_at: tuple[int, int, int] = AT
    k_at: tuple[int, int, int] = AT

    def part(self, own: Mapping[str, Blocks], device: torch.device) -> Part:
        walks = {k: chosen(w, own[k], device) for k in own if (w := getattr(self, k)) is not None}
        return EMPTY._replace(**walks, keep=self.keep, classes=self.classes, q_at=self.q_at, k_at=self.k_at)


class Pattern:
    """The parts of each stretch of heads: (heads, (Walked, ...)) each."""

    def __init__(self, *groups: tuple[Any, tuple[Walked, ...]]) -> None:
        self.groups = groups
        self.made: dict[Any, Any] = {}

    def parts(self, config: Mapping[str, Any], device: torch.device) -> Any:
        """The groups of `launch.forward` and `launch.backward` for the blocks of a configuration."""
        own = {k: blocks(config[k]) for k in ("forward", "dkdv", "dq") if k in config}
        key = device, *own.items()
        if key not in self.made:
            self.made[key] = tuple((heads, tuple(p.part(own, device) for p in parts)) for heads, parts in self.groups)
        return self.made[key]


def blocks(config: Mapping[str, Any]) -> Blocks:
    """(BM, BN, LOOPS) of a kernel's configuration."""
    return config["BM"], config["BN"], config.get("LOOPS", 2)


def chosen(walks: Mapping[Any, Any], blocks: Blocks, device: torch.device) -> Walk:
    """The walk of a kernel with these blocks, its table on the device. ValueError where the file has none."""
    bm, bn, loops = blocks
    if loops in walks:
        return walks[loops]
    if (bm, bn) in walks:
        found = walks[bm, bn]
    elif None in walks:
        found = recut(walks[None], bm, bn)
    else:
        known = ", ".join(f"{a} x {b}" for a, b in walks)
        raise ValueError(f"this file walks blocks of {known}, not {bm} x {bn}: compile it again for that configuration")
    found = once(found) if loops == 1 else found
    return found._replace(table=tuple(t.to(device) for t in found.table)) if found.table else found


def once(walk: Walk) -> Walk:
    """The same blocks in one loop, all of them masked."""
    if walk.slots == (False,):
        return walk
    if walk.table:
        first, listed = walk.table
        plan = (*walk.plan[:2], 1)
        return walk._replace(slots=(False,), plan=plan, table=(first[:: len(walk.slots)].contiguous(), listed))
    return walk._replace(slots=(False,), plan=(sum(walk.plan[:2]), 0, 0, 0, 0, *walk.plan[5:]))


def plans(text: str) -> dict[tuple[int, int], Walk]:
    """Walks by a solver's plan, written as `BMxBN ... [cut] {full | partial} [run] entries ...;` for blocks that share
    it: see PLAN of `pieces`; an entry is twelve numbers, `end` for as far as there are rows or blocks."""
    out: dict[tuple[int, int], Walk] = {}
    for record in filter(None, map(str.strip, text.split(";"))):
        head, *slots = re.split(r"\b(?=full|partial)", record)
        kinds, entries, runs = list[bool](), list[Any](), list[bool]()
        for kind, *words in map(str.split, slots):
            numbers = [END if w == "end" else int(w) for w in words if w != "run"]
            kinds.append(kind == "full")
            entries.append(tuple(zip(*[iter(numbers)] * 12, strict=True)))
            runs.append("run" in words)
        plan = flat(entries, runs, "cut" in head)
        walk = Walk(plan_pieces, plan_block, tuple(kinds), plan, keep=False in kinds)
        for bm, bn in re.findall(r"(\d+)x(\d+)", head):
            out[int(bm), int(bn)] = walk
    return out


def table(walk: Walk, grain: int, back: bool = False) -> dict[None, Table]:
    """A walk by table, for blocks of any size."""
    return {None: Table(walk, grain, back)}


def recut(made: Table, bm: int, bn: int) -> Walk:
    """A table for blocks of bm x bn: a block inside one of the table's is what that is; one around several is full if
    all of them are. Blocks that count more than once are only ever cut."""
    walk, (a, b) = made.walk, (bn, bm) if made.back else (bm, bn)
    if a == b == made.grain:
        return walk
    heads, rows, slots = walk.plan
    first, listed = (t.tolist() for t in walk.table or ())
    counts = -(-rows * made.grain // a)
    starts, out = [0], list[int]()
    for h, i in product(range(heads), range(counts)):
        own = range(i * a // made.grain, min(rows, -(-(i + 1) * a // made.grain)))
        lists = [[listed[slice(*first[z : z + 2])] for z in range(at, at + slots)]
                 for at in ((h * rows + r) * slots for r in own)]  # fmt: skip
        for found in joined(lists, walk.slots, b, made.grain):
            out += found
            starts.append(len(out))
    tensors = torch.tensor(starts, dtype=torch.int32), torch.tensor(out or [0], dtype=torch.int32)
    return walk._replace(plan=(heads, counts, slots), table=tensors)


def joined(lists: list[list[list[int]]], slots: tuple[bool, ...], b: int, grain: int) -> Iterator[list[int]]:
    """The entries of every slot for blocks of width b, from those of one or several rows of blocks of width grain."""
    if len(lists) == 1 and b <= grain:
        for found in lists[0]:
            yield [finer for entry in found for finer in cut(entry, grain // b)]
        return
    pieces = max(1, b // grain) * len(lists)  # of one new block
    count: dict[int, int] = {}
    whole: dict[int, int] = {}
    for row in lists:
        for full, found in zip(slots, row):
            for entry in found:
                for e in cut(entry, grain // b) if b < grain else [moved(entry, b // grain)]:
                    count[e] = count.get(e, 0) + 1
                    whole[e] = whole.get(e, 0) + full
    for full in slots:
        yield sorted(e for e in count if len(slots) == 1 or (whole[e] == pieces) == full)


def cut(entry: int, times: int) -> list[int]:
    """The blocks inside one: entries of the head that it is of."""
    head, j = entry >> SHIFT << SHIFT, entry & ((1 << SHIFT) - 1)
    return [head + j * times + z for z in range(times)]


def moved(entry: int, times: int) -> int:
    """The block around one."""
    return (entry >> SHIFT << SHIFT) + (entry & ((1 << SHIFT) - 1)) // times


def numbers(text: str) -> torch.Tensor:
    """A table of integers written out."""
    return torch.tensor([int(n) for n in text.split()], dtype=torch.int32)
