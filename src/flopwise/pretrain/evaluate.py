"""Held-out loss: on fixed tokens, per corpus, with a standard error over documents."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from flopwise.flops.count import score_flops
from flopwise.models.transformer import Transformer

if TYPE_CHECKING:
    from flopwise.data.prepare import PreparedData


@dataclass(frozen=True)
class HeldOutLoss:
    """Mean loss in nats per token, its standard error over documents, and what measuring it cost."""

    value: float
    se: float
    n_documents: int
    n_tokens: int
    score_flops: float


@torch.inference_mode()
def corpus_loss(
    model: Transformer, windows: np.ndarray, documents: np.ndarray, batch_size: int = 32
) -> HeldOutLoss:
    """Loss of `windows` [n, T+1], each from the document named in `documents` [n].

    The standard error treats documents as the independent units, since tokens of one document are not:
    it is that of a ratio estimate (sum of losses over sum of tokens) between documents.
    """
    model.eval()
    sums: dict[int, list[float]] = {}
    flops = 0.0
    for start in range(0, len(windows), batch_size):
        ids = torch.from_numpy(windows[start : start + batch_size].astype(np.int64))
        x, y = ids[:, :-1], ids[:, 1:]
        losses = F.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="none").view(y.shape)
        flops += score_flops(model.cfg, x.shape[1], x.shape[0]).total
        for doc, total in zip(
            documents[start : start + batch_size], losses.double().sum(1).tolist(), strict=True
        ):
            entry = sums.setdefault(int(doc), [0.0, 0.0])
            entry[0] += total
            entry[1] += y.shape[1]
    totals = np.array(list(sums.values()))
    mean = totals[:, 0].sum() / totals[:, 1].sum()
    n = len(totals)
    residual = totals[:, 0] - mean * totals[:, 1]
    se = math.sqrt((residual**2).sum() * n / max(1, n - 1)) / totals[:, 1].sum() if n > 1 else math.nan
    return HeldOutLoss(float(mean), se, n, int(totals[:, 1].sum()), flops)


def heldout_losses(
    model: Transformer, data: PreparedData, n_tokens: int, seq_len: int
) -> dict[str, HeldOutLoss]:
    """Loss per corpus, each on the same first `n_tokens` held-out tokens for every model."""
    return {name: corpus_loss(model, *data.heldout(name, n_tokens, seq_len)) for name in data.corpora}


def pooled(losses: dict[str, HeldOutLoss]) -> HeldOutLoss:
    """Equal-weight mean over corpora: one fixed yardstick for models of one ladder, never across ladders."""
    k = len(losses)
    parts = list(losses.values())
    return HeldOutLoss(
        sum(p.value for p in parts) / k,
        math.sqrt(sum(p.se**2 for p in parts)) / k,
        sum(p.n_documents for p in parts),
        sum(p.n_tokens for p in parts),
        sum(p.score_flops for p in parts),
    )
