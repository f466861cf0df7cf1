"""Which blocks a kernel visits: the `pieces` and `block` holes of the attention skeleton.

Forward and dq run over key blocks j of a query block i. dk, dv run over query blocks of a key block: there the same holes
are called with the key block as i, the numbers of queries and keys exchanged, and a plan of the transposed pattern.

 * `dense_`, `causal_`: closed forms for any lengths.
 * `plan_`: a solver's closed form, folded into constants. PLAN = (entries of slot 0, entries of slot 1, CUT), an entry as
   in `members`. It holds for every length up to the one it was made for: blocks past the end are dropped, and with CUT
   (patterns that look ahead) a full block that the end cuts is visited by the partial slot, which is the last.
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
    """Everything, transposed: rows that do not exist have lse = +inf. Slots: full."""
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
def members(i, E: tl.constexpr, end):
    """(rank of the first, how many, anchor) of the blocks below `end` that entry E lists for row i.

    E = (first, last, every, low, low_move, high, high_move, step, anchor, anchor_move, width): rows first, first + every,
    ... below last; number t of them has the j in [low + t low_move, high + t high_move) with
    (j - anchor - t anchor_move) mod step < width.
    """
    t = (i - E[0]) // E[2]
    there = (i >= E[0]) & (i < E[1])
    if E[2] > 1:
        there = there & ((i - E[0]) % E[2] == 0)
    low = tl.minimum(tl.maximum(E[3] + t * E[4], 0), end)
    high = tl.minimum(E[5] + t * E[6], end)
    anchor = t * 0
    if E[7] > 1:
        anchor = ((E[8] + t * E[9]) % E[7] + E[7]) % E[7]
    first = rank(low, anchor, E[7], E[10])
    n = tl.where(there & (high > low), rank(tl.maximum(high, low), anchor, E[7], E[10]) - first, 0)
    return first, n, anchor


@triton.jit
def member(rank, anchor, step: tl.constexpr, width: tl.constexpr):
    """The block of that rank."""
    if step == 1:
        return rank
    else:
        return rank // width * step + rank % width + anchor - step


@triton.jit
def cut(i, PLAN: tl.constexpr, m, B: tl.constexpr):
    """1 if the end of the keys cuts a block that the plan has as full for row i, else 0."""
    n = i * 0
    for e in tl.static_range(len(PLAN[0])):
        n += members(i, PLAN[0][e], up(m, B))[1] - members(i, PLAN[0][e], m // B)[1]
    return n


@triton.jit
def plan_pieces(i, s: tl.constexpr, n, m, b, h, A: tl.constexpr, B: tl.constexpr, PLAN: tl.constexpr, TAB):
    """All entries of a slot in a row, one after the other; with CUT, full ones are slot 0 and partial ones slot 1."""
    total = i * 0
    end = m // B if PLAN[2] and s == 0 else up(m, B)
    for e in tl.static_range(len(PLAN[s])):
        total += members(i, PLAN[s][e], end)[1]
    if PLAN[2] and s == 1:
        total += cut(i, PLAN, m, B)
    return 0, total, 1


@triton.jit
def plan_block(z, i, s: tl.constexpr, n, m, b, h, A: tl.constexpr, B: tl.constexpr, PLAN: tl.constexpr, TAB):
    """The z-th block of a slot; past the entries, the block that the end cuts."""
    j = m // B + i * 0
    end = m // B if PLAN[2] and s == 0 else up(m, B)
    past = i * 0
    for e in tl.static_range(len(PLAN[s])):
        first, count, anchor = members(i, PLAN[s][e], end)
        here = (z >= past) & (z < past + count)
        j = tl.where(here, member(first + z - past, anchor, PLAN[s][e][7], PLAN[s][e][10]), j)
        past += count
    return j


@triton.jit
def run_pieces(i, s: tl.constexpr, n, m, b, h, A: tl.constexpr, B: tl.constexpr, PLAN: tl.constexpr, TAB):
    """As plan_pieces where a row has at most one entry a slot, all of step 1, and no CUT: then `block` is None."""
    start, stop = i * 0, i * 0
    for e in tl.static_range(len(PLAN[s])):
        first, count, anchor = members(i, PLAN[s][e], up(m, B))
        start, stop = tl.where(count > 0, first, start), tl.where(count > 0, first + count, stop)
    return start, stop, 1


# A table


@triton.jit
def table_pieces(i, s: tl.constexpr, n, m, b, h, A: tl.constexpr, B: tl.constexpr, PLAN: tl.constexpr, TAB):
    p = TAB[0] + ((h if PLAN[0] > 1 else 0) * PLAN[1] + i) * PLAN[2] + s
    return tl.load(p), tl.load(p + 1), 1


@triton.jit
def table_block(z, i, s: tl.constexpr, n, m, b, h, A: tl.constexpr, B: tl.constexpr, PLAN: tl.constexpr, TAB):
    return tl.load(TAB[1] + z)
