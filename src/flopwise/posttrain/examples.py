"""Prompt and completion as training data: loss on the completion only, sequences right-padded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from flopwise.errors import FlopwiseError
from flopwise.train.objectives import Batch


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
    """Batches by step: each epoch a fresh permutation, the same step always the same batch."""
    if not examples:
        raise FlopwiseError("training set is empty: no example survived; check the samples that feed this step")
    n = len(examples)

    def next_batch(step: int) -> Batch:
        rows: list[int] = []
        position = step * batch_size
        while len(rows) < batch_size:
            epoch, offset = divmod(position + len(rows), n)
            order = np.random.default_rng((seed, epoch)).permutation(n)
            rows += order[offset : offset + batch_size - len(rows)].tolist()
        return collate([examples[i] for i in rows], pad_id)

    return next_batch
