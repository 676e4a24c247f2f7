"""A plain training loop over a GPT as nanoGPT has it, written for this comparison and not copied.

Learned positions, LayerNorm, GELU, fused query/key/value, `scaled_dot_product_attention`, neither biases nor
dropout; torch's fused AdamW, clipping at 1, one cross-entropy over all logits; eager. The hidden width of its
MLP is such that it has as many parameters as the model it is compared with (nanoGPT: 4 d); its head is untied
for that too.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Causal, as many key-value heads as heads."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, d] -> [B, T, d]."""
        B, T, d = x.shape
        q, k, v = (
            part.view(B, T, self.heads, d // self.heads).transpose(1, 2)
            for part in self.qkv(x).split(d, dim=2)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).reshape(B, T, d))


class Block(nn.Module):
    """Pre-norm residual block."""

    def __init__(self, width: int, heads: int, hidden: int):
        super().__init__()
        self.attn_norm, self.mlp_norm = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.attn = Attention(width, heads)
        self.up, self.down = nn.Linear(width, hidden, bias=False), nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, d] -> [B, T, d]."""
        x = x + self.attn(self.attn_norm(x))
        return x + self.down(F.gelu(self.up(self.mlp_norm(x))))


class GPT(nn.Module):
    """Tokens to logits."""

    def __init__(self, vocab: int, length: int, width: int, depth: int, heads: int, hidden: int):
        super().__init__()
        self.embed, self.places = nn.Embedding(vocab, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, heads, hidden) for _ in range(depth))
        self.norm = nn.LayerNorm(width, bias=False)
        self.head = nn.Linear(width, vocab, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        """ids [B, T] -> logits [B, T, V]."""
        x = self.embed(ids) + self.places(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def hidden_width(parameters: int, vocab: int, length: int, width: int, depth: int) -> int:
    """MLP width at which the GPT has about so many parameters."""
    rest = parameters - (2 * vocab + length + 1) * width - depth * (4 * width**2 + 2 * width)
    return max(8, round(rest / (2 * width * depth) / 8) * 8)
