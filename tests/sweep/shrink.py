"""The smallest spec that still has a fault: keys and list entries are taken away while its signature stays."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

from tests.sweep.draw import Spec

KEPT = {("weft",), ("name",), ("dims",), ("dims", "batch"), ("dims", "seq"), ("dims", "width")}


def shrunk(spec: Spec, still: Callable[[Spec], bool], tries: int = 120) -> Spec:
    """still: whether a spec has the fault. At most `tries` specs are tried."""
    before: Spec | None = None
    while spec != before and tries > 0:
        before = spec
        for path in list(paths(spec)):
            less = without(spec, path) if path not in KEPT else None
            if less is None:
                continue
            tries -= 1
            if tries > 0 and still(less):
                spec = less
    return spec


def paths(part: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where every key and list entry is, outer ones first, later entries before earlier ones."""
    inner = list(part) if isinstance(part, dict) else range(len(part)) if isinstance(part, list) else []
    yield from ((*path, k) for k in reversed(inner))
    for k in reversed(inner):
        yield from paths(part[k], (*path, k))


def without(spec: Spec, path: tuple[Any, ...]) -> Spec | None:
    """The spec less what lies there; None where nothing does (any more)."""
    less = inner = copy.deepcopy(spec)
    try:
        for p in path[:-1]:
            inner = inner[p]
        del inner[path[-1]]
    except (KeyError, IndexError, TypeError):
        return None
    return less
