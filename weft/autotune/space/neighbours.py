"""What won elsewhere: configurations for the seeds of a search, nearest results first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain, zip_longest

from weft.autotune.space.seeds import MOST_SEEDS
from weft.autotune.types import Config
from weft.cache.key import Key, Soft
from weft.cache.search import ResultSource

_GPU = frozenset({"gpu", "sms", "shared", "partition"})
_TOOLS = frozenset({"triton", "ptxas", "codegen"})
_RUNGS = (
    frozenset[str](),
    frozenset({"bucket"}),
    frozenset({"bucket"}) | _GPU,
    frozenset({"bucket"}) | _GPU | _TOOLS,
    frozenset({"bucket", "arch"}) | _GPU | _TOOLS,
    frozenset({"bucket", "arch", "kernel", "dtypes", "layout", "alignment", "policy", "fp_fusion"}) | _GPU | _TOOLS,
)
"""In which fields a key may differ: this key's earlier winners; other shapes; another GPU of the architecture; another
Triton; another architecture; another kernel of the same skeleton."""
_EACH = 4  # winners of a key are taken in turn with those of the others of its rung, so many at most


def neighbours(sources: Iterable[ResultSource], key: Key, soft: Soft) -> list[Config]:
    """Winners of the nearest keys, at most as many as a search tries; a configuration may not fit the space."""
    ranked: list[list[tuple[tuple[int, str], Sequence[Config]]]] = [[] for _ in _RUNGS]
    for source in sources:
        for fields, names in source.index().groups(key).items():
            rung = next((i for i, allowed in enumerate(_RUNGS) if fields <= allowed), None)
            for name in names if rung is not None else ():
                found = source.key(name)
                tops = source.summary(found).near(soft) if found is not None else []
                if tops and rung is not None:
                    ranked[rung].append(((len(fields), name), [best.config for best in tops[0][1][:_EACH]]))
    out: list[Config] = []
    for group in ranked:
        winners = [configs for _, configs in sorted(group, key=lambda pair: pair[0])[:MOST_SEEDS]]
        for config in chain.from_iterable(zip_longest(*winners)):
            if config is not None and config not in out:
                out.append(config)
    return out[:MOST_SEEDS]
