"""The linear attention family: what a recurrence that is linear in its states is within a chunk of positions."""

from weft.codegen.skeletons.common.writer.family import Family
from weft.codegen.skeletons.linear_attention.writer.space import SPACES
from weft.codegen.skeletons.linear_attention.writer.write import facts, write_linear_attention
from weft.passes.fusion.skeleton import Skeleton

ROW = Skeleton("linear_attention", "chunked")
SKELETON = Family(15, write_linear_attention, ROW, needs=("matmul",), spaces=SPACES, facts=facts)
