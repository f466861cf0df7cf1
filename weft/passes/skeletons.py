"""What fusion must know of a kernel skeleton: which work is its core and what fits its holes. Data, handed over.

A group of nodes fits a skeleton when its core nodes are of the skeleton's core kind and every other node fits the hole
before or after them. `kernel` says whether the skeleton's kernels are shipped; without one, a region of it runs as
torch ops, and the plan says so.
"""

from dataclasses import dataclass

TILE = 128  # columns of an output tile: the most of a row that one program of a tiled kernel holds


@dataclass(frozen=True, slots=True)
class Skeleton:
    """core: its kind of work. before, after: kinds that fit its prologue and epilogue. cores: how many cores at most.

    row: the most elements of a row that an epilogue may reduce, 0 for none."""

    name: str
    core: str
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    cores: int = 1
    row: int = 0
    kernel: bool = False


SKELETONS: tuple[Skeleton, ...] = (
    Skeleton("attention", "attention", after=("pointwise",)),
    Skeleton("scan", "scan", before=("pointwise",), after=("pointwise",)),
    Skeleton("matmul", "contraction", before=("pointwise",), after=("pointwise", "rowwise"), cores=4, row=TILE),
    Skeleton("grouped_matmul", "grouped", before=("pointwise", "scatter"), after=("pointwise",), cores=4),
    Skeleton("rowwise", "rowwise", before=("pointwise",), after=("pointwise",), cores=64),
    Skeleton("pointwise", "pointwise", cores=256),
)
