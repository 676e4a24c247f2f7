"""The plan's step on the shortened demo: everything is there, in order, and consistent with the records."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from flopwise.plan.joint import observations
from flopwise.plan.step import Evidence
from flopwise.plan.systems import Measured
from flopwise.records.folder import RunFolder
from flopwise.records.store import RunStore


@pytest.fixture(scope="module")
def step(tiny_run: Path) -> RunFolder:
    (record,) = [r for r in RunStore(tiny_run).records() if r.kind == "plan"]
    return RunFolder(tiny_run / record.id)


def test_systems_carry_what_the_records_say(step: RunFolder, tiny_run: Path):
    evidence, store = Evidence.read(step), RunStore(tiny_run)
    one = next(s for s in evidence.systems if s.model == "grpo" and s.strategy == "greedy")
    assert one.one_off_flops == store.get("grpo").lineage_spend.total_flops
    assert one.accuracy == pytest.approx(store.get("sample-grpo").metrics["greedy"].value)
    many = [s for s in evidence.systems if s.model == "grpo" and s.strategy == "verifier"]
    assert [s.n for s in many] == [2, 4, 8, 16]
    assert np.all(np.diff([s.accuracy for s in many]) >= 0) and np.all(
        np.diff([s.per_question_flops for s in many]) > 0
    )
    judged = next(
        s for s in evidence.systems if s.model == "grpo" and s.strategy == "reward_model" and s.n == 4
    )
    # The reward model is paid for once, and for every sample it scores.
    assert judged.one_off_flops > one.one_off_flops and judged.per_question_flops > many[1].per_question_flops


def test_rates_name_each_law_and_the_plan_is_affordable(step: RunFolder):
    made = json.loads((step.path / "plan.json").read_bytes())
    laws = {way["law"] for rate in made["exchange"]["rates"] for way in rate["ways"]}
    assert laws == {"pretraining", "post-training", "test time"}
    plan = made["plan"]
    assert plan["checkable"]["strategy"] == "verifier" and plan["uncheckable"]["strategy"] != "verifier"
    for option in (plan["checkable"], plan["uncheckable"], *plan["options"]):
        assert option["total_flops"] <= plan["budget_flops"] and option["low"] <= option["high"]
    assert plan["reasons"]


def test_a_new_budget_is_planned_without_running_anything(step: RunFolder):
    evidence = Evidence.read(step)
    rich, poor = evidence.plan(1e15, 1e3), evidence.plan(5e11, 1e3)
    assert rich["checkable"]["accuracy"] >= poor["checkable"]["accuracy"]


def test_the_joint_law_spoke_before_the_larger_model_was_sampled(step: RunFolder, tiny_run: Path):
    joint = RunFolder(tiny_run / step.references["joint"])
    content = json.loads((joint.path / "joint.json").read_bytes())
    held = step.spec["held_out"]
    sampled = RunStore(tiny_run).get(f"sample-{held}")
    assert content["made_at"] <= datetime.fromisoformat(sampled.created).timestamp() + 1
    assert held not in {RunFolder(tiny_run / run).record().name for run in joint.references.values()}
    points = json.loads((step.path / "plan.json").read_bytes())["verification"]["points"]
    for p in points:
        assert p["low"] <= p["predicted"] <= p["high"] and p["inside"] == (
            p["low"] <= p["measured"] <= p["high"]
        )
        assert p["measured"] == pytest.approx(sampled.metrics["pass_at_1"].value) or p["k"] > 1


def test_observations_pair_a_tuned_model_with_its_pretrained_loss(tiny_run: Path):
    store = RunStore(tiny_run)
    folder = store.folder("sample-sft-student")
    model = RunFolder(tiny_run / folder.roles["model"])
    start = RunFolder(tiny_run / model.roles["init"]).record()
    table = observations([Measured.read(folder, model)], [start], up_to=4)
    assert table["k"].tolist() == [1, 2, 4] and set(table["loss"]) == {start.metrics["loss"].value}
    assert set(table["run"]) == {"w16-s0"}
