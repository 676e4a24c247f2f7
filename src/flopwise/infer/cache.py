"""Keys and values of what has been read: in columns that all rows share, or in slots of one text each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from flopwise.models.config import ModelConfig

GROW = 16
"""Columns that the cache grows by."""
SPARE = 64
"""Floats after the last slot that compiled code may read; it does not use them."""


class Columns:
    """Keys and values [rows, kv heads, capacity, D] of every layer; `mask` [rows, kv heads, capacity] is
    added to the attention scores: minus infinity where a prompt is padded."""

    def __init__(self, keys: list[Tensor], values: list[Tensor], mask: Tensor):
        self.keys, self.values, self.mask = keys, values, mask

    def select(self, rows: Tensor) -> Columns:
        """The cache of some rows (repeats allowed: samples of one prompt)."""
        return Columns(
            [k.index_select(0, rows) for k in self.keys],
            [v.index_select(0, rows) for v in self.values],
            self.mask.index_select(0, rows),
        )

    def reserve(self, columns: int) -> None:
        """Make room for at least so many columns."""
        have = self.mask.shape[2]
        if columns > have:
            more = columns - have + -columns % GROW
            self.mask = F.pad(self.mask, (0, more))
            self.keys, self.values = ([_longer(t, more) for t in store] for store in (self.keys, self.values))


def _longer(t: Tensor, more: int) -> Tensor:
    """t [R, K, T, D] with `more` columns of whatever was in memory: each is written before it is read."""
    out = t.new_empty(t.shape[0], t.shape[1], t.shape[2] + more, t.shape[3])
    out[:, :, : t.shape[2]] = t
    return out


@dataclass(frozen=True)
class Segment:
    """Keys [layers, kv heads, D, n] and values [layers, kv heads, n, D] of n tokens at their positions."""

    keys: Tensor
    values: Tensor

    def __len__(self) -> int:
        return self.values.shape[2]

    @property
    def bytes(self) -> int:
        """Memory that it takes."""
        return self.keys.nbytes + self.values.nbytes

    def part(self, begin: int, end: int) -> Segment:
        """A copy of tokens [begin, end)."""
        return Segment(
            self.keys[..., begin:end].clone(memory_format=torch.contiguous_format),
            self.values[:, :, begin:end].clone(memory_format=torch.contiguous_format),
        )


class Slots:
    """Room for `count` texts of up to `capacity` tokens; a slot's text begins at position 0.

    A slot lies in one piece, as `models/native_infer.cpp` wants it: for each layer and kv head the keys
    [D, capacity], then the values [capacity, D]. Memory that nothing was written to is not taken.
    """

    def __init__(self, cfg: ModelConfig, count: int, capacity: int, dtype: torch.dtype):
        self.count, self.capacity = count, capacity + -capacity % GROW
        each = 2 * cfg.n_layers * cfg.n_kv_heads * cfg.head_dim * self.capacity
        # What is beyond a text is masked, but a number it has to be.
        self._memory = torch.zeros(count * each + SPARE, dtype=dtype)
        self.store = self._memory[: count * each].view(count, each)
        halves = self.store.view(count, cfg.n_layers, cfg.n_kv_heads, 2, -1)
        self.keys = halves[:, :, :, 0].unflatten(-1, (cfg.head_dim, self.capacity))
        """[count, layers, kv heads, D, capacity]"""
        self.values = halves[:, :, :, 1].unflatten(-1, (self.capacity, cfg.head_dim))
        """[count, layers, kv heads, capacity, D]"""

    def copy(self, source: int, targets: Sequence[int], n: int) -> None:
        """The first n tokens of one slot to others."""
        for target in targets:
            self.keys[target][..., :n] = self.keys[source][..., :n]
            self.values[target][:, :, :n] = self.values[source][:, :, :n]

    def read(self, slot: int, begin: int, end: int) -> Segment:
        """A copy of tokens [begin, end) of a slot."""
        return Segment(self.keys[slot], self.values[slot]).part(begin, end)

    def write(self, slot: int, begin: int, segment: Segment) -> None:
        """Put a segment at positions from `begin`."""
        end = begin + len(segment)
        self.keys[slot][..., begin:end] = segment.keys
        self.values[slot][:, :, begin:end] = segment.values
