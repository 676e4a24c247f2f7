"""The decoder transformer: RMSNorm, rotary positions, grouped-query attention, SwiGLU or experts.

Same mathematics as the Llama, Mistral and Qwen families in `transformers`; query/key/value and gate/up are
fused into one matrix each, because at a few hundred thousand parameters the number of kernel calls is what
costs.
`models.hf` writes and reads the unfused names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from flopwise.errors import FlopwiseError
from flopwise.models import kernels
from flopwise.models.adapters import LoRA
from flopwise.models.config import ModelConfig
from flopwise.models.kernels import Positions
from flopwise.models.moe import MLP, MoE


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
    """Causal self-attention; `qkv` holds all query heads, then key heads, then value heads.

    With `qk_norm` each query and key head is normalised before its rotary turn, with one weight per unit that
    all heads share (Dehghani et al., arXiv 2302.05442, section 2; per head as in Qwen3, arXiv 2505.09388).
    """

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.cfg = cfg
        self.qkv = nn.Linear(cfg.d_model, (cfg.n_heads + 2 * cfg.n_kv_heads) * cfg.head_dim, bias=False)
        self.out = nn.Linear(cfg.n_heads * cfg.head_dim, cfg.d_model, bias=False)
        if cfg.qk_norm:
            self.q_norm = RMSNorm(cfg.head_dim, eps=cfg.norm_eps)
            self.k_norm = RMSNorm(cfg.head_dim, eps=cfg.norm_eps)

    def forward(self, x: Tensor, at: Positions) -> Tensor:
        """x [B * T, d_model] -> [B * T, d_model]."""
        cfg = self.cfg
        qkv = self.qkv(x)
        if cfg.qk_norm:
            weights = self.q_norm.weight, self.k_norm.weight
            qkv = kernels.qk_norm(qkv, *weights, cfg.n_heads, cfg.n_kv_heads, cfg.norm_eps)
        mixed = kernels.attention(qkv.view(-1, at.length, qkv.shape[1]), at, cfg.n_heads, cfg.n_kv_heads)
        return self.out(mixed.flatten(0, 1))

    def matrices(self) -> list[tuple[Tensor, list[int]]]:
        """Weights [out, in], each with the rows of the maps that are fused in it."""
        cfg = self.cfg
        kv = cfg.n_kv_heads * cfg.head_dim
        return [(self.qkv.weight, [cfg.n_heads * cfg.head_dim, kv, kv]), (self.out.weight, [cfg.d_model])]


class Block(nn.Module):
    """Pre-norm residual block; `mlp` is a `MoE` where the configuration has experts in this layer."""

    def __init__(self, cfg: ModelConfig, layer: int = 0):
        super().__init__()
        self.attn_norm = RMSNorm(cfg.d_model, eps=cfg.norm_eps)
        self.attn = Attention(cfg)
        self.mlp_norm = RMSNorm(cfg.d_model, eps=cfg.norm_eps)
        self.mlp: MLP | MoE = MoE(cfg) if cfg.has_experts(layer) else MLP(cfg.d_model, cfg.d_ff)

    def forward(self, x: Tensor, at: Positions) -> Tensor:
        """x [B * T, d_model] -> [B * T, d_model]."""
        norm = self.mlp_norm
        x, h = kernels.add_rms_norm(x, self.attn(self.attn_norm(x), at), norm.weight, norm.eps)
        return x + self.mlp(h)

    def matrices(self) -> list[tuple[Tensor, list[int]]]:
        """Maps between hidden layers, for the optimiser: weights [out, in] or [experts, out, in], each with
        the rows (of out) that belong to the maps fused in it."""
        return self.attn.matrices() + self.mlp.matrices()


class Transformer(nn.Module):
    """A decoder language model, or with `n_scores=1` a scorer (outcome reward model) on the same trunk."""

    cos: Tensor
    sin: Tensor
    lora: LoRA | None = None
    """Its adapters, if it has any (`models.lora`): they alone are trained."""

    def __init__(self, cfg: ModelConfig, n_scores: int = 0):
        super().__init__()
        self.cfg = cfg
        self.embed = nn.Embedding(cfg.vocab_size, cfg.d_model)
        self.blocks = nn.ModuleList(Block(cfg, layer) for layer in range(cfg.n_layers))
        self.norm = RMSNorm(cfg.d_model, eps=cfg.norm_eps)
        self.head = nn.Linear(cfg.d_model, n_scores or cfg.vocab_size, bias=False)
        self.n_scores = n_scores
        if cfg.tie_embeddings and not n_scores:
            self.head.weight = self.embed.weight
        cos, sin = rope_tables(cfg, cfg.max_seq_len)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    @classmethod
    def holding(cls, cfg: ModelConfig, weights: Mapping[str, Tensor], n_scores: int = 0) -> Transformer:
        """A model whose weights are these very tensors, by the names of its state: nothing drawn or copied.

        Raises:
            RuntimeError: a tensor is missing, has no place or another shape.
        """
        with torch.device("meta"):
            model = cls(cfg, n_scores)
        model.load_state_dict(dict(weights), assign=True)
        if cfg.tie_embeddings and not n_scores:
            model.head.weight = model.embed.weight
        for module in model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                if buffer.is_meta:
                    setattr(module, name, torch.zeros_like(buffer, device="cpu"))
        model.cos, model.sin = rope_tables(cfg, cfg.max_seq_len)
        return model

    def hidden(self, ids: Tensor, segments: Tensor | None = None) -> Tensor:
        """ids [B, T] -> normalised last hidden states [B, T, d_model].

        With `segments` [B, T] a row holds several sequences, each a run of equal numbers: a position sees
        its own sequence alone. Rotary positions are relative, so a sequence gives what it would give alone.
        """
        length, limit = ids.shape[1], self.cfg.max_seq_len
        if length > limit:
            raise FlopwiseError(f"model: {length} tokens do not fit its context of {limit}; cut the sequence")
        x = self.embed(ids).flatten(0, 1)
        cfg = self.cfg
        at = Positions.of(
            self.cos[:length], self.sin[:length], cfg.n_heads, cfg.n_kv_heads, cfg.sliding_window, segments
        )
        for block in self.blocks:
            x = block(x, at)
        return self.norm(x).view(*ids.shape, -1)

    def forward(self, ids: Tensor, segments: Tensor | None = None) -> Tensor:
        """ids [B, T] -> logits [B, T, vocab_size] (or scores [B, T, n_scores])."""
        return self.head(self.hidden(ids, segments))

    def experts(self) -> list[MoE]:
        """The mixtures of experts, first layer first."""
        return [block.mlp for block in self.blocks if isinstance(block, Block) and isinstance(block.mlp, MoE)]

    def auxiliary_loss(self) -> Tensor | None:
        """What the last forward pass in training mode adds to the loss: sum over layers, None if nothing."""
        losses = [moe.auxiliary for moe in self.experts() if moe.auxiliary is not None]
        return torch.stack(losses).sum() if losses else None

    def rebalance(self) -> None:
        """Once per update, after it: experts' selection biases follow the load of its batch."""
        for moe in self.experts():
            moe.rebalance()

    @torch.no_grad()
    def initialise(self, seed: int) -> Transformer:
        """Draw the weights: 0.7/sqrt(fan-in), residual outputs also by 1/sqrt(2 depth), zero head.

        Experts as the matrices of a dense layer of their width; routers at a tenth of the scale, so that the
        first choices are nearly even (Switch, arXiv 2101.03961, section 2.4, scales the whole model so).
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
            mlp = block.mlp
            scaled = [(block.attn.qkv.weight, 1.0), (block.attn.out.weight, depth_scale)]
            if isinstance(mlp, MoE):
                scaled += [(mlp.router.weight, 0.1), (mlp.gate_up, 1.0), (mlp.down, depth_scale)]
                mlp.bias.zero_()
                mlp.load.zero_()
            dense = mlp.shared if isinstance(mlp, MoE) else mlp
            if dense is not None:
                scaled += [(dense.gate_up.weight, 1.0), (dense.down.weight, depth_scale)]
            for weight, scale in scaled:
                normal(weight, 0.7 * scale / math.sqrt(weight.shape[-1]))
            if self.cfg.qk_norm:
                block.attn.q_norm.weight.fill_(1.0)
                block.attn.k_norm.weight.fill_(1.0)
            block.attn_norm.weight.fill_(1.0)
            block.mlp_norm.weight.fill_(1.0)
        self.norm.weight.fill_(1.0)
        if not (self.cfg.tie_embeddings and not self.n_scores):
            self.head.weight.zero_()
        return self
