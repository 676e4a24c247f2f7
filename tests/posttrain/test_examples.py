"""Prompts and completions as batches: what is learned where, in which order."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from flopwise.errors import FlopwiseError
from flopwise.models.config import ModelConfig
from flopwise.models.transformer import Transformer
from flopwise.posttrain.examples import Example, collate, collate_packed, epochs, fit, pack
from flopwise.train.objectives import Batch, token_logprobs

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


def test_weights_say_what_counts_in_a_chat_of_several_turns() -> None:
    batch = collate([Example((5, 6), (7, 8, 9), (1.0, 0.0, 0.5)), Example((5,), (6, 2))], pad_id=1)
    assert batch.weights is not None and batch.weights.tolist() == [[0, 1, 0, 0.5], [1, 1, 0, 0]]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=60), st.integers(0, 3))
def test_packed_rows_hold_each_thing_once_and_few_are_needed(sizes: list[int], seed: int) -> None:
    rows = fit(np.array(sizes), 30, seed)
    assert sorted(i for row in rows for i in row) == list(range(len(sizes)))
    assert all(sum(sizes[i] for i in row) <= 30 for row in rows)
    assert len(rows) <= 11 / 9 * -(-sum(sizes) // 30) + 2 or min(sizes) > 9  # large ones leave gaps


def test_packing_shows_each_example_once_an_epoch_and_repeats_by_step() -> None:
    rng = np.random.default_rng(0)
    examples = [Example((5,), (10 + i, *(7,) * int(n), 2)) for i, n in enumerate(rng.integers(1, 30, 64))]
    next_batch = pack(examples, 40, 4, 1, seed=3)
    rows = len(fit(np.array([len(e) - 1 for e in examples]), 40, 3))
    firsts = []
    for step in range(rows // 4):
        batch = next_batch(step)
        seen = batch.extra["segments"]
        assert batch.targets is not None and batch.weights is not None and batch.ids.shape[1] <= 40
        assert ((seen == -1) == (batch.weights == 0)).all()
        starts = (seen != -1) & (torch.diff(seen, dim=1, prepend=torch.full((4, 1), -2)) != 0)
        firsts += batch.targets[starts].tolist()
    assert len(firsts) == len(set(firsts)) > 50
    again = pack(examples, 40, 4, 1, seed=3)
    assert again(7).ids.tolist() == next_batch(7).ids.tolist()
    assert next_batch(0).ids.tolist() != next_batch(rows // 4).ids.tolist()
    assert pack(examples[:2], 40, 4, 1, 0)(0).ids.shape[0] == 4
    with pytest.raises(FlopwiseError, match="takes 31 positions, a packed row has 30; raise its length"):
        pack([Example((5,) * 30, (6, 2))], 30, 1, 1, 0)


MODELS = {
    "dense": ModelConfig(97, 32, 2, 4, 2, 48, max_seq_len=64),
    "window": ModelConfig(97, 32, 2, 4, 2, 48, max_seq_len=64, sliding_window=5),
    "normed": ModelConfig(97, 32, 2, 4, 2, 48, max_seq_len=64, qk_norm=True),
    "experts": ModelConfig(
        97, 32, 2, 4, 2, 48, max_seq_len=64, n_experts=4, experts_per_token=2, d_expert=16, balance="none"
    ),
}


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_a_packed_sample_learns_what_it_would_learn_alone(name: str, native: bool, monkeypatch: Any) -> None:
    if not native:
        monkeypatch.setattr("flopwise.models.native.usable", lambda x: False)
    model = Transformer(MODELS[name]).initialise(0).train()
    with torch.no_grad():
        model.head.weight.normal_(generator=torch.Generator().manual_seed(1))
    rng = np.random.default_rng(0)
    sizes = [(1, 1), (3, 20), (9, 4), (2, 11), (1, 6)]
    examples = [
        Example(tuple(rng.integers(3, 97, p).tolist()), tuple(rng.integers(3, 97, c).tolist()))
        for p, c in sizes
    ]
    examples[1] = replace(examples[1], weights=tuple([1.0] * 5 + [0.0] * 10 + [1.0] * 5))

    def walk(batch: Batch) -> tuple[float, Tensor, dict[str, Tensor]]:
        """Summed loss, log-probabilities of what is learned, gradients."""
        assert batch.weights is not None
        model.zero_grad()
        logprobs = token_logprobs(model, batch)
        loss = -(logprobs * batch.weights).sum()
        loss.backward()
        grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        return loss.item(), logprobs[batch.weights > 0].detach(), grads

    whole = collate_packed([examples[:3], examples[3:]], pad_id=1)
    loss, logprobs, grads = walk(whole)
    alone = [walk(collate([e], pad_id=1)) for e in examples]
    assert abs(loss - sum(a[0] for a in alone)) < 1e-5 * abs(loss)
    assert torch.allclose(logprobs, torch.cat([a[1] for a in alone]), atol=1e-5)
    for n, grad in grads.items():
        total = torch.stack([a[2][n] for a in alone if n in a[2]]).sum(0)
        assert torch.allclose(grad, total, atol=1e-5 * max(1.0, float(total.abs().max()))), n
    # Without segments they do leak: the test can tell.
    leaking = collate_packed([examples[:3], examples[3:]], pad_id=1)
    leaking.extra.clear()
    assert abs(walk(leaking)[0] - loss) > 1e-3
