"""The grouped matmul family: products of experts, their tokens gathered where they are used."""

from weft.codegen.skeletons.common.writer.family import Family
from weft.codegen.skeletons.grouped_matmul.writer.space import SPACES
from weft.codegen.skeletons.grouped_matmul.writer.write import write_grouped_matmul
from weft.codegen.skeletons.matmul.writer.space import VENDOR
from weft.passes.fusion.skeleton import Skeleton

ROW = Skeleton(
    "grouped_matmul", "grouped", ("pointwise", "scatter"), ("pointwise",), cores=4, ratio=VENDOR, more=2, product=True
)  # fmt: skip
SKELETON = Family(40, write_grouped_matmul, ROW, needs=("matmul",), spaces=SPACES)
