"""matmul"""

from weft.codegen.skeletons.common.writer.family import Family
from weft.codegen.skeletons.matmul.writer.space import SPACES
from weft.codegen.skeletons.matmul.writer.write import write_matmul

SKELETON = Family(30, "matmul", write_matmul, spaces=SPACES)
