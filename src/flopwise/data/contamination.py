"""Nothing of the test set in any training data: checked, not assumed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from flopwise.data.dedup import shingle_hashes, shingles
from flopwise.data.tasks import Task

NGRAM = 13
"""Words in a run that counts as copied (Brown et al., arXiv 2005.14165, appendix C)."""
N_EXAMPLES = 5


@dataclass(frozen=True)
class Report:
    """What a check read and found.

    `n_prompts` and `n_worked`: prompts and worked attempts of the task among the texts; `n_hits`: how many of
    them give a held-out problem away; `examples`: the first few.
    """

    n_texts: int
    n_prompts: int
    n_worked: int
    n_hits: int
    examples: tuple[str, ...]


def check(train_texts: Iterable[str], held_out: Iterable[Any], task: Task[Any]) -> Report:
    """Look for held-out problems of a task in training texts, as the task knows them (`Task.detector`).

    >>> from flopwise.data.tasks import task
    >>> t = task("countdown")
    >>> train = ["so 3, 7, 3 = 24", "7 3 3=13:3*7=21,21+3=24?7+3=10,10+3=13!"]
    >>> check(train, [t.parse("7 3 3 = 24")], t).examples
    ('3, 7, 3 = 24', '3*7=21,21+3=24')
    """
    find = task.detector(held_out)
    n_texts = n_prompts = n_worked = 0
    hits: list[str] = []
    for text in train_texts:
        n_texts += 1
        for passage in find(text):
            n_prompts += passage.kind == "prompt"
            n_worked += passage.kind == "worked"
            if passage.hit:
                hits.append(passage.text)
    return Report(n_texts, n_prompts, n_worked, len(hits), tuple(hits[:N_EXAMPLES]))


@dataclass(frozen=True)
class Overlap:
    """How much of held-out documents occurs in training documents.

    `shared` and `sizes` [documents]: distinct word 13-grams of each that stand in training text, and all.
    """

    shared: np.ndarray
    sizes: np.ndarray

    @property
    def share(self) -> float:
        """Part of all their n-grams."""
        return float(self.shared.sum() / max(1, self.sizes.sum()))

    @property
    def per_document(self) -> np.ndarray:
        """Part of each document's n-grams [documents]."""
        return self.shared / np.maximum(1, self.sizes)

    @property
    def n_copied(self) -> int:
        """Documents with more than half of theirs."""
        return int((self.per_document > 0.5).sum())

    def part(self, first: int, n: int) -> Overlap:
        """Of `n` documents from number `first` on."""
        return Overlap(self.shared[first : first + n], self.sizes[first : first + n])


def ngram_overlap(train_texts: Iterable[str], heldout_texts: Iterable[str], n: int = NGRAM) -> Overlap:
    """Word n-grams of held-out documents that stand in training documents too.

    >>> ngram_overlap(["a b c d e f"], ["a b c d x y"], n=3).share
    0.5
    """
    parts = list(shingles(heldout_texts, n))
    table = np.unique(np.concatenate(parts)) if parts else np.zeros(0, np.uint64)
    copied = np.zeros(len(table), dtype=bool)
    # Training text passes by once: only what is held out is in memory.
    for text in train_texts if len(table) else ():
        hashes = shingle_hashes(text, n)
        places = np.minimum(np.searchsorted(table, hashes), len(table) - 1)
        copied[places[table[places] == hashes]] = True
    sizes = [len(hashes) for hashes in parts]
    shared = [int(copied[np.searchsorted(table, hashes)].sum()) for hashes in parts]
    return Overlap(np.array(shared, dtype=np.int64), np.array(sizes, dtype=np.int64))
