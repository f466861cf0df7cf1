"""Generated state spaces, and what they compute by their equations, in complex numbers and Fourier transforms."""

import math
from random import Random
from typing import Any

import torch
from torch import Tensor

from weft.frontends.load import load_mapping
from weft.frontends.lower.program import lower
from weft.ir.program import Program

DIMS = {"batch": 2, "seq": 9, "width": 4, "inner": 5, "vocab": 5}
DT = {"min": 0.01, "max": 0.3}


def program(block: dict[str, Any], documents: bool = False, **dims: int) -> Program:
    """A model of that one block."""
    layer = {"block": block, "norm": "none", "residual": "none"}
    spec = {"weft": 1, "name": "one", "dims": {**DIMS, **dims}, "stack": [{"layer": [layer]}]}
    loaded = load_mapping(spec | ({"rows": {"documents": True}} if documents else {}))
    return lower(loaded.model, loaded.dims)


def drawn(rng: Random) -> dict[str, Any]:
    """A block with a state space."""
    own: dict[str, Any] = {"states": rng.randint(1, 4), "chunk": rng.choice([1, 2, 3, 4, 8, 64])}
    own |= {"discretisation": rng.choice(["zoh", "zoh", "bilinear", "none"])}
    own |= {"imaginary": rng.choice(["free", "free", "exp", "none"]), "shared": rng.random() < 0.3}
    own["poles"] = "random" if own["imaginary"] == "exp" else rng.choice(["lin", "inv", "legs", "real", "random"])
    own |= {"kernel": "softmax"} if own["discretisation"] == "zoh" and rng.random() < 0.3 else {}
    own |= {"pairs": rng.random() < 0.6, "dt": rng.choice([DT, DT, "none"]), "drive": rng.choice(["none", "ones"])}
    if own["dt"] != "none" and own["discretisation"] != "bilinear" and own["imaginary"] != "none":
        own["dt"] = rng.choice([DT, {**DT, "parts": 2}])
    own["skip"] = rng.choice(["none", {"normal": 1.0}])
    if rng.random() < 0.3:
        more = {"head": rng.choice([1, 2, 4]), "taps": rng.choice([1, 3, 12]), "bias": rng.random() < 0.5}
        return {"kind": "h3", "system": own, **more}
    return {"kind": "state_space", "system": own, **rng.choice(MIXERS)}


MIXERS: list[dict[str, Any]] = [
    {"output": "none", "activation": "gelu"},
    {"output": "glu", "activation": "gelu"},
    {"input": "gelu", "channels": 3, "gate": "gelu", "bias": ["output"]},
    {"input": "none", "channels": 5, "bias": False},
]


def kernel(own: dict[str, Any], p: dict[str, Tensor], length: int, longest: int) -> Tensor:
    """K_l = Re sum of C B a^l, l from 0: [channels length]."""
    pole = -torch.exp(p["poles_real"]) + 0j
    if "poles_imag" in p:
        pole = pole + 1j * (torch.exp(p["poles_imag"]) if own["imaginary"] == "exp" else p["poles_imag"])
    dt = (
        torch.exp(p["log_dt"])[:, None] if "log_dt" in p else torch.ones(len(p["weights_real"]), 1, dtype=torch.float64)
    )
    turn = dt * pole
    if "log_dt_real" in p:
        turn = torch.exp(p["log_dt_real"])[:, None] * pole.real + 1j * dt * pole.imag
    weights = p["weights_real"] + 1j * p.get("weights_imag", torch.zeros(()))
    drive = p["drive_real"] + 1j * p.get("drive_imag", torch.zeros(())) if "drive_real" in p else 1
    if own["discretisation"] == "bilinear":
        a, b = (1 + turn / 2) / (1 - turn / 2), dt / (1 - turn / 2)
    else:
        a = torch.exp(turn)
        b = torch.ones_like(a) if own["discretisation"] == "none" else (a - 1) / pole
    if own.get("kernel") == "softmax":
        z = pole * (torch.exp(longest * turn) - 1)
        b = (a - 1) * z.conj() / (z * z.conj() + 1e-7)
    each = (weights * drive * b)[..., None] * a[..., None] ** torch.arange(length)
    return (2 if own["pairs"] and "poles_imag" in p else 1) * each.sum(1).real


def convolved(u: Tensor, k: Tensor) -> Tensor:
    """y[b t h ..] of u [b t h ..] and k [h l], by Fourier transforms."""
    u, size = u.movedim(1, -1), 2 * u.shape[1]
    k = k.reshape(1, len(k), *[1] * (u.dim() - 3), k.shape[-1])
    y = torch.fft.irfft(torch.fft.rfft(u, size) * torch.fft.rfft(k, size), size)
    return y[..., : u.shape[-1]].movedim(-1, 1)


def system(block: dict[str, Any], p: dict[str, Tensor], u: Tensor, longest: int) -> Tensor:
    y = convolved(u, kernel(block["system"], p, u.shape[1], longest))
    if "skip" not in p:
        return y
    return y + p["skip"].reshape(-1, *[1] * (u.dim() - 3)) * u


def _gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def mixed(block: dict[str, Any], p: dict[str, Tensor], x: Tensor, longest: int) -> Tensor:
    """The block's result. p: its parameters by what follows their stem."""
    act = {"gelu": _gelu, "none": lambda v: v}

    def matrix(name: str, v: Tensor, axes: int = 1) -> Tensor:
        return torch.tensordot(v, p[f"{name}.weight"], axes) + p.get(f"{name}.bias", torch.zeros(()))

    if block["kind"] == "h3":
        q, k, v = (matrix(n, x) for n in ("query", "key", "value"))
        c, n = p["shift_out"], p["shift_out"].shape[-1]
        later = torch.nn.functional.pad(c, (0, n)).unfold(-1, n, 1)[..., :n, :]  # [.. l j]: c[j + l]
        taps = (later * p["shift_in"].unsqueeze(-2)).sum(-1)
        pad = torch.nn.functional.pad(taps, (0, max(0, x.shape[1] - n)))[..., : x.shape[1]]
        k = convolved(k.flatten(2), pad.flatten(0, -2)).view_as(k) + p["shift_skip"] * k
        if block["head"] == 1:
            return matrix("output", q * system(block, p, k * v, longest))
        kv = system(block, p, k[..., :, None] * v[..., None, :], longest)
        return matrix("output", (q[..., None] * kv).sum(-2), 2)
    u = act[block["input"]](matrix("input", x)) if "input" in block else x
    y = act[block.get("activation", "none")](system(block, p, u, longest))
    if "gate" in block:
        y = torch.tensordot(y, p["mix.weight"], 1) * _gelu(matrix("gate", x))
    if block.get("output") == "none":
        return y
    return matrix("output", y) * (torch.sigmoid(matrix("glu", y)) if block.get("output") == "glu" else 1)
