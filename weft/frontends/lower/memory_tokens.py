"""Memory tokens around those of a stream: joined behind its embedding, and taken off before its heads.

before: x [batch seq width]
after:  rows = concat(read, x, write) [batch rows width], where read and write are what the segment before wrote, or the
        parameter `embed.memory` where there was none
"""

from __future__ import annotations

from weft.frontends.blocks.memory.among import TokenRows
from weft.frontends.lower.scope import Lowering, Scope
from weft.frontends.memories import stream_of
from weft.ir import program as ir
from weft.ir.ops.primitives import Concat, Detach
from weft.ir.types import Val

STATE = "memory_tokens"
"""What a segment leaves to the next one is called."""


def lengthen(low: Lowering) -> None:
    """Note the dims of a stream with memory tokens, if the model has one."""
    rule, stream = low.model.memory, stream_of(low.model)
    if rule is None or stream is None or rule.of != "tokens":
        return
    with low.reading(("memory", "keep"), "W0201"):
        m = low.dims.size(rule.keep)
    length, space = low.length(stream), ["batch", low.length(stream), "width"]
    n = low.sizes[length]
    read = low.mint("read", m, space)
    seen = low.mint("seen", n + m, (*space, read))
    write = low.mint("write", m, (*space, read, seen)) if rule.carried else ""
    rows = low.mint("rows", n + 2 * m, (*space, read, seen, write)) if rule.carried else seen
    low.among[stream] = TokenRows(rows, read, write, seen, m, rule.sees or "memory")


def joined(s: Scope, x: Val) -> Val:
    """x [batch length width] with memory tokens: [batch rows width]."""
    t = s.low.among.get(s.stream)
    if t is None:
        return x
    with s.at("memory"):
        first = s.param("memory", f"{t.read} width", "embedding", "width")
        first = s.g.expand(first, to=f"batch {t.read} width")
        if not t.write:
            return s.g.one(Concat((t.read, s.length), t.rows), first, x, names=["with_memory"])
        past, _ = s.low.remembering()
        before = s.state(STATE, ("batch", past, "width"))
        size = s.ir.symbol(f"n_{past}") + t.each
        known = s.low.mint("known", size, (*s.space, t.read, t.rows, t.seen, t.write, past))
        either = s.g.concat(before, first, dims=(past, t.read), new=known)
        read = s.part("read", either, known, t.read, 0)
        write = s.rename("write", read, t.read, t.write)
        return s.g.one(Concat((t.read, s.length, t.write), t.rows), read, x, write, names=["with_memory"])


def parted(s: Scope, x: Val) -> Val:
    """The tokens [batch length width] of rows; what is written is left to the next segment."""
    t = s.low.among.get(s.stream)
    if t is None:
        return x
    with s.at("memory"):
        if t.write:
            at = s.map("last", s.ir.parse(f"i_{t.write} + n_{t.seen}"), to=t.write, dtype="i64")
            left = s.g.expand(s.gather("written", x, at, at=t.rows), to=f"batch {t.write} width")  # none of x is held
            through = s.low.model.memory is not None and s.low.model.memory.through
            s.left[STATE] = left if through else s.g.one(Detach(), left, names=[f"left_{STATE}"])
        return s.part("tokens", x, t.rows, s.length, t.each)


def note(low: Lowering, scope: Scope, values: tuple[Val, ...]) -> None:
    """Note what the heads' block leaves to the next call."""
    for name, value in zip(scope.left, values):
        rows, keep = low.remembering()
        through = low.model.memory.through if low.model.memory else 0
        state = ir.ProgramState(name, f"past_{name}", f"present_{name}", rows, keep, "parameter", through=through)
        low.states[name] = state, value
