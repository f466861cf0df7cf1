"""Block plans: a static set of key blocks for each query block, given or drawn (BigBird)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field, field_validator

from weft.errors import Path, SpecError
from weft.frontends.schema_values import Size, SpecPart
from weft.ir.pattern.pattern import Pattern
from weft.ir.pattern.table import mix

if TYPE_CHECKING:
    from weft.frontends.lower.scope import Scope


class BlockPlan(SpecPart):
    """A static set of key blocks for each query block, per head, counted with multiplicity (BigBird).

    It is made for the largest `seq`: a shorter run lacks the last blocks."""

    block: Size = Field(description="positions in a block")
    window: Annotated[int, Field(ge=1)] = Field(default=3, description="diagonal blocks a middle row sees; odd")
    random: Annotated[int, Field(ge=0)] = Field(
        default=3, description="random blocks a middle row sees besides window and global blocks"
    )
    seed: Annotated[int, Field(ge=0)] = Field(
        default=0, description="seed of the drawn plan; the plan itself is kept in the package"
    )
    table: list[list[list[int]]] | None = Field(
        default=None, description="the random blocks given outright, `[head][middle row][...]`, instead of drawing them"
    )

    @field_validator("window")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError("the window must be odd: it is centred on the diagonal")
        return value


def planned(s: Scope, plan: BlockPlan, heads: int | str, path: Path) -> Pattern:
    """The pattern of a block plan, made for the longest sequence there can be."""
    dims = s.low.dims
    with s.low.reading((*path, "plan", "block"), "W0201"):
        block = dims.size(plan.block)
    with s.low.reading((*path, "heads"), "W0201"):
        many = dims.size(heads)
    with s.low.reading((*path, "plan", *(["table"] if plan.table else [])), "W0302"):
        return plan_pattern(plan, block, dims.most[s.length], many, path)


def plan_pattern(plan: BlockPlan, block: int, seq: int, heads: int, path: Path = ()) -> Pattern:
    """BigBird's blocks for `seq` tokens: the first and last block row see all; any other sees the first and last block,
    the window around it, and its random blocks. A block listed twice counts twice; drawn ones come from `draw`.
    """
    rows = -(-seq // block)
    table = plan.table or [draw(plan, rows, h) for h in range(heads)]
    if any(len(head) != max(0, rows - 2) for head in table) or len(table) not in (1, heads):
        message = f"{seq} tokens are {rows} blocks of {block}: the plan's table has another size"
        hint = f"give {max(0, rows - 2)} rows, one for each block but the first and the last, for 1 head or all {heads}"
        raise SpecError.at((*path, "plan", "table"), "W0402", message, hint)
    reach = plan.window // 2

    def row(i: int, random: list[int]) -> str:
        near = {0, rows - 1, *range(max(0, i - reach), min(rows, i + reach + 1))}
        return f"[{', '.join(map(str, sorted([*near, *random])))}]"

    texts = [f"[{', '.join(['all', *(row(i + 1, r) for i, r in enumerate(head)), 'all'][:rows])}]" for head in table]
    return Pattern.parse(f"blocks({block}, {', '.join(texts)})")


def draw(plan: BlockPlan, rows: int, head: int) -> list[list[int]]:
    """For each middle row, `random` blocks, each drawn by itself from the middle blocks outside the row's window.

    Draw s of row i is number mix(seed, head, i, s) modulo how many there are, so the plan needs no generator's state.
    """
    reach = plan.window // 2
    out: list[list[int]] = []
    for i in range(1, rows - 1):
        before, after = max(0, i - reach - 1), max(0, rows - 2 - i - reach)
        drawn = [
            int(mix(plan.seed, head, i, t)) % (before + after) for t in range(plan.random if before + after else 0)
        ]
        out.append([1 + n if n < before else i + reach + 1 + n - before for n in drawn])
    return out
