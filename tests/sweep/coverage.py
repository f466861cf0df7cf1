"""What a sweep has covered: keys of the schema that loaded specs set, and pairs that one spec sets together."""

import itertools
from collections.abc import Iterable
from typing import Any

from weft.frontends.schema import Model
from weft.frontends.schema_values import SpecPart

Pair = tuple[str, str]


def keys_of(part: Any) -> set[str]:
    """`Class.key` of every key that a model sets, in its parts too."""
    if isinstance(part, SpecPart):
        own = {f"{type(part).__name__}.{k}" for k in part.model_fields_set}
        return own.union(*(keys_of(getattr(part, k)) for k in part.model_fields_set))
    inner = part.values() if isinstance(part, dict) else part if isinstance(part, list | tuple) else []
    return set[str]().union(*map(keys_of, inner))


def every_key() -> set[str]:
    """`Class.key` of the whole language. `extends` is not one: the loader has resolved it."""
    classes, found = [SpecPart], set[str]()
    while classes:
        c = classes.pop()
        classes += c.__subclasses__()
        found |= {f"{c.__name__}.{k}" for k in c.model_fields}
    return found - {f"{Model.__name__}.extends"}


def pairs(items: Iterable[str]) -> set[Pair]:
    return set(itertools.combinations(sorted(set(items)), 2))
