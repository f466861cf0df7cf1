"""The rowwise family: maps around reductions along rows."""

from weft.codegen.skeletons.common.writer.family import Family
from weft.codegen.skeletons.rowwise.writer.space import SPACES
from weft.codegen.skeletons.rowwise.writer.write import write_rowwise
from weft.passes.fusion.skeleton import Skeleton

ROW = Skeleton("rowwise", "rowwise", ("pointwise",), ("pointwise",), cores=64, heavy=False)
SKELETON = Family(60, write_rowwise, ROW, needs=("pointwise",), spaces=SPACES)
