"""GRPO: roll-outs without what carries no signal, batches that depend on the step alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from flopwise.errors import FlopwiseError
from flopwise.train.rl_objectives import policy_gradient


def test_rollouts_keep_the_groups_that_carry_a_signal(make_rollouts: Any) -> None:
    # All right, one right, all wrong.
    rollouts = make_rollouts(lambda p, i: p == 0 or (p == 1 and i == 2))
    batch = rollouts(0)
    assert batch.info["reward"] == 5 / 24 and batch.info["signal"] == 4 / 24
    assert batch.ids.shape[0] == 4 and batch.ledger.total("generate_flops") > 0
    prompt = rollouts.bench.tokenizer.encode(rollouts.problems(0)[1].prompt)
    assert (batch.ids[:, : len(prompt)] == torch.tensor(prompt)).all()
    assert batch.weights is not None and batch.advantages is not None
    by_row = batch.advantages.max(dim=1).values + batch.advantages.min(dim=1).values
    assert torch.allclose(by_row.sort().values, torch.tensor([-1.0, -1.0, -1.0, 3.0]) / 3**0.5)
    assert not batch.advantages[batch.weights == 0].any()


def test_the_first_step_is_on_policy(make_rollouts: Any) -> None:
    """Log-probabilities when sampled equal those of the update, so no ratio is clipped and the KL is zero."""
    rollouts = make_rollouts(lambda p, i: i % 2)
    batch = rollouts(0)
    loss, logs = policy_gradient()(rollouts.bench.model, batch)
    assert abs(logs["approx_kl"]) < 1e-5 and logs["clipped"] == 0.0
    assert batch.weights is not None and batch.advantages is not None
    assert loss.item() == pytest.approx(-(batch.advantages.sum() / batch.weights.sum()).item(), abs=1e-5)


def test_no_signal_is_an_empty_batch_with_its_cost(make_rollouts: Any) -> None:
    batch = make_rollouts(lambda p, i: False)(0)
    assert batch.weights is not None and not batch.weights.any()
    assert batch.ledger.total("generate_flops") > 0 and batch.info["signal"] == 0.0


def test_a_step_repeats_itself_and_problems_come_once_an_epoch(make_rollouts: Any) -> None:
    one, two = (make_rollouts(lambda p, i: (p + i) % 3 == 0) for _ in range(2))
    one(4)
    a, b = one(7), two(7)
    assert torch.equal(a.ids, b.ids) and torch.equal(a.old_logprobs, b.old_logprobs)
    per_epoch = len(one.pool) // 6
    seen = [p.key for step in range(per_epoch) for p in one.problems(step)]
    assert len(seen) == len(set(seen)) == per_epoch * 6
    assert one.problems(0) != one.problems(per_epoch)


def test_too_few_problems_is_one_line(make_rollouts: Any) -> None:
    with pytest.raises(FlopwiseError, match="grpo: 9999 problems per step, but only 300 exist"):
        make_rollouts(lambda p, i: True, problems_per_step=9999)


def test_groups_without_a_signal_can_be_learned_from_all_the_same(make_rollouts: Any) -> None:
    batch = make_rollouts(lambda p, i: p == 1 and i == 2, zero_variance="keep")(0)
    assert batch.ids.shape[0] == 24 and batch.info["signal"] == 4 / 24
    assert int((batch.advantages != 0).any(1).sum()) == 4


def test_leave_one_out_weighs_by_the_others(make_rollouts: Any) -> None:
    batch = make_rollouts(lambda p, i: p == 1 and i == 2, advantage="leave-one-out")(0)
    values = sorted(batch.advantages[row, batch.weights[row] > 0][0].item() for row in range(4))
    assert values == pytest.approx([-1 / 3] * 3 + [1.0])


def test_dynamic_sampling_fills_the_batch_with_signals(make_rollouts: Any) -> None:
    """Even problems of every roll-out have one right answer: half of the groups must be replaced."""
    rollouts = make_rollouts(lambda p, i: p % 2 == 0 and i == 0, zero_variance="resample", refills=8)
    batch = rollouts(0)
    assert batch.ids.shape[0] == 24 and batch.info["rounds"] > 1 and batch.info["signal"] == 0.5
    prompts = {tuple(row[:5].tolist()) for row in batch.ids}
    assert len(prompts) > 1
    plain = make_rollouts(lambda p, i: p % 2 == 0 and i == 0)(0)
    assert batch.ledger.total("generate_flops") > plain.ledger.total("generate_flops")
    again = make_rollouts(lambda p, i: p % 2 == 0 and i == 0, zero_variance="resample", refills=8)(0)
    assert torch.equal(again.ids, batch.ids)


def test_dynamic_sampling_gives_up_at_its_limit(make_rollouts: Any) -> None:
    batch = make_rollouts(lambda p, i: False, zero_variance="resample", refills=2)(0)
    assert batch.info["rounds"] == 3 and not batch.weights.any()


def test_answers_that_were_cut_can_be_masked_or_punished(make_rollouts: Any) -> None:
    """An untrained model hardly ever ends within 12 tokens."""
    plain = make_rollouts(lambda p, i: i % 2)(0)
    masked = make_rollouts(lambda p, i: i % 2, mask_overlong=True)(0)
    assert plain.info["finished"] < 1
    assert masked.ids.shape[0] == round(plain.info["finished"] * 24) or not masked.weights.any()
    punished = make_rollouts(lambda p, i: i % 2, overlong=6)(0)
    assert punished.info["reward"] < plain.info["reward"] == 0.5


def test_minibatches_share_a_rollout_out(make_rollouts: Any) -> None:
    rollouts = make_rollouts(lambda p, i: i % 2, epochs=2, minibatches=3)
    parts = [rollouts(step) for step in range(6)]
    whole = make_rollouts(lambda p, i: i % 2)(0)
    assert [len(p.ids) for p in parts] == [8] * 6
    for epoch in (parts[:3], parts[3:]):
        tokens = sum(int(p.weights.sum()) for p in epoch)
        assert tokens == int(whole.weights.sum())
        total = sum(p.advantages.sum().item() for p in epoch)
        assert total == pytest.approx(whole.advantages.sum().item(), abs=1e-4)
    assert [bool(p.info) for p in parts] == [True] + [False] * 5
    assert [p.ledger.total("generate_flops") > 0 for p in parts] == [True] + [False] * 5
    assert not torch.equal(parts[0].advantages.sum(1), parts[3].advantages.sum(1))
    assert rollouts(6).info["reward"] == 0.5  # the next roll-out


@pytest.mark.parametrize("advantage", ["batch", "group-batch"])
def test_batch_baselines_have_mean_zero_and_deviation_one(make_rollouts: Any, advantage: str) -> None:
    batch = make_rollouts(lambda p, i: i == 0 or p == 3, advantage=advantage, zero_variance="keep")(0)
    tokens = batch.advantages[batch.weights > 0].double().numpy()
    assert abs(tokens.mean()) < 1e-6 and tokens.std() == pytest.approx(1.0, abs=1e-5)
    signs = np.sign([batch.advantages[r, batch.weights[r] > 0][0].item() for r in range(24)])
    right = np.array([i == 0 or p == 3 for p in range(6) for i in range(4)])
    if advantage == "batch":
        assert (signs[right] > 0).all() and (signs[~right] < 0).all()
    else:  # a group that is all right lies near the batch's mean
        assert (signs[~right] < 0).all() and abs(batch.advantages[12:16]).max() < abs(
            batch.advantages
        ).max() / 2
