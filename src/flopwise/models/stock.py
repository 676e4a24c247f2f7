"""The kernels by PyTorch's own operators: on accelerators, in bfloat16, and where a compiler is at work.

`kernels` writes them out for float32 on the processor. Under autocast the products here take bfloat16,
while the softmax of the attention (inside the fused operator) and that of the loss are taken in float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from flopwise.models.kernels import Positions


def wanted(x: Tensor) -> bool:
    """Whether x is not what `kernels` was written for: on an accelerator, in half precision, under autocast,
    in a compiler."""
    kind = x.device.type
    half = x.dtype in (torch.bfloat16, torch.float16)
    return torch.compiler.is_compiling() or kind != "cpu" or half or torch.is_autocast_enabled(kind)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`kernels.rms_norm`: x [N, d] -> [N, d], taken in float32."""
    return F.rms_norm(x.float(), weight.shape, weight.float(), eps).to(x.dtype)


def qk_norm(qk: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Each head of qk [N, heads, D] over its root mean square in float32, times weight [heads, D]."""
    return (F.rms_norm(qk.float(), weight.shape[1:], eps=eps) * weight).to(qk.dtype)


def swiglu(x: Tensor) -> Tensor:
    """`kernels.swiglu`: [N, 2F] -> [N, F]."""
    gate, up = x.chunk(2, -1)
    return F.silu(gate) * up


def attention(qkv: Tensor, positions: Positions, n_heads: int, n_kv_heads: int) -> Tensor:
    """`kernels.attention`: qkv [B, T, (H + 2K) D] -> [B, T, H D]."""
    B, T, width = qkv.shape
    H, K, D = n_heads, n_kv_heads, width // (n_heads + 2 * n_kv_heads)
    q, k, v = qkv.view(B, T, H + 2 * K, D).transpose(1, 2).split([H, K, K], 1)
    cos, sin = positions.k_cos.T, positions.k_sin.T
    q, k = _turn(q, cos, sin), _turn(k, cos, sin)
    k, v = (t.repeat_interleave(H // K, 1) for t in (k.to(v.dtype), v))
    mask = None
    if positions.window:
        at = torch.arange(T, device=qkv.device)
        before = at[:, None] - at
        mask = (before >= 0) & (before < positions.window)
    if positions.starts is not None:
        at = torch.arange(T, device=qkv.device)
        mine = (at <= at[:, None]) & (at >= positions.starts[:, None, :, None])
        mask = mine if mask is None else mine & mask
    mixed = F.scaled_dot_product_attention(q.to(v.dtype), k, v, mask, is_causal=mask is None)
    return mixed.transpose(1, 2).reshape(B, T, H * D)


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary turn of x [..., T, D] by tables [T, D], in the tables' precision."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


def token_logprobs(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """`kernels.token_logprobs`: hidden [N, d], weight [V, d], targets [N] -> [N], [N], in float32."""
    logits = F.linear(hidden, weight).float()
    log_z = logits.logsumexp(1)
    return logits.gather(1, targets[:, None])[:, 0] - log_z, log_z
