"""The matrix scan family: recurrences whose states are small matrices."""

from weft.codegen.skeletons.common.writer.family import Family
from weft.codegen.skeletons.matrix_scan.writer.space import SPACES
from weft.codegen.skeletons.matrix_scan.writer.write import facts, write_matrix_scan
from weft.passes.fusion.skeleton import Skeleton

ROW = Skeleton("matrix_scan", "matrix_scan")
SKELETON = Family(25, write_matrix_scan, ROW, needs=("matmul",), spaces=SPACES, facts=facts)
