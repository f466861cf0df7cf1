"""What tiles of attention are told of a pattern besides its predicate, as source: what need not be looked at."""

import math
from collections.abc import Sequence

from weft.codegen.torch.body import File
from weft.ir.library.attention import Attend
from weft.ir.pattern import Pattern, max_distance
from weft.ir.pattern.formula import SAME_SEGMENT, InTable, demands, leaves, swapped
from weft.ir.pattern.writing import written


def documents(given: Sequence[str], pattern: Pattern) -> list[str]:
    """`documents=...` where nobody sees a key of another segment: which of the metadata say so.

    given: the metadata of predicates, in order; a pattern that shows nothing reads none."""
    if "segments" not in given or not demands(pattern.formula, SAME_SEGMENT):
        return []
    keys = "key_segments" if "key_segments" in given else "segments"
    return [f"documents=({given.index('segments')}, {given.index(keys)})"]


def near(file: File, of: Attend, pattern: Pattern) -> list[str]:
    """`ranges=...` where the keys of a query lie near it, or none lie behind it; of a pattern without tables."""
    if any(isinstance(leaf, InTable) for leaf in leaves(pattern.formula)):
        return []
    along = of.over if of.tail else of.query
    n, heads = (math.prod(file.sizes.limit(d) or 1 for d in dims) for dims in ((along,), of.heads))
    turned = Pattern.parse(written(swapped(pattern.formula)))
    back, ahead = (max_distance(p, n, heads) for p in (pattern, turned))
    return [f"ranges=attention.Near({back}, {ahead})"] if (back, ahead) != (None, None) else []
