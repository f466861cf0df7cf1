"""Families of kernels, a folder each: found by listing, so that adding one touches its folder only.

    rowwise/            its files ship: a package that needs the family has them, as they are, under `kernels/`
        kernel.py       the Triton kernels; their holes are @triton.jit functions passed as constexpr
        launch.py       what a region's file calls with holes and operands
        writer/         what compiling needs and no package has: SKELETON, the writer, the search space

What ships imports triton, torch and what ships beside it (`from ..common.operands import ...`), nothing of weft.
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from weft.codegen.skeletons.common.writer.family import Family
    from weft.codegen.skeletons.common.writer.job import Job, Written

COMMON = "common"
_HOME = Path(__file__).parent


@cache
def families() -> "Mapping[str, Family]":
    """Every family by the name of its folder, in the order of ranks."""
    names = [m.name for m in pkgutil.iter_modules([str(_HOME)]) if m.ispkg and m.name != COMMON]
    found = {name: importlib.import_module(f"{__name__}.{name}.writer").SKELETON for name in names}
    return dict(sorted(found.items(), key=lambda item: (item[1].rank, item[0])))


def shipped(names: Iterable[str]) -> dict[str, str]:
    """What ships of these families and of those that they need: path below `kernels/` -> text."""
    wanted, todo = {COMMON}, list(names)
    while todo:
        name = todo.pop()
        if name not in wanted:
            wanted.add(name)
            todo += families()[name].needs
    return {f"{name}/{p.name}": p.read_text() for name in sorted(wanted) for p in sorted((_HOME / name).glob("*.py"))}


def writers() -> "dict[str, Callable[[Job], Written]]":
    """For each skeleton what writes its regions."""
    return {f.serves: partial(_write, f.serves) for f in families().values()}


def _write(skeleton: str, job: "Job") -> "Written":
    """By the first family that takes the region; Refused as the last that serves its skeleton says."""
    from weft.codegen.skeletons.common.writer.wrapper import Refused  # not before: it is in a package below this one

    *first, last = [f for f in families().values() if f.serves == skeleton]
    for family in first:
        with suppress(Refused):
            return family.write(job)
    return last.write(job)
