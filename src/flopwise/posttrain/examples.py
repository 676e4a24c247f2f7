"""Prompt and completion as training data: loss on the completion only, sequences right-padded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from flopwise.errors import FlopwiseError
from flopwise.train.objectives import Batch

BUCKET = 8
"""Batches sorted by length together."""


@dataclass(frozen=True)
class Example:
    """One prompt with one completion (its end-of-text token included), as token ids."""

    prompt: tuple[int, ...]
    completion: tuple[int, ...]


def collate(examples: Sequence[Example], pad_id: int, extra: Sequence[np.ndarray] | None = None) -> Batch:
    """Pad to the longest; the target of position t is token t + 1, weighted 1 on completions, 0 elsewhere.

    `extra`: per example one float per completion token (e.g. log-probabilities when it was sampled);
    aligned with the targets and put into `old_logprobs`.
    """
    longest = max(len(e.prompt) + len(e.completion) for e in examples) - 1
    ids = np.full((len(examples), longest), pad_id, dtype=np.int64)
    targets = np.full_like(ids, pad_id)
    weights = np.zeros(ids.shape, dtype=np.float32)
    aligned = np.zeros(ids.shape, dtype=np.float32)
    for row, e in enumerate(examples):
        whole = e.prompt + e.completion
        ids[row, : len(whole) - 1] = whole[:-1]
        targets[row, : len(whole) - 1] = whole[1:]
        weights[row, len(e.prompt) - 1 : len(whole) - 1] = 1.0
        if extra is not None:
            aligned[row, len(e.prompt) - 1 : len(whole) - 1] = extra[row]
    return Batch(
        torch.from_numpy(ids), torch.from_numpy(targets), torch.from_numpy(weights),
        old_logprobs=None if extra is None else torch.from_numpy(aligned),
    )  # fmt: skip


def epochs(examples: Sequence[Example], batch_size: int, pad_id: int, seed: int) -> Callable[[int], Batch]:
    """Batches by step: each epoch a fresh order, the same step always the same batch.

    Within an epoch, blocks of `BUCKET` batches are sorted by length before they are cut, and the batches of a
    block are shuffled: neighbours in a batch are about as long, so hardly any FLOP goes into padding, and no
    length comes first. What does not fill a batch sits out for an epoch.
    """
    if not examples:
        raise FlopwiseError(
            "training set is empty: no example survived; check the samples that feed this step"
        )
    lengths = np.array([len(e.prompt) + len(e.completion) for e in examples])
    per_epoch = max(1, len(examples) // batch_size)

    @lru_cache(maxsize=2)
    def order(epoch: int) -> list[np.ndarray]:
        return _epoch_order(lengths, batch_size, seed, epoch)

    def next_batch(step: int) -> Batch:
        epoch, slot = divmod(step, per_epoch)
        return collate([examples[i] for i in order(epoch)[slot]], pad_id)

    return next_batch


def _epoch_order(lengths: np.ndarray, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """The rows of each batch of an epoch."""
    rng = np.random.default_rng((seed, epoch))
    order = rng.permutation(len(lengths))
    if len(order) < batch_size:
        return [np.resize(order, batch_size)]
    order = order[: len(order) // batch_size * batch_size]
    batches = []
    for block in np.split(order, range(BUCKET * batch_size, len(order), BUCKET * batch_size)):
        ordered = block[np.argsort(lengths[block], kind="stable")].reshape(-1, batch_size)
        batches += list(ordered[rng.permutation(len(ordered))])
    return batches
