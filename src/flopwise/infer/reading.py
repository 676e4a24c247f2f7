"""Prompts into slots of the cache: what is known is copied, what several share is read once."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from flopwise.errors import FlopwiseError
from flopwise.flops.count import prefill_flops
from flopwise.infer.cache import Slots
from flopwise.infer.forward import Forward
from flopwise.infer.prefix import PrefixTree
from flopwise.models.config import ModelConfig

WORTH = 8
"""Tokens that prompts must share for their beginning to be read apart: two passes instead of one."""
AT_ONCE = 4096
"""Tokens that go through the model together."""


@dataclass
class Read:
    """What reading prompts took: tokens that were computed, and their FLOPs."""

    tokens: int = 0
    flops: float = 0.0


def suffix_flops(cfg: ModelConfig, length: int, fresh: int) -> float:
    """Of the last `fresh` tokens of a prompt of `length`, each against the whole (as `prefill_flops` counts),
    and logits after the last."""
    body = prefill_flops(cfg, length, 0).total
    return body * fresh / length + prefill_flops(cfg, length).total - body


class Reader:
    """Reads prompts for one model.

    Args:
        tree: where keys and values are looked up and kept.
    """

    def __init__(self, forward: Forward, tree: PrefixTree):
        self.forward, self.tree = forward, tree

    def read(
        self, prompts: Sequence[tuple[int, ...]], slots: Sequence[int], store: Slots
    ) -> tuple[Tensor, Read]:
        """Fill slots with different prompts; logits [P, V] after their last tokens, and what it took.

        Raises:
            FlopwiseError: the model's logits are not finite.
        """
        spent = Read()
        if self.tree.limit:
            self._read_shared(prompts, slots, store, spent)
        begins = [self._known(p, slot, store) for p, slot in zip(prompts, slots, strict=True)]
        logits = self._compute(prompts, slots, begins, store, spent)
        for prompt, slot, begin in zip(prompts, slots, begins, strict=True):
            if begin < len(prompt) - 1:
                self.tree.insert(prompt, store, slot)
        return logits, spent

    def _known(self, prompt: tuple[int, ...], slot: int, store: Slots) -> int:
        """Copy what is known of a prompt, but its last token, to its slot; returns how much that is."""
        at = 0
        for segment in self.tree.match(prompt[:-1]):
            store.write(slot, at, segment)
            at += len(segment)
        return at

    def _read_shared(
        self, prompts: Sequence[tuple[int, ...]], slots: Sequence[int], store: Slots, spent: Read
    ) -> None:
        """Read into the tree what several prompts begin with, the shortest first, until nothing is shared."""
        while True:
            shared: dict[tuple[int, ...], int] = {}
            order = sorted(range(len(prompts)), key=lambda i: prompts[i])
            known = [self.tree.known(p[:-1]) for p in prompts]
            for one, other in itertools.pairwise(order):
                n = common(prompts[one], prompts[other])
                n = min(n, len(prompts[one]) - 1, len(prompts[other]) - 1)
                if n - max(known[one], known[other]) >= WORTH:
                    shared.setdefault(prompts[one][:n], slots[one])
            # Of beginnings that extend each other the shortest, which the others will then find.
            ordered = sorted(shared)
            first = [p for i, p in enumerate(ordered) if not i or p[: len(ordered[i - 1])] != ordered[i - 1]]
            if not first:
                return
            places = [shared[p] for p in first]
            begins = [self._known(p, slot, store) for p, slot in zip(first, places, strict=True)]
            held = self.tree.bytes
            self._compute(first, places, begins, store, spent)
            for prompt, slot in zip(first, places, strict=True):
                self.tree.insert(prompt, store, slot)
            if self.tree.bytes <= held:
                return  # too large to be kept

    def _compute(
        self, prompts: Sequence[tuple[int, ...]], slots: Sequence[int], begins: Sequence[int], store: Slots,
        spent: Read,
    ) -> Tensor:  # fmt: skip
        """Run what is left of each prompt; logits after their last tokens."""
        parts, rows, held = [], [], 0
        for i, (prompt, begin) in enumerate(zip(prompts, begins, strict=True)):
            rows.append(i)
            held += len(prompt) - begin
            spent.tokens += len(prompt) - begin
            spent.flops += suffix_flops(self.forward.cfg, len(prompt), len(prompt) - begin)
            if held >= AT_ONCE or i + 1 == len(prompts):
                parts.append(self._pass([(prompts[r], slots[r], begins[r]) for r in rows], store))
                rows, held = [], 0
        logits = torch.cat(parts)
        if not logits.isfinite().all():
            raise FlopwiseError(
                "sample: the model's logits are not finite; its weights are damaged, train it again"
            )
        return logits

    def _pass(self, jobs: Sequence[tuple[tuple[int, ...], int, int]], store: Slots) -> Tensor:
        ids = np.concatenate([np.array(p[begin:], dtype=np.int64) for p, _, begin in jobs])
        sizes = np.array([len(p) - begin for p, _, begin in jobs])
        positions = np.concatenate([np.arange(begin, len(p)) for p, _, begin in jobs])
        wanted = np.zeros(len(ids), dtype=bool)
        wanted[sizes.cumsum() - 1] = True
        return self.forward(ids, np.repeat([slot for _, slot, _ in jobs], sizes), positions, wanted, store)


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens that two sequences begin with alike."""
    n = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        n += 1
    return n
