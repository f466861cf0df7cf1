"""The cross-entropy family: of the regions with reductions those with a loss over a long vocabulary."""

from weft.codegen.skeletons.common.writer.family import Family
from weft.codegen.skeletons.cross_entropy.writer.space import SPACES
from weft.codegen.skeletons.cross_entropy.writer.write import write_loss

SKELETON = Family(50, write_loss, of="rowwise", spaces=SPACES)
