"""grouped_matmul"""

from weft.codegen.skeletons.common.writer.family import Family
from weft.codegen.skeletons.grouped_matmul.writer.space import SPACES
from weft.codegen.skeletons.grouped_matmul.writer.write import write_grouped_matmul

SKELETON = Family(31, "grouped_matmul", write_grouped_matmul, needs=("matmul",), spaces=SPACES)
