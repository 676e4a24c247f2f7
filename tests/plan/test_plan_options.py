"""The plan with its options: budgets, targets, limits, hardware; what it refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest
from joint_tables import chinchilla, joint, mesh, table

import flopwise as fw
from flopwise.errors import FlopwiseError
from flopwise.laws import fit, get
from flopwise.plan.frontier import plan

ASKED = {"queries": 3e7, "prompt_tokens": 200, "answer_tokens": 400, "samples_max": 32}


def test_a_joint_plan_says_all_of_itself():
    made = fw.plan(joint(), 1e21, **ASKED)
    best = made.best
    spent = best.train_flops + best.post_flops + best.inference_flops
    assert spent == pytest.approx(1e21, rel=1e-6)
    assert best.loss is None and best.metric == "coverage" and 0 < best.accuracy < 1
    assert best.intervals["accuracy"][0] < best.accuracy < best.intervals["accuracy"][1]
    assert best.intervals["N"][0] < best.N < best.intervals["N"][1]
    assert 0 <= best.expected_regret < 0.02
    rules = {a["how"]: a["value"] for a in made.alternatives}
    assert set(rules) == {
        "all into pretraining", "all into post-training", "all into test time", "even shares"
    }  # fmt: skip
    assert all(value <= best.accuracy + 1e-9 for value in rules.values())
    assert {r["law"] for r in made.marginal} == {"pretraining", "post-training", "test time"}
    assert any(r["changes"] for r in made.sensitivity)
    (said,) = made.predictions
    assert said["what"] == "coverage" and said["level"] == 0.9 and said["low"] < said["value"] < said["high"]
    assert set(said["at"]) == {"N", "D", "post", "k"} and len(made.neighbours) == 2
    assert all(n["value"] <= said["value"] + 1e-9 for n in made.neighbours)
    json.dumps(made.to_dict())


def test_a_plan_is_kept_for_verification(tmp_path):
    plan(chinchilla(), 1e21).to_json(tmp_path / "plan.json")
    kept = json.loads((tmp_path / "plan.json").read_text())
    (said,) = kept["predictions"]
    assert said["what"] == "loss" and set(said["at"]) == {"N", "D"}
    assert [set(n) for n in kept["neighbours"]] == [set(said)] * 2
    assert kept["best"]["law"] == "chinchilla" and kept["budget"] == 1e21 and kept["others"] == []


def test_the_least_budget_for_an_accuracy():
    made = plan(joint(), target_accuracy=0.5, **ASKED)
    assert made.best.accuracy == pytest.approx(0.5, abs=1e-3)
    low, high = made.budget_interval
    assert low < made.budget < high
    assert plan(joint(), made.budget, **ASKED).best.accuracy == pytest.approx(0.5, abs=2e-3)
    loss = plan(chinchilla(), target=2.5)
    assert loss.best.loss == pytest.approx(2.5, abs=1e-3)


def test_limits_hold_and_are_named():
    free = plan(joint(), 1e21, **ASKED).best
    small = plan(joint(), 1e21, **ASKED, memory=2.4 * free.N / 2)
    assert small.best.N <= free.N / 2 * 1.001 and "memory at inference" in small.best.binding
    assert any("bytes a weight" in a for a in small.assumed)
    quick = plan(joint(), 1e21, **ASKED, hardware="h100", latency=0.02)
    assert quick.best.N < free.N
    scarce = plan(joint(), 1e21, **ASKED, data=2e9)
    assert scarce.best.accuracy < free.accuracy and any("passes" in b for b in scarce.best.binding)
    assert scarce.predictions[0]["at"]["D"] == pytest.approx(scarce.best.D)
    base = plan(joint(), 1e21, **ASKED, base=(4e8, 2e11))
    assert pytest.approx(4e8) == base.best.N and base.best.D >= 2e11
    assert base.best.train_flops == pytest.approx(6 * 4e8 * (base.best.D - 2e11), rel=1e-6, abs=1.0)
    soon = plan(joint(), 1e21, **ASKED, hardware="h100", deadline=86400.0)
    assert soon.bill["training_days"] <= 1.0001 and any("deadline" in b for b in soon.best.binding)


def test_hardware_turns_flops_into_hours_money_and_carbon():
    made = plan(chinchilla(), 1e21, hardware="h100", price=2.0, mfu=0.5)
    hours = 1e21 / (989e12 * 0.5) / 3600
    assert made.bill["training_device_hours"] == pytest.approx(hours, rel=1e-6)
    assert made.bill["money"] == pytest.approx(2.0 * hours, rel=1e-6)
    assert made.bill["energy_kwh"] == pytest.approx(hours * 0.7 * 1.2, rel=1e-6)
    assert not any("training at" in a for a in made.assumed) and any("CO2" in a for a in made.assumed)
    assert plan(chinchilla(), 1e21, hardware="a100").bill["money"] is None


def test_other_laws_say_what_the_plan_gives_away():
    other = fit("joint_saturating", table(), loss="squared", cluster="run", intervals="delta", starts=20)
    made = plan([joint(), other], 3e20, **ASKED)
    assert made.best.regret["joint_saturating"] >= 0 and made.others[0].regret["joint_accuracy"] >= 0
    value = get("joint_saturating")(other.params, {n: np.array([v]) for n, v in made.best.point.items()})[0]
    assert made.others[0].accuracy - value == pytest.approx(made.best.regret["joint_saturating"], abs=1e-6)


def test_a_law_of_accuracy_goes_on_from_a_law_of_loss():
    losses = np.linspace(2.0, 3.6, 8)
    x = mesh(loss=losses, k=(1, 4, 16, 64))
    truth = {"t1": 4.0, "t2": 2.0, "t3": 1.0, "t4": 0.2}
    run = np.repeat(np.arange(8), 4).astype(str)
    y = get("train_to_test")(truth, x) * (1 + 0.01 * np.random.default_rng(0).normal(size=32))
    after = fit(
        "train_to_test", x | {"coverage": y, "run": run}, loss="squared", cluster="run", intervals="delta"
    )
    made = plan([chinchilla(), after], 1e21, **ASKED)
    assert made.best.law == "chinchilla > train_to_test" and made.best.samples > 1
    assert made.best.intervals["accuracy"][0] < made.best.accuracy < made.best.intervals["accuracy"][1]
    with pytest.raises(FlopwiseError, match="goes on from a loss"):
        plan([after], 1e21, **ASKED)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"budget": -1e20}, "budget is -1e\\+20 FLOPs"),
        ({"budget": None}, "a budget in FLOPs, or a target"),
        ({"budget": 1e21, "samples_max": 0.5}, "samples_max is 0.5"),
        ({"budget": 1e21, "queries": 0}, "how many questions"),
        ({"budget": 1e21, "memory": -1}, "memory is -1"),
        ({"budget": 1e21, "data": 1e-3}, "at least one token"),
        ({"budget": 1e21, "mfu": 1.5}, "mfu is 1.5"),
        ({"budget": 1e21, "hardware": "abacus"}, "unknown; there are a100"),
        ({"budget": 1e15}, "below the smallest run"),
        ({"budget": 1e10}, "leave nothing"),
        ({"budget": 1e21, "latency": 1e-9}, "loosen --latency"),
        ({"budget": 1e21, "base": (4e8, 2e11), "memory": 1e8}, "does not keep the limits"),
        ({"budget": 1e21, "base": (4e11, 2e11)}, "leave nothing"),
        ({"budget": None, "target_accuracy": 1.2}, "between 0 and 1"),
        ({"budget": None, "target_accuracy": 0.999999}, "with no budget up to"),
    ],
)
def test_nonsense_is_refused_in_one_line(given, message):
    with pytest.raises(FlopwiseError, match=message) as error:
        plan(joint(), **(ASKED | given))
    assert "\n" not in str(error.value)


def test_laws_of_different_metrics_are_refused():
    with pytest.raises(FlopwiseError, match="2 metrics cannot be compared"):
        plan([chinchilla(), joint()], 1e21, **ASKED)


def test_what_is_far_off_is_said():
    assert any("verify with a run" in w for w in plan(chinchilla(), 1e25).best.warnings)
    assert any("no law is to be believed" in w for w in plan(chinchilla(), 1e27).best.warnings)
    assert any("below the smallest run" in w for w in plan(chinchilla(), 1e15).best.warnings)
    far = plan(joint(), 1e24, **ASKED).best
    assert any("no plan goes farther" in b for b in far.binding)
    beyond = plan(joint(), 1e27, **ASKED).best
    assert any("of the budget is left" in b for b in beyond.binding)
