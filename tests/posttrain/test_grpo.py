"""GRPO: group advantages, roll-outs without what carries no signal, batches that depend on the step alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flopwise.errors import FlopwiseError
from flopwise.posttrain import grpo
from flopwise.posttrain.grpo import Rollouts, group_advantages
from flopwise.train.objectives import policy_gradient

SPEC = {"problems_per_step": 6, "group_size": 4, "temperature": 1.0, "max_tokens": 12, "scale_by_std": True}


@given(st.lists(st.lists(st.sampled_from([0.0, 1.0]), min_size=4, max_size=4), min_size=1, max_size=6))
def test_advantages_are_centred_and_scaled_within_groups(rewards: list[list[float]]) -> None:
    r = np.array(rewards)
    a, plain = group_advantages(r), group_advantages(r, by_std=False)
    assert np.allclose(a.mean(axis=1), 0) and np.allclose(plain, r - r.mean(axis=1, keepdims=True))
    mixed = r.std(axis=1) > 0
    assert np.allclose(a[mixed].std(axis=1), 1) and not a[~mixed].any()
    assert np.isfinite(a).all()


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> Any:
    """judged(f): sample i of a group of problem p is right where f(p, i)."""

    def set_judge(right: Any) -> None:
        def verify_all(data: Any, problems: Any, samples: Any) -> list[bool]:
            return [
                bool(right(p, i)) for p, i in zip(samples.prompt_index, samples.sample_index, strict=True)
            ]

        monkeypatch.setattr(grpo, "verify_all", verify_all)

    return set_judge


def test_rollouts_keep_the_groups_that_carry_a_signal(make_bench: Any, judged: Any) -> None:
    judged(lambda p, i: p == 0 or (p == 1 and i == 2))  # all right, one right, all wrong
    bench = make_bench(**SPEC)
    rollouts = Rollouts(bench)
    batch = rollouts(0)
    assert batch.info["reward"] == 5 / 24 and batch.info["signal"] == 4 / 24
    assert batch.ids.shape[0] == 4 and batch.generate_flops > 0
    prompt = bench.data.tokenizer.encode(rollouts.problems(0)[1].prompt)
    assert (batch.ids[:, : len(prompt)] == torch.tensor(prompt)).all()
    assert batch.weights is not None and batch.advantages is not None
    by_row = batch.advantages.max(dim=1).values + batch.advantages.min(dim=1).values
    assert torch.allclose(by_row.sort().values, torch.tensor([-1.0, -1.0, -1.0, 3.0]) / 3**0.5)
    assert not batch.advantages[batch.weights == 0].any()


def test_the_first_step_is_on_policy(make_bench: Any, judged: Any) -> None:
    """Log-probabilities when sampled equal those of the update, so no ratio is clipped and the KL is zero."""
    judged(lambda p, i: i % 2)
    bench = make_bench(**SPEC)
    batch = Rollouts(bench)(0)
    loss, logs = policy_gradient()(bench.model, batch)
    assert abs(logs["approx_kl"]) < 1e-5
    assert batch.weights is not None and batch.advantages is not None
    assert loss.item() == pytest.approx(-(batch.advantages.sum() / batch.weights.sum()).item(), abs=1e-5)


def test_no_signal_is_an_empty_batch_with_its_cost(make_bench: Any, judged: Any) -> None:
    judged(lambda p, i: False)
    batch = Rollouts(make_bench(**SPEC))(0)
    assert batch.weights is not None and not batch.weights.any()
    assert batch.generate_flops > 0 and batch.info["signal"] == 0.0


def test_a_step_repeats_itself_and_problems_come_once_an_epoch(make_bench: Any, judged: Any) -> None:
    judged(lambda p, i: (p + i) % 3 == 0)
    one, two = Rollouts(make_bench(**SPEC)), Rollouts(make_bench(**SPEC))
    one(4)
    a, b = one(7), two(7)
    assert torch.equal(a.ids, b.ids) and torch.equal(a.old_logprobs, b.old_logprobs)
    per_epoch = len(one.pool) // 6
    seen = [p.key for step in range(per_epoch) for p in one.problems(step)]
    assert len(seen) == len(set(seen)) == per_epoch * 6
    assert one.problems(0) != one.problems(per_epoch)


def test_too_few_problems_is_one_line(make_bench: Any) -> None:
    with pytest.raises(FlopwiseError, match="9999 problems per step, but only 300 exist"):
        Rollouts(make_bench(**SPEC | {"problems_per_step": 9999}))
