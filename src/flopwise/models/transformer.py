"""The decoder transformer: RMSNorm, rotary positions, SwiGLU, grouped-query attention.

Same mathematics as the Llama family in `transformers`; query/key/value and gate/up are fused into one
matrix each, because at a few hundred thousand parameters the number of kernel calls is what costs.
`models.hf` writes and reads the unfused names.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from flopwise.errors import FlopwiseError
from flopwise.models import kernels
from flopwise.models.config import ModelConfig
from flopwise.models.kernels import Positions


def rope_tables(cfg: ModelConfig, length: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines [length, head_dim] of the rotary positions (RoFormer, arXiv 2104.09864)."""
    half = torch.arange(0, cfg.head_dim, 2, dtype=torch.float32) / cfg.head_dim
    angles = torch.outer(torch.arange(length, dtype=torch.float32), cfg.rope_theta**-half)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


class RMSNorm(nn.Module):
    """Root mean square normalisation with a weight per unit."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        """x [N, width] -> [N, width]."""
        return kernels.rms_norm(x, self.weight, self.eps)


class Attention(nn.Module):
    """Causal self-attention; `qkv` holds all query heads, then key heads, then value heads."""

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.cfg = cfg
        self.qkv = nn.Linear(cfg.d_model, (cfg.n_heads + 2 * cfg.n_kv_heads) * cfg.head_dim, bias=False)
        self.out = nn.Linear(cfg.n_heads * cfg.head_dim, cfg.d_model, bias=False)

    def forward(self, x: Tensor, at: Positions) -> Tensor:
        """x [B * T, d_model] -> [B * T, d_model]."""
        qkv = self.qkv(x).view(-1, at.length, self.qkv.out_features)
        mixed = kernels.attention(qkv, at, self.cfg.n_heads, self.cfg.n_kv_heads)
        return self.out(mixed.flatten(0, 1))


class MLP(nn.Module):
    """SwiGLU (Shazeer, arXiv 2002.05202): down(silu(gate(x)) * up(x)), gate and up fused."""

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.gate_up = nn.Linear(cfg.d_model, 2 * cfg.d_ff, bias=False)
        self.down = nn.Linear(cfg.d_ff, cfg.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [N, d_model] -> [N, d_model]."""
        return self.down(kernels.swiglu(self.gate_up(x)))


class Block(nn.Module):
    """Pre-norm residual block."""

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.attn_norm = RMSNorm(cfg.d_model, eps=cfg.norm_eps)
        self.attn = Attention(cfg)
        self.mlp_norm = RMSNorm(cfg.d_model, eps=cfg.norm_eps)
        self.mlp = MLP(cfg)

    def forward(self, x: Tensor, at: Positions) -> Tensor:
        """x [B * T, d_model] -> [B * T, d_model]."""
        x = x + self.attn(self.attn_norm(x), at)
        return x + self.mlp(self.mlp_norm(x))


class Transformer(nn.Module):
    """A decoder language model, or with `n_scores=1` a scorer (outcome reward model) on the same trunk."""

    cos: Tensor
    sin: Tensor

    def __init__(self, cfg: ModelConfig, n_scores: int = 0):
        super().__init__()
        self.cfg = cfg
        self.embed = nn.Embedding(cfg.vocab_size, cfg.d_model)
        self.blocks = nn.ModuleList(Block(cfg) for _ in range(cfg.n_layers))
        self.norm = RMSNorm(cfg.d_model, eps=cfg.norm_eps)
        self.head = nn.Linear(cfg.d_model, n_scores or cfg.vocab_size, bias=False)
        self.n_scores = n_scores
        if cfg.tie_embeddings and not n_scores:
            self.head.weight = self.embed.weight
        cos, sin = rope_tables(cfg, cfg.max_seq_len)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def hidden(self, ids: Tensor) -> Tensor:
        """ids [B, T] -> normalised last hidden states [B, T, d_model]."""
        length, limit = ids.shape[1], self.cfg.max_seq_len
        if length > limit:
            raise FlopwiseError(f"model: {length} tokens do not fit its context of {limit}; cut the sequence")
        x = self.embed(ids).flatten(0, 1)
        at = Positions.of(self.cos[:length], self.sin[:length], self.cfg.n_heads, self.cfg.n_kv_heads)
        for block in self.blocks:
            x = block(x, at)
        return self.norm(x).view(*ids.shape, -1)

    def forward(self, ids: Tensor) -> Tensor:
        """ids [B, T] -> logits [B, T, vocab_size] (or scores [B, T, n_scores])."""
        return self.head(self.hidden(ids))

    @torch.no_grad()
    def initialise(self, seed: int) -> Transformer:
        """Draw the weights: 0.7/sqrt(fan-in), residual outputs also by 1/sqrt(2 depth), zero head.

        A standard deviation of .02 at width 64 would lose two thirds of the early progress
        (`docs/design.md`, "What was measured"). The embedding is drawn at unit scale.
        """
        rng = torch.Generator().manual_seed(seed)

        def normal(weight: Tensor, std: float) -> None:
            weight.copy_(torch.randn(weight.shape, generator=rng) * std)

        normal(self.embed.weight, 1.0 if not self.cfg.tie_embeddings else self.cfg.d_model**-0.5)
        depth_scale = 1 / math.sqrt(2 * self.cfg.n_layers)
        for block in self.blocks:
            assert isinstance(block, Block)
            for linear, scale in (
                (block.attn.qkv, 1.0), (block.attn.out, depth_scale),
                (block.mlp.gate_up, 1.0), (block.mlp.down, depth_scale),
            ):  # fmt: skip
                normal(linear.weight, 0.7 * scale / math.sqrt(linear.in_features))
            block.attn_norm.weight.fill_(1.0)
            block.mlp_norm.weight.fill_(1.0)
        self.norm.weight.fill_(1.0)
        if not (self.cfg.tie_embeddings and not self.n_scores):
            self.head.weight.zero_()
        return self
