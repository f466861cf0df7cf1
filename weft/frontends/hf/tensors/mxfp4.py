"""Weights in four bits (OCP Microscaling Formats 1.0, MXFP4): read as the tensors that they stand for.

`X_blocks` u8 [.., rows, groups, 16] holds two numbers a byte, the lower half first, and `X_scales` u8 [.., rows,
groups] the exponent, over 127, that the 32 numbers of a group share. Together they are X [.., 32 * groups, rows].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from weft.frontends.hf.tensors.checkpoint import Stored

NUMBERS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""What the lower three bits say; the fourth is the sign."""
BYTES = 16
SUFFIXES = ("_blocks", "_scales")


def pairs(tensors: Mapping[str, Stored]) -> dict[str, tuple[Stored, Stored]]:
    """The tensors that stand in two, by the name of what they are together."""
    found: dict[str, tuple[Stored, Stored]] = {}
    for name, blocks in tensors.items():
        stem = name.removesuffix(SUFFIXES[0])
        scales = tensors.get(stem + SUFFIXES[1])
        if stem == name or scales is None or stem in tensors or {blocks.kind, scales.kind} != {"U8"}:
            continue
        if len(blocks.shape) == 4 and blocks.shape == (*scales.shape, BYTES):
            found[stem] = blocks, scales
    return found


def shape(blocks: Stored) -> tuple[int, ...]:
    """The shape of what they are together."""
    *outer, rows, groups, width = blocks.shape
    return *outer, 2 * width * groups, rows


def unpacked(blocks: Any, scales: Any) -> Any:
    """The numbers themselves, bf16, which holds each of them exactly."""
    import torch  # torch is imported only where it is needed

    table = torch.tensor([*NUMBERS, *(-n for n in NUMBERS)], dtype=torch.bfloat16)
    numbers = torch.empty(*blocks.shape, 2, dtype=torch.bfloat16)
    numbers[..., 0], numbers[..., 1] = table[(blocks & 15).int()], table[(blocks >> 4).int()]
    powers = torch.exp2(scales.float() - 127).to(torch.bfloat16)
    return numbers.mul_(powers[..., None, None]).flatten(-3).transpose(-1, -2)
