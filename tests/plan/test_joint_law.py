"""Joint laws from records: the table, the choice by held-out scale."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from joint_tables import TRUTH, table

from flopwise.errors import FlopwiseError
from flopwise.flops.spend import Spend
from flopwise.laws import get
from flopwise.plan.joint_law import choose, coverage, observations, with_nlp
from flopwise.records.store import RunStore


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two pretrained models, one fine-tuned, one reinforced after that; all sampled."""
    store = RunStore(tmp_path)

    def run(name, kind, method, flops, parents=None, **rest):
        folder = store.prepare(kind, method, {"name": name}, parents or {}, 0, name, {})
        folder.finish(metrics={}, spend=Spend(flops, 0.0, 0.0, 1000, 2.0, 2.0, "m", 1 << 20), **rest)
        return folder

    ids = {}
    for name, N, flops in (("small", 1e5, 2e12), ("large", 4e5, 8e12)):
        ids[name] = run(
            name, "pretrain", "cooldown", flops,
            model={"n_params_non_embedding": N}, data={"tokens_seen": 2e6},
        ).id  # fmt: skip
    ids["tuned"] = run("tuned", "sft", "demonstrations", 1e12, {"init": ids["small"]}).id
    ids["grpo"] = run("grpo", "rl", "grpo", 3e12, {"init": ids["tuned"]}).id
    for name, p in (("small", 0.01), ("large", 0.02), ("tuned", 0.1), ("grpo", 0.2)):
        sampled = run(f"sample-{name}", "sample", "n", 1e10, {"model": ids[name]})
        points = [{"n": n, "value": 1 - (1 - p) ** n} for n in (1, 4)]
        (sampled.path / "curves.json").write_text(json.dumps({"verifier": points}))
    return tmp_path


def test_post_training_is_counted_in_tokens_of_pretraining(runs: Path):
    t = observations(runs)
    assert len(t["k"]) == 8 and set(t["run"]) == {"small", "large", "tuned", "grpo"}
    post = {run: float(v) for run, v in zip(t["run"], t["post"], strict=True)}
    # A token of the small model's pretraining took 1e6 FLOPs; the tuning 1e12, the reinforcement 3e12 more.
    assert post == pytest.approx({"small": 0.0, "large": 0.0, "tuned": 1e6, "grpo": 4e6})
    assert {float(n) for n in t["N"][t["run"] == "grpo"]} == {1e5}
    assert t["nlp"] == pytest.approx(-np.log(t["coverage"]))
    assert set(observations(runs, ["sft"])["run"]) == {"small", "large", "tuned"}


def test_a_folder_without_samples_is_one_clear_line(tmp_path: Path):
    RunStore(tmp_path)
    with pytest.raises(FlopwiseError, match="no sampled model"):
        observations(tmp_path)


def test_held_out_scale_chooses_the_form():
    t = table(noise=0.01)
    made = choose(t, forms=("joint_logit", "joint_accuracy"))
    assert made.fit.law == "joint_accuracy" and [f.law for f in made.others] == ["joint_logit"]
    assert made.fit.misfit > 0 and {x.law for x in made.trials} == {"joint_logit", "joint_accuracy"}
    best = next(x for x in made.trials if x.law == "joint_accuracy")
    held = t["N"] * (t["D"] + t["post"]) == (t["N"] * (t["D"] + t["post"])).max()
    truth = get("joint_accuracy")(TRUTH, {n: t[n][held] for n in ("N", "D", "post", "k")})
    assert best.rms < 0.02 and best.fit.n == (~held).sum()
    assert best.fit.predict(**{n: t[n][held] for n in ("N", "D", "post", "k")}).value == pytest.approx(
        truth, abs=0.03
    )
    assert made.reasons[0].startswith("joint_accuracy is chosen")


def test_what_does_not_vary_cannot_be_held_out():
    t = {name: v[:4] for name, v in table().items()}
    with pytest.raises(FlopwiseError, match="nothing larger"):
        choose(t, by="N")


def test_logarithms_of_coverage_become_coverage():
    t = with_nlp({"coverage": np.array([0.0, 0.5, 1.0])})
    assert np.isfinite(t["nlp"]).all()
    assert coverage("joint_loss", t["nlp"])[1:] == pytest.approx([0.5, 1.0])
    assert coverage("joint_accuracy", [0.3]) == pytest.approx([0.3])
