"""How far a result in a dtype may be from the fp64 truth."""

from collections.abc import Mapping
from typing import NamedTuple


class Tolerance(NamedTuple):
    """model: of a whole model's results and gradients, normwise (`weft.codegen.check.verify`). kernel: of any element
    of one kernel's results on random operands, which may cancel, relative to the largest (`weft.autotune`). rounding:
    what terms of a model's largest size leave where they cancel, relative to it."""

    model: float
    kernel: float
    rounding: float = 0.0


TOLERANCE: Mapping[str, Tolerance] = {
    "f64": Tolerance(1e-10, 1e-9, 1e-14),
    "f32": Tolerance(1e-5, 1e-4, 1e-7),
    "f16": Tolerance(1e-2, 1e-2),
    "bf16": Tolerance(4e-2, 4e-2),
}
