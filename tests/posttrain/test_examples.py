"""Prompts and completions as batches: what is learned where, in which order."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flopwise.errors import FlopwiseError
from flopwise.posttrain.examples import Example, collate, epochs

tokens = st.lists(st.integers(3, 99), min_size=1, max_size=8).map(tuple)


@given(st.lists(st.builds(Example, tokens, tokens), min_size=1, max_size=5))
def test_collate_learns_each_completion_token_from_what_stands_before_it(examples: list[Example]) -> None:
    extra = [np.arange(len(e.completion)) + 0.5 for e in examples]
    batch = collate(examples, pad_id=1, extra=extra)
    assert batch.targets is not None and batch.weights is not None and batch.old_logprobs is not None
    assert batch.ids.shape[1] == max(len(e.prompt) + len(e.completion) for e in examples) - 1
    for row, e in enumerate(examples):
        whole = (*e.prompt, *e.completion)
        learned = batch.weights[row].nonzero().flatten().tolist()
        assert tuple(batch.targets[row, learned].tolist()) == e.completion
        assert batch.old_logprobs[row, learned].tolist() == extra[row].tolist()
        for at in learned:
            assert tuple(batch.ids[row, : at + 1].tolist()) == whole[: at + 1]
        assert (batch.ids[row, len(whole) - 1 :] == 1).all()


def test_epochs_show_each_example_once_and_repeat_by_step() -> None:
    examples = [Example((5,), (10 + i, 2)) for i in range(10)]
    next_batch = epochs(examples, 5, 1, seed=0)
    rows = [int(t) for step in range(4) for t in next_batch(step).targets[:, 0]]  # type: ignore[index]
    assert Counter(rows[:10]) == Counter(rows[10:]) == Counter(range(10, 20))
    assert rows[:10] != rows[10:]
    assert next_batch(3).ids.tolist() == epochs(examples, 5, 1, seed=0)(3).ids.tolist()
    other = epochs(examples, 10, 1, seed=1)(0).targets
    assert other is not None and other[:, 0].tolist() != next_batch(0).targets.tolist()  # type: ignore[union-attr]


def test_what_does_not_fill_a_batch_sits_out_one_epoch_not_all() -> None:
    examples = [Example((5,), (10 + i, 2)) for i in range(10)]
    next_batch = epochs(examples, 4, 1, seed=0)
    seen = [{int(t) for s in (2 * e, 2 * e + 1) for t in next_batch(s).targets[:, 0]} for e in range(20)]  # type: ignore[index]
    assert all(len(epoch) == 8 for epoch in seen) and set().union(*seen) == set(range(10, 20))


def test_batches_hold_examples_of_like_length_in_mixed_order() -> None:
    rng = np.random.default_rng(0)
    examples = [Example((5,), (7,) * int(n)) for n in rng.integers(2, 60, 640)]
    batches = [epochs(examples, 16, 1, seed=0)(step) for step in range(40)]
    filled = sum(float(b.weights.sum()) for b in batches) / sum(b.weights.numel() for b in batches)  # type: ignore[union-attr]
    widths = [b.ids.shape[1] for b in batches]
    assert filled > 0.85 and widths != sorted(widths)


def test_a_batch_may_be_larger_than_the_set() -> None:
    batch = epochs([Example((5,), (6,)), Example((5,), (7,))], 7, 1, seed=0)(0)
    assert batch.ids.shape[0] == 7


def test_nothing_to_learn_from_is_one_line() -> None:
    with pytest.raises(FlopwiseError, match="training set is empty"):
        epochs([], 4, 1, 0)
