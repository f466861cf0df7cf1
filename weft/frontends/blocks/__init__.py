"""The block kinds, a file each: its part of the language, what it means in the graph, its problems and warnings.

To add one: a file here with a `BlockKind`, and its name in `Block`.
"""

from typing import Annotated

from pydantic import Field

from weft.frontends.blocks.attention import Attention
from weft.frontends.blocks.convolution import Convolution
from weft.frontends.blocks.h3 import H3
from weft.frontends.blocks.memory.block_recurrence import BlockRecurrence
from weft.frontends.blocks.mlp import Mlp
from weft.frontends.blocks.moe import Moe
from weft.frontends.blocks.opaque import OpaqueBlock
from weft.frontends.blocks.recurrence import Recurrence
from weft.frontends.blocks.state_space import StateSpace
from weft.frontends.blocks.tensor_recurrence import TensorRecurrence

Recurrent = Recurrence | TensorRecurrence | BlockRecurrence
Block = Annotated[
    Attention | Mlp | Recurrent | StateSpace | H3 | Moe | Convolution | OpaqueBlock, Field(discriminator="kind")
]
