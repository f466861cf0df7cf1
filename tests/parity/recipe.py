"""Numbers from names: the same tensors on any machine, so that recorded outputs need no stored inputs."""

import hashlib
from typing import Any

import numpy as np

MASK = np.uint64(0xFFFFFFFFFFFFFFFF)


def uniform(name: str, shape: tuple[int, ...], bound: float = 1.0) -> Any:
    """fp64 array in [-bound, bound): entry i is splitmix64(first 8 bytes of sha256(name) + i)."""
    seed = np.uint64(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little"))
    with np.errstate(over="ignore"):
        z = (seed + np.arange(1, int(np.prod(shape)) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)) & MASK
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return ((z >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1.0).reshape(shape) * bound


def tokens(name: str, shape: tuple[int, ...], below: int) -> Any:
    """int64 array of numbers in [0, below)."""
    return np.floor((uniform(name, shape) + 1) / 2 * below).astype(np.int64)
