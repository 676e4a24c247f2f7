"""Nothing of the test set in any training data: checked, not assumed."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from flopwise.data.countdown import Problem, worked_key
from flopwise.data.dedup import shingle_hashes, shingles

NGRAM = 13
"""Words in a run that counts as copied (Brown et al., arXiv 2005.14165, appendix C)."""
N_EXAMPLES = 5

# Spaces, commas or line breaks between the numbers, a final colon or none: other clothes hide nothing.
_PROMPT = re.compile(
    r"(?<![0-9])([0-9]{1,3})[\s,;]{1,4}([0-9]{1,3})[\s,;]{1,4}([0-9]{1,3})\s{0,3}=>?\s{0,3}([0-9]{1,4})(?![0-9])",
    re.ASCII,
)
_STEP = r"[0-9]{1,6}[-+*][0-9]{1,6}=[0-9]{1,9}"
# A look-ahead, so that of three steps in a row both pairs are read.
_WORKED = re.compile(rf"(?<![0-9])(?=({_STEP},{_STEP})(?![0-9]))", re.ASCII)


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


def check(train_texts: Iterable[str], held_out: Iterable[Problem]) -> Report:
    """Look for held-out problems in training texts.

    A hit is a prompt with the numbers of a held-out problem, in any order, and its target; or a worked
    attempt that uses its numbers and ends at its target, even one marked as a dead end.

    >>> test = [Problem((7, 3, 3), 24)]
    >>> check(["so 3, 7, 3 = 24", "7 3 3=13:3*7=21,21+3=24?7+3=10,10+3=13!"], test).examples
    ('3, 7, 3 = 24', '3*7=21,21+3=24')
    """
    forbidden = {p.key for p in held_out}
    n_texts = n_prompts = n_worked = 0
    hits: list[str] = []
    for text in train_texts:
        n_texts += 1
        for match in _PROMPT.finditer(text):
            n_prompts += 1
            *numbers, target = map(int, match.groups())
            if (tuple(sorted(numbers)), target) in forbidden:
                hits.append(match[0])
        for match in _WORKED.finditer(text):
            n_worked += 1
            if worked_key(match[1]) in forbidden:
                hits.append(match[1])
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
