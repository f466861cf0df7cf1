"""rowwise"""

from weft.codegen.skeletons.common.writer.family import Family
from weft.codegen.skeletons.rowwise.writer.space import SPACES
from weft.codegen.skeletons.rowwise.writer.write import write_rowwise

SKELETON = Family(50, "rowwise", write_rowwise, needs=("pointwise",), spaces=SPACES)
