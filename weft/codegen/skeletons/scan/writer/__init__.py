"""scan"""

from weft.codegen.skeletons.common.writer.family import Family
from weft.codegen.skeletons.scan.writer.space import SPACES
from weft.codegen.skeletons.scan.writer.write import write_scan

SKELETON = Family(20, "scan", write_scan, spaces=SPACES)
