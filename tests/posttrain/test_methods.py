"""What the methods leave in the shortened demo: verified samples, matched controls, honest ledgers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flopwise.data.prepare import PreparedData
from flopwise.data.tasks.countdown import Problem, verify
from flopwise.errors import FlopwiseError
from flopwise.models import hf
from flopwise.posttrain.bench import steps_for_flops
from flopwise.posttrain.examples import Example, collate
from flopwise.posttrain.rejection import best_role, read_samples
from flopwise.records.folder import RunFolder
from flopwise.records.store import RunStore


@pytest.fixture(scope="module")
def store(tiny_run: Path) -> RunStore:
    return RunStore(tiny_run)


@pytest.mark.parametrize("name", ["rejection-1-samples", "rejection-2-samples", "teacher-samples"])
def test_kept_samples_are_right_distinct_few_and_from_training_problems(
    store: RunStore, data: PreparedData, name: str
) -> None:
    folder = store.folder(name)
    pairs = read_samples(folder)
    assert 0 < len(pairs) == len(set(pairs)) == folder.record().metrics["kept"].value
    prompts = [p for p, _ in pairs]
    assert all(verify(Problem.parse(p), c) for p, c in pairs)
    assert max(map(prompts.count, prompts)) <= folder.spec["keep_per_problem"]
    assert set(prompts) <= {p.prompt for p in data.problems("rl")}
    spend = folder.record().spend
    assert spend.generate_flops > 0 and spend.train_flops == spend.score_flops == 0


def test_rounds_of_rejection_sample_different_problems(store: RunStore) -> None:
    first, second = (store.folder(f"rejection-{i}-samples").spec["first_problem"] for i in (1, 2))
    assert second - first == store.folder("rejection-1-samples").spec["problems"]


@pytest.mark.parametrize("name", ["control-rejection", "control-grpo", "control-distill"])
def test_a_control_spends_what_it_is_matched_with_within_a_step(store: RunStore, name: str) -> None:
    control = store.get(name)
    target = sum(store.get(run).spend.total_flops for run in control.references.values())
    per_step = control.spend.train_flops / control.extra["steps"]
    assert abs(control.spend.total_flops - target) <= per_step
    assert control.lineage_spend.generate_flops == 0  # it does not descend from what it is matched with


def test_a_control_that_cannot_take_a_step_says_so(store: RunStore) -> None:
    model = hf.load(store.folder("sft").path / "model")
    batch = collate([Example((5, 6), (7, 2))], 1)
    with pytest.raises(FlopwiseError, match="less than one step"):
        steps_for_flops(model, 1.0, [batch])


def test_ledgers_tell_training_sampling_and_scoring_apart(store: RunStore) -> None:
    sft, grpo, reward = (store.get(n).spend for n in ("sft", "grpo", "reward"))
    assert sft.train_flops > 0 and sft.generate_flops == 0
    assert grpo.train_flops > 0 and grpo.generate_flops > 0
    assert reward.generate_flops > 0
    sample = store.get("sample-grpo").spend
    assert sample.train_flops == 0 and sample.generate_flops > 0 and sample.score_flops > 0


def test_curves_carry_what_had_been_spent(store: RunStore) -> None:
    rows = store.folder("sft").curve("val_accuracy")
    spent = [row["train_flops"] for row in rows]
    assert len(rows) == 2 and spent == sorted(spent) and spent[-1] == store.get("sft").spend.train_flops


def test_the_teacher_is_the_candidate_that_validates_best(store: RunStore) -> None:
    roles = store.folder("teacher-samples").roles
    parents: dict[str, RunFolder] = {role: store.folder(run) for role, run in roles.items()}
    accuracy = {r: f.record().metrics["val_accuracy"].value or 0.0 for r, f in parents.items() if r != "data"}
    assert set(accuracy) == {"init", "candidate"}
    assert accuracy[best_role(parents)] == max(accuracy.values())
    assert store.get("teacher-samples").extra["sampled_from"] == parents[best_role(parents)].id


def test_shown_examples_hold_their_steps(store: RunStore) -> None:
    examples = json.loads((store.folder("sample-grpo").path / "examples.json").read_text())
    assert len(examples) == 2 and all(
        {"prompt", "completion", "correct", "steps"} <= set(e) for e in examples
    )
