"""Four pieces of a transformer whose stock kernels waste much of a small model's step, with their gradients.

At widths of 32 to 64 the matrix products are a quarter to a half of the time, the rest is passes over memory,
kernel calls, and products with a side of 8 that BLAS does badly. Each function here is one node of the
autograd graph with its gradient written out (once differentiable), which saves temporaries, zero-filled
gradients of slices and repeated exponentials. `benchmarks/training.py` measures the whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from flopwise.models import native, stock


class _RMSNorm(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        scale = x.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
        unit = x * scale
        ctx.save_for_backward(unit, scale, weight)
        return unit * weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        unit, scale, weight = ctx.saved_tensors
        along = grad * unit
        slope = torch.mv(along, weight).div_(len(weight))[:, None]
        out = (grad * weight).addcmul_(unit, slope, value=-1).mul_(scale)
        return out, along.sum(0), None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [N, d] over its root mean square, times weight [d] (Zhang and Sennrich, arXiv 1910.07467)."""
    if stock.wanted(x):
        return stock.rms_norm(x, weight, eps)
    return (native.RMSNorm if native.usable(x) else _RMSNorm).apply(x, weight, eps)


def add_rms_norm(x: Tensor, other: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x + other [N, d], and `rms_norm` of it."""
    if native.usable(x) and not stock.wanted(x):
        total, normed = native.AddRMSNorm.apply(x, other, weight, eps)
        return total, normed
    total = x + other
    return total, rms_norm(total, weight, eps)


class _QKNorm(_RMSNorm):
    """The same over heads, each with a weight of its own."""

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        unit, scale, weight = ctx.saved_tensors
        to_weight = torch.einsum("nhd,nhd->hd", grad, unit)
        grad = grad * weight
        slope = (grad * unit).mean(-1, keepdim=True)
        return grad.addcmul_(unit, slope, value=-1).mul_(scale), to_weight, None


def qk_norm(
    qkv: Tensor, q_weight: Tensor, k_weight: Tensor, n_heads: int, n_kv_heads: int, eps: float
) -> Tensor:
    """Fused qkv [N, (H + 2K) D] with each query and key head over its root mean square, times weights [D]."""
    weight = torch.cat([q_weight.expand(n_heads, -1), k_weight.expand(n_kv_heads, -1)])
    n = weight.numel()
    normed = (stock.qk_norm if stock.wanted(qkv) else _QKNorm.apply)(
        qkv[:, :n].view(len(qkv), *weight.shape), weight, eps
    )
    return torch.cat([normed.flatten(1), qkv[:, n:]], 1)


class _SwiGLU(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        gate, up = x.chunk(2, -1)
        sigmoid = torch.sigmoid(gate)
        gated = gate * sigmoid
        ctx.save_for_backward(x, sigmoid, gated)
        return gated * up

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        x, sigmoid, gated = ctx.saved_tensors
        out = torch.empty_like(x)
        to_gate, to_up = out.chunk(2, -1)
        torch.mul(grad, gated, out=to_up)
        # d silu(g) / dg = s + g s (1 - s)
        torch.addcmul(gated, gated, sigmoid, value=-1, out=to_gate)
        to_gate.add_(sigmoid).mul_(x.chunk(2, -1)[1]).mul_(grad)
        return out


def swiglu(x: Tensor) -> Tensor:
    """silu(gate) * up for x = gate, up side by side [N, 2F] (Shazeer, arXiv 2002.05202)."""
    if stock.wanted(x):
        return stock.swiglu(x)
    return (native.SwiGLU if native.usable(x) else _SwiGLU).apply(x)


SPAN = 32
"""Queries attended together. The causal mask hides keys after a span's last query, so they are left out."""


@dataclass(frozen=True)
class Positions:
    """What attention needs beside queries, keys and values; made once per forward pass.

    Cosines and sines [D, T] of the rotary turns; `group` query heads share a key head. With a `window` a
    query sees that many keys, the last of them its own. With `starts` [B, T] int64, which never fall along a
    row, position t sees no key before its starts[t]: rows are packed with several sequences.
    """

    k_cos: Tensor
    k_sin: Tensor
    group: int
    window: int | None = None
    starts: Tensor | None = None

    @property
    def length(self) -> int:
        """T."""
        return self.k_cos.shape[1]

    @classmethod
    def of(
        cls, cos: Tensor, sin: Tensor, n_heads: int, n_kv_heads: int, window: int | None = None,
        segments: Tensor | None = None,
    ) -> Positions:  # fmt: skip
        """From the rotary tables cos and sin [T, D]; `segments` [B, T]: equal numbers are a sequence."""
        starts = None if segments is None else _starts(segments)
        return cls(cos.T, sin.T, n_heads // n_kv_heads, window, starts)

    @cached_property
    def queries(self) -> tuple[Tensor, Tensor]:
        """The tables for queries, divided by sqrt(D): [D, T * group]."""
        scale = self.k_cos.shape[0] ** -0.5
        cos, sin = ((t * scale).repeat_interleave(self.group, 1) for t in (self.k_cos, self.k_sin))
        return cos, sin

    @cached_property
    def mask(self) -> Tensor:
        """[SPAN * group, SPAN]: minus infinity where a key comes after a query."""
        mask = self.k_cos.new_full((SPAN, SPAN), -torch.inf).triu_(1)
        return mask.repeat_interleave(self.group, 0)


def _starts(segments: Tensor) -> Tensor:
    """Where the run of equal numbers that each position is in begins: [B, T] int64."""
    begins = torch.ones_like(segments, dtype=torch.bool)
    begins[:, 1:] = segments[:, 1:] != segments[:, :-1]
    at = torch.arange(segments.shape[1], device=segments.device)
    return torch.where(begins, at, 0).cummax(1).values


def _turn(x: Tensor, cos: Tensor, sin: Tensor, back: bool = False) -> Tensor:
    """Rotary turn of x [n, D, L] by tables [D, L], or its transpose."""
    half, sign = x.shape[1] // 2, -1 if back else 1
    out = x * cos
    out[:, :half].addcmul_(x[:, half:], sin[:half], value=-sign)
    out[:, half:].addcmul_(x[:, :half], sin[half:], value=sign)
    return out


class _Attention(Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, at: Positions, n_heads: int, n_kv_heads: int) -> Tensor:
        B, T, width = qkv.shape
        H, K, D = n_heads, n_kv_heads, width // (n_heads + 2 * n_kv_heads)
        G = H // K
        heads = qkv.view(B, T, H + 2 * K, D)
        # All of [batch * kv heads, D, positions]; a query's position has G columns, one per head.
        q = heads[:, :, :H].view(B, T, K, G, D).permute(0, 2, 4, 1, 3).reshape(B * K, D, T * G)
        k = heads[:, :, H : H + K].permute(0, 2, 3, 1).reshape(B * K, D, T)
        v = heads[:, :, H + K :].permute(0, 2, 3, 1).reshape(B * K, D, T)
        q_cos, q_sin = at.queries
        q, k = _turn(q, q_cos, q_sin), _turn(k, at.k_cos, at.k_sin)
        mixed = torch.empty_like(q)
        weights = []
        for first, a, b in _spans(T, at.window):
            scores = torch.bmm(q[:, :, a * G : b * G].mT, k[:, :, first:b])
            scores[:, :, a - first :] += at.mask[: (b - a) * G, : b - a]
            if at.window is not None:
                _hide_old(scores, b - a, a - first, at.window)
            if at.starts is not None:
                hidden = torch.arange(first, b, device=q.device) < at.starts[:, a:b, None]
                scores.masked_fill_(hidden.repeat_interleave(G, 1).repeat_interleave(K, 0), -torch.inf)
            weights.append(torch.softmax(scores, -1, out=scores))
            mixed[:, :, a * G : b * G] = torch.bmm(v[:, :, first:b], scores.mT)
        ctx.save_for_backward(q, k, v, *weights)
        ctx.at, ctx.shape = at, (B, T, K, G, D)
        return mixed.view(B, K, D, T, G).permute(0, 3, 1, 4, 2).reshape(B, T, H * D)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        q, k, v, *weights = ctx.saved_tensors
        at, (B, T, K, G, D) = ctx.at, ctx.shape
        H = K * G
        grad = grad.reshape(B, T, K, G, D).permute(0, 2, 4, 1, 3).reshape(B * K, D, T * G)
        to_q, to_k, to_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for (first, a, b), w in zip(_spans(T, at.window), weights, strict=True):
            rows = slice(a * G, b * G)
            to_v[:, :, first:b] += torch.bmm(grad[:, :, rows], w)
            to_scores = torch.bmm(grad[:, :, rows].mT, v[:, :, first:b])
            torch._softmax_backward_data(to_scores, w, -1, w.dtype, grad_input=to_scores)
            to_q[:, :, rows] = torch.bmm(k[:, :, first:b], to_scores.mT)
            to_k[:, :, first:b] += torch.bmm(q[:, :, rows], to_scores)
        q_cos, q_sin = at.queries
        to_q = _turn(to_q, q_cos, q_sin, back=True)
        to_k = _turn(to_k, at.k_cos, at.k_sin, back=True)
        out = torch.empty(B, T, H + 2 * K, D, dtype=grad.dtype, device=grad.device)
        out[:, :, :H].view(B, T, K, G, D).copy_(to_q.view(B, K, D, T, G).permute(0, 3, 1, 4, 2))
        out[:, :, H : H + K] = to_k.view(B, K, D, T).permute(0, 3, 1, 2)
        out[:, :, H + K :] = to_v.view(B, K, D, T).permute(0, 3, 1, 2)
        return out.view(B, T, -1), None, None, None


def _spans(T: int, window: int | None) -> list[tuple[int, int, int]]:
    """First key, first query and end of each span: keys before the first query's window are left out."""
    starts = range(0, T, SPAN)
    return [(max(0, a - window + 1) if window else 0, a, min(a + SPAN, T)) for a in starts]


def _hide_old(scores: Tensor, queries: int, before: int, window: int) -> None:
    """Hide from scores [n, queries * G, keys] the keys that have left a query's window; `before` keys lie
    before the first query."""
    left = torch.arange(scores.shape[2], device=scores.device) - before + window
    old = torch.arange(queries, device=scores.device)[:, None] >= left
    scores.masked_fill_(old.repeat_interleave(scores.shape[1] // queries, 0), -torch.inf)


def attention(qkv: Tensor, positions: Positions, n_heads: int, n_kv_heads: int) -> Tensor:
    """Causal grouped-query attention with rotary positions over fused qkv [B, T, (H + 2K) D]: [B, T, H D].

    The queries that share a key-value head are stacked, so keys and values are never repeated. Head units are
    rows and positions columns throughout: products with a side of D = 8 are then up to four times as fast
    in BLAS, and rotary halves are contiguous.
    """
    if stock.wanted(qkv):
        return stock.attention(qkv, positions, n_heads, n_kv_heads)
    if native.usable(qkv) and n_heads // n_kv_heads <= native.MAX_GROUP:
        cos, sin = positions.k_cos.T, positions.k_sin.T
        window = positions.window or 0
        return native.Attention.apply(qkv, cos, sin, n_heads, n_kv_heads, window, positions.starts)
    return _Attention.apply(qkv, positions, n_heads, n_kv_heads)


class _TokenLogprobs(Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        logits = torch.mm(hidden, weight.T)
        largest = logits.amax(1, keepdim=True)
        logits -= largest
        chosen = logits.gather(1, targets)
        total = logits.exp_().sum(1, keepdim=True)
        ctx.save_for_backward(hidden, weight, targets, logits, total)
        log_total = total.log()
        return chosen.sub_(log_total), log_total.add_(largest)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad: Tensor | None, to_log_z: Tensor | None
    ) -> tuple[Tensor, Tensor | None, None]:
        hidden, weight, targets, exps, total = ctx.saved_tensors
        grad = torch.zeros_like(total) if grad is None else grad
        share = -grad if to_log_z is None else to_log_z - grad
        to_logits = exps.mul_(share.div_(total)).scatter_add_(1, targets, grad)
        to_weight = torch.mm(hidden.T, to_logits).T if ctx.needs_input_grad[1] else None
        return torch.mm(to_logits, weight), to_weight, None


def token_logprobs(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """log softmax(hidden [N, d] @ weight [V, d].T) at targets [N], in nats: [N]; and the log of the softmax's
    denominator [N].

    One [N, V] buffer serves values and gradient, so a graph through it can be walked back once only.
    """
    if stock.wanted(hidden):
        return stock.token_logprobs(hidden, weight, targets)
    if native.usable(hidden):
        return native.TokenLogprobs.apply(hidden, weight, targets)
    logprobs, log_z = _TokenLogprobs.apply(hidden, weight, targets[:, None])
    return logprobs[:, 0], log_z[:, 0]
