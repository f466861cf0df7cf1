"""An attention region's walks as source: closed forms, a solver's plan for each pair of block sizes, or a table."""

import textwrap
from collections.abc import Sequence
from typing import Any

from weft.codegen.skeletons.attention.writer.fold import END
from weft.codegen.skeletons.attention.writer.plan import PartWalk, closed, gathered, planned
from weft.codegen.skeletons.attention.writer.space import pairs
from weft.codegen.skeletons.common.writer.source import nested
from weft.codegen.skeletons.common.writer.wrapper import Refused, Why
from weft.codegen.torch.lines import fit
from weft.ir.pattern import Pattern
from weft.ir.pattern.formula import InTable, leaves

LONGEST = 1 << 16  # blocks of a table that a file holds
GRAIN = 32  # blocks of a table that is made from no static set


class Walks:
    """Module-level lines that define walks. block: of the pattern's static block set, 0 without one."""

    def __init__(self, block: int) -> None:
        self.block = block
        self.lines: list[str] = []

    def add(
        self, name: str, pattern: Pattern, nq: int, nk: int, back: bool, heads: Sequence[int | None], group: int
    ) -> bool:
        """Define `name`: how kernels walk a pattern of up to nq rows and nk keys; heads: of one that differs by head.
        Says whether a keep hole is needed. Refused where the file would be too long."""
        if both := closed(pattern, back):
            self.lines += fit(f"{name} = {{2: {self.spelled(both[0])}, 1: {self.spelled(both[1])}}}")
            return both[0].keep
        found, keep = {}, False
        listed = any(isinstance(leaf, InTable) for leaf in leaves(pattern.formula))
        wanted = [] if listed or pattern.per_head else pairs(self.block)
        for bm, bn in wanted:
            walk = planned(pattern, nq, nk, bm, bn, back)
            if walk is not None:
                found.setdefault(text(walk), []).append(f"{bm}x{bn}")
                keep = keep or walk.keep
        parts = ['walks.plans(\n    """\n' + "\n".join(records(found)) + '\n    """\n)'] if found else []
        if sum(map(len, found.values())) < max(1, len(wanted)):
            made = gathered(pattern, nq, nk, back, heads, group, self.block or GRAIN, LONGEST)
            if made is None:
                raise Refused(Why.LAYOUT)
            keep = keep or made[0].keep
            parts.append(f"walks.table({self.spelled(made[0])}, {made[1]}{', True' if back else ''})")
        if len(parts) > 1:
            self.lines += [*f"{name} = {parts[0]}".split("\n"), *fit(f"{name} |= {parts[1]}")]
        else:
            self.lines += f"{name} = {parts[0]}".split("\n") if found else fit(f"{name} = {parts[0]}")
        return keep

    def spelled(self, w: PartWalk) -> str:
        """A walk as source; its table stands in lines before."""
        block = f"pieces.{w.block}" if w.block else "None"
        said = [f"pieces.{w.pieces}", block, nested(w.slots)]
        said += [nested(w.plan)] if w.plan is not None else []
        said += [f"table=({', '.join(self.table(t) for t in w.table)})"] if w.table else []
        said += ["packed=True"] if w.packed else []
        said += [] if w.keep else ["keep=False"]
        return f"launch.Walk({', '.join(said)})"

    def table(self, numbers: Any) -> str:
        """The name of a table of integers."""
        body = textwrap.wrap(" ".join(map(str, numbers.tolist())), 116)
        source = 'walks.numbers("""\n' + "\n".join("    " + line for line in body) + '\n""")'
        found = next((x.split(" = ")[0] for x in self.lines if x.endswith(source) and x.startswith("TABLE")), "")
        if found:
            return found
        name = f"TABLE{sum(line.startswith('TABLE') for line in self.lines)}"
        self.lines.append(f"{name} = {source}")
        return name


def text(walk: PartWalk) -> str:
    """A plan as `walks.plans` reads it, without the pairs of blocks."""
    entries, runs, cut = walk.plan
    words = ["cut"] if cut else []
    for full, some, run in zip(walk.slots, entries, runs):
        words += ["full" if full else "partial", *(["run"] if run else [])]
        words += ["end" if n == END else str(n) for e in some for n in e]
    return " ".join(words)


def records(found: dict[str, list[str]]) -> list[str]:
    """The plans and the pairs of blocks that share them, as lines."""
    out: list[str] = []
    for plan, names in found.items():
        out += textwrap.wrap(f"{' '.join(names)} {plan};", 112, initial_indent="    ", subsequent_indent="        ")
    return out
