"""Random models small enough to check by hand."""

import torch

from flopwise.models.config import ModelConfig
from flopwise.models.transformer import Transformer

V = 40


def make_model(n_scores: int = 0, seed: int = 0, vocab: int = V, width: int = 32) -> Transformer:
    cfg = ModelConfig.from_width(width, 2, vocab, 48)
    model = Transformer(cfg, n_scores=n_scores).initialise(seed)
    rng = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        # Trained models have neither a zero head nor norms of one.
        model.head.weight.copy_(torch.randn(model.head.weight.shape, generator=rng) * 0.3)
        for block in model.blocks:
            block.attn_norm.weight.add_(torch.rand(width, generator=rng))
            block.mlp_norm.weight.add_(torch.rand(width, generator=rng))
        model.norm.weight.add_(torch.rand(width, generator=rng))
    return model.eval()
