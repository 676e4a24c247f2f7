"""The shortened demo: every step of the shipped recipe with everything small, run once and shared."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")  # the same examples each time, and no limit that a busy machine would break

TINY = [
    "name=tiny",
    "data.corpora=[stdlib]",
    "data.max_chars=150000",
    "data.vocab_size=300",
    "data.heldout_fraction=0.1",
    "data.task=countdown-small",
    "data.demonstrations=1000",
    "data.rl_problems=300",
    "data.val_problems=64",
    "data.test_problems=64",
    "ladder.widths=[16,32,48]",
    "ladder.budgets=[10000,20000,40000]",
    "ladder.held_out={width: 64, tokens: 40000}",
    "ladder.extra_seeds={16: 1}",
    "ladder.batch_size=4",
    "ladder.seq_len=80",
    "ladder.warmup_steps=5",
    "ladder.mixture={text: 0.25, task: 0.75}",
    "ladder.heldout_tokens=4096",
    "posttrain.base={width: 48, tokens: 20000}",
    "posttrain.more_pretraining={width: 48, tokens: 40000}",
    "posttrain.student={width: 16, tokens: 40000}",
    "posttrain.other_sizes=[{width: 32, tokens: 40000}]",
    "posttrain.val_problems=32",
    "posttrain.sft={steps: 350, batch_size: 16, rate_factor: 1.0, curve_points: 2}",
    "posttrain.rejection={rounds: 2, problems: 100, n: 8, keep_per_problem: 2, steps: 10, batch_size: 16,"
    " rate_factor: 0.2, curve_points: 1}",
    "posttrain.grpo={steps: 6, problems_per_step: 16, group_size: 8, max_tokens: 24, rate_factor: 0.05,"
    " curve_points: 2}",
    "posttrain.distill={problems: 100, n: 4, keep_per_problem: 2, steps: 10, batch_size: 16,"
    " rate_factor: 0.5, curve_points: 1}",
    "posttrain.reward={problems: 100, test_problems: 60, n: 8, steps: 10, batch_size: 16, rate_factor: 0.3}",
    "testtime.problems=48",
    "testtime.n=16",
    "testtime.fit_up_to=8",
    "testtime.light_n=4",
    "testtime.shown_problems=2",
    "testtime.max_tokens=24",
]
"""Overrides of the `demo` recipe: about 40 seconds of one core through every step."""


@pytest.fixture(scope="session")
def tiny_overrides() -> list[str]:
    """The overrides, for tests that start the demo themselves."""
    return list(TINY)


SOURCE = {"corpus": "calibration", "options": {"vocab": 32, "tokens": 131_072, "document_tokens": 4096}}
LADDER: dict[str, Any] = {
    "kind": "ladder", "name": "tiny-ladder", "title": "A tiny ladder <b>of</b> known entropy",
    "data": {
        "sources": [{**SOURCE, "name": "one"},
                    {**SOURCE, "name": "two", "options": {**SOURCE["options"], "seed": 1}}],
        "heldout_fraction": 0.1,
    },
    "ladder": {
        "widths": [8, 16, 24], "depth": 1, "budgets": [12_000, 18_000, 27_000], "extra_seeds": {8: 1},
        "held_out": {"width": 32, "tokens": 54_000, "variants": ["even"]}, "batch_size": 8, "seq_len": 32,
        "warmup_steps": 8, "heldout_tokens": 2048, "accuracy_questions": 40,
    },
    "variants": {
        "even": {}, "one": {"mixture": {"one": 1}}, "two": {"mixture": {"two": 1}},
        "moe": {"model": {"expansion": 4, "granularity": 2}},
    },
    "laws": [
        {"name": "loss", "candidates": ["chinchilla", "loss = E + A / C^a"], "variants": ["even"]},
        {"name": "accuracy", "target": "accuracy", "candidates": ["task_sigmoid"], "variants": ["even"]},
        {"name": "experts", "method": "factor", "against": "even", "variants": ["moe"]},
        {"name": "interference", "method": "mixed"},
    ],
}  # fmt: skip
"""Four variants of two sources that need no network: about 20 seconds of one core."""


def finished(
    tmp_path_factory: pytest.TempPathFactory, name: str, recipe: str | dict[str, Any], overrides: list[str]
) -> Path:
    """The folder of a recipe's runs, made once for the tests of all workers."""
    from flopwise.launch import run

    base = tmp_path_factory.getbasetemp()
    root = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with open(root / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        summary = run(recipe, root / name, overrides, workers=2, quiet=True)
    assert not summary.failed, summary.failed
    return root / name


@pytest.fixture(scope="session")
def tiny_ladder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished ladder of four variants. Only read it, as `tiny_run`."""
    return finished(tmp_path_factory, "ladder", LADDER, [])


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished shortened demo. Only read it: all tests share it, those of other workers too."""
    return finished(tmp_path_factory, "tiny", "demo", TINY)
