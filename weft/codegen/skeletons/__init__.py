"""Families of kernels, a folder each: found by listing, so that adding one touches its folder only.

    rowwise/            its files ship: a package that needs the family has them, as they are, under `kernels/`
        kernel.py       the Triton kernels; their holes are @triton.jit functions passed as constexpr
        launch.py       what a region's file calls with holes and operands
        writer/         what compiling needs and no package has: SKELETON, the writer, the search space

What ships imports triton, torch and what ships beside it (`from ..common.operands import ...`), nothing of weft.
"""

import importlib
import pkgutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from weft.passes.fusion.skeleton import Skeleton

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


def rows() -> tuple[Skeleton, ...]:
    """What fusion must know of the families."""
    return tuple(f.row for f in families().values() if f.row)


def write(job: "Job") -> "Written":
    """A region by the first family that takes it; Refused as the last of those that could says."""
    from weft.codegen.skeletons.common.writer.wrapper import Refused  # not before: it is in a package below this one

    *first, last = [f for f in families().values() if f.takes == job.region.skeleton]
    for family in first:
        with suppress(Refused):
            return family.write(job)
    return last.write(job)
