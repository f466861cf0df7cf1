"""The attention family: forward and backward over the blocks that a pattern has."""

from weft.codegen.skeletons.attention.writer.hazards import HAZARDS, facts
from weft.codegen.skeletons.attention.writer.space import SPACES
from weft.codegen.skeletons.attention.writer.write import write_attention
from weft.codegen.skeletons.common.writer.family import Family
from weft.passes.fusion.skeleton import Skeleton

ROW = Skeleton("attention", "attention", after=("pointwise",))
SKELETON = Family(10, write_attention, ROW, spaces=SPACES, hazards=HAZARDS, facts=facts)
