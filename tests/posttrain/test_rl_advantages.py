"""Advantages and penalties against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flopwise.posttrain.advantages import (
    gae,
    group_advantages,
    leave_one_out,
    normalised,
    overlong_penalty,
    to_go,
)

REWARDS = st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=4, max_size=4), min_size=1, max_size=6)


@given(REWARDS)
def test_group_advantages_are_centred_and_scaled_within_groups(rewards: list[list[float]]) -> None:
    r = np.array(rewards)
    a, plain = group_advantages(r), group_advantages(r, by_std=False)
    assert np.allclose(a.mean(axis=1), 0) and np.allclose(plain, r - r.mean(axis=1, keepdims=True))
    mixed = r.std(axis=1) > 0
    assert np.allclose(a[mixed].std(axis=1), 1) and not a[~mixed].any()
    assert np.isfinite(a).all()


@given(REWARDS)
def test_leave_one_out_is_each_less_the_mean_of_the_others(rewards: list[list[float]]) -> None:
    r = np.array(rewards)
    others = np.stack([np.delete(r, i, axis=1).mean(axis=1) for i in range(r.shape[1])], axis=1)
    assert np.allclose(leave_one_out(r), r - others)


def test_gae_lies_between_one_step_and_all_the_way() -> None:
    rng = np.random.default_rng(0)
    rewards, values = rng.normal(size=(3, 5)), rng.normal(size=(3, 5))
    lengths = np.array([5, 3, 1])
    mask = np.arange(5) < lengths[:, None]
    rewards, values = rewards * mask, values * mask
    following = np.pad(values[:, 1:], ((0, 0), (0, 1))) * mask
    one_step = gae(rewards, values, lengths, 0.9, 0.0)
    assert np.allclose(one_step, (rewards + 0.9 * following - values) * mask)
    whole = gae(rewards, values, lengths, 1.0, 1.0)
    assert np.allclose(whole, (to_go(rewards) - values) * mask)
    direct = np.zeros((3, 5))
    delta = (rewards + 0.9 * following - values) * mask
    for t in range(5):
        direct[:, t] = sum((0.9 * 0.8) ** (k - t) * delta[:, k] for k in range(t, 5))
    assert np.allclose(gae(rewards, values, lengths, 0.9, 0.8), direct * mask)


def test_normalised_is_over_the_masked_tokens() -> None:
    values = np.array([[1.0, 3.0, 99.0], [5.0, 99.0, 99.0]])
    mask = values < 50
    out = normalised(values, mask)
    assert out[mask].mean() == pytest.approx(0) and out[mask].std() == pytest.approx(1)
    assert not out[~mask].any()
    assert not normalised(np.ones((2, 3)), mask).any()


def test_the_overlong_penalty_is_that_of_its_paper() -> None:
    """DAPO, eq. 13, with a limit of 100 and a cushion of 20."""
    lengths = np.array([1, 80, 85, 90, 100])
    assert overlong_penalty(lengths, 100, 20).tolist() == [0, 0, -0.25, -0.5, -1]
