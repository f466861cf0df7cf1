"""What the lowering of a block writes graphs with, handed to it as `Scope.ir`: the spec language alone is read without
SymPy."""

import sympy as sympy

from weft.frontends.capacity import capacity as capacity
from weft.frontends.capacity import drops as drops
from weft.frontends.schema_values import InitRule as InitRule
from weft.ir.builder import Builder as Builder
from weft.ir.formula import normal as normal
from weft.ir.formula import parse as parse
from weft.ir.formula import symbol as symbol
from weft.ir.formula.functions import minimum as minimum
from weft.ir.formula.functions import where as where
from weft.ir.library import Attend as Attend
from weft.ir.library import Convolve as Convolve
from weft.ir.library import ExpertProduct as ExpertProduct
from weft.ir.library import Rotary as Rotary
from weft.ir.library import Route as Route
from weft.ir.library import Softmax as Softmax
from weft.ir.ops.primitives import Detach as Detach
from weft.ir.ops.primitives import Loop as Loop
from weft.ir.ops.primitives import Opaque as Opaque
from weft.ir.ops.primitives import Scatter as Scatter
from weft.ir.program import Init as Init
from weft.ir.types import Type as Type


def exact(value: float) -> sympy.Expr:
    """The decimal that was written, not its nearest binary fraction."""
    return parse(repr(value))
