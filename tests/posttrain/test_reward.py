"""The outcome reward model: starts as the policy, is judged within problems."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flopwise.models.config import ModelConfig
from flopwise.models.transformer import Transformer
from flopwise.posttrain.examples import Example
from flopwise.posttrain.reward import auc, collate_outcomes, scorer_from
from flopwise.train.objectives import outcome_reward


@pytest.mark.parametrize("tied", [False, True])
def test_a_scorer_starts_as_the_policy_s_trunk_with_no_opinion(tied: bool) -> None:
    policy = Transformer(ModelConfig.from_width(16, 2, 64, 32).with_(tie_embeddings=tied)).initialise(1)
    scorer = scorer_from(policy)
    ids = torch.arange(20).view(2, 10)
    assert torch.equal(scorer.hidden(ids), policy.hidden(ids))
    assert scorer.head.weight.shape == (1, 16) and not scorer.head.weight.any()
    scorer.embed.weight.data.zero_()
    assert policy.embed.weight.any()  # a copy, not the same memory


def test_the_score_is_read_at_the_last_token_whatever_the_padding() -> None:
    model = Transformer(ModelConfig.from_width(16, 1, 64, 32), n_scores=1).initialise(0)
    model.head.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    examples = [Example((3, 4), (5, 2)), Example((3, 4, 5, 6), (7, 8, 9, 2))]
    labels = np.array([1.0, 0.0])
    batch = collate_outcomes(examples, labels, pad_id=1)
    assert batch.last is not None and batch.last.tolist() == [3, 7]
    together = outcome_reward(model, batch)[0].item()
    alone = [
        outcome_reward(model, collate_outcomes([e], labels[i : i + 1], 1))[0].item()
        for i, e in enumerate(examples)
    ]
    assert together == pytest.approx(np.mean(alone), rel=1e-5)


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=12),
    st.lists(st.integers(0, 4), min_size=1, max_size=12),
)
def test_auc_is_the_chance_of_the_right_order(good: list[int], bad: list[int]) -> None:
    pairs = [1.0 if g > b else 0.5 if g == b else 0.0 for g in good for b in bad]
    scores = np.array(good + bad, dtype=float)
    right = np.array([True] * len(good) + [False] * len(bad))
    assert auc(scores, right) == pytest.approx(np.mean(pairs))
    assert auc(-scores, right) == pytest.approx(1 - np.mean(pairs))


def test_auc_without_two_kinds_is_nan() -> None:
    assert np.isnan(auc(np.array([1.0, 2.0]), np.array([True, True])))
    assert np.isnan(auc(np.array([]), np.array([], dtype=bool)))
