"""The composite ops: named, and declared by what they mean in primitives. Plans and code generators see the name."""

from weft.ir.library.attention import Attend, AttendGrad
from weft.ir.library.convolution import Convolve, ConvolveWeights
from weft.ir.library.decay import DecayedProduct, DecayedProductGrad, UnitInverse
from weft.ir.library.dropout import Dropout
from weft.ir.library.long_convolution import LongConvolve, LongConvolveKernel
from weft.ir.library.loss import CrossEntropy
from weft.ir.library.norm import LayerNorm, RMSNorm, Softmax, SoftmaxGrad
from weft.ir.library.places import Places
from weft.ir.library.powers import Powers
from weft.ir.library.rotary import Rotary, RotaryBack
from weft.ir.library.routing import ExpertProduct, ExpertWeights, Route
from weft.ir.library.scores import BlockTable
from weft.ir.library.statistics import FromStatistics, WithStatistics

COMPOSITES = (
    *(Softmax, SoftmaxGrad, LayerNorm, RMSNorm, CrossEntropy, WithStatistics, FromStatistics),
    *(Attend, AttendGrad, Dropout, Places, Rotary, RotaryBack, Route, ExpertProduct, ExpertWeights),
    *(Convolve, ConvolveWeights, DecayedProduct, DecayedProductGrad, UnitInverse),
    *(Powers, LongConvolve, LongConvolveKernel),
)

__all__ = [
    "COMPOSITES",
    "Attend",
    "AttendGrad",
    "BlockTable",
    "Convolve",
    "ConvolveWeights",
    "CrossEntropy",
    "DecayedProduct",
    "DecayedProductGrad",
    "Dropout",
    "ExpertProduct",
    "ExpertWeights",
    "FromStatistics",
    "LayerNorm",
    "LongConvolve",
    "LongConvolveKernel",
    "Places",
    "Powers",
    "RMSNorm",
    "Rotary",
    "RotaryBack",
    "Route",
    "Softmax",
    "SoftmaxGrad",
    "UnitInverse",
    "WithStatistics",
]
