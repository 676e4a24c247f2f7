"""A ladder recipe from its YAML to what its laws say: run once on sources of known entropy, no network."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from tests.conftest import LADDER

from flopwise.errors import FlopwiseError
from flopwise.flops.count import count_params, train_flops
from flopwise.launch.expand import expand
from flopwise.launch.recipe import LadderRecipe, load
from flopwise.models.config import ModelConfig
from flopwise.records.store import RunStore
from flopwise.records.table import read_table


@pytest.fixture(scope="module")
def store(tiny_ladder: Path) -> RunStore:
    return RunStore(tiny_ladder)


def file(store: RunStore, step: str, name: str) -> object:
    return json.loads((store.folder(step).path / name).read_text())


def test_every_rung_of_every_variant_was_run_and_measured(store: RunStore) -> None:
    branches = [r for r in store.records() if r.method == "cooldown" and not r.extra["held_out"]]
    assert len(branches) == 4 * (3 + 1) * 3  # variants, widths and a repeat, budgets
    for record in branches:
        names = {"loss", "accuracy", *(f"loss_{n}" for n in record.extra["mixture"])}
        assert names <= set(record.metrics)
        assert 0 < record.metrics["loss"].value < math.log(32) * 1.05  # type: ignore[operator]
        assert record.extra["variant"] in LADDER["variants"]
    alone = next(r for r in branches if r.extra["variant"] == "one")
    assert "loss_two" not in alone.metrics and alone.data and alone.data["corpus"] == "one"


def test_a_mixture_of_experts_has_more_parameters_at_the_same_active_ones(store: RunStore) -> None:
    by = {(r.extra["variant"], r.extra["width"]): r for r in store.records() if r.method == "cooldown"}
    dense, moe = by["even", 24].model, by["moe", 24].model
    assert dense and moe
    assert moe["n_params_total"] > 1.5 * dense["n_params_total"]
    router = 24 * moe["architecture"]["n_experts"]
    assert moe["n_params_active"] - dense["n_params_active"] == router
    load = by["moe", 24].extra["expert_load"]
    assert load and "expert_load" not in by["even", 24].extra


def test_the_prediction_was_written_before_the_held_out_run_and_is_tested(store: RunStore) -> None:
    made = file(store, "law-loss", "prediction.json")
    assert isinstance(made, dict)
    held = next(r for r in store.records() if r.extra.get("held_out") and r.method == "cooldown")
    assert made["run"] == held.name and made["width"] == 32
    started = (store.root / held.id / "spec.yaml").stat().st_mtime
    assert made["made_at"] <= started
    assert made["low"] <= made["low90"] <= made["value"] <= made["high90"] <= made["high"]
    cfg = ModelConfig(**held.model["architecture"])  # type: ignore[index]
    assert made["N"] == count_params(cfg).non_embedding
    assert made["D"] == held.data["tokens_seen"]  # type: ignore[index]
    assert made["C"] == pytest.approx(held.lineage_spend.train_flops)
    checks = file(store, "verify", "verification.json")
    assert isinstance(checks, list)
    assert {c["name"] for c in checks} == {"loss", "accuracy"}
    loss = next(c for c in checks if c["name"] == "loss")
    assert loss["measured"] == held.metrics["loss"].value
    assert loss["relative_error"] == pytest.approx(made["value"] / loss["measured"] - 1)
    assert loss["inside"] == (made["low"] <= loss["measured"] <= made["high"])
    assert loss["C_ratio"] == pytest.approx(made["C"] / max(p["C"] for p in points(store)))


def points(store: RunStore) -> list[dict[str, float]]:
    found = file(store, "law-loss", "points.json")
    assert isinstance(found, list)
    return found


def test_points_hold_the_counts_of_their_runs(store: RunStore) -> None:
    rows = points(store)
    assert len(rows) == 12 and {r["variant"] for r in rows} == {"even"}
    assert len({r["run"] for r in rows}) == 4  # trunks are the clusters
    for row in rows:
        cfg = ModelConfig.from_width(int(row["width"]), 1, int(row["V"]), 32)
        assert row["C"] == pytest.approx(row["D"] / 32 * train_flops(cfg, 32).total)
        assert row["N_flops"] == pytest.approx(row["C"] / 6 / row["D"])
        assert row["error"] == pytest.approx(1 - row["accuracy"])
        assert row["share_one"] == row["share_two"] == 0.5


def test_a_factor_comes_with_its_interval_and_matched_pairs(store: RunStore) -> None:
    found = file(store, "law-experts", "comparison.json")
    assert isinstance(found, dict)
    moe = found["moe"]
    assert moe["low"] < moe["factor"] < moe["high"] and moe["matched"] == 12
    notes = file(store, "law-experts", "notes.json")
    assert isinstance(notes, list) and any("needs" in n and "95% interval" in n for n in notes)


def test_a_mixture_s_sources_are_compared_with_models_of_their_own(store: RunStore) -> None:
    found = file(store, "law-interference", "mixed.json")
    assert isinstance(found, dict) and set(found["alone"]) == {"one", "two"}
    gaps = found["interference"]
    assert {g["source"] for g in gaps} == {"one", "two"} and {g["share"] for g in gaps} == {0.5}
    for gap in gaps:
        assert gap["gap"] == pytest.approx(gap["loss"] / gap["alone"] - 1)


def test_the_folder_is_a_table_of_its_rungs(tiny_ladder: Path) -> None:
    table = read_table(tiny_ladder)
    assert len(table["loss"]) == 48 and {"N", "D", "C", "variant", "run"} <= set(table)
    assert np.all(table["D"] <= 27_000)  # the held-out run is left out


def test_budgets_in_flops_give_equal_compute_at_every_width() -> None:
    content = LADDER | {"variants": {}, "laws": []}
    content["ladder"] = {k: v for k, v in LADDER["ladder"].items() if k not in ("budgets", "held_out")}
    content["ladder"] |= {"isoflop": [2e9, 4e9], "extra_seeds": {}, "warmup_steps": 2}
    steps = [s for s in expand(load(content)) if s.method == "cooldown"]
    assert len(steps) == 6
    for step in steps:
        cfg = ModelConfig(**step.spec["model"])
        spent = step.spec["last_step"] * train_flops(cfg, 32, 8).total
        assert min(abs(spent / budget - 1) for budget in (2e9, 4e9)) < 0.05


def test_how_runs_are_carried_out_is_the_recipe_s_word_and_no_part_of_their_ids() -> None:
    from flopwise.launch.scheduler import step_ids

    plain = expand(load(LADDER))
    first = next(s for s in plain if s.kind == "pretrain")
    assert first.spec["train"]["device"] == first.spec["train"]["precision"] == "auto" and first.gang
    several = expand(load(LADDER | {"train": {"processes": 2, "parallel": "fsdp"}}))
    assert step_ids(several) == step_ids(plain)
    assert not any(s.gang for s in several)
    assert not any(s.gang for s in expand(load(LADDER | {"train": {"ensemble": "off"}})))


def test_separate_runs_cost_what_branching_saves() -> None:
    content = LADDER | {"variants": {"branched": {}, "separate": {"branched": False}}, "laws": []}
    content["ladder"] = LADDER["ladder"] | {"held_out": None}
    steps = [s for s in expand(load(content)) if s.kind == "pretrain"]
    cost = {v: sum(s.flops for s in steps if s.spec["variant"] == v) for v in ("branched", "separate")}
    tokens = sum(LADDER["ladder"]["budgets"])
    assert cost["branched"] < 0.66 * cost["separate"]
    one = [s for s in steps if s.spec["variant"] == "separate" and s.spec["model"]["d_model"] == 8]
    per_token = train_flops(ModelConfig(**one[0].spec["model"]), 32).total / 32
    assert sum(s.flops for s in one if s.seed == 0) == pytest.approx(tokens * per_token, rel=0.02)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"laws": [{"name": "a", "variants": ["nobody"]}]}, "names variant 'nobody'"),
        ({"laws": [{"name": "a", "method": "factor"}]}, "against names the variant"),
        ({"variants": {"a": {"widths": [8, 9]}}}, "width 9 is not a multiple of 8"),
        ({"variants": {"a": {"isoflop": [1e99]}}}, "at most 2,147,483,647 can be made"),
        ({"variants": {"a": {"batchsize": 3}}}, "did you mean 'batch_size'"),
        ({"variants": {"a": {"mixture": {"nothing": 1}}}}, "ladder.mixture names 'nothing'"),
        ({"variants": {"a": {"model": {"balance": "luck"}}}}, "balance"),
        ({"variants": {"a": {"model": {"shared_experts": 3}}}}, "expansion is 1: a dense model"),
        ({"variants": {"a": {"mixture": {"one": -1}}}}, "mixture.one is '-1'"),
        ({"variants": {"a": {"rules": {"rate": "guess"}}}}, "guess"),
        ({"data": {"sources": [{"corpus": "no-such"}]}}, "no-such"),
        ({"data": {"sources": [{}]}}, "give either corpus"),
    ],
)
def test_a_mistake_in_a_recipe_is_one_line(changes: dict[str, object], says: str) -> None:
    content = LADDER | {"laws": [], "variants": {}} | changes
    content["ladder"] = LADDER["ladder"] | {"held_out": None}
    with pytest.raises(FlopwiseError) as e:
        recipe = load(content)
        assert isinstance(recipe, LadderRecipe)
        expand(recipe)
    assert says in str(e.value) and "\n" not in str(e.value)


def test_shipped_ladders_can_be_laid_out() -> None:
    from flopwise.launch.recipe import SHIPPED

    names = sorted(p.stem for p in SHIPPED.glob("pretraining-*.yaml"))
    assert "pretraining-text" in names and len(names) >= 12
    for name in names:
        steps = expand(load(name))
        minutes = sum(s.seconds for s in steps) / 2 / 60
        assert minutes < 60, (name, minutes)  # estimated, on two cores
