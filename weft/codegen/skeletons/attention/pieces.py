# ruff: noqa: RET505, RUF059 -- Triton needs both arms of a constant branch
"""Which blocks a kernel visits: the `pieces` and `block` holes of the attention skeleton.

Forward and dq run over key blocks j of a query block i. dk, dv run over query blocks of a key block: there the same
holes get the key block as i, the numbers of queries and keys exchanged, and a plan of the transposed pattern.

 * `dense_`, `causal_`, `band_`: closed forms for any lengths and blocks.
 * `plan_`: a solver's closed form, folded into constants. PLAN = (entries of slot 0, of slot 1; whether no row has two
   entries of slot 0, of slot 1; CUT; the entries), an entry being twelve numbers as in `members`: see `flat`. It holds
   for every length up to the one it was made for: blocks past the end are dropped, and with CUT (patterns that look
   ahead) a full block that the end cuts is visited by the partial slot; the slots then are full, partial.
 * `plan_within`: a plan whose runs end where documents do, as int32 bounds say that a launch makes of their numbers.
 * `table_`: int32 lists, TAB = (first, blocks): block list entries first[(h * rows + i) * slots + s] to the next one's.
   PLAN = (heads, rows, slots) as the table was made; heads = 1: for all. A block listed m times counts m times.
"""

import triton
import triton.language as tl


@triton.jit
def up(a, b):
    """a / b rounded up, for a >= 0."""
    return (a + b - 1) // b


# Closed forms


@triton.jit
def dense_pieces(i, s: tl.constexpr, n, m, b, h, A: tl.constexpr, B: tl.constexpr, PLAN: tl.constexpr, TAB):
    """Everything. Slots: full, partial."""
    if s == 0:
        return 0, m // B, 1
    else:
        return m // B, up(m, B), 1


@triton.jit
def dense_back(i, s: tl.constexpr, n, m, b, h, A: tl.constexpr, B: tl.constexpr, PLAN: tl.constexpr, TAB):
    """Everything, transposed: rows that do not exist have lse = +inf. Slots: full; or, of either direction, partial."""
    return 0, up(m, B), 1


@triton.jit
def causal_pieces(i, s: tl.constexpr, n, m, b, h, A: tl.constexpr, B: tl.constexpr, PLAN: tl.constexpr, TAB):
    """k <= q. Slots: full, partial."""
    full = tl.minimum(i * A + 1, m) // B
    if s == 0:
        return 0, full, 1
    else:
        return full, up(tl.minimum(i * A + A, m), B), 1


@triton.jit
def causal_back(i, s: tl.constexpr, n, m, b, h, A: tl.constexpr, B: tl.constexpr, PLAN: tl.constexpr, TAB):
    """k <= q, transposed. Slots: partial, full."""
    full = tl.minimum(up(i * A + A - 1, B), up(m, B))
    if s == 0:
        return i * A // B, full, 1
    else:
        return full, up(m, B), 1


@triton.jit
def causal_masked(i, s: tl.constexpr, n, m, b, h, A: tl.constexpr, B: tl.constexpr, PLAN: tl.constexpr, TAB):
    """k <= q in one loop. Slots: partial."""
    return 0, up(tl.minimum(i * A + A, m), B), 1


@triton.jit
def causal_masked_back(i, s: tl.constexpr, n, m, b, h, A: tl.constexpr, B: tl.constexpr, PLAN: tl.constexpr, TAB):
    """k <= q in one loop, transposed. Slots: partial."""
    return i * A // B, up(m, B), 1


