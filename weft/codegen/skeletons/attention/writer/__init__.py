"""attention"""

from weft.codegen.skeletons.attention.writer.space import SPACES
from weft.codegen.skeletons.attention.writer.write import write_attention
from weft.codegen.skeletons.common.writer.family import Family

SKELETON = Family(10, "attention", write_attention, spaces=SPACES)
