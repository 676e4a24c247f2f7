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
    policy_gradient,
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


def on_policy(model: Transformer) -> Batch:
    batch = make_batch(True)
    with torch.no_grad():
        batch.old_logprobs = token_logprobs(model, batch)
    batch.advantages = batch.weights * torch.tensor([1.0, -0.5, 2.0])[:, None]
    return batch


def test_policy_gradient_on_policy_is_reinforce(model):
    batch = on_policy(model)
    loss, logs = policy_gradient()(model, batch)
    # At ratio 1 the gradient is that of -A log p, averaged over all tokens of the batch.
    reinforce = -(batch.advantages * token_logprobs(model, batch)).sum() / batch.weights.sum()
    assert same(gradients(model, loss), gradients(model, reinforce))
    assert logs["approx_kl"] == pytest.approx(0.0, abs=1e-6)


def test_policy_gradient_off_policy_by_hand(model):
    batch = on_policy(model)
    shift = torch.empty(3, 9).uniform_(-0.6, 0.6, generator=torch.Generator().manual_seed(3))
    batch.old_logprobs = (batch.old_logprobs + shift) * batch.weights
    low, high = 0.2, 0.28
    loss, logs = policy_gradient(low, high)(model, batch)
    want = torch.zeros(())
    logprobs = token_logprobs(model, batch)
    n, kl = int(batch.weights.sum()), 0.0
    for row, column in batch.weights.nonzero().tolist():
        advantage = batch.advantages[row, column].item()
        ratio = (logprobs[row, column] - batch.old_logprobs[row, column]).exp()
        kl -= ratio.log().item() / n
        # PPO: past the edge that the advantage pushes towards, a token has no gradient.
        beyond = ratio > 1 + high if advantage > 0 else ratio < 1 - low
        edge = 1 + high if advantage > 0 else 1 - low
        want = want - (torch.tensor(edge) if beyond else ratio) * advantage / n
    assert loss.item() == pytest.approx(want.item(), rel=1e-5)
    assert same(gradients(model, loss), gradients(model, want))
    assert logs["approx_kl"] == pytest.approx(kl, abs=1e-5)


def test_policy_gradient_ignores_what_has_no_weight(model):
    batch = on_policy(model)
    loss = policy_gradient()(model, batch)[0].item()
    batch.old_logprobs = torch.where(batch.weights == 0, -50.0, batch.old_logprobs)
    batch.advantages = torch.where(batch.weights == 0, 99.0, batch.advantages)
    assert policy_gradient()(model, batch)[0].item() == loss


def test_outcome_reward_reads_the_last_token():
    model = Transformer(CFG, n_scores=1).initialise(0)
    torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(1))
    ids = torch.randint(20, (3, 8), generator=torch.Generator().manual_seed(2))
    last, labels = torch.tensor([7, 3, 5]), torch.tensor([1.0, 0.0, 1.0])
    loss = outcome_reward(model, Batch(ids, labels=labels, last=last))[0]
    scores = torch.stack([model(ids[i : i + 1, : n + 1])[0, -1, 0] for i, n in enumerate(last.tolist())])
    log_odds = torch.where(labels == 1, scores, -scores)
    assert loss.item() == pytest.approx(-F.logsigmoid(log_odds).mean().item(), rel=1e-5)
