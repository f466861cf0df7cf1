"""A fault of one spec, and what raises it."""

import re
from collections.abc import Callable
from typing import Any, TypeVar

from weft.errors import SpecError

T = TypeVar("T")


class Fault(Exception):
    """Something that must not be. where: the comparison or stage; what: what happened there."""

    def __init__(self, where: str, what: str) -> None:
        super().__init__(f"{where}: {what}")
        self.where, self.what = where, what

    @property
    def signature(self) -> str:
        """The kind of fault: which tensor is off, and by how much, is chance."""
        what = re.sub(r"\S+ off by .*", "off", self.what)
        where = re.sub(r"length (max|\d+)", lambda m: m[0] if m[1] in ("1", "max") else "length some", self.where)
        return re.sub(r"\d[\d.e+-]*|'[^']*'|`[^`]*`", "#", f"{where}: {what}".replace("\n", " "))[:160]


def at(where: str, work: Callable[..., T], *args: Any) -> T:
    """Run it; whatever it raises is a fault of that place."""
    try:
        return work(*args)
    except Fault:
        raise
    except SpecError as e:
        raise Fault(where, f"refused: {e.problems[0].code} {e.problems[0].message}"[:300]) from None
    except Exception as e:
        raise Fault(where, f"{type(e).__name__}: {(str(e).splitlines() or [''])[0]}"[:300]) from None
