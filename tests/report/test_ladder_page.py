"""A ladder's report: laws beside measurements, what branching saved, a page that never falls over."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import ladder_maker
import numpy as np
import pytest
from ladder_maker import BUDGETS, WIDTHS, LadderMaker
from test_html import HOSTILE, Page

from flopwise.laws import Fit
from flopwise.report import build, figures_ladder, figures_rungs
from flopwise.report.collect import collect


@pytest.fixture(scope="module")
def ladder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return ladder_maker.make(tmp_path_factory.mktemp("ladder"))


@pytest.fixture(scope="module")
def results(ladder: Any) -> dict[str, Any]:
    return collect(ladder.root)


@pytest.fixture(scope="module")
def page(ladder: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    return build(ladder.root, tmp_path_factory.mktemp("out") / "report.html").read_text()


def entry(results: dict[str, Any], name: str) -> dict[str, Any]:
    return next(e for e in results["ladders"] if e["name"] == name)


def test_a_ladder_is_told_from_the_three_laws(results: dict[str, Any], experiment: Any) -> None:
    assert results["kind"] == "ladder"
    assert collect(experiment.root)["kind"] == "laws"


def test_results_are_strict_json(results: dict[str, Any]) -> None:
    assert json.loads(json.dumps(results, allow_nan=False)) == results


def test_the_prediction_stands_beside_the_measurement(results: dict[str, Any], ladder: Any) -> None:
    law = entry(results, "main")
    (test,) = law["verification"]
    measured = ladder.folder("w128-s0-1").record().metrics["loss"].value
    assert test["measured"] == measured
    assert test["relative_error"] == pytest.approx(test["predicted"] / measured - 1)
    assert test["D"] == 8e6
    assert test["C_ratio"] == pytest.approx(8e6 * 128**2 / (4e6 * 96**2))
    assert test["before_start_s"] > 0
    assert law["predictions"][0]["tested"]
    head = results["headline"]
    assert head["answer"].startswith(f"Predicted {test['predicted']:.3f}, measured {measured:.3f}")
    assert "3.6× the largest compute" in head["expects"]
    assert "before that run was started" in head["expects"]


def test_curves_and_residuals_are_the_fits(results: dict[str, Any], ladder: Any) -> None:
    law, fit = entry(results, "main"), Fit.from_json(ladder.folder("law-main").path / "fit.json")
    fitted = [c for c in law["curves"] if not c["held_out"]]
    assert [c["width"] for c in fitted] == list(WIDTHS)
    for c in law["curves"]:
        assert c["value"][7] == pytest.approx(fit.predict(N=c["N"], D=c["D"][7]).value)
        assert c["C"][7] == pytest.approx(9 * c["N"] * c["D"][7])
    for q in law["points"]:
        assert q["residual"] == pytest.approx(q["y"] / fit.predict(N=q["N"], D=q["D"]).value - 1)


def test_branching_is_compared_with_runs_made_apart(results: dict[str, Any]) -> None:
    saved = next(v for v in results["savings"]["by_variant"] if v["variant"] == "dense")
    per_size = [9 * 24.0 * w**2 for w in WIDTHS]
    seeds = [2, 1, 1, 1]
    spent = sum(
        n * c * (0.8 * max(BUDGETS) + 0.2 * sum(BUDGETS)) for n, c in zip(seeds, per_size, strict=True)
    )
    apart = sum(n * c * sum(BUDGETS) for n, c in zip(seeds, per_size, strict=True))
    assert saved["spent"] == pytest.approx(spent)
    assert saved["separate"] == pytest.approx(apart)
    assert saved["grid"] == pytest.approx(2 * sum(per_size) * sum(BUDGETS))
    assert saved["grid_cells"]["runs"] == 2 * 4 * 3
    assert results["savings"]["held_out"] == pytest.approx(9 * 24 * 128**2 * 8e6)
    assert results["savings"]["tuning"] == pytest.approx(sum(5 * 9 * 24 * w**2 * 5e5 for w in (32, 64)))
    iso = next(v for v in results["savings"]["by_variant"] if v["variant"] == "iso")
    assert iso["grid"] is None


def test_equal_compute_curves_have_the_sizes_they_were_made_with(results: dict[str, Any]) -> None:
    (iso,) = results["isoflop"]
    assert [len(b["points"]) for b in iso["budgets"]] == [5, 5, 5, 5]
    assert [b["C"] for b in iso["budgets"]] == pytest.approx([3e11, 1e12, 3e12, 1e13])
    best = [b for b in iso["budgets"] if b["N"] is not None]
    assert len(best) >= 3
    for b in best:
        assert b["low"] < b["N"] < b["high"]
        lowest = min(y for _, y in b["curve"])
        assert b["loss"] == pytest.approx(lowest, rel=1e-3)
    assert 0.3 < iso["exponents"]["N"]["value"] < 0.9


def test_search_experts_and_sources_are_told(results: dict[str, Any]) -> None:
    (search,) = results["tuning"]
    assert [c["width"] for c in search["curves"]] == [32, 64]
    assert search["rate_factor"] == pytest.approx(1.15, abs=0.02)
    assert all(c["low"] < c["best"] < c["high"] for c in search["curves"])
    assert {e["variant"] for e in results["experts"]} == {"moe8"}
    for layer in results["experts"][0]["layers"]:
        assert sum(layer["shares"]) == pytest.approx(1.0)
        assert layer["highest"] == pytest.approx(8 * max(layer["shares"]))
    assert [(s["name"], s["modality"], s["duplicates"]) for s in results["data"]["sources"]] == [
        ("kjv", "text", 3), ("digits", "image", 3),
    ]  # fmt: skip


def test_noise_between_seeds(results: dict[str, Any]) -> None:
    noise = results["rungs"]["seed_noise"]
    assert len(noise) == 2 * len(BUDGETS)
    pooled = np.sqrt(np.mean([q["relative_sd"] ** 2 for q in noise]))
    assert results["rungs"]["noise"] == pytest.approx(pooled)


def test_page_is_whole_and_asks_no_network(page: str) -> None:
    parsed = Page(page)
    assert not parsed.open
    for tag, attributes in parsed.tags:
        assert tag not in {"link", "iframe", "object", "embed", "base"}
        assert not {"src", "srcset", "xlink:href"} & set(attributes)
        assert (attributes.get("href") or "#").startswith("#")
    assert "unexpected shape" not in page
    assert "url(" not in page
    ids = {a["id"] for _, a in parsed.tags if "id" in a}
    assert {a["href"][1:] for t, a in parsed.tags if t == "a" and a.get("href")} <= ids


def test_sections_have_their_figures(page: str) -> None:
    parts = dict(zip(*[iter(re.split(r'<section id="(\w+)">', page)[1:])] * 2, strict=True))
    assert list(parts) == ["ladder_laws", "ladder_compare", "ladder_rungs", "ladder_numbers"]
    titles = re.findall(r'role="img" aria-label="([^"]+)"', page)
    for words in (
        "against training compute, with the fitted law", "for each size, dense", "Residuals",
        "at equal compute",
        "of every variant", "on digits", "Load of the experts of layer 2", "learning rate for each size",
    ):  # fmt: skip
        assert any(words in t for t in titles), words
    assert "A FLOP spent on moe8 is worth 1.60 spent on dense" in page
    assert "<nav" in page and "Post-training" not in page


def test_hostile_text_stays_text(ladder: Any, tmp_path: Path) -> None:
    copy = shutil.copytree(ladder.root, tmp_path / "runs")
    evil = json.dumps(HOSTILE)[1:-1]
    for run, file in (
        ("data", "about.json"), ("law-main", "notes.json"), ("law-main", "choice.json"),
        ("verify", "verification.json"),
        ("law-factor", "comparison.json"), ("law-factor", "points.json"), ("tuning", "tuning.json"),
    ):  # fmt: skip
        path = copy / ladder.ids[run] / file
        text = path.read_text()
        for word in ("kjv", "noise between", "chinchilla was best", "w128-s0-1", "moe8", "best at"):
            text = text.replace(word, evil + word)
        path.write_text(text)
    for name in ("w64-s0-1", "w128-s0-1", "moe8-w96-s0-3"):
        path = copy / ladder.ids[name] / "run.json"
        record = json.loads(path.read_text())
        record["name"], record["extra"]["variant"] = HOSTILE, HOSTILE
        record["metrics"][f"loss_{HOSTILE}"] = record["metrics"]["loss"]
        path.write_text(json.dumps(record))
    parsed = Page(build(copy, tmp_path / "report.html").read_text())
    assert not parsed.open
    assert [t for t, _ in parsed.tags].count("script") == 1
    assert "img" not in [t for t, _ in parsed.tags]
    assert not any(name.startswith("on") for _, a in parsed.tags for name in a)


@pytest.mark.parametrize(
    "content", ["[]", "{}", "3", "null", '"x"', "[1, {}]", '{"a": {"b": []}}', "{", "[[[]]]"]
)
def test_damaged_files_never_cost_the_page(content: str, ladder: Any, tmp_path: Path) -> None:
    copy = shutil.copytree(ladder.root, tmp_path / "runs")
    for run, file in (
        ("data", "about.json"), ("law-main", "points.json"), ("law-main", "prediction.json"),
        ("law-main", "choice.json"), ("law-main", "notes.json"), ("law-factor", "comparison.json"),
        ("law-iso", "isoflop.json"), ("tuning", "tuning.json"), ("verify", "verification.json"),
    ):  # fmt: skip
        (copy / ladder.ids[run] / file).write_text(content)
    parsed = Page(build(copy, tmp_path / "report.html").read_text())
    assert not parsed.open
    assert "w96-s0-3" in parsed.text


def test_an_unfinished_ladder_says_what_is_missing(tmp_path: Path) -> None:
    m = LadderMaker(tmp_path / "runs", {"dense": 1.0})
    m.data()
    first = build(m.made.root, tmp_path / "report.html").read_text()
    assert "No run yet" in first
    assert "Every rung of the ladder is missing" in first
    for width in WIDTHS:
        m.rungs("dense", width, BUDGETS)
    assert "A ladder of 12 runs" in build(m.made.root, tmp_path / "report.html").read_text()
    m.law()
    m.run("trunk-w128-s0-1", "pretrain", "trunk", wait=True)
    text = build(m.made.root, tmp_path / "report.html").read_text()
    assert "for a run that is not finished" in text
    assert not Page(text).open
    results = collect(m.made.root)
    assert results["overview"]["unfinished"] == 1
    assert results["ladders"][0]["verification"] == []
    assert any(c["held_out"] for c in results["ladders"][0]["curves"])


def test_a_prediction_written_too_late_proves_nothing(ladder: Any, tmp_path: Path) -> None:
    copy = shutil.copytree(ladder.root, tmp_path / "runs")
    path = copy / ladder.ids["law-main"] / "prediction.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"made_at": 4e9}))
    assert "it proves nothing" in collect(copy)["headline"]["expects"]


def test_repeated_data_curve_bends_with_the_unique_tokens() -> None:
    from flopwise.report.ladder import _path

    group = [{"D": d, "U": min(d, 2e6), "C": 10 * d} for d in (1e6, 2e6, 4e6, 8e6)]
    path = _path(group, ("U",), np.array([1e6, 1.5e6, 3e6, 8e6]))
    assert path["U"] == pytest.approx([1e6, 1.5e6, 2e6, 2e6])
    assert path["C"] == pytest.approx([1e7, 1.5e7, 3e7, 8e7])


def test_figures_of_nothing_are_none() -> None:
    empty = {
        "points": [],
        "curves": [],
        "variants": [],
        "verification": [],
        "predictions": [],
        "target": "loss",
    }
    assert figures_ladder.compute(empty, False) is None
    assert figures_ladder.tokens(empty, "dense", True) is None
    assert figures_ladder.residuals(empty, False) is None
    assert figures_rungs.isoflop({"budgets": []}, False) is None
    assert figures_rungs.tuning({"curves": [], "rate_factor": None}, False) is None


def test_best_rates_are_shown(ladder: Any, tmp_path: Path) -> None:
    copy = shutil.copytree(ladder.root, tmp_path / "runs")
    rows = [{"N": 24576, "D": 1e6, "lr": 0.0123, "lr_se": 0.1, "loss": 2.5, "runs": 4}, {"N": "many"}]
    (copy / ladder.ids["law-iso"] / "rates.json").write_text(json.dumps({"optima": rows}))
    text = build(copy, tmp_path / "report.html").read_text()
    assert "Best settings of each size and budget" in text
    assert "0.0123<small>± 10%</small>" in text


def test_a_law_of_the_loss_is_drawn_over_the_loss(ladder: Any, tmp_path: Path) -> None:
    from flopwise.laws import fit

    copy = shutil.copytree(ladder.root, tmp_path / "runs")
    step = copy / ladder.ids["law-main"]
    rows = json.loads((step / "points.json").read_text())
    for row in rows:
        row["accuracy"] = 0.25 + 0.5 / (1 + np.exp(3 * (row["loss"] - 2.6)))
    table = {key: np.array([row[key] for row in rows]) for key in ("loss", "accuracy", "run")}
    fitted = fit("task_sigmoid", table, cluster="run")
    made = json.loads((step / "prediction.json").read_text()) | {
        "target": "accuracy",
        "value": 0.7,
        "low": 0.6,
        "high": 0.8,
    }
    for name, content in (("points", rows), ("fit", fitted.to_dict()), ("prediction", made)):
        (step / f"{name}.json").write_text(json.dumps(content))
    spec = step / "spec.yaml"
    spec.write_text(spec.read_text().replace("target: loss", "target: accuracy"))
    (row,) = json.loads((copy / ladder.ids["verify"] / "verification.json").read_text())
    row |= {"target": "accuracy", "predicted": 0.7, "measured": 0.65, "low": 0.6, "high": 0.8, "inside": True}
    row["relative_error"] = 0.7 / 0.65 - 1
    (copy / ladder.ids["verify"] / "verification.json").write_text(json.dumps([row]))
    law = entry(collect(copy), "main")
    assert law["target"] == "accuracy"
    assert law["line"]["variable"] == "loss"
    measured = ladder.folder("w128-s0-1").record().metrics["loss"].value
    assert law["line"]["x"][0] == pytest.approx(measured)  # as far as the held-out run
    assert law["line"]["value"][-1] == pytest.approx(fitted.predict(loss=law["line"]["x"][-1]).value)
    text = build(copy, tmp_path / "report.html").read_text()
    assert "accuracy against loss, with the fitted law" in text
    assert "against training compute, with the fitted law" not in text
    assert re.findall("<h1.*?</h1>", text) == ["<h1>Predicted 70.0%, measured 65.0%: off by 7.7%</h1>"]
