"""Attention on one block of scores: a rectangle, a triangle (causal) or a rectangle under an additive mask.

Everything here returns the row log-sum-exp beside the output. With it, blocks that share a query row can be merged
exactly, and each can be differentiated alone from the merged result (Dao et al., FlashAttention, algorithms 1 and 4).

Letters: B batch, H heads, N queries, M keys, D head width, G groups (blocks or residue classes that attend alike).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

ROWS_AT_ONCE = 1 << 24  # elements of one slab of scores where no fused kernel exists


def accumulate_dtype(x: Tensor) -> torch.dtype:
    """Float64 for float64, else float32: the dtype of log-sum-exps and of sums over blocks."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def attend(
    q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool = False, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """softmax(scale q k' + mask) v over one block of scores.

    q [B, H, N, D], k [B, Hkv, M, D], v [B, Hkv, M, Dv], Hkv divides H; `causal` keeps k <= q counted from the top left;
    mask broadcasts to [B, H, N, M] and is added. Returns out [B, H, N, Dv] and lse [B, H, N] (float32, or float64 for
    float64 operands); a row that sees nothing has out 0 and lse -inf.
    """
    if q.shape[-2] == 0 or k.shape[-2] == 0 or q.shape[0] == 0:
        out = q.new_zeros(*q.shape[:-1], v.shape[-1])
        return out, q.new_full(q.shape[:-1], -torch.inf, dtype=accumulate_dtype(q))
    sign, scale = upright(scale)
    q = q if sign == 1 else q * sign
    if not fused(q):
        return _attend_in_slabs(q, k, v, scale, causal, mask)
    width = v.shape[-1]
    q, k, v = _same_width(q, k, v)
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, 0.0, causal, attn_mask=mask, scale=scale
    )
    if mask is not None:  # the kernel reports lse 0 for a row without keys
        lse = torch.where((mask == -torch.inf).all(-1), -torch.inf, lse)
    return out[..., :width], lse


def attend_backward(
    do: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    scale: float,
    causal: bool = False,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients (dq, dk, dv) of one block, given the out and lse of whole rows (all the blocks of a row merged).

    p = exp(s - lse) is the block's share of the whole softmax and rowsum(do * out) its correction, so the gradients of
    blocks add up to the gradient of the whole. A row with lse +inf contributes nothing.
    """
    if q.shape[-2] == 0 or k.shape[-2] == 0 or q.shape[0] == 0:
        return torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    sign, scale = upright(scale)
    q = q if sign == 1 else q * sign
    if not fused(q):
        dq, dk, dv = _backward_in_slabs(do, q, k, v, out, lse, scale, causal, mask)
        return dq if sign == 1 else dq * sign, dk, dv
    width, width_v = q.shape[-1], v.shape[-1]
    q, k, v, do, out = _same_width(q, k, v, do, out)
    dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        do, q, k, v, out, lse, 0.0, causal, attn_mask=mask, scale=scale
    )
    dq = dq if sign == 1 else dq * sign
    return dq[..., :width], dk[..., :width], dv[..., :width_v]


def upright(scale: float) -> tuple[int, float]:
    """A scale as (sign, positive scale), for kernels that hide a key by -inf before they scale: the sign goes to q."""
    return (1, scale) if scale > 0 else (-1, -scale) if scale < 0 else (0, 1.0)


def fused(x: Tensor) -> bool:
    """Whether the fused operator takes this tensor: CPU floats, and meta tensors (which stand for them)."""
    return x.device.type in ("cpu", "meta") and x.dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def by_rows(x: Tensor) -> Tensor:
    """x, or a copy where rows are not contiguous or lie on each other: the fused operator reads such memory wrongly."""
    apart = x.shape[-2] <= 1 or x.stride(-2) >= x.shape[-1]
    return x if x.shape[-1] <= 1 or (x.stride(-1) == 1 and apart) else x.contiguous()


def _same_width(*xs: Tensor) -> list[Tensor]:
    """Zero-pad the last dim to the widest (the fused operator wants one head width); nothing else changes."""
    width = max(x.shape[-1] for x in xs)
    return [by_rows(x) if x.shape[-1] == width else F.pad(x, (0, width - x.shape[-1])) for x in xs]


def by_kv_head(x: Tensor, kv_heads: int) -> Tensor:
    """[B, H, ...] -> [B, Hkv, H / Hkv, ...]: the query heads that share a key head, side by side."""
    return x.unflatten(1, (kv_heads, -1))


def _slabs(q: Tensor, m: int) -> range:
    rows = max(1, ROWS_AT_ONCE // max(1, q.shape[0] * q.shape[1] * m))
    return range(0, q.shape[-2], rows)


def _scores(q: Tensor, k: Tensor, scale: float, causal: bool, mask: Tensor | None, rows: slice) -> Tensor:
    """Scores [B, Hkv, group, rows, M] of some query rows, in the accumulation dtype, hidden ones -inf."""
    dtype, (n, m), kv = accumulate_dtype(q), (q.shape[-2], k.shape[-2]), k.shape[1]
    s = by_kv_head(q[:, :, rows], kv).to(dtype) @ k[:, :, None].to(dtype).mT * scale
    if causal:
        row = torch.arange(n, device=q.device)[rows]
        s = s.masked_fill(torch.arange(m, device=q.device) > row[:, None], -torch.inf)
    if mask is not None:
        s = s + by_kv_head(mask.expand(q.shape[0], q.shape[1], n, m)[:, :, rows], kv)
    return s


def _attend_in_slabs(
    q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    slabs = _slabs(q, k.shape[-2])
    outs, lses = [], []
    for start in slabs:
        s = _scores(q, k, scale, causal, mask, slice(start, start + slabs.step))
        lse = s.logsumexp(-1)
        p = torch.exp(s - lse.masked_fill(lse == -torch.inf, torch.inf)[..., None])
        outs.append((p @ v[:, :, None].to(p.dtype)).to(q.dtype).flatten(1, 2))
        lses.append(lse.flatten(1, 2))
    return torch.cat(outs, 2), torch.cat(lses, 2)


def _backward_in_slabs(
    do: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    scale: float,
    causal: bool,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype, kv = accumulate_dtype(q), k.shape[1]
    dq, dk, dv = (torch.zeros_like(x, dtype=dtype) for x in (q, k, v))
    slabs = _slabs(q, k.shape[-2])
    for start in slabs:
        rows = slice(start, start + slabs.step)
        s = _scores(q, k, scale, causal, mask, rows)
        g, o, qs = (by_kv_head(x[:, :, rows], kv).to(dtype) for x in (do, out, q))
        p = torch.exp(s - by_kv_head(lse[:, :, rows], kv)[..., None])
        ds = p * (g @ v[:, :, None].to(dtype).mT - (g * o).sum(-1, keepdim=True)) * scale
        dq[:, :, rows] = (ds @ k[:, :, None].to(dtype)).flatten(1, 2)
        dk += (ds.mT @ qs).sum(2)
        dv += (p.mT @ g).sum(2)
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)


def sunk(out: Tensor, lse: Tensor, sinks: Tensor) -> tuple[Tensor, Tensor]:
    """The out [B, H, N, D] and lse [B, H, N] of a softmax with one key more, of score sinks [H] and value 0. A row that
    sees nothing (lse = +inf) stays as it is."""
    z = sinks.to(lse.dtype)[:, None]
    return (out * torch.sigmoid(lse - z)[..., None]).to(out.dtype), torch.logaddexp(lse, z)
