"""The scan family: recurrences whose cell works element by element."""

from weft.codegen.skeletons.common.writer.family import Family
from weft.codegen.skeletons.scan.writer.space import SPACES
from weft.codegen.skeletons.scan.writer.write import write_scan
from weft.passes.fusion.skeleton import Skeleton

ROW = Skeleton("scan", "scan", before=("pointwise",), after=("pointwise",))
SKELETON = Family(20, write_scan, ROW, spaces=SPACES)
