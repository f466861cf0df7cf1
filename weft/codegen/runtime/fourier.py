"""Causal convolution with a kernel as long as the sequence, by Fourier transforms of twice the length.

Positions are the last axis; the kernel's axes are the last ones of the rows. Spectra live inside these functions alone.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def convolve(x: Tensor, k: Tensor, later: bool = False) -> Tensor:
    """y[.., t] = sum over j < t of k[.., t - j - 1] x[.., j]; later: of what is behind, k[.., j - t - 1] x[.., j]."""
    places = room(x.shape[-1])
    spectrum = torch.fft.rfft(k, places)
    spectrum = torch.fft.rfft(x, places) * (spectrum.conj() if later else spectrum)
    y = torch.fft.irfft(spectrum, places)
    return F.pad(y[..., 1 : x.shape[-1]], (0, 1)) if later else F.pad(y[..., : x.shape[-1] - 1], (1, 0))


def kernel(x: Tensor, dy: Tensor, axes: int) -> Tensor:
    """The gradient of k, which has the last `axes` axes of x, from x and that of the result."""
    places = room(x.shape[-1])
    spectrum = torch.fft.rfft(x, places).conj() * torch.fft.rfft(dy, places)
    rows = list(range(x.dim() - axes))
    k = torch.fft.irfft(spectrum.sum(rows) if rows else spectrum, places)
    return F.pad(k[..., 1 : x.shape[-1]], (0, 1))


def room(length: int) -> int:
    """The places of a transform in which nothing comes round: a number of small factors, 2 length at least."""
    least = 2 * length
    return min(m << max(0, (-(-least // m) - 1).bit_length()) for m in (1, 3, 5))
