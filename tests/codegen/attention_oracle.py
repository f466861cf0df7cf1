"""Dense masked attention in float64 with autograd, and the comparison every layout is held to."""

import torch
from torch import Tensor

Operands = tuple[Tensor, Tensor, Tensor, Tensor]


def operands(n, m, batch=2, heads=4, kv=2, width=8, width_v=8, order="head", dtype=torch.float64, seed=0) -> Operands:
    """(do, q, k, v); order is the memory order, by head [B, H, N, D] or by token [B, N, H, D]."""
    generator = torch.Generator().manual_seed(seed)

    def make(h: int, length: int, d: int) -> Tensor:
        shape = (batch, h, length, d) if order == "head" else (batch, length, h, d)
        x = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        return x if order == "head" else x.transpose(1, 2)

    return make(heads, n, width_v), make(heads, n, width), make(kv, m, width), make(kv, m, width_v)


def reference(do: Tensor, q: Tensor, k: Tensor, v: Tensor, scale: float, weight: Tensor, score=None):
    """out, lse, (dq, dk, dv) for pair weights [H or 1, N, M] (0 hidden, 1 visible, more: multiplicity)."""
    q, k, v = (x.detach().double().requires_grad_() for x in (q, k, v))
    group = q.shape[1] // k.shape[1]
    s = (q @ k.repeat_interleave(group, 1).mT) * scale
    seen = (weight > 0).any(-1)
    s = (score(s) if score else s) + torch.where(seen[..., None], weight, 1.0).double().log()
    lse = torch.where(seen, s.logsumexp(-1), torch.inf)
    p = torch.exp(s - s.logsumexp(-1, keepdim=True)) if k.shape[2] else s
    out = torch.where(seen[..., None], p @ v.repeat_interleave(group, 1), 0.0)
    return out, lse, torch.autograd.grad(out, (q, k, v), do.double(), materialize_grads=True)


def close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    return a.shape == b.shape and bool((a.double() - b).norm() <= tolerance * b.norm().clamp(min=1e-3))


def check(layout, weight: Tensor, given: Operands, tolerance=1e-10, metadata=(), score=None, meta=True) -> None:
    """Compare forward, log-sum-exp and all gradients with the dense reference; then the shapes on device meta."""
    do, q, k, v = given
    out, lse = layout.forward(q, k, v, 0.3, *metadata)
    grads = layout.backward(do, q, k, v, out, lse, 0.3, *metadata)
    truth, truth_lse, truth_grads = reference(do, q, k, v, 0.3, weight, score)
    truth = truth.detach()
    case = (layout, q.shape, k.shape, q.stride())
    assert torch.equal(lse.isinf(), truth_lse.isinf().expand_as(lse)), case
    pairs = zip((out, lse.nan_to_num(posinf=0), *grads), (truth, truth_lse.nan_to_num(posinf=0), *truth_grads))
    for name, (a, b) in zip(("out", "lse", "dq", "dk", "dv"), pairs):
        assert close(a, b, tolerance), (name, *case, (a.double() - b).norm().item())
    assert [x.dtype for x in (out, *grads)] == [q.dtype] * 4, case
    if not meta:
        return
    do, q, k, v, *metadata = (x.to("meta") for x in (*given, *metadata))
    out_, lse_ = layout.forward(q, k, v, 0.3, *metadata)
    there = (out_, lse_, *layout.backward(do, q, k, v, out_, lse_, 0.3, *metadata))
    for a, b in zip(there, (out, lse, *grads)):
        assert (a.shape, a.dtype, a.device.type) == (b.shape, b.dtype, "meta"), case
