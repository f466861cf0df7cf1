"""The matmul family: products with maps in front and behind."""

from weft.codegen.skeletons.common.writer.family import Family
from weft.codegen.skeletons.matmul.writer.space import SPACES, VENDOR
from weft.codegen.skeletons.matmul.writer.write import write_matmul
from weft.passes.fusion.skeleton import Skeleton

ROW = Skeleton(
    "matmul", "contraction", ("pointwise",), ("pointwise", "rowwise"), cores=4, ratio=VENDOR, product=True
)  # fmt: skip
SKELETON = Family(30, write_matmul, ROW, spaces=SPACES)
