"""The ladder: pieces of trunk that add up, branches where they belong, a prediction made before the run."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import pytest

from flopwise.errors import FlopwiseError
from flopwise.flops.count import train_flops
from flopwise.launch.ladder_sections import HeldOut, LadderSection
from flopwise.launch.steps import Step
from flopwise.models.config import ModelConfig
from flopwise.pretrain.ladder import Plan, branch_name, ladder_steps
from flopwise.records.store import RunStore

BUDGETS = [750_000, 1_500_000, 3_000_000]
LADDER = LadderSection(widths=[32, 48], budgets=BUDGETS, held_out=HeldOut(width=64, tokens=3_000_000))
"""16 sequences of 128 tokens a step, 40 steps of warm-up, the last fifth cools down."""


def rungs(budgets: list[int] = BUDGETS) -> list[Step]:
    plan = Plan(LADDER, 512, {"text": 0.75, "task": 0.25})
    return ladder_steps(plan, 32, budgets, 0, seconds=lambda cfg, tokens: tokens / 1e6)


def test_pieces_of_trunk_join_and_each_branch_leaves_from_its_piece() -> None:
    steps = {s.name: s for s in rungs()}
    trunks = [s for s in steps.values() if s.method == "trunk"]
    branches = [s for s in steps.values() if s.method == "cooldown"]
    assert len(trunks) == len(branches) == 3
    at = 0
    for trunk, branch, budget in zip(trunks, branches, BUDGETS, strict=True):
        assert trunk.spec["first_step"] == at
        at = trunk.spec["last_step"]
        assert (
            branch.parents["init"] == trunk.name
            and branch.spec["first_step"] == branch.spec["decay_from"] == at
        )
        assert branch.spec["last_step"] == round(budget / (16 * 128))
        share = (branch.spec["last_step"] - at) / branch.spec["last_step"]
        assert share == pytest.approx(0.2, abs=0.01)
        assert branch.name == branch_name(32, budget, 0)
    assert "init" not in trunks[0].parents and trunks[2].parents["init"] == trunks[1].name


def test_a_branch_and_its_trunk_cost_what_a_run_of_that_length_would() -> None:
    steps = rungs()
    per_step = train_flops(ModelConfig.from_width(32, 2, 512, 128), 128, 16).total
    for i, budget in enumerate(BUDGETS, 1):
        trunk = [s for s in steps if s.method == "trunk"][:i]
        branch = next(s for s in steps if s.name == branch_name(32, budget, 0))
        assert sum(s.flops for s in trunk) + branch.flops == pytest.approx(per_step * round(budget / 2048))


def test_budgets_too_short_to_branch_are_refused() -> None:
    with pytest.raises(FlopwiseError, match="too short to branch after step 40"):
        rungs([2048 * 30, 3_000_000])
    with pytest.raises(FlopwiseError, match="too short to branch after step"):
        rungs([1_000_000, 1_000_100])


def test_names_tell_any_two_budgets_apart() -> None:
    names = {
        branch_name(8, budget, 0) for budget in (10_000, 12_000, 750_000, 800_000, 1_000_000, 10_000_000)
    }
    assert len(names) == 6
    assert branch_name(64, 3_000_000, 1000) == "w64-3.0M-s1000"


@pytest.fixture(scope="module")
def store(tiny_run: Path) -> RunStore:
    return RunStore(tiny_run)


def test_a_branch_s_lineage_is_its_whole_training(store: RunStore) -> None:
    for record in store.records():
        if record.kind == "pretrain" and record.method == "cooldown":
            spec = store.folder(record.id).spec
            cfg = ModelConfig(**spec["model"])
            whole = spec["last_step"] * train_flops(cfg, spec["seq_len"], spec["batch_size"]).total
            assert record.lineage_spend.train_flops == pytest.approx(whole, rel=1e-9)
            assert record.lineage_spend.tokens == spec["last_step"] * spec["seq_len"] * spec["batch_size"]
            assert record.data is not None and record.data["tokens_seen"] == record.lineage_spend.tokens


def test_more_tokens_and_more_parameters_lower_the_loss(store: RunStore) -> None:
    loss = {r.name: r.metrics["loss"].value for r in store.records() if "loss" in r.metrics}
    for width in (16, 32, 48):
        short, middle, long = (loss[f"w{width}-{m}M-s0"] for m in ("0.01", "0.02", "0.04"))
        assert short > middle > long  # type: ignore[operator]
    assert loss["w16-0.04M-s0"] > loss["w48-0.04M-s0"]  # type: ignore[operator]


def test_the_prediction_is_written_before_the_held_out_run_starts(store: RunStore) -> None:
    law = store.folder("law")
    prediction = json.loads((law.path / "prediction.json").read_text())
    held = [r for r in store.records() if r.kind == "pretrain" and r.extra["held_out"]]
    assert {r.model["architecture"]["d_model"] for r in held if r.model} == {prediction["width"]} == {64}
    started = min((store.root / r.id / "spec.yaml").stat().st_mtime for r in held)
    assert prediction["made_at"] <= started
    assert max(datetime.fromisoformat(r.created) for r in [law.record()] if r.created) <= min(
        datetime.fromisoformat(r.created) for r in held if r.created
    )
    assert not {r.id for r in held} & set(law.references.values())


def test_what_a_branch_leaves_loads_as_a_model_and_no_state_stays(store: RunStore) -> None:
    from flopwise.models import hf

    branch = store.folder("w32-0.02M-s0")
    model = hf.load(branch.path / "model")
    assert model.cfg.d_model == 32 and not (branch.path / "state.safetensors").exists()
    assert (store.folder("trunk-w32-s0-1").path / "state.safetensors").exists()
