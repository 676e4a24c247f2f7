"""Held-out loss: on fixed tokens, per corpus, with a standard error over documents."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from flopwise.flops.count import score_flops
from flopwise.models.transformer import Transformer

if TYPE_CHECKING:
    from flopwise.data.prepared import PreparedData


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
    model: Transformer, data: PreparedData, n_tokens: int, seq_len: int, corpora: Sequence[str]
) -> dict[str, HeldOutLoss]:
    """Loss per corpus, each on the same `n_tokens` or so of held-out tokens for every model."""
    return {name: corpus_loss(model, *data.heldout(name, n_tokens, seq_len)) for name in corpora}


@dataclass(frozen=True)
class Share:
    """A share of questions answered right, its standard error, and the number of questions."""

    value: float
    se: float
    n: int


CHOICES, CONTINUATION = 4, 16
"""Of a question: continuations to choose from, and their tokens. Guessing is right in a quarter."""


@torch.inference_mode()
def true_continuations(
    model: Transformer, data: PreparedData, n: int, seq_len: int, corpora: Sequence[str]
) -> Share:
    """How often the true continuation of a held-out text is likelier than three from other documents.

    `n` questions over all corpora, the same for every model: half a window is the context, the next
    `CONTINUATION` tokens are the answer; the other choices are what follows at the same place in windows of
    other documents. A task that any corpus has, of whatever modality, with a known level of guessing.
    """
    model.eval()
    each = max(1, n // len(corpora))
    right: list[bool] = []
    for name in corpora:
        windows, documents = data.heldout(name, 4 * each * seq_len, seq_len)
        rng = np.random.default_rng((len(windows), each))
        half = seq_len // 2
        chosen = rng.permutation(len(windows))[:each]
        rows, answers = [], []
        for i in chosen:
            others = np.flatnonzero(documents != documents[i])
            if len(others) < CHOICES - 1:
                continue
            wrong = rng.choice(others, CHOICES - 1, replace=False)
            place = int(rng.integers(CHOICES))
            tails = list(windows[wrong, half : half + CONTINUATION])
            tails.insert(place, windows[i, half : half + CONTINUATION])
            rows += [np.concatenate([windows[i, :half], tail]) for tail in tails]
            answers.append(place)
        for start in range(0, len(rows), 16 * CHOICES):
            ids = torch.from_numpy(np.stack(rows[start : start + 16 * CHOICES]))
            logprobs = model(ids[:, :-1])[:, half - 1 :].log_softmax(-1)
            of_tail = logprobs.gather(-1, ids[:, half:, None])[..., 0].sum(1).view(-1, CHOICES)
            places = answers[start // CHOICES : start // CHOICES + len(of_tail)]
            right += (of_tail.argmax(1) == torch.tensor(places)).tolist()
    if not right:
        return Share(math.nan, math.nan, 0)
    share = sum(right) / len(right)
    return Share(share, math.sqrt(share * (1 - share) / len(right)), len(right))


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
