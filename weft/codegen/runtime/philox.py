"""Philox4x32-10 random numbers (Salmon et al. 2011): each a pure function of (seed, op, layer, index).

counter = (index // 4 low word, index // 4 high word, op_id, layer), key = (seed low, seed high), word = index % 4. The
index is the element's row-major place in the whole logical tensor, so layout, tiling, sharding and replay do not
change a bit. All arithmetic is int64, where products of 32-bit words wrap: bits 32..63 are still the high word.
"""

from collections.abc import Iterator
from math import ceil, prod
from typing import Any

import torch
from torch import Tensor

WORD = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
CHUNK = 1 << 17  # counters at a time: bounds temporaries to some 15 MB
NEAR = 1 << 14  # the same of runs, which are made many times: their temporaries stay in a core's cache
UNIT = 2.0**-24

Integer = Any  # an int64 tensor or an int, freely mixed


def philox(counter: tuple[Integer, ...], key: tuple[Integer, Integer]) -> tuple[Tensor, ...]:
    """Ten rounds on four counter words: four words, of which the low 32 bits count (mask them before a shift)."""
    a, b, c, d = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = a * MULTIPLIERS[0], c * MULTIPLIERS[1]
        a, b = (p1 >> 32 ^ b ^ k0) & WORD, p1
        c, d = (p0 >> 32 ^ d ^ k1) & WORD, p0
        k0, k1 = k0 + KEY_STEPS[0] & WORD, k1 + KEY_STEPS[1] & WORD
    return a, b, c, d


def uniform(seed: Integer, op_id: int, layer: Integer, index: Tensor) -> Tensor:
    """Numbers in [0, 1), multiples of 2^-24, float32, at any int64 logical indices. A full range: `uniform_range`."""
    if torch.compiler.is_compiling():  # it makes no temporaries, and keeps lengths open
        return _at(index, seed, op_id, layer) * UNIT
    out = torch.empty(index.numel(), dtype=torch.float32, device=index.device)
    for places, part in zip(index.reshape(-1).split(CHUNK), out.split(CHUNK)):
        part.copy_(_at(places, seed, op_id, layer))
        if index.is_meta:  # later chunks would allocate the same again
            break
    return out.mul_(UNIT).view(index.shape)


def uniform_range(
    shape: tuple[int, ...], seed: Integer, op_id: int, layer: Integer, device: torch.device, first: int = 0
) -> Tensor:
    """uniform at the indices first, first + 1, ... of a row-major tensor; float32. One counter gives four numbers."""
    if torch.compiler.is_compiling():
        return _at(_places(shape, device, first), seed, op_id, layer) * UNIT
    out = torch.empty(shape, dtype=torch.float32, device=device)
    for start, stop, words in _ranges(prod(shape), seed, op_id, layer, device, first):
        out.view(-1)[start:stop] = words
    return out.mul_(UNIT)


def dropout_mask(
    shape: tuple[int, ...],
    rate: float,
    seed: Integer,
    op_id: int,
    layer: Integer,
    device: torch.device,
    first: int = 0,
) -> Tensor:
    """Which elements to keep, uniform >= rate, as bool; element i has the logical index first + i, row-major."""
    least = ceil(rate / UNIT)
    if torch.compiler.is_compiling():
        return _at(_places(shape, device, first), seed, op_id, layer) >= least
    keep = torch.empty(shape, dtype=torch.bool, device=device)
    for start, stop, words in _ranges(prod(shape), seed, op_id, layer, device, first):
        torch.ge(words, least, out=keep.view(-1)[start:stop])
    return keep


def keep_at(index: Tensor, rate: float, seed: Integer, op_id: int, layer: Integer) -> Tensor:
    """Which of the elements at any int64 logical indices to keep, as bool."""
    keep, least = torch.empty(index.numel(), dtype=torch.bool, device=index.device), ceil(rate / UNIT)
    for places, part in zip(index.reshape(-1).split(CHUNK), keep.split(CHUNK)):
        torch.ge(_at(places, seed, op_id, layer), least, out=part)
        if index.is_meta:  # later chunks would allocate the same again
            break
    return keep.view(index.shape)


def keep_along(first: Tensor, count: int, rate: float, seed: Integer, op_id: int, layer: Integer) -> Tensor:
    """The same of the elements first, first + 1, ... first + count - 1, along a last dim; one counter gives four."""
    blocks, places = (torch.arange(n, device=first.device) for n in ((count + 6) // 4, count))
    keep, least = torch.empty(first.numel(), count, dtype=torch.bool, device=first.device), ceil(rate / UNIT)
    rows = max(1, NEAR // len(blocks))
    for start, part in zip(first.reshape(-1, 1).split(rows), keep.split(rows)):
        words = torch.stack([_top24(word) for word in _words((start >> 2) + blocks, seed, op_id, layer)], -1)
        torch.gather(words.flatten(1) >= least, 1, (start & 3) + places, out=part)
        if first.is_meta:  # later chunks would allocate the same again
            break
    return keep.view(*first.shape, count)


def _ranges(
    count: int, seed: Integer, op_id: int, layer: Integer, device: torch.device, first: int
) -> Iterator[tuple[int, int, Tensor]]:
    """(start, stop, the top 24 bits of words start..stop-1), a cache-sized chunk at a time."""
    skip = first % 4
    for start in range(0, skip + count, 4 * CHUNK):
        stop = min(start + 4 * CHUNK, skip + count)
        block = torch.arange((first - skip + start) // 4, -(-(first - skip + stop) // 4), device=device)
        words = torch.empty(len(block), 4, dtype=torch.int64, device=device)
        for lane, word in enumerate(_words(block, seed, op_id, layer)):
            words[:, lane] = _top24(word)
        used = slice(skip if start == 0 else 0, stop - start)
        yield max(start - skip, 0), stop - skip, words.view(-1)[used]
        if words.is_meta:  # later chunks would allocate the same again
            return


def _places(shape: tuple[int, ...], device: torch.device, first: int) -> Tensor:
    """The logical index of every element of a row-major tensor."""
    return torch.arange(first, first + prod(shape), device=device).view(shape)


def _at(index: Tensor, seed: Integer, op_id: int, layer: Integer) -> Tensor:
    """The top 24 bits at any int64 logical indices."""
    words, lane = _words(index >> 2, seed, op_id, layer), index & 3
    return _top24(torch.where(lane < 2, torch.where(lane == 0, *words[:2]), torch.where(lane == 2, *words[2:])))


def _words(block: Tensor, seed: Integer, op_id: int, layer: Integer) -> tuple[Tensor, ...]:
    return philox((block & WORD, block >> 32 & WORD, op_id, layer), (seed & WORD, seed >> 32 & WORD))


def _top24(word: Tensor) -> Tensor:
    return word >> 8 & 0xFFFFFF
