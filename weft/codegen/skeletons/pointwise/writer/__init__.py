"""pointwise"""

from weft.codegen.skeletons.common.writer.family import Family
from weft.codegen.skeletons.pointwise.writer.space import SPACES
from weft.codegen.skeletons.pointwise.writer.write import write_pointwise

SKELETON = Family(60, "pointwise", write_pointwise, spaces=SPACES)
