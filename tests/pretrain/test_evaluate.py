"""Held-out loss: the mean over tokens, its error over documents."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from flopwise.flops.count import score_flops
from flopwise.models.config import ModelConfig
from flopwise.models.transformer import Transformer
from flopwise.pretrain.evaluate import HeldOutLoss, corpus_loss, pooled

T = 16


@pytest.fixture(scope="module")
def model() -> Transformer:
    model = Transformer(ModelConfig.from_width(16, 1, 40, T)).initialise(0)
    model.head.weight.data.normal_(generator=torch.Generator().manual_seed(1))
    return model


def windows(rng: np.random.Generator, per_document: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Documents of unequal length and of their own vocabulary, so that they differ."""
    rows = [rng.integers(0, 3 + 3 * i % 37, (n, T + 1)) for i, n in enumerate(per_document)]
    return np.concatenate(rows), np.repeat(np.arange(len(per_document)), per_document)


def test_the_value_is_the_mean_over_tokens_and_its_cost_is_counted(model: Transformer) -> None:
    w, d = windows(np.random.default_rng(0), [3, 1, 5])
    ids = torch.from_numpy(w)
    with torch.no_grad():
        expected = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).item()
    for batch in (2, 100):
        loss = corpus_loss(model, w, d, batch)
        assert loss.value == pytest.approx(expected, rel=1e-5)
        assert (loss.n_documents, loss.n_tokens) == (3, 9 * T)
        assert loss.score_flops == pytest.approx(score_flops(model.cfg, T, 9).total)


def test_the_error_is_that_of_resampled_documents(model: Transformer) -> None:
    rng = np.random.default_rng(0)
    w, d = windows(rng, rng.integers(1, 6, 60).tolist())
    loss = corpus_loss(model, w, d)
    parts = [corpus_loss(model, w[d == i], d[d == i]) for i in range(60)]
    sums = np.array([(p.value * p.n_tokens, p.n_tokens) for p in parts])
    draws = sums[rng.integers(0, 60, (4000, 60))].sum(axis=1)
    assert loss.se == pytest.approx((draws[:, 0] / draws[:, 1]).std(), rel=0.1)


def test_one_document_has_no_error(model: Transformer) -> None:
    w, _ = windows(np.random.default_rng(0), [4])
    assert np.isnan(corpus_loss(model, w, np.zeros(4, int)).se)


def test_pooling_weighs_corpora_alike() -> None:
    a, b = HeldOutLoss(2.0, 0.3, 5, 100, 1.0), HeldOutLoss(4.0, 0.4, 7, 900, 2.0)
    both = pooled({"a": a, "b": b})
    assert (both.value, both.n_documents, both.n_tokens, both.score_flops) == (3.0, 12, 1000, 3.0)
    assert both.se == pytest.approx(0.25)
