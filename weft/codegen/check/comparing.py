"""Tensors against their truth: one row of a verification. Imports torch.

Differences are normwise per tensor: ||a - b|| <= tol * max(||b||, 1e-3 * median RMS * sqrt(numel)), where the median is
over the gradients (or outputs), so that a tensor that should be zero has a scale too.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from weft.codegen.check.tolerance import TOLERANCE

ROUNDING = 1e-14  # of the truth itself, relative to the largest


@dataclass(frozen=True)
class Comparison:
    """One comparison: what was compared, in which dtype, the worst tensor, its error relative to its scale."""

    check: str
    dtype: str
    worst: str
    error: float
    tolerance: float
    tensors: int

    @property
    def ok(self) -> bool:
        return self.error <= self.tolerance


def compare(
    check: str,
    dtype: str,
    got: Mapping[str, Tensor],
    want: Mapping[str, Tensor],
    beside: Iterable[Tensor] = (),
    floor: float = 1e-3,
    terms: float = 0.0,
) -> Comparison:
    """The worst tensor by ||a - b|| / max(||b||, floor * median RMS * sqrt(numel)); integers and infinities must be
    equal. A difference that is rounding, as a gradient that cancels to zero has, is told against the largest RMS.
    beside: tensors that count for the RMS too. terms: an RMS of what may have cancelled in all of them."""
    rms = sorted(rms_of((*want.values(), *beside)))
    median = rms[len(rms) // 2] if rms else 0.0
    largest = max(rms[-1] if rms else 0.0, terms)
    if median <= ROUNDING * largest:  # most should be zero, as behind a head that reads one position
        median = largest
    worst, most = "", -1.0
    for name, b in want.items():
        a = got[name].detach()
        if a.shape != b.shape:
            error = float("inf")
        elif not b.is_floating_point():
            error = float((a != b).sum())
        else:
            off, root = float(torch.where(a == b, 0.0, a.double() - b).norm()), b.numel() ** 0.5
            rounded = off <= TOLERANCE[dtype].rounding * largest * root
            scale = largest * root if rounded else max(float(_finite(b).norm()), floor * median * root)
            error = off / (scale or 1.0)
        error = error if error == error else float("inf")
        if error > most:
            worst, most = name, error
    return Comparison(check, dtype, worst, most, TOLERANCE[dtype].model, len(want))


def rms_of(tensors: Iterable[Tensor]) -> list[float]:
    """Of each tensor of floats, infinities apart."""
    floats = [_finite(x) for x in tensors if x.is_floating_point() and x.numel()]
    return [float(x.norm()) / x.numel() ** 0.5 for x in floats]


def _finite(x: Tensor) -> Tensor:
    return x.double().masked_fill(x.isinf(), 0.0)
