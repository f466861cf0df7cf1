"""Every op by its name in the text form."""

from weft.ir.composite import Call, Grad
from weft.ir.library import COMPOSITES, BlockTable
from weft.ir.ops.op import Op, op_name
from weft.ir.ops.primitives import PRIMITIVES
from weft.ir.ops.regions import Fused

OPS: dict[str, type[Op]] = {op_name(c): c for c in (*PRIMITIVES, Call, Grad, Fused, BlockTable, *COMPOSITES)}
