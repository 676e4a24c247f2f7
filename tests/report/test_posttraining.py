"""A tiny experiment of law 2, end to end: what is told of it is what its files say, and the page is safe."""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.conftest import finished
from tests.report.test_html import HOSTILE, Page

from flopwise.infer.estimators import pass_at_k
from flopwise.records.store import RunStore
from flopwise.report import build
from flopwise.report.collect import collect

if importlib.util.find_spec("torch") is None:
    pytest.skip("makes models", allow_module_level=True)

RECIPE: dict[str, Any] = {
    "kind": "posttrain", "name": "tiny", "title": "Tiny", "seeds": [0, 1], "val_problems": 10,
    "data": {
        "corpora": ["stdlib"], "max_chars": 60_000, "heldout_fraction": 0.1, "vocab_size": 300,
        "task": "countdown-small", "demonstrations": 200, "rl_problems": 40,
        "val_problems": 20, "test_problems": 30,
    },
    "bases": {
        "base": {"width": 16, "depth": 1, "tokens": 20_000, "seq_len": 80, "batch_size": 8,
                 "mixture": {"text": 0.25, "task": 0.75}},
    },
    "evaluate": {"problems": 20, "n": 16, "max_tokens": 16},
    "runs": {
        "sft": {"method": "sft", "init": "base", "steps": 20, "batch_size": 8, "curve_points": 2},
        "made": {"method": "verified-samples", "init": "sft", "problems": 10, "n": 2, "verify": False,
                 "max_tokens": 16},
        "raft": {"method": "rejection", "init": "sft", "samples": "made", "steps": 4, "batch_size": 8},
        "more": {"method": "sft", "init": "sft", "match": ["made", "raft"], "batch_size": 8},
    },
    "laws": [{"name": "rise", "method": "curve", "runs": ["sft"]}],
}  # fmt: skip
"""18 steps, about ten seconds of one core."""


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Only read it: all tests share it."""
    return finished(tmp_path_factory, "posttrain", RECIPE, [])


@pytest.fixture
def scored(tiny: Path, tmp_path: Path) -> Path:
    """A copy in which policies have a skill: so small a model is right about nothing."""
    root = tmp_path / "runs"
    shutil.copytree(tiny, root)
    rng = np.random.default_rng(0)
    skill = {"sft": 0.3, "raft": 0.9, "more": 0.35}
    for run in RunStore(root).records():
        if run.kind == "sample":
            path = root / run.id / "samples.npz"
            with np.load(path) as file:
                arrays = dict(file)
            share = skill[(run.name or "").removeprefix("eval-")[:-3]]
            for name in ("greedy", "correct"):
                arrays[name] = rng.random(arrays[name].shape) < share
            np.savez(path, **arrays)
    return root


def by_hand(root: Path, policy: str, seed: int) -> dict[str, np.ndarray]:
    """Each measure by problem [P]."""
    folder = RunStore(root).folder(f"eval-{policy}-s{seed}").path
    with np.load(folder / "samples.npz") as file:
        correct = file["correct"]
        pass_16 = [1.0 - math.comb(16 - int(row.sum()), 16) for row in correct]
        assert np.allclose(pass_at_k(correct, 16), pass_16)
        return {"greedy": file["greedy"].astype(float), "pass_at_1": correct.mean(1),
                "pass_at_16": np.array(pass_16, dtype=float)}  # fmt: skip


def entries(root: Path) -> dict[str, dict[str, Any]]:
    return {e["name"]: e for e in collect(root)["methods"]["entries"]}


def test_a_second_start_finds_everything_done(tiny: Path) -> None:
    from flopwise.launch import run

    again = run(RECIPE, tiny, [], workers=0, quiet=True)
    assert not again.done and not again.failed
    n_seeds, policies = 2, 3
    assert len(again.cached) == len(again.ids) == 1 + 2 + n_seeds * (4 + policies) + 1


def test_the_report_is_one_of_post_training_with_seeds_together(tiny: Path) -> None:
    results = collect(tiny)
    assert results["kind"] == "posttrain" and not results["problems"]
    found = {e["name"]: e for e in results["methods"]["entries"]}
    assert set(found) == {"sft", "raft", "more"}
    assert all(sorted(e["seeds"]) == [0, 1] for e in found.values())
    assert [(o["name"], sorted(o["seeds"])) for o in results["methods"]["others"]] == [("made", [0, 1])]
    assert found["raft"]["control"] == "more" and found["more"]["is_control"]
    assert found["raft"]["start"] == "sft" and not found["sft"]["is_control"]
    assert [law["name"] for law in results["methods"]["laws"]] == ["rise"]
    assert results["headline"]["answer"] and not results["methods"]["missing"]
    assert [len(c["accuracy"]) for c in found["sft"]["curves"]] == [2, 2]


def test_values_and_paired_changes_are_those_of_the_samples(scored: Path) -> None:
    found = entries(scored)
    for name in ("greedy", "pass_at_1", "pass_at_16"):
        raft, sft, more = (
            np.stack([by_hand(scored, policy, seed)[name] for seed in (0, 1)])
            for policy in ("raft", "sft", "more")
        )
        entry = found["raft"]
        assert entry[name]["value"] == pytest.approx(raft.mean())
        assert sorted(entry[name]["by_seed"]) == pytest.approx(sorted(raft.mean(1)))
        for told, other in ((entry["change"], sft), (entry["versus"], more)):
            difference = raft - other
            assert told[name]["value"] == pytest.approx(difference.mean())
            over_problems = difference.mean(0).std(ddof=1) / math.sqrt(20)
            over_seeds = difference.mean(1).std(ddof=1) / math.sqrt(2)
            assert told[name]["se"] == pytest.approx(math.hypot(over_problems, over_seeds))
            ratio = difference.mean() / told[name]["se"] if told[name]["se"] else 0.0
            assert told[name]["clear"] == (abs(ratio) >= 2)
    assert (
        found["raft"]["change"]["pass_at_1"]["clear"] and found["raft"]["versus"]["pass_at_1"]["value"] > 0.3
    )
    assert not found["sft"]["change"]  # its start was not sampled


def test_what_was_spent_beyond_the_start_counts_samples_too(tiny: Path) -> None:
    store, found = RunStore(tiny), entries(tiny)
    own = [
        sum(store.folder(f"{name}-s{seed}").record().spend.total_flops for name in ("made", "raft"))
        for seed in (0, 1)
    ]
    assert found["raft"]["beyond_flops"] == pytest.approx(np.mean(own))
    matched = [store.folder(f"more-s{seed}").record().spend.total_flops for seed in (0, 1)]
    assert np.array(matched) == pytest.approx(np.array(own), rel=0.25)  # to a whole number of its small steps


def test_the_headline_names_the_best_with_its_start_and_its_control(scored: Path) -> None:
    top = collect(scored)["headline"]
    assert top["answer"].startswith("raft gained most: ") and "from sft to " in top["answer"]
    assert top["expects"] == "1 of 1 methods with a control of the same FLOPs beat it."
    assert [(f["name"], f["good"]) for f in top["findings"]] == [("raft", True)]
    assert "pass@1 +" in top["findings"][0]["text"] and "against its control +" in top["findings"][0]["text"]


def test_the_page_shows_every_method_and_is_safe_against_names(scored: Path, tmp_path: Path) -> None:
    store = RunStore(scored)
    for name in ("raft-s0", "raft-s1", "made-s0", "sft-s0", "sft-s1"):
        path = store.folder(name).path / "run.json"
        content = json.loads(path.read_text())
        content["name"] = HOSTILE + content["name"][-3:]
        path.write_text(json.dumps(content))
    law = next(scored.glob("*/law.json"))
    law.write_text(json.dumps(json.loads(law.read_text()) | {"text": HOSTILE, "name": HOSTILE}))
    text = build(scored, tmp_path / "report.html").read_text()
    page = Page(text)
    assert not page.open and "<script>alert" not in text and "<img" not in text and "49" not in HOSTILE
    assert HOSTILE in page.text and "{{ 7*7 }}" in page.text
    assert text.count("<script>") == 1 and "has an unexpected shape" not in text
    assert {"post_methods"} <= {a.get("id") for _, a in page.tags}
    assert page.text.count("rejection") >= 1 and "pass@16" in page.text and "Along training" in page.text


@pytest.mark.parametrize("damage", [b"", b"garbage" * 99])
def test_a_damaged_file_of_samples_is_named_and_the_rest_stands(scored: Path, damage: bytes) -> None:
    folder = RunStore(scored).folder("eval-raft-s0").path
    (folder / "samples.npz").write_bytes(damage)
    results = collect(scored)
    assert any(f"{folder.name}/samples.npz" in p for p in results["problems"])
    raft = next(e for e in results["methods"]["entries"] if e["name"] == "raft")
    assert raft["greedy"]["seeds"] == 1 and raft["change"]["greedy"]["seeds"] == 1


def test_a_failed_run_is_said(scored: Path) -> None:
    path = RunStore(scored).folder("raft-s1").path / "run.json"
    content = json.loads(path.read_text()) | {"status": "failed", "reason": "the disk was full"}
    path.write_text(json.dumps(content))
    methods = collect(scored)["methods"]
    assert methods["missing"] == ["raft-s1 failed: the disk was full."]
    assert next(e for e in methods["entries"] if e["name"] == "raft")["seeds"] == [0]
