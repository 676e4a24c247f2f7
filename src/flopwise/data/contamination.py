"""Nothing of the test set in any training data: checked, not assumed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from flopwise.data.countdown import PROMPT_PATTERN, Problem


@dataclass(frozen=True)
class ContaminationReport:
    """How many texts were read, how many of the task's prompts stood in them, and which were test problems."""

    texts: int
    prompts_found: int
    hits: list[str]


def check(texts: Iterable[str], held_out: Iterable[Problem]) -> ContaminationReport:
    """Look for held-out problems in training texts, their numbers in any order.

    >>> check(["so 3 7 3=24:7*3=21,21+3=24!"], [Problem((7, 3, 3), 24)]).hits
    ['3 7 3=24:']
    """
    forbidden = {p.key for p in held_out}
    n_texts = n_prompts = 0
    hits = []
    for text in texts:
        n_texts += 1
        for match in PROMPT_PATTERN.finditer(text):
            n_prompts += 1
            *numbers, target = map(int, match.groups())
            if (tuple(sorted(numbers)), target) in forbidden:
                hits.append(match[0])
    return ContaminationReport(n_texts, n_prompts, hits)
