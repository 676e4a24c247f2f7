"""Preference objectives against the same mathematics written out by hand."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from flopwise.models.config import ModelConfig  # noqa: E402
from flopwise.models.transformer import Transformer  # noqa: E402
from flopwise.train import preference_objectives as po  # noqa: E402
from flopwise.train.objectives import Batch, token_logprobs  # noqa: E402

CFG = ModelConfig.from_width(16, 1, 20, 32)


@pytest.fixture
def model() -> Transformer:
    model = Transformer(CFG).initialise(0)
    torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(1))
    return model


def make_batch(rows: int = 6) -> Batch:
    """Completions of different lengths; references and mismatched ratios out of the air."""
    rng = torch.Generator().manual_seed(2)
    ids = torch.randint(20, (rows, 10), generator=rng)
    weights = torch.zeros(rows, 9)
    for row in range(rows):
        weights[row, 2 : 4 + row] = 1.0
    batch = Batch(ids[:, :-1], ids[:, 1:], weights)
    batch.extra["reference"] = -3.0 * weights.sum(1) + torch.randn(rows, generator=rng)
    batch.extra["mismatched"] = torch.randn(rows, generator=rng) + 0.5
    return batch


def by_row(model: Transformer, batch: Batch) -> list[tuple[float, int]]:
    """log p of each completion and its tokens, added up one by one."""
    logprobs = torch.log_softmax(model(batch.ids), -1)
    out = []
    for row in range(len(batch.ids)):
        places = batch.weights[row].nonzero()[:, 0].tolist()
        out.append((sum(logprobs[row, t, batch.targets[row, t]].item() for t in places), len(places)))
    return out


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_dpo_and_its_switches_by_hand(model):
    batch = make_batch()
    rows, reference = by_row(model, batch), batch.extra["reference"].tolist()
    ratio = [total - r for (total, _), r in zip(rows, reference, strict=True)]
    gaps = [ratio[i] - ratio[i + 1] for i in (0, 2, 4)]
    plain = sum(-math.log(sigmoid(0.3 * g)) for g in gaps) / 3
    assert po.dpo(0.3)(model, batch)[0].item() == pytest.approx(plain, rel=1e-5)

    smooth = sum(-0.9 * math.log(sigmoid(0.3 * g)) - 0.1 * math.log(sigmoid(-0.3 * g)) for g in gaps) / 3
    assert po.dpo(0.3, label_smoothing=0.1)(model, batch)[0].item() == pytest.approx(smooth, rel=1e-5)

    ipo = sum((g - 1 / 0.6) ** 2 for g in gaps) / 3
    assert po.dpo(0.3, loss="ipo")(model, batch)[0].item() == pytest.approx(ipo, rel=1e-5)

    each = [r / n for r, (_, n) in zip(ratio, rows, strict=True)]
    normal = sum(-math.log(sigmoid(0.3 * (each[i] - each[i + 1]))) for i in (0, 2, 4)) / 3
    loss, logs = po.dpo(0.3, per_token=True)(model, batch)
    assert loss.item() == pytest.approx(normal, rel=1e-5)
    assert logs["kl"] == pytest.approx(-sum(ratio) / 6, rel=1e-4)


def test_the_anchor_is_the_mean_per_token_of_the_chosen_or_of_what_it_names(model):
    batch = make_batch()
    rows = by_row(model, batch)
    nll = -sum(rows[i][0] for i in (0, 2, 4)) / sum(rows[i][1] for i in (0, 2, 4))
    loss, logs = po.dpo(0.3, anchor=0.5)(model, batch)
    assert loss.item() == pytest.approx(logs["preference_loss"] + 0.5 * nll, rel=1e-5)
    assert logs["anchor_nll"] == pytest.approx(nll, rel=1e-5)

    batch.extra["sign"] = torch.tensor([1.0, -1.0, 1.0, -1.0, 0.0, 0.0])
    batch.extra["anchor"] = batch.weights * (batch.extra["sign"] == 0)[:, None]
    loss, logs = po.dpo(0.3, anchor=0.5)(model, batch)
    nll = -(rows[4][0] + rows[5][0]) / (rows[4][1] + rows[5][1])
    assert logs["anchor_nll"] == pytest.approx(nll, rel=1e-5)
    two = [t - r for (t, _), r in zip(rows, batch.extra["reference"].tolist(), strict=True)]
    pairs = sum(-math.log(sigmoid(0.3 * (two[i] - two[i + 1]))) for i in (0, 2)) / 2
    assert loss.item() == pytest.approx(pairs + 0.5 * nll, rel=1e-5)


def test_orpo_and_simpo_by_hand(model):
    batch = make_batch()
    mean = [total / n for total, n in by_row(model, batch)]
    odds = [m - math.log(1 - math.exp(m)) for m in mean]
    ratio = sum(-math.log(sigmoid(odds[i] - odds[i + 1])) for i in (0, 2, 4)) / 3
    loss, logs = po.orpo(0.2)(model, batch)
    assert loss.item() == pytest.approx(0.2 * ratio + logs["anchor_nll"], rel=1e-5)

    want = sum(-math.log(sigmoid(2.0 * (mean[i] - mean[i + 1]) - 0.7)) for i in (0, 2, 4)) / 3
    assert po.simpo(2.0, 0.7)(model, batch)[0].item() == pytest.approx(want, rel=1e-5)


def test_log_odds_stay_finite_where_an_answer_is_certain():
    certain = torch.tensor([0.0, -1e-9], requires_grad=True)
    loss = po.orpo_losses(certain[:1], certain[1:]).sum()
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(certain.grad).all()


def test_kto_by_hand_and_its_reference_point_is_not_below_zero(model):
    batch = make_batch()
    batch.extra["sign"] = torch.tensor([1.0, -1.0, -1.0, 1.0, -1.0, 0.0])
    ratio = [t - r for (t, _), r in zip(by_row(model, batch), batch.extra["reference"].tolist(), strict=True)]

    def by_hand(kl: float) -> float:
        up = [2.0 * (1 - sigmoid(0.3 * (ratio[i] - kl))) for i in (0, 3)]
        down = [0.5 * (1 - sigmoid(0.3 * (kl - ratio[i]))) for i in (1, 2, 4)]
        return sum(up + down) / 5

    kl = max(0.0, batch.extra["mismatched"][:5].mean().item())
    assert kl > 0
    assert po.kto(0.3, 2.0, 0.5)(model, batch)[0].item() == pytest.approx(by_hand(kl), rel=1e-5)
    batch.extra["mismatched"] -= 5.0
    assert po.kto(0.3, 2.0, 0.5)(model, batch)[0].item() == pytest.approx(by_hand(0.0), rel=1e-5)


def test_at_the_start_every_method_that_has_a_reference_is_undecided(model):
    batch = make_batch()
    with torch.no_grad():
        batch.extra["reference"] = (token_logprobs(model, batch) * batch.weights).sum(1)
    batch.extra["mismatched"] = torch.zeros(6)
    loss, logs = po.dpo(0.1)(model, batch)
    assert loss.item() == pytest.approx(math.log(2), rel=1e-5)
    assert logs["kl"] == pytest.approx(0.0, abs=1e-5) and logs["margin"] == pytest.approx(0.0, abs=1e-5)
    batch.extra["sign"] = torch.tensor([1.0, -1.0] * 3)
    assert po.kto(0.1)(model, batch)[0].item() == pytest.approx(0.5, rel=1e-5)


@pytest.mark.parametrize("objective", [po.dpo(0.1), po.orpo(), po.simpo(), po.kto(0.1)])
def test_a_step_along_the_gradient_widens_the_margin(model, objective):
    batch = make_batch()
    batch.extra["sign"] = torch.tensor([1.0, -1.0] * 3)
    loss, before = objective(model, batch)
    loss.backward()
    with torch.no_grad():
        for p in model.parameters():
            p -= 0.05 * p.grad
    after = objective(model, batch)[1]
    assert after["margin"] > before["margin"]
    assert after["chosen_logp"] - after["rejected_logp"] > before["chosen_logp"] - before["rejected_logp"]
