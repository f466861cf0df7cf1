"""What fusion must know of a kernel skeleton: which work is its core and what fits its holes. Data, handed over.

A group of nodes fits a skeleton when its core nodes are of the skeleton's core kind and every other node fits the hole
before or after them. `kernel` says whether the skeleton's kernels are shipped; without one, a region of it runs as
torch ops, and the plan says so.
"""

from dataclasses import dataclass

TILE = 128  # columns of an output tile: the most of a row that one program of a tiled kernel holds
VENDOR = 0.92
"""The rate of a tuned Triton product over cuBLAS's, bf16 on an H100: 0.90 to 0.97 was reached (persistent and pipelined
kernels of Triton's tutorials, 8192 x 8192 x 512 to 16384: 540 to 670 of 588 to 665 TFLOP/s). Not measured here."""
DISPATCH = 4
"""Launches of torch's ops that send rows to places: work out which, see which exist, fill zeros, add the rows."""


@dataclass(frozen=True, slots=True)
class Skeleton:
    """core: its kind of work. before, after: kinds that fit its prologue and epilogue. cores: how many cores at most.

    row: the most elements of a row that an epilogue may reduce, 0 for none. ratio: the share of the rate of a vendor
    library's op for the bare core that the kernel gets. more: launches beside the core's where it dispatches."""

    name: str
    core: str
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    cores: int = 1
    row: int = 0
    ratio: float = 1.0
    more: int = 0
    kernel: bool = False


SKELETONS: tuple[Skeleton, ...] = (
    Skeleton("attention", "attention", after=("pointwise",)),
    Skeleton("scan", "scan", before=("pointwise",), after=("pointwise",)),
    Skeleton("matmul", "contraction", before=("pointwise",), after=("pointwise", "rowwise"), cores=4, ratio=VENDOR),
    Skeleton(
        "grouped_matmul",
        "grouped",
        before=("pointwise", "scatter"),
        after=("pointwise",),
        cores=4,
        ratio=VENDOR,
        more=2,
    ),
    Skeleton("rowwise", "rowwise", before=("pointwise",), after=("pointwise",), cores=64),
    Skeleton("pointwise", "pointwise", cores=256),
)
