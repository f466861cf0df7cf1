"""Every op by its name in the text form."""

from weft.ir.library import COMPOSITES, BlockTable
from weft.ir.op import Op, op_name
from weft.ir.primitives import PRIMITIVES

OPS: dict[str, type[Op]] = {op_name(c): c for c in (*PRIMITIVES, BlockTable, *COMPOSITES)}
