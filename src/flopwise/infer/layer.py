"""A block's matrices with norms, adapters and the 1/sqrt(D) of attention folded in, for torch's products."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from flopwise.models.lora import dense
from flopwise.models.moe import MoE
from flopwise.models.transformer import Block


class Layer:
    """One block's matrices, ready to be multiplied from the right: folded in float32, and rounded to `dtype`
    after that."""

    def __init__(self, block: Block, dtype: torch.dtype):
        cfg = block.attn.cfg
        H, K, D = cfg.n_heads, cfg.n_kv_heads, cfg.head_dim
        self.cfg = cfg
        qkv = (dense(block.attn.qkv).float() * block.attn_norm.weight).view(H + 2 * K, D, -1).clone()
        # The halves that rotary positions pair up come to lie side by side, as complex numbers.
        qkv[: H + K] = _paired(qkv[: H + K])
        self.qk_norm: Tensor | None = None
        if cfg.qk_norm:
            q_norm, k_norm = block.attn.q_norm.weight * D**-0.5, block.attn.k_norm.weight
            self.qk_norm = _paired(torch.cat([q_norm.expand(H, D), k_norm.expand(K, D)])[..., None])[..., 0]
        else:
            qkv[:H] *= D**-0.5
        self.qkv = qkv.flatten(0, 1).to(dtype).T
        self.out = dense(block.attn.out).to(dtype).T
        self.experts: MoE | None = None
        if isinstance(block.mlp, MoE):
            self.experts = _with_norm(block.mlp, block.mlp_norm.weight)
        else:
            self.gate_up = (dense(block.mlp.gate_up).float() * block.mlp_norm.weight).to(dtype).T
            self.down = dense(block.mlp.down).to(dtype).T

    def heads(self, x: Tensor) -> Tensor:
        """x [N, d_model] -> query, key and value heads [N, H + 2K, D], not turned yet."""
        cfg = self.cfg
        heads = (unit(x, cfg.norm_eps) @ self.qkv).view(len(x), -1, cfg.head_dim)
        if self.qk_norm is not None:
            normed = heads[:, : len(self.qk_norm)]
            normed.copy_(unit(normed, cfg.norm_eps) * self.qk_norm)
        return heads

    def feed_forward(self, x: Tensor) -> None:
        """Add the feed-forward part to x [N, d_model]."""
        normed = unit(x, self.cfg.norm_eps)
        if self.experts is not None:
            x.add_(self.experts(normed.float()))
        else:
            gate, up = (normed @ self.gate_up).chunk(2, -1)
            torch.addmm(x, F.silu(gate).mul_(up), self.down, out=x)


def _paired(heads: Tensor) -> Tensor:
    """heads [n, D, m] with units i and i + D / 2 side by side."""
    return heads.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)


def _with_norm(moe: MoE, norm: Tensor) -> MoE:
    """A copy that takes inputs before the norm's weight [d_model]."""
    copy = MoE(moe.cfg).eval()
    copy.load_state_dict(moe.state_dict())
    for weight in (copy.router.weight, copy.gate_up, *([copy.shared.gate_up.weight] if copy.shared else [])):
        weight.mul_(norm)
    return copy


def unit(x: Tensor, eps: float) -> Tensor:
    """RMS normalisation without its weight; its sum is taken in float32."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    return (x * norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()).to(x.dtype)


def turn(heads: Tensor, by: Tensor) -> Tensor:
    """Rotary turn of heads [..., D], pairs side by side, by complex numbers [..., D / 2] (broadcast)."""
    pairs = torch.view_as_complex(heads.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * by).flatten(-2).to(heads.dtype)
