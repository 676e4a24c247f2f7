"""The losses of reinforcement learning against the same mathematics written out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from flopwise.models.config import ModelConfig
from flopwise.models.transformer import Transformer
from flopwise.train.objectives import Batch, token_logprobs
from flopwise.train.rl_objectives import (
    REFERENCE,
    RETURNS,
    VALUES,
    PolicyLoss,
    actor_critic,
    kl_terms,
    policy_gradient,
    policy_loss,
    value_loss,
)

CFG = ModelConfig.from_width(16, 1, 20, 32)
OFF = 0.6
"""Half range of the log-ratios of an old policy, so that many are clipped."""


@pytest.fixture
def model() -> Transformer:
    model = Transformer(CFG).initialise(0)
    torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(1))
    return model


def rolled_out(model: Transformer, off: float = 0.0) -> Batch:
    """Three rows with advantages 1, -0.5 and 2; the old policy differs by up to `off` in log-probability."""
    rng = torch.Generator().manual_seed(2)
    rows = torch.randint(20, (3, 10), generator=rng)
    batch = Batch(rows[:, :-1], rows[:, 1:], (torch.rand(3, 9, generator=rng) < 0.5).float())
    assert batch.weights is not None
    with torch.no_grad():
        logprobs = token_logprobs(model, batch)
    shift = torch.empty(3, 9).uniform_(-1, 1, generator=rng) * off
    batch.old_logprobs = (logprobs + shift) * batch.weights
    batch.advantages = batch.weights * torch.tensor([1.0, -0.5, 2.0])[:, None]
    batch.extra[REFERENCE] = (logprobs + 0.3) * batch.weights
    return batch


def gradients(model: Transformer, loss: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters()), retain_graph=True))


def assert_equal(model: Transformer, loss: torch.Tensor, want: torch.Tensor) -> None:
    assert loss.item() == pytest.approx(want.item(), rel=1e-5)
    for a, b in zip(gradients(model, loss), gradients(model, want), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def learned(batch: Batch) -> list[tuple[int, int]]:
    assert batch.weights is not None
    return [(r, c) for r, c in batch.weights.nonzero().tolist()]


def test_on_policy_it_is_reinforce(model: Transformer) -> None:
    batch = rolled_out(model)
    assert batch.advantages is not None and batch.weights is not None
    loss, logs = policy_gradient()(model, batch)
    # At ratio 1 the gradient is that of -A log p, averaged over all tokens of the batch.
    reinforce = -(batch.advantages * token_logprobs(model, batch)).sum() / batch.weights.sum()
    for a, b in zip(gradients(model, loss), gradients(model, reinforce), strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    assert logs["approx_kl"] == pytest.approx(0.0, abs=1e-6) and logs["clipped"] == 0.0


def ratio_at(batch: Batch, logprobs: torch.Tensor, row: int, column: int) -> torch.Tensor:
    assert batch.old_logprobs is not None
    return (logprobs[row, column] - batch.old_logprobs[row, column]).exp()


def test_clipping_by_hand(model: Transformer) -> None:
    batch = rolled_out(model, OFF)
    assert batch.advantages is not None
    low, high = 0.2, 0.28
    loss, logs = policy_gradient(PolicyLoss(clip_low=low, clip_high=high))(model, batch)
    want, clipped = torch.zeros(()), 0
    logprobs = token_logprobs(model, batch)
    n, kl = len(learned(batch)), 0.0
    for row, column in learned(batch):
        advantage = batch.advantages[row, column].item()
        ratio = ratio_at(batch, logprobs, row, column)
        kl -= ratio.log().item() / n
        # PPO: past the edge that the advantage pushes towards, a token has no gradient.
        beyond = ratio > 1 + high if advantage > 0 else ratio < 1 - low
        edge = 1 + high if advantage > 0 else 1 - low
        want = want - (torch.tensor(edge) if beyond else ratio) * advantage / n
        clipped += bool(ratio > 1 + high or ratio < 1 - low)
    assert 0 < clipped < n and logs["clipped"] == pytest.approx(clipped / n)
    assert_equal(model, loss, want)
    assert logs["approx_kl"] == pytest.approx(kl, abs=1e-5)


def test_cispo_by_hand(model: Transformer) -> None:
    """Also a token whose ratio is clipped keeps its gradient, weighed by the bound."""
    batch = rolled_out(model, OFF)
    assert batch.advantages is not None
    loss, _ = policy_gradient(PolicyLoss("cispo", clip_low=1.0, clip_high=0.1))(model, batch)
    logprobs = token_logprobs(model, batch)
    want = torch.zeros(())
    for row, column in learned(batch):
        weight = min(ratio_at(batch, logprobs, row, column).item(), 1.1)
        want = want - weight * batch.advantages[row, column] * logprobs[row, column] / len(learned(batch))
    assert_equal(model, loss, want)


def test_sequence_ratios_by_hand(model: Transformer) -> None:
    batch = rolled_out(model, OFF)
    assert batch.advantages is not None and batch.weights is not None and batch.old_logprobs is not None
    how = PolicyLoss("sequence", clip_low=0.05, clip_high=0.05, normalise="sequence")
    loss, _ = policy_gradient(how)(model, batch)
    logprobs = token_logprobs(model, batch)
    want = torch.zeros(())
    for row, advantage in enumerate((1.0, -0.5, 2.0)):
        here = batch.weights[row] > 0
        ratio = (logprobs[row] - batch.old_logprobs[row])[here].mean().exp()
        bounded = ratio.clamp(0.95, 1.05)
        want = want - torch.minimum(ratio * advantage, bounded * advantage) / 3
    assert_equal(model, loss, want)


@pytest.mark.parametrize("normalise", ["token", "sequence", "constant"])
def test_normalisation_by_hand(model: Transformer, normalise: Any) -> None:
    batch = rolled_out(model)
    assert batch.advantages is not None and batch.weights is not None
    loss, _ = policy_gradient(PolicyLoss(normalise=normalise, constant=50.0))(model, batch)
    by_row = (batch.advantages * batch.weights).sum(1)
    rows = batch.weights.sum(1)
    want = {
        "token": by_row.sum() / rows.sum(), "sequence": (by_row / rows).mean(), "constant": by_row.sum() / 50,
    }[normalise]  # fmt: skip
    assert loss.item() == pytest.approx(-want.item(), rel=1e-5)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_kl_in_the_loss_by_hand(model: Transformer, estimator: Any) -> None:
    batch = rolled_out(model)
    assert batch.weights is not None
    plain, _ = policy_gradient()(model, batch)
    loss, logs = policy_gradient(PolicyLoss(kl=0.5, estimator=estimator))(model, batch)
    # The reference is .3 nats likelier everywhere.
    want = {"k1": -0.3, "k2": 0.045, "k3": torch.tensor(0.3).exp().item() - 1.3}[estimator]
    assert logs["kl_loss"] == pytest.approx(want, abs=1e-5)
    assert (loss - plain).item() == pytest.approx(0.5 * want, abs=1e-5)


def test_estimators_of_kl_estimate_it() -> None:
    """Over draws from p: k1 and k3 are unbiased, k2's gradient is that of KL(p || q), k1's is zero."""
    logits = torch.tensor([0.3, -0.2, 0.5], requires_grad=True)
    q = torch.tensor([-0.1, 0.4, 0.0]).log_softmax(0)
    log_p = logits.log_softmax(0)
    p = log_p.exp()
    true = (p * (log_p - q)).sum()
    (slope,) = torch.autograd.grad(true, logits, retain_graph=True)
    for estimator in ("k1", "k3"):
        mean = (p * kl_terms(log_p, q, estimator)).sum()  # type: ignore[arg-type]
        assert mean.item() == pytest.approx(true.item(), abs=1e-6)
    expected = {}
    for estimator in ("k1", "k2"):
        drawn = (p.detach() * kl_terms(log_p, q, estimator)).sum()  # type: ignore[arg-type]
        (expected[estimator],) = torch.autograd.grad(drawn, logits, retain_graph=True)
    assert torch.allclose(expected["k1"], torch.zeros(3), atol=1e-6)
    assert torch.allclose(expected["k2"], slope, atol=1e-6)


def test_entropy_is_that_of_the_whole_distribution(model: Transformer) -> None:
    batch = rolled_out(model)
    assert batch.weights is not None
    plain, _ = policy_gradient()(model, batch)
    loss, logs = policy_gradient(PolicyLoss(entropy=0.1))(model, batch)
    p = model(batch.ids).softmax(-1)
    entropy = (-(p * p.log()).sum(-1) * batch.weights).sum() / batch.weights.sum()
    assert logs["entropy"] == pytest.approx(entropy.item(), rel=1e-5)
    assert_equal(model, loss, plain - 0.1 * entropy)


def test_what_has_no_weight_is_ignored(model: Transformer) -> None:
    batch = rolled_out(model)
    assert batch.weights is not None and batch.old_logprobs is not None and batch.advantages is not None
    loss = policy_gradient()(model, batch)[0].item()
    batch.old_logprobs = torch.where(batch.weights == 0, -50.0, batch.old_logprobs)
    batch.advantages = torch.where(batch.weights == 0, 99.0, batch.advantages)
    assert policy_gradient()(model, batch)[0].item() == loss


@pytest.mark.parametrize("how", [PolicyLoss(kl=0.1), PolicyLoss(entropy=0.1)])
def test_a_term_without_its_tensor_is_refused(how: PolicyLoss) -> None:
    zero = torch.zeros(1, 1)
    with pytest.raises(ValueError, match="needs the"):
        policy_loss(how, zero, zero, zero, zero)


def test_value_loss_takes_the_worse_of_plain_and_clipped() -> None:
    values, old = torch.tensor([[1.0, 1.0, 5.0]]), torch.tensor([[0.0, 0.9, 0.0]])
    returns, weights = torch.tensor([[2.0, 2.0, 9.0]]), torch.tensor([[1.0, 1.0, 0.0]])
    assert value_loss(values, old, returns, weights).item() == 0.5  # (1 + 1) / 2 / 2
    clipped = value_loss(values, old, returns, weights, clip=0.5)  # the first may move to .5 only
    assert clipped.item() == pytest.approx(0.5 * (1.5**2 + 1) / 2)


def test_actor_critic_adds_the_critics_error(model: Transformer) -> None:
    batch = rolled_out(model)
    assert batch.weights is not None
    batch.extra |= {VALUES: torch.zeros(3, 9), RETURNS: batch.weights.clone()}
    head = torch.nn.Linear(16, 1, bias=False)
    torch.nn.init.zeros_(head.weight)

    def values_of(hidden: torch.Tensor, batch: Batch, learned: torch.Tensor) -> torch.Tensor:
        assert batch.weights is not None and len(hidden) == len(learned) == int(batch.weights.sum())
        return head(hidden).squeeze(-1)

    loss, logs = actor_critic(PolicyLoss(), values_of, 0.5, 0.2)(model, batch)
    plain, _ = policy_gradient()(model, batch)
    assert logs["value_loss"] == pytest.approx(0.5)  # all values 0, all returns 1
    assert loss.item() == pytest.approx(plain.item() + 0.25, abs=1e-5)
    loss.backward()
    assert head.weight.grad is not None and head.weight.grad.abs().sum() > 0
