"""Objectives against the same mathematics written out by hand."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402

from flopwise.models.config import ModelConfig  # noqa: E402
from flopwise.models.transformer import Transformer  # noqa: E402
from flopwise.train.objectives import (  # noqa: E402
    Batch,
    cross_entropy,
    outcome_reward,
    token_logprobs,
)

CFG = ModelConfig.from_width(16, 1, 20, 32)


@pytest.fixture
def model() -> Transformer:
    model = Transformer(CFG).initialise(0)
    torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(1))
    return model


def make_batch(weighted: bool) -> Batch:
    rng = torch.Generator().manual_seed(2)
    rows = torch.randint(20, (3, 10), generator=rng)
    weights = (torch.rand(3, 9, generator=rng) < 0.5).float() if weighted else None
    return Batch(rows[:, :-1], rows[:, 1:], weights)


def gradients(model: Transformer, loss) -> list:
    return torch.autograd.grad(loss, list(model.parameters()))


def same(a, b) -> bool:
    return all(torch.allclose(x, y, atol=1e-5) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy(model, weighted):
    batch = make_batch(weighted)
    loss, logs = cross_entropy(model, batch)
    each = F.cross_entropy(model(batch.ids).flatten(0, 1), batch.targets.flatten(), reduction="none")
    weights = torch.ones(27) if batch.weights is None else batch.weights.flatten()
    plain = (each * weights).sum() / weights.sum()
    assert loss.item() == pytest.approx(plain.item(), rel=1e-5) and logs == {}
    assert same(gradients(model, loss), gradients(model, plain))


def test_fractional_weights_are_weights(model):
    batch = make_batch(True)
    batch.weights = batch.weights * 0.25 + 0.5
    each = F.cross_entropy(model(batch.ids).flatten(0, 1), batch.targets.flatten(), reduction="none")
    weights = batch.weights.flatten()
    assert cross_entropy(model, batch)[0].item() == pytest.approx(
        ((each * weights).sum() / weights.sum()).item(), rel=1e-5
    )


def test_logprobs_are_zero_where_nothing_is_learned(model):
    batch = make_batch(True)
    logprobs = token_logprobs(model, batch)
    assert not logprobs[batch.weights == 0].any() and (logprobs[batch.weights == 1] < 0).all()


def test_outcome_reward_reads_the_last_token():
    model = Transformer(CFG, n_scores=1).initialise(0)
    torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(1))
    ids = torch.randint(20, (3, 8), generator=torch.Generator().manual_seed(2))
    last, labels = torch.tensor([7, 3, 5]), torch.tensor([1.0, 0.0, 1.0])
    loss = outcome_reward(model, Batch(ids, labels=labels, last=last))[0]
    scores = torch.stack([model(ids[i : i + 1, : n + 1])[0, -1, 0] for i, n in enumerate(last.tolist())])
    log_odds = torch.where(labels == 1, scores, -scores)
    assert loss.item() == pytest.approx(-F.logsigmoid(log_odds).mean().item(), rel=1e-5)
