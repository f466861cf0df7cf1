"""The pointwise family: maps over one space, and sums of them over its rows."""

from weft.codegen.skeletons.common.writer.family import Family
from weft.codegen.skeletons.pointwise.writer.space import SPACES
from weft.codegen.skeletons.pointwise.writer.write import write_pointwise
from weft.passes.fusion.skeleton import Skeleton

ROW = Skeleton("pointwise", "pointwise", cores=256, heavy=False)
SKELETON = Family(70, write_pointwise, ROW, spaces=SPACES)
