"""What the results say of a finished, an unfinished and a damaged experiment."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flopwise.errors import FlopwiseError
from flopwise.report.collect import collect
from flopwise.report.law2 import collect_posttraining, paired
from flopwise.report.runs import Runs, clean


def method(results: dict[str, Any], name: str) -> dict[str, Any]:
    return next(m for m in results["posttraining"]["methods"] if m["name"] == name)


def test_results_are_strict_json(results: dict[str, Any]) -> None:
    assert json.loads(json.dumps(results, allow_nan=False)) == results


def test_held_out_run_is_compared_with_what_was_predicted(results: dict[str, Any]) -> None:
    law = results["pretraining"]
    held, p = law["held_out"], law["prediction"]
    assert held["name"] == "larger"
    assert held["relative_error"] == pytest.approx(p["value"] / held["loss"] - 1)
    assert held["inside"] == (p["low"] <= held["loss"] <= p["high"])
    assert held["written_before"] > 0
    assert len(law["points"]) == 9
    assert not any(q["held_out"] for q in law["points"])
    assert {c["N"]: c["held_out"] for c in law["curves"]}[p["N"]]


def test_curves_pass_where_the_fit_says(results: dict[str, Any], experiment: Any) -> None:
    from flopwise.laws import Fit

    fit = Fit.from_json(experiment.folder("law").path / "fit.json")
    curve = results["pretraining"]["curves"][0]
    assert curve["value"][5] == pytest.approx(fit.predict(N=curve["N"], D=curve["D"][5]).value)
    assert all(
        a <= v <= b for a, v, b in zip(curve["mean_low"], curve["value"], curve["mean_high"], strict=True)
    )


def test_a_method_counts_all_its_rounds_and_their_samples(results: dict[str, Any]) -> None:
    row = method(results, "rejection-2")
    assert row["runs"] == ["samples-1", "rejection-1", "samples-2", "rejection-2"]
    assert row["start"]["name"] == "sft"
    assert row["spend"]["train_flops"] == pytest.approx(2e12)
    assert row["spend"]["generate_flops"] == pytest.approx(4e11)
    assert row["control"]["name"] == "control-rejection"
    assert row["control"]["matched_exactly"]
    assert "rejection-1" not in [m["name"] for m in results["posttraining"]["methods"]]


def test_gains_and_verdicts_are_paired_over_problems(results: dict[str, Any], experiment: Any) -> None:
    def greedy(model: str) -> np.ndarray:
        with np.load(experiment.folder(f"sample-{model}").path / "samples.npz") as z:
            return z["greedy"].astype(float)

    row = method(results, "grpo")
    gain, versus = greedy("grpo") - greedy("sft"), greedy("grpo") - greedy("control-grpo")
    assert row["gain"] == pytest.approx(gain.mean())
    assert row["gain_se"] == pytest.approx(gain.std(ddof=1) / math.sqrt(len(gain)))
    assert row["versus"] == pytest.approx(versus.mean())
    assert row["verdict"] == "beats"
    assert method(results, "rejection-2")["verdict"] == "even"
    assert method(results, "sft")["verdict"] == "no control"


def test_pairing_takes_out_what_problems_share() -> None:
    rng = np.random.default_rng(0)
    before = rng.uniform(size=500)
    after = before + rng.normal(0.1, 0.01, 500)
    tight, loose = paired(before, after, True), paired(before, after, False)
    assert tight["value"] == pytest.approx(loose["value"])
    assert tight["se"] < loose["se"] / 10
    assert paired(before, after[:-1], True)["paired"] is False
    assert paired(None, after, True)["value"] is None


def test_the_sigmoid_is_fitted_where_the_curve_shows_it(results: dict[str, Any]) -> None:
    shown = results["posttraining"]["rl"][0]
    assert shown["identified"], shown["reasons"]
    low, high = shown["intervals"]["A"]
    assert low <= 0.7 <= high


def test_the_sigmoid_is_refused_where_the_curve_is_flat(experiment: Any, tmp_path: Path) -> None:
    copy = shutil.copytree(experiment.root, tmp_path / "runs")
    log = copy / experiment.ids["grpo"] / "metrics.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    noise = np.random.default_rng(0)
    flat = [r | ({"reward": 0.3 + noise.normal(0, 0.01)} if "reward" in r else {}) for r in rows]
    log.write_text("".join(json.dumps(r) + "\n" for r in flat))
    refused = collect_posttraining(Runs(copy))["rl"][0]
    assert not refused["identified"]
    assert any("rose by" in reason for reason in refused["reasons"])


def test_coverage_is_forecast_from_the_first_samples_alone(results: dict[str, Any]) -> None:
    law = next(m for m in results["testtime"]["models"] if m["name"] == "grpo")["coverage"]
    assert law["fitted_up_to"] == 16
    assert law["k"] == 64
    assert [p["k"] for p in law["points"] if not p["fitted"]] == [32, 64]
    assert law["difference"] == pytest.approx(law["predicted"] - law["points"][-1]["value"])


def test_a_missing_forecast_is_made_in_the_same_way(
    results: dict[str, Any], experiment: Any, tmp_path: Path
) -> None:
    from flopwise.report.law3 import coverage

    copy = shutil.copytree(experiment.root, tmp_path / "runs")
    record = experiment.folder("sample-grpo").record()
    (copy / record.id / "coverage.json").unlink()
    runs = Runs(copy)
    made = coverage(runs, record, runs.arrays(record)["correct"], 16)
    given = next(m for m in results["testtime"]["models"] if m["name"] == "grpo")["coverage"]
    assert made is not None
    assert made["params"] == pytest.approx(given["params"])
    assert coverage(runs, record, runs.arrays(record)["correct"], 64) is None


def test_family_counts_each_ancestor_once(results: dict[str, Any], experiment: Any) -> None:
    base = results["family"]["bases"][0]
    assert base["name"] == "w32-1.5M"
    made = {"sft": 1e12, "grpo": 4e12, "rejection": 2.4e12, "control-rejection": 2.4e12, "control-grpo": 4e12}
    assert base["derived_flops"] == pytest.approx(sum(made.values()))

    def names(node: dict[str, Any]) -> list[str]:
        return [node["name"], *(n for c in node["children"] for n in names(c))]

    listed = [n for t in results["family"]["trees"] for n in names(t)]
    models = {n for n in experiment.ids if n not in ("data", "law", "plan") and not n.startswith("sample-")}
    assert sorted(listed) == sorted(models)
    assert sum(t["total_flops"] for t in results["family"]["trees"]) == pytest.approx(
        results["overview"]["total_flops"] - 6e9
    )


def test_headline_names_the_plan_and_every_law(results: dict[str, Any]) -> None:
    head = results["headline"]
    assert head["answer"] == "make grpo, then ask it (verifier)"
    assert "80.0% [77.0, 83.0]" in head["expects"]
    assert [f["law"] for f in head["findings"]] == [1, 2, 3]
    assert "GRPO beats its equal-compute control" in head["findings"][1]["text"]
    assert "64 samples" in head["findings"][2]["text"]


def test_what_is_missing_is_said_with_its_reason(experiment: Any, tmp_path: Path) -> None:
    copy = shutil.copytree(experiment.root, tmp_path / "runs")
    folder = experiment.folder("grpo")
    for name in ("plan", "sample-sft"):
        shutil.rmtree(copy / experiment.ids[name])
    (copy / experiment.ids["law"] / "run.json").unlink()
    type(folder)(copy / folder.id).fail("loss is NaN at step 3")
    found = collect(copy)
    assert found["plan"]["missing"] == ["The plan is missing: this folder holds no plan run."]
    assert "step law was started and has not finished" in found["pretraining"]["missing"][0]
    assert any("step grpo failed (loss is NaN at step 3)" in s for s in found["posttraining"]["missing"])
    assert (
        any("No test accuracy" not in s for s in found["testtime"]["missing"]) or found["testtime"]["models"]
    )
    assert method(found, "rejection-2")["gain"] is None
    assert found["headline"]["answer"] is None
    failed = next(r for r in found["runs"] if r["name"] == "grpo")
    assert failed["status"] == "failed"
    assert failed["flops"] is None


def test_damaged_files_are_named_and_left_out(experiment: Any, tmp_path: Path) -> None:
    copy = shutil.copytree(experiment.root, tmp_path / "runs")
    (copy / experiment.ids["plan"] / "plan.json").write_text("{")
    (copy / experiment.ids["sample-grpo"] / "samples.npz").write_bytes(b"no archive")
    (copy / experiment.ids["sft"] / "run.json").write_text('{"id": 3}')
    found = collect(copy)
    assert any("plan.json" in p for p in found["problems"])
    assert any("samples.npz" in p for p in found["problems"])
    assert any(experiment.ids["sft"] in p for p in found["problems"])


def test_a_folder_with_no_runs_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(FlopwiseError, match="no runs in"):
        collect(tmp_path)
    with pytest.raises(FlopwiseError, match="no runs in"):
        collect(tmp_path / "nowhere")


def test_numbers_without_a_json_word_become_null() -> None:
    assert clean({"a": [math.nan, np.float32(1.5), np.int64(2), np.bool_(True), math.inf]}) == {
        "a": [None, 1.5, 2, True, None]
    }
