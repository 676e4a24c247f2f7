"""Gains compared problem by problem, from the samples of two models that answered the same ones."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from flopwise.errors import FlopwiseError
from flopwise.infer.estimators import paired, pass_at_k
from flopwise.records.family import Family, Gain, Member
from flopwise.records.folder import RunFolder
from flopwise.records.record import RunRecord

SAMPLES_FILE = "samples.npz"
MAX_BYTES = 50_000_000
"""Larger files are left alone: no evaluation comes near this."""


class Pairing:
    """Compares members of a family with what they were made from; reads each file once."""

    def __init__(self, root: Path, family: Family):
        self.root, self.family = root, family
        self._read: dict[str, tuple[tuple[Any, Any], dict[str, np.ndarray]]] = {}

    def refine(self, members: Iterable[Member]) -> None:
        """Give the members' gains the standard errors of paired differences, where both models answered the
        same problems; a gain of models that were asked different ones is taken away."""
        for member in members:
            if member.parent is not None and member.gains:
                found = (self._refined(member.parent, member.id, gain) for gain in member.gains)
                member.gains = [gain for gain in found if gain is not None]

    def _refined(self, start: str, model: str, gain: Gain) -> Gain | None:
        before, after = (self._sample(run, gain.task, model) for run in (start, model))
        if before is None or after is None:
            return gain  # measured in training, by both on the same validation problems
        (asked, a), (asked_too, b) = self._arrays(before), self._arrays(after)
        if asked != asked_too:
            return None
        difference = paired(_by_problem(a, gain.metric), _by_problem(b, gain.metric), True)
        if not difference["paired"]:
            return gain
        value, se, n = (difference[name] for name in ("value", "se", "n"))
        return replace(gain, value=float(value), se=float(se), n=int(n), paired=True)

    def _sample(self, run: str, task: str, of: str) -> RunRecord | None:
        """The sample run of a model at the place where `of` was sampled for this task."""
        place = next((p for p in self.family.samples.get(of, {}) if p[0] == task), None)
        return self.family.samples.get(run, {}).get(place) if place else None

    def _arrays(self, record: RunRecord) -> tuple[tuple[Any, Any], dict[str, np.ndarray]]:
        """Which problems were asked, and the verdicts on them; empty where a file is absent or damaged."""
        if record.id not in self._read:
            folder = self.root / record.id
            try:
                spec = RunFolder(folder).spec
                asked = spec.get("problems"), spec.get("split")
            except (FlopwiseError, AttributeError):
                asked = record.id, None  # not known, so the same as no other's
            arrays: dict[str, np.ndarray] = {}
            try:
                path = folder / SAMPLES_FILE
                if path.stat().st_size <= MAX_BYTES:
                    with np.load(path, allow_pickle=False) as file:
                        arrays = {name: file[name] for name in ("greedy", "correct") if name in file.files}
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
                arrays = {}
            self._read[record.id] = asked, arrays
        return self._read[record.id]


def _by_problem(arrays: dict[str, np.ndarray], metric: str) -> np.ndarray | None:
    if metric == "greedy":
        greedy = arrays.get("greedy")
        return greedy if greedy is not None and greedy.ndim == 1 else None
    k, correct = int(metric.rpartition("_")[2]), arrays.get("correct")
    if correct is None or correct.ndim != 2 or correct.shape[1] < k:
        return None
    return pass_at_k(correct, k)
