"""The composite ops: named, and declared by what they mean in primitives. Plans and code generators see the name."""

from weft.ir.library.attention import Attend, AttendGrad, BlockTable
from weft.ir.library.dropout import Dropout
from weft.ir.library.loss import CrossEntropy
from weft.ir.library.norm import LayerNorm, RMSNorm, Softmax
from weft.ir.library.rotary import Rotary
from weft.ir.library.routing import ExpertProduct, ExpertWeights, Route

COMPOSITES = (
    *(Softmax, LayerNorm, RMSNorm, Attend, AttendGrad, CrossEntropy, Dropout, Rotary),
    *(Route, ExpertProduct, ExpertWeights),
)

__all__ = [
    "COMPOSITES",
    "Attend",
    "AttendGrad",
    "BlockTable",
    "CrossEntropy",
    "Dropout",
    "ExpertProduct",
    "ExpertWeights",
    "LayerNorm",
    "RMSNorm",
    "Rotary",
    "Route",
    "Softmax",
]
