"""What fusion must know of a kernel skeleton: which work is its core and what fits its holes. Data, handed over.

A group of nodes fits a skeleton when its core nodes are of the skeleton's core kind and every other node fits the hole
before or after them. Skeletons come in an order: where a group holds the cores of two, the first is its skeleton.
"""

from dataclasses import dataclass

TILE = 128  # columns of an output tile: the most of a row that one program of a tiled kernel holds
DISPATCH = 4
"""Launches of torch's ops that send rows to places: work out which, see which exist, fill zeros, add the rows."""


@dataclass(frozen=True, slots=True)
class Skeleton:
    """core: its kind of work. before, after: kinds that fit its prologue and epilogue. cores: how many cores at most.

    row: the most elements of a row that an epilogue may reduce, 0 for none. ratio: the share of the rate of a vendor
    library's op for the bare core that the kernel gets. more: launches beside the core's where it dispatches. heavy: is
    the core's space its own, of which holes see tiles? Else all nodes share one. product: are these of rows and
    columns?"""

    name: str
    core: str
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    cores: int = 1
    row: int = 0
    ratio: float = 1.0
    more: int = 0
    heavy: bool = True
    product: bool = False
