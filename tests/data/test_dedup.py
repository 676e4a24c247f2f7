"""Near-duplicates: found where planted, nothing else removed, in any script and in texts of any length."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from flopwise.data import dedup

WORDS = np.array([f"w{i}" for i in range(5000)])


def text(seed: int, n: int = 300) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS, n))


def edited(source: str, share: float, seed: int) -> str:
    """The same text with a run of `share` of its words replaced."""
    words = source.split()
    n = round(len(words) * share)
    words[:n] = text(seed, n).split()
    return " ".join(words)


def test_planted_duplicates_go_and_the_first_stays():
    texts = [text(i) for i in range(200)]
    copies = [edited(texts[i], 0.05, 1000 + i) for i in range(50)]
    far = [edited(texts[i], 0.5, 2000 + i) for i in range(50, 100)]
    assert dedup.near_duplicates(texts + copies + far) == [*range(200), *range(250, 300)]


def test_case_and_punctuation_do_not_matter():
    assert dedup.near_duplicates(["One two three, four five six.", "ONE TWO (three) four five... six"]) == [0]


def test_short_and_empty_texts():
    assert dedup.near_duplicates([]) == []
    assert dedup.near_duplicates(["", "a", "a", "b", ""]) == [0, 1, 3]


def test_signature_estimates_jaccard():
    a = np.arange(0, 3000, dtype=np.uint64) * np.uint64(0x2545F4914F6CDD1D)
    for shift in (300, 1500):
        b = np.sort(np.arange(shift, 3000 + shift, dtype=np.uint64) * np.uint64(0x2545F4914F6CDD1D))
        true = dedup.jaccard(np.sort(a), b)
        assert true == pytest.approx((3000 - shift) / (3000 + shift))
        estimate = (dedup.signature(a, 1024) == dedup.signature(b, 1024)).mean()
        assert estimate == pytest.approx(true, abs=4 * (true * (1 - true) / 1024) ** 0.5)


def test_shingles_are_the_same_in_every_process():
    """Python salts its own hash per process; a run must remove the same texts every time."""
    here = next(dedup.shingles(["hello world"], 2)).tolist()
    code = "from flopwise.data import dedup; print(next(dedup.shingles(['hello world'], 2)).tolist())"
    there = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": "77"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert there.stdout.strip() == str(here)


def test_words_are_told_apart_in_any_script_and_across_segments(monkeypatch):
    def alike(a: str, b: str) -> bool:
        return dedup.shingle_hashes(a, 2).tolist() == dedup.shingle_hashes(b, 2).tolist()

    assert alike("Über, den »Fluss« – 12", "über den fluss 12") and alike("a\nB\t_c.d", "A b _C d")
    assert not alike("über den", "uber den") and not alike("ab c", "a bc") and not alike("日本 語", "日 本語")
    whole = "".join(f"word{i}, ünï{i}\n" for i in range(3000))
    before = dedup.shingle_hashes(whole, 5)
    assert len(before) == len(np.unique(before)) == 5996
    monkeypatch.setattr(dedup, "_SEGMENT", 64)
    assert (dedup.shingle_hashes(whole, 5) == before).all()
    assert len(dedup.shingle_hashes("x" * 1000 + " y", 1)) == 2


def test_a_crowd_of_lists_costs_little(monkeypatch):
    """Many texts that share a key and still differ must not be compared each with each."""
    compared = 0

    def counting(a: np.ndarray, b: np.ndarray) -> float:
        nonlocal compared
        compared += 1
        return 0.0

    monkeypatch.setattr(dedup, "jaccard", counting)
    keys = np.zeros((400, dedup.BANDS), dtype=np.uint64)
    kept = dedup.first_of_alike(keys, lambda i: np.array([i], dtype=np.uint64))
    assert kept.all() and compared <= 400 * dedup._CROWD
