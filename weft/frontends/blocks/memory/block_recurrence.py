"""Block recurrence: state vectors that attend to windows of tokens, and tokens to them (Hutchins et al. 2022)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from weft.errors import FormulaError, Path, Problem, SpecError
from weft.frontends.blocks.kind import Aux, BlockKind
from weft.frontends.blocks.memory.behind import Keys, remembered
from weft.frontends.blocks.memory.windowed import Windowed
from weft.frontends.resolve import Dims
from weft.frontends.schema_values import Activation, Size

if TYPE_CHECKING:
    from weft.frontends.lower.scope import Scope
    from weft.ir.types import Val


class BlockRecurrence(BlockKind):
    """Attention in windows beside a recurrence over them (Block-Recurrent Transformer, Hutchins et al. 2022).

    A window's tokens attend to the `window` tokens before each, and to the state vectors; these attend to each other
    and to the tokens of the window and of the one before, and change once a window, by gates. Tokens and states share
    keys and values; queries and keys have unit length, and each attention a learned scale of each head. It goes with
    `memory: {of: hidden, keep: window}`, whose rows are the window before a segment, zeros before the first; the state
    is left to the next segment too, and starts as a parameter. A segment is a whole number of windows: `runtime: {seq:
    {align: window}}`."""

    kind: Literal["block_recurrence"] = "block_recurrence"
    window: Size = Field(description="tokens in a window, and how far a token sees back")
    states: Size = Field(description="state vectors")
    heads: Size = Field(default="heads", description="heads of each attention")
    head: Size = Field(default="head", description="size of a head")
    gate: Literal["fixed", "lstm"] = Field(
        default="fixed",
        description="`fixed`: s = g*s + (1 - g)*y with g the sigmoid of a parameter; `lstm`: s = s*sigmoid(f + 1) + "
        "y*sigmoid(i - 1), f and i products of what y is a product of",
    )
    cell: Literal["dual", "single", "skip"] = Field(
        default="skip",
        description="`dual`: a gate behind the attention and one behind a feed-forward of its own; `single`: one, "
        "behind both; `skip`: no feed-forward",
    )
    inner: Size = Field(default="inner", description="hidden size of the states' feed-forward")
    activation: Activation = "relu"
    buckets: int = Field(default=32, ge=2, le=256, description="buckets of distances of tokens, as of `relative`")
    max_distance: int = Field(default=128, ge=2, le=1 << 30, description="from where on all distances share a bucket")

    def lower(self, s: Scope, x: Val, stem: str, path: Path) -> tuple[Val, Aux]:
        """What tokens see of each other and of the state, projected back; the state is left to the next segment."""
        with s.at(*path):
            rows = _behind(s, x, self, stem, path)
            w = Windowed.of(s, self, stem, path, rows)
            out = w.run(s, x, rows, self, path)
            own = f"{w.heads} {w.head}"
            parts = [
                s.linear(f"of_{name}", y, f"{own} width", " ".join(s.space), f"{stem}.{name}", None, "output", own)
                for name, y in zip(("output", "output_state"), out)
            ]
            y = s.map(stem, "a + b", a=parts[0], b=parts[1], to=" ".join(s.space), dtype=s.compute)
            return y, []

    def problems(self, dims: Dims, path: Path) -> Iterator[Problem]:
        try:
            window, align = dims.size(self.window), dims.runtime[dims.length].align
        except FormulaError:
            return
        if align % window:
            message = (
                f"a segment is a whole number of windows of {window}, and {dims.length} may be any multiple of {align}"
            )
            yield Problem("W0402", message, (*path, "window"), f"runtime: {{{dims.length}: {{align: {window}}}}}")
        each = self.buckets - self.buckets // 2
        if self.max_distance <= self.buckets // 2 or each < 1:
            message = f"{self.buckets} buckets do not hold the distances up to {self.max_distance}"
            yield Problem("W0402", message, (*path, "max_distance"), f"more than {self.buckets // 2}")


def _behind(s: Scope, x: Val, block: BlockRecurrence, stem: str, path: Path) -> Keys:
    """The tokens and the window before them."""
    rows = remembered(s, x, stem)
    if rows is None:
        message = "a state goes from window to window and from segment to segment, with the window before it"
        raise SpecError.at(path, "W0403", message, f"memory: {{of: hidden, keep: {block.window}}}")
    with s.low.reading((*path, "window"), "W0201"):
        window, keep = s.low.dims.size(block.window), s.low.remembering()[1]
    if keep != window:
        message = f"a window is {window} tokens, and the memory keeps {keep}"
        raise SpecError.at((*path, "window"), "W0402", message, f"memory: {{keep: {window}}}")
    return rows
