"""A planted test problem is found in every guise; clean text is clean."""

from __future__ import annotations

import pytest

from flopwise.data import contamination
from flopwise.data.tasks import task
from flopwise.data.tasks.countdown import Problem, demonstration, split

TASK = task("countdown")
TEST = [Problem((7, 3, 3), 24), Problem((20, 4, 11), 15)]


@pytest.mark.parametrize(
    "text",
    [
        "7 3 3=24:",
        "3 7 3=24:7*3=21,21+3=24!",
        "some prose, then 3, 3, 7 = 24 and more",
        "3\n3\n7 => 24",
        "11 4 20=15",
        "in passing 3*7=21,21+3=24 is shown",
        "3 3 7=30:7+3=10,10*3=30!3+3=6?3*7=21,3+21=24?",
        "1+1=2,3*7=21,21+3=24",
    ],
)
def test_planted_problems_are_found(text):
    report = contamination.check(["clean", text], TEST, TASK)
    assert report.n_texts == 2 and report.n_hits >= 1
    assert report.examples[0] in text


@pytest.mark.parametrize(
    "text", ["7 3 3=25:", "17 3 3=24:", "7 3 3=240", "7 3 4=24", "7*3=21,21+4=25", "7 3 3", ""]
)
def test_other_problems_are_not(text):
    assert contamination.check([text], TEST, TASK).n_hits == 0


def test_demonstrations_leak_unless_told_what_to_avoid():
    parts = split(0, demos=2000, test=2000)
    held_out = {p.key for p in parts["test"]}
    careless = [p.prompt + demonstration(p, 0) for p in parts["demos"]]
    careful = [p.prompt + demonstration(p, 0, held_out) for p in parts["demos"]]
    assert contamination.check(careless, parts["test"], TASK).n_hits > 0
    report = contamination.check(careful, parts["test"], TASK)
    assert report.n_hits == 0 and report.n_prompts == 2000 and report.n_worked >= 2000


def test_ngram_overlap_counts_copied_runs():
    train = [" ".join(f"t{i}" for i in range(100))]
    copied = " ".join(f"t{i}" for i in range(50))
    half = " ".join([*(f"t{i}" for i in range(20)), *(f"new{i}" for i in range(92))])
    overlap = contamination.ngram_overlap(
        train, [copied, half, "all of this is new to the training text, every word of it"]
    )
    assert len(overlap.sizes) == 3 and overlap.n_copied == 1
    assert overlap.per_document.tolist() == [1.0, 8 / 100, 0.0]
    assert overlap.share == pytest.approx((38 + 8) / overlap.sizes.sum())
    assert contamination.ngram_overlap([], ["a"]).share == 0.0
