"""Prompt and completion as training data: loss on the completion only, rows padded or packed."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from flopwise.errors import FlopwiseError
from flopwise.train.objectives import Batch

BUCKET = 8
"""Batches sorted by length together."""
SEGMENTS = "segments"
"""Name in `Batch.extra` of which example each token of a packed row belongs to."""


@dataclass(frozen=True)
class Example:
    """One prompt with one completion (its end-of-text token included), as token ids.

    `weights`: what each token of the completion counts in the loss; None is 1 each. In a chat of several
    turns the prompt ends where the assistant first speaks; what others say later has weight 0.
    """

    prompt: tuple[int, ...]
    completion: tuple[int, ...]
    weights: tuple[float, ...] | None = None

    def __len__(self) -> int:
        """Tokens of both."""
        return len(self.prompt) + len(self.completion)


def collate(examples: Sequence[Example], pad_id: int, extra: Sequence[np.ndarray] | None = None) -> Batch:
    """Pad to the longest; the target of position t is token t + 1, weighted on completions, 0 elsewhere.

    `extra`: per example one float per completion token (e.g. log-probabilities when it was sampled);
    aligned with the targets and put into `old_logprobs`.
    """
    longest = max(map(len, examples)) - 1
    rows = _Rows(len(examples), longest, pad_id)
    aligned = np.zeros(rows.ids.shape, dtype=np.float32)
    for row, e in enumerate(examples):
        rows.put(row, 0, e)
        if extra is not None:
            aligned[row, len(e.prompt) - 1 : len(e) - 1] = extra[row]
    batch = rows.batch()
    if extra is not None:
        batch.old_logprobs = torch.from_numpy(aligned)
    return batch


class _Rows:
    """A batch that is being filled: all padding at first."""

    def __init__(self, n_rows: int, length: int, pad_id: int):
        self.ids = np.full((n_rows, length), pad_id, dtype=np.int64)
        self.targets = np.full_like(self.ids, pad_id)
        self.weights = np.zeros(self.ids.shape, dtype=np.float32)

    def put(self, row: int, at: int, e: Example) -> int:
        """Write an example from position `at` on; returns the position after it."""
        whole, end = e.prompt + e.completion, at + len(e) - 1
        self.ids[row, at:end] = whole[:-1]
        self.targets[row, at:end] = whole[1:]
        self.weights[row, at + len(e.prompt) - 1 : end] = 1.0 if e.weights is None else e.weights
        return end

    def batch(self) -> Batch:
        """As tensors."""
        ids, targets, weights = map(torch.from_numpy, (self.ids, self.targets, self.weights))
        return Batch(ids, targets, weights)


def epochs(examples: Sequence[Example], batch_size: int, pad_id: int, seed: int) -> Callable[[int], Batch]:
    """Batches by step: each epoch a fresh order, the same step always the same batch.

    Within an epoch, blocks of `BUCKET` batches are sorted by length before they are cut, and the batches of a
    block are shuffled: neighbours in a batch are about as long, so hardly any FLOP goes into padding, and no
    length comes first. What does not fill a batch sits out for an epoch.
    """
    rows = epoch_rows(lengths(examples), batch_size, seed)
    return lambda step: collate([examples[i] for i in rows(step)], pad_id)


def epoch_rows(sizes: np.ndarray, batch_size: int, seed: int) -> Callable[[int], np.ndarray]:
    """Which examples of `sizes` [n] tokens make the batch of a step: the order of `epochs`."""
    per_epoch = max(1, len(sizes) // batch_size)

    @lru_cache(maxsize=2)
    def order(epoch: int) -> list[np.ndarray]:
        return _epoch_order(sizes, batch_size, seed, epoch)

    def rows(step: int) -> np.ndarray:
        epoch, slot = divmod(step, per_epoch)
        return order(epoch)[slot]

    return rows


def pack(
    examples: Sequence[Example], length: int, rows: int, pad_id: int, seed: int
) -> Callable[[int], Batch]:
    """Batches of `rows` rows by step, each row of several whole examples in up to `length` positions.

    `extra["segments"]` [B, T] int64 says which example a position belongs to (-1: padding); given to
    `Transformer.hidden`, it keeps examples apart, so loss and gradient are those of a padded batch. Examples
    are put together once, each into the fullest row that has room, the longest first (best fit decreasing;
    Johnson et al., SIAM J. Comput. 3 (1974) 299: at most 11/9 of the fewest rows); rows come in a fresh order
    each epoch, and what does not fill a batch sits out for an epoch. `docs/datasets.md` says when this pays.

    Raises:
        FlopwiseError: there is no example, or one is longer than a row.
    """
    packed = fit(lengths(examples) - 1, length, seed)
    per_epoch = max(1, len(packed) // rows)

    @lru_cache(maxsize=2)
    def order(epoch: int) -> np.ndarray:
        drawn = np.random.default_rng((seed, epoch)).permutation(len(packed))
        return np.resize(drawn, per_epoch * rows).reshape(per_epoch, rows)

    def next_batch(step: int) -> Batch:
        epoch, slot = divmod(step, per_epoch)
        return collate_packed([[examples[i] for i in packed[r]] for r in order(epoch)[slot]], pad_id)

    return next_batch


def collate_packed(groups: Sequence[Sequence[Example]], pad_id: int) -> Batch:
    """One row per group of examples, which stand one after the other, with `extra["segments"]`."""
    width = max(sum(len(e) - 1 for e in group) for group in groups)
    rows = _Rows(len(groups), width, pad_id)
    segments = np.full((len(groups), width), -1, dtype=np.int64)
    for row, group in enumerate(groups):
        at = 0
        for number, e in enumerate(group):
            end = rows.put(row, at, e)
            segments[row, at:end] = number
            at = end
    batch = rows.batch()
    batch.extra[SEGMENTS] = torch.from_numpy(segments)
    return batch


def fit(sizes: np.ndarray, room: int, seed: int) -> list[list[int]]:
    """Best fit decreasing: which of the things of `sizes` [n] go together into a row of `room`.

    Raises:
        FlopwiseError: one does not fit by itself.
    """
    if sizes.max() > room:
        worst = int(sizes.argmax())
        raise FlopwiseError(
            f"example {worst} takes {sizes[worst]:,} positions, a packed row has {room:,}; raise its length, "
            "or set max_length of the data"
        )
    drawn = np.random.default_rng(seed).permutation(len(sizes))
    left: dict[int, list[list[int]]] = {}  # rows by the room that is left in them
    rooms: list[int] = []  # its keys, sorted
    done: list[list[int]] = []
    for i in drawn[np.argsort(-sizes[drawn], kind="stable")].tolist():
        size = int(sizes[i])
        at = bisect_left(rooms, size)
        if at < len(rooms):
            free = rooms[at]
            row = left[free].pop()
            if not left[free]:
                del left[free], rooms[at]
        else:
            free, row = room, []
            done.append(row)
        row.append(i)
        if free > size:
            if free - size not in left:
                left[free - size] = []
                insort(rooms, free - size)
            left[free - size].append(row)
    return done


def lengths(examples: Sequence[Example]) -> np.ndarray:
    """Tokens of each example [n]; a lazy sequence may know them as its `lengths`.

    Raises:
        FlopwiseError: there is no example.
    """
    if not len(examples):
        raise FlopwiseError(
            "training set is empty: no example survived; check the samples that feed this step"
        )
    known = getattr(examples, "lengths", None)
    return np.array([len(e) for e in examples]) if known is None else np.asarray(known)


def _epoch_order(sizes: np.ndarray, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """The rows of each batch of an epoch."""
    rng = np.random.default_rng((seed, epoch))
    order = rng.permutation(len(sizes))
    if len(order) < batch_size:
        return [np.resize(order, batch_size)]
    order = order[: len(order) // batch_size * batch_size]
    batches = []
    for block in np.split(order, range(BUCKET * batch_size, len(order), BUCKET * batch_size)):
        ordered = block[np.argsort(sizes[block], kind="stable")].reshape(-1, batch_size)
        batches += list(ordered[rng.permutation(len(ordered))])
    return batches
