"""cross_entropy"""

from weft.codegen.skeletons.common.writer.family import Family
from weft.codegen.skeletons.cross_entropy.writer.space import SPACES
from weft.codegen.skeletons.cross_entropy.writer.write import write_loss

SKELETON = Family(40, "rowwise", write_loss, spaces=SPACES)
