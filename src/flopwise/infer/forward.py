"""The forward pass over loose tokens: each has a slot of the cache and a position in it.

Prompts, single steps and drafts to be checked are the same thing here, and rows of unlike length need no
padding. `NativeModel` does it in compiled code; `TorchModel` in torch, for experts, half precision with
hardware for it, and machines without a compiler.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from flopwise.infer.cache import Slots
from flopwise.infer.layer import Layer, turn, unit
from flopwise.models.config import ModelConfig
from flopwise.models.transformer import Block, Transformer


class Forward(Protocol):
    """What runs a model over loose tokens."""

    cfg: ModelConfig
    dtype: torch.dtype

    def __call__(
        self, ids: np.ndarray, slots: np.ndarray, positions: np.ndarray, wanted: np.ndarray, store: Slots
    ) -> Tensor:
        """Logits [sum of wanted, V] float32 after the wanted of tokens [N], in their order.

        Tokens of one slot follow each other without a gap, in the order of their positions; keys and values
        of all are written to `store`.
        """
        ...


class Folded:
    """A model's weights for torch: layers with what can be folded in, head, embedding, rotary turns."""

    def __init__(self, model: Transformer, dtype: torch.dtype):
        self.layers = [Layer(b, dtype) for b in model.blocks if isinstance(b, Block)]
        self.head = (model.head.weight.float() * model.norm.weight).to(dtype).T
        self.embed = model.embed.weight.detach().to(dtype)
        half = model.cfg.head_dim // 2
        cos, sin = (t[:, :half].float().contiguous() for t in (model.cos, model.sin))
        self.turns = torch.complex(cos, sin)


class TorchModel:
    """`Forward` by torch's products."""

    def __init__(self, folded: Folded, cfg: ModelConfig, dtype: torch.dtype):
        self.folded, self.cfg, self.dtype = folded, cfg, dtype

    def __call__(
        self, ids: np.ndarray, slots: np.ndarray, positions: np.ndarray, wanted: np.ndarray, store: Slots
    ) -> Tensor:
        """As `Forward`."""
        cfg = self.cfg
        H, K = cfg.n_heads, cfg.n_kv_heads
        where, at = torch.from_numpy(slots), torch.from_numpy(positions)
        starts = np.flatnonzero(np.append(True, slots[1:] != slots[:-1]))
        runs = list(zip(starts.tolist(), [*starts[1:].tolist(), len(slots)], strict=True))
        turns = self.folded.turns[at][:, None]
        x = self.folded.embed[torch.from_numpy(ids)]
        for number, layer in enumerate(self.folded.layers):
            heads = layer.heads(x)
            turned = turn(heads[:, : H + K], turns)
            store.keys[where, number, :, :, at] = turned[:, H:]
            store.values[where, number, :, at] = heads[:, H + K :]
            mixed = self._attend(turned[:, :H], runs, where, positions, store, number)
            torch.addmm(x, mixed, layer.out, out=x)
            layer.feed_forward(x)
        chosen = x[torch.from_numpy(np.flatnonzero(wanted))]
        return (unit(chosen, cfg.norm_eps) @ self.folded.head).float()

    def _attend(
        self, q: Tensor, runs: list[tuple[int, int]], where: Tensor, positions: np.ndarray, store: Slots,
        number: int,
    ) -> Tensor:  # fmt: skip
        """Query heads [N, H, D] over the keys of their slots up to their positions -> [N, H D]."""
        cfg = self.cfg
        H, K, D = cfg.n_heads, cfg.n_kv_heads, cfg.head_dim
        if len(runs) == len(q):
            parts = [(torch.arange(len(q)), where)]
        else:
            parts = [(torch.arange(a, b), where[a : a + 1]) for a, b in runs]
        out = torch.empty(len(q), H * D, dtype=q.dtype)
        for rows, slots in parts:
            at = torch.from_numpy(positions)[rows]
            seen = int(at.max()) + 1
            keys = store.keys[slots, number, :, :, :seen].flatten(0, 1)
            values = store.values[slots, number, :, :seen].flatten(0, 1)
            columns = torch.arange(seen)
            hidden = columns > at[:, None]
            if cfg.sliding_window is not None:
                hidden |= columns <= at[:, None] - cfg.sliding_window
            mask = torch.zeros(hidden.shape, dtype=q.dtype).masked_fill_(hidden, float("-inf"))
            # [slots, tokens of each, K, G, D]: all tokens of a slot share its keys.
            query = q[rows].view(len(slots), -1, K, H // K, D).transpose(1, 2)
            scores = query.flatten(2, 3).flatten(0, 1) @ keys
            scores = scores.view(len(slots), K, -1, H // K, seen)
            scores += mask.view(len(slots), 1, -1, 1, seen)
            mixed = scores.softmax(-1).view(len(slots) * K, -1, seen) @ values
            out[rows] = mixed.view(len(slots), K, -1, H // K, D).transpose(1, 2).reshape(len(rows), H * D)
        return out