@triton.jit
def band(i, n, m, A: tl.constexpr, B: tl.constexpr, PLAN: tl.constexpr):
    """(first block that is seen, first full one, end of the full ones, end) of row i: see `band_pieces`."""
    low = tl.maximum(i * A - PLAN[0], 0) // B
    end = tl.maximum(up(tl.minimum(tl.maximum(i * A + A + PLAN[1], 0), m), B), low)
    full = tl.minimum(tl.maximum(up(tl.maximum(i * A + A - 1 - PLAN[0], 0), B), low), end)
    return low, full, tl.maximum(tl.minimum(tl.maximum(i * A + 1 + PLAN[1], 0), m) // B, full), end


@triton.jit
def band_pieces(i, s: tl.constexpr, n, m, b, h, A: tl.constexpr, B: tl.constexpr, PLAN: tl.constexpr, TAB):
    """q - back <= k <= q + ahead, PLAN = (back, ahead); transposed (ahead, back). Slots: full, partial."""
    low, full, past, end = band(i, n, m, A, B, PLAN)
    if s == 0:
        return full, past, 1
    else:
        return low, full + end - past, 1


@triton.jit
def band_block(z, i, s: tl.constexpr, n, m, b, h, A: tl.constexpr, B: tl.constexpr, PLAN: tl.constexpr, TAB):
    """The partial blocks before the full ones, then those after them."""
    if s == 0:
        return z
    else:
        _, full, past, _ = band(i, n, m, A, B, PLAN)
        return tl.where(z < full, z, z + past - full)


@triton.jit
def band_masked(i, s: tl.constexpr, n, m, b, h, A: tl.constexpr, B: tl.constexpr, PLAN: tl.constexpr, TAB):
    """The same in one loop. Slots: partial."""
    low, _, _, end = band(i, n, m, A, B, PLAN)
    return low, end, 1


# A solver's plan


@triton.jit
def rank(x, anchor, step: tl.constexpr, width: tl.constexpr):
    """How many j < x have (j - anchor) mod step < width, up to a constant; x >= 0, 0 <= anchor < step."""
    if step == 1:
        return x
    else:
        x = x - anchor + step  # division truncates, so from 0 on
        return x // step * width + tl.minimum(x % step, width)


@triton.jit
def members(i, PLAN: tl.constexpr, at: tl.constexpr, end):
    """(rank of the first, how many, anchor) of the blocks below `end` that the entry at PLAN[at] lists for row i.

    An entry is first, last, every, span, low, low_move, high, high_move, step, anchor, anchor_move, width: rows of
    [first, last) with (i - first) mod every < span. With t = (i - first) // every, the blocks of
    [low + t low_move, high + t high_move) with (j - anchor - t anchor_move) mod step < width.
    """
    there = (i >= PLAN[at]) & (i < PLAN[at + 1])
    t = tl.maximum(i - PLAN[at], 0)
    if PLAN[at + 2] > 1:
        if PLAN[at + 3] < PLAN[at + 2]:
            there = there & (t % PLAN[at + 2] < PLAN[at + 3])
        t = t // PLAN[at + 2]
    low = tl.minimum(tl.maximum(PLAN[at + 4] + t * PLAN[at + 5], 0), end)
    high = tl.minimum(PLAN[at + 6] + t * PLAN[at + 7], end)
    anchor = t * 0
    if PLAN[at + 8] > 1:
        anchor = ((PLAN[at + 9] + t * PLAN[at + 10]) % PLAN[at + 8] + PLAN[at + 8]) % PLAN[at + 8]
    first = rank(low, anchor, PLAN[at + 8], PLAN[at + 11])
    n = tl.where(there & (high > low), rank(tl.maximum(high, low), anchor, PLAN[at + 8], PLAN[at + 11]) - first, 0)
    return first, n, anchor


@triton.jit
def member(rank, anchor, PLAN: tl.constexpr, at: tl.constexpr):
    """The block of that rank in the entry at PLAN[at]."""
    if PLAN[at + 8] == 1:
        return rank
    else:
        return rank // PLAN[at + 11] * PLAN[at + 8] + rank % PLAN[at + 11] + anchor - PLAN[at + 8]


@triton.jit
def cut(i, PLAN: tl.constexpr, m, B: tl.constexpr):
    """1 if the end of the keys cuts a block that the plan has as full for row i, else 0."""
    n = i * 0
    entries: tl.constexpr = PLAN[0]
    for e in tl.static_range(entries):
        n += members(i, PLAN, 5 + 12 * e, up(m, B))[1] - members(i, PLAN, 5 + 12 * e, m // B)[1]
    return n


@triton.jit
def plan_pieces(i, s: tl.constexpr, n, m, b, h, A: tl.constexpr, B: tl.constexpr, PLAN: tl.constexpr, TAB):
    """A slot's blocks in row i: the run itself where there is one, else numbers for `plan_block`."""
    start, total = i * 0, i * 0
    end = m // B if PLAN[4] and s == 0 else up(m, B)
    entries: tl.constexpr = PLAN[s]  # Triton 3.6 takes no subscript here, nor tuples of tuples
    for e in tl.static_range(entries):
        first, count, anchor = members(i, PLAN, 5 + 12 * (e + s * PLAN[0]), end)
        if PLAN[2 + s]:
            start = tl.where(count > 0, first, start)
        total += count
    if PLAN[4] and s == 1:
        total += cut(i, PLAN, m, B)
    return start, start + total, 1


@triton.jit
def plan_block(z, i, s: tl.constexpr, n, m, b, h, A: tl.constexpr, B: tl.constexpr, PLAN: tl.constexpr, TAB):
    """The z-th block of a slot, entry after entry; past them, the block that the end cuts."""
    if PLAN[2 + s]:
        j = z
    else:
        j = m // B + i * 0
        past = i * 0
        end = m // B if PLAN[4] and s == 0 else up(m, B)
        entries: tl.constexpr = PLAN[s]
        for e in tl.static_range(entries):
            first, count, anchor = members(i, PLAN, 5 + 12 * (e + s * PLAN[0]), end)
            found = member(first + z - past, anchor, PLAN, 5 + 12 * (e + s * PLAN[0]))
            j = tl.where((z >= past) & (z < past + count), found, j)
            past += count
    return j


@triton.jit
def plan_within(i, s: tl.constexpr, n, m, b, h, A: tl.constexpr, B: tl.constexpr, PLAN: tl.constexpr, TAB):
    """`plan_pieces`, of a run no more than the blocks that can be of the row's segments: TAB = (first, end, rows), of
    row i of sequence b first[b * rows + i] to end[..] - 1."""
    start, stop, step = plan_pieces(i, s, n, m, b, h, A, B, PLAN, None)
    if PLAN[2 + s]:
        p = b.to(tl.int64) * TAB[2] + i
        start, stop = tl.maximum(start, tl.load(TAB[0] + p)), tl.minimum(stop, tl.load(TAB[1] + p))
    return start, stop, step


def flat(entries, runs, cut):
    """PLAN of entries (for each slot a tuple of them), and for each slot whether no row has two of its entries."""
    counts, single = [len(e) for e in entries], [int(r) for r in runs]
    counts, single = counts + [0] * (2 - len(counts)), single + [0] * (2 - len(single))
    return (*counts, *single, int(cut), *(n for slot in entries for entry in slot for n in entry))


# A table


@triton.jit
def table_pieces(i, s: tl.constexpr, n, m, b, h, A: tl.constexpr, B: tl.constexpr, PLAN: tl.constexpr, TAB):
    p = TAB[0] + ((h if PLAN[0] > 1 else 0) * PLAN[1] + i) * PLAN[2] + s
    return tl.load(p), tl.load(p + 1), 1


@triton.jit
def table_block(z, i, s: tl.constexpr, n, m, b, h, A: tl.constexpr, B: tl.constexpr, PLAN: tl.constexpr, TAB):
    return tl.load(TAB[1] + z)


@triton.jit
def nothing(i, s: tl.constexpr, n, m, b, h, A: tl.constexpr, B: tl.constexpr, PLAN: tl.constexpr, TAB):
    return 0, 0, 1
