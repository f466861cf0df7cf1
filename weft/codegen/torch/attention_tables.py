"""Static block sets as source: the table that the runtime walks block by block, or looks pairs up in."""

import math
from typing import Any

from weft.codegen.torch.body import Body, File
from weft.codegen.torch.spelling import ATOM, SUM, Src, literal
from weft.ir.library.attention import Attend
from weft.ir.library.scores import BlockTable
from weft.ir.pattern import Pattern
from weft.ir.pattern.formula import InTable, leaves
from weft.ir.pattern.table import AnyTable
from weft.ir.types import Node


def walked(file: File, of: Attend, table: AnyTable) -> str:
    """A layout that runs the listed blocks, whole."""
    return f"attention.Blocks({table.block}, {_printed(file, of, table)})"


def looked_up(file: File, of: Attend | BlockTable, table: AnyTable) -> str:
    """The name of an object that says, called with q, k, h, how often their blocks are listed."""
    return file.object("listed", f"attention.Listed({table.block}, {_printed(file, of, table)})")


def _printed(file: File, of: Attend | BlockTable, table: Any) -> str:
    """The name of a table written out row by row, for the longest sequence there can be."""
    limits = [file.sizes.limit(d) for d in (of.query, of.over)]
    most = max(n for n in limits if n is not None)  # nothing bounds a step's keys but that they are among the positions
    table = table.at(most) if table.needs_length else table
    heads = range(math.prod(file.sizes.frozen(d) for d in of.heads) if table.per_head else 1)
    text = "\n\n".join("\n".join("    " + _row(r) for r in _rows(table, h)) for h in heads)
    return file.object("table", f'tables.table("""\n{text}\n""")')


def _rows(table: Any, head: int) -> list[tuple[int, ...] | None]:
    """The key blocks of each query block, repeats kept; None is every block."""
    if not table.swap:
        return list(table.rows(head))
    queries, keys = table.entries(head)
    rows: list[list[int]] = [[] for _ in range(len(table.rows(head)))]
    for q, k in zip(queries.tolist(), keys.tolist()):
        rows[q].append(k)
    return [tuple(sorted(r)) for r in rows]


def _row(row: tuple[int, ...] | None) -> str:
    return "all" if row is None else " ".join(map(str, row)) or "none"


def block_table(body: Body, node: Node) -> None:
    """How often a static table lists the blocks of a pair, where attention is printed op by op."""
    given, out = iter(node.ins), node.outs[0]
    of: Any = node.op
    (leaf,) = leaves(Pattern.parse(of.table).formula)
    assert isinstance(leaf, InTable)
    q, k = (body.loose(next(given)) if named else body.coordinate(d) for d, named in of.places())
    heads = of.heads if leaf.table.per_head else ()
    dims = tuple(d for d in out.dims if d in (*(q.dims or ()), *(k.dims or ()), *heads))
    q, k = (q, k) if not of.swap else (k, q)
    head = literal(0)
    for d in heads:
        outer = "" if head.number else f"{head.text} * {body.size(d).at(ATOM)} + "
        head = Src(outer + body.coordinate(d).aligned(dims).text, SUM, dims, "i64")
    places = ", ".join(x.aligned(dims).text for x in (q, k, head))
    body.put(out, Src(f"{looked_up(body.file, of, leaf.table)}({places})", ATOM, dims, "i64"), node)
