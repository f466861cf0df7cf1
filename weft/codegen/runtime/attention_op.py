"""A whole layout of attention as one op for a compiler, forward and backward; see `whole`."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .attention_core import accumulate_dtype
from .attention_drop import SCHEMA as DROP
from .attention_drop import Drop
from .whole import KNOWN, define
from .whole import OPS as OPS


def _run(
    layout: str, q: Tensor, k: Tensor, v: Tensor, scale: float, metadata: Sequence[Tensor], *drop: Any
) -> tuple[Tensor, Tensor]:
    out, lse = KNOWN[layout].forward(q, k, v, scale, *metadata, drop=Drop(*drop))
    return _laid(out), lse.contiguous()


def _fake(layout: str, q: Tensor, k: Tensor, v: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return _empty(q, v.shape[3]), q.new_empty(q.shape[:3], dtype=accumulate_dtype(q))


def _run_backward(
    layout: str, do: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float,
    metadata: Sequence[Tensor], *drop: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    grads = KNOWN[layout].backward(do, q, k, v, out, lse, scale, *metadata, drop=Drop(*drop))
    return tuple(map(_laid, grads))


def _fake_backward(layout: str, do: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: object):
    return tuple(_empty(x, x.shape[3]) for x in (q, k, v))


def _laid(x: Tensor) -> Tensor:
    """[B, H, N, D], in memory [B, N, H, D]: as the next product wants it, and always the same."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def _empty(like: Tensor, width: int) -> Tensor:
    batch, heads, n, _ = like.shape
    return like.new_empty(batch, n, heads, width).transpose(1, 2)


define(
    "attend",
    f"(str layout, Tensor q, Tensor k, Tensor v, float scale, Tensor[] metadata, {DROP}) -> (Tensor, Tensor)",
    _run,
    _fake,
)
define(
    "attend_backward",
    "(str layout, Tensor do, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, float scale, Tensor[] metadata,"
    f" {DROP}) -> (Tensor, Tensor, Tensor)",
    _run_backward,
    _fake_backward,
)
