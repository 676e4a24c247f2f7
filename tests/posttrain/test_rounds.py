"""What short forms in a recipe stand for: rounds of rejection sampling, distillation by role, weak slices."""

from __future__ import annotations

from typing import Any

import pytest

from flopwise.launch.posttrain import expand_posttrain
from flopwise.launch.posttrain_recipe import PosttrainRecipe
from flopwise.launch.steps import Step
from flopwise.posttrain.settings.tuning import expand_rounds

SFT = {"method": "sft", "init": "base", "steps": 10}
RAFT = {"method": "rejection", "rounds": 2, "init": "sft", "problems": 50, "n": 4, "steps": 5}


def steps_of(**runs: dict[str, Any]) -> dict[str, Step]:
    recipe = PosttrainRecipe.model_validate(
        {
            "kind": "posttrain", "name": "x",
            "data": {"task": "countdown-rare", "slice_problems": 30, "corpora": ["stdlib"]},
            "bases": {"base": {"width": 16, "depth": 1, "tokens": 20_000}}, "seeds": [0, 1],
            "runs": {"sft": SFT, **runs},
        }
    )  # fmt: skip
    return {s.name: s for s in expand_posttrain(recipe)}


def test_rounds_are_the_steps_they_stand_for() -> None:
    steps = steps_of(raft=RAFT, control={"method": "sft", "init": "sft", "match": "raft"})
    first, again = steps["raft-1-samples-s1"], steps["raft-2-samples-s1"]
    assert first.method == again.method == "verified-samples"
    assert (first.spec["first_problem"], again.spec["first_problem"]) == (0, 50)
    assert first.parents["init"] == "sft-s1" and again.parents["init"] == "raft-1-s1"
    last = steps["raft-s1"]
    assert last.parents["init"] == "raft-1-s1" and last.parents["samples"] == "raft-2-samples-s1"
    assert last.spec["steps"] == 5 and "rounds" not in last.spec and "eval-raft-s1" in steps
    matched = {n for r, n in steps["control-s1"].references.items() if r.startswith("match")}
    assert matched == {f"{n}-s1" for n in ("raft-1-samples", "raft-1", "raft-2-samples", "raft")}


def test_rounds_of_best_of_n_score_with_a_reward_model() -> None:
    found = expand_rounds({"bond": {**RAFT, "by": "reward", "reward": "rm"}})
    assert found["bond-1-samples"] == {
        "method": "best-of-n", "init": "sft", "problems": 50, "n": 4, "by": "reward", "reward": "rm",
        "first_problem": 0,
    }  # fmt: skip
    assert found["bond"] == {"method": "rejection", "init": "bond-1", "steps": 5, "samples": "bond-2-samples"}


def test_one_round_and_runs_without_rounds_are_left_alone() -> None:
    assert list(expand_rounds({"raft": {**RAFT, "rounds": 1}})) == ["raft-1-samples", "raft"]
    assert expand_rounds({"sft": SFT}) == {"sft": SFT}


@pytest.mark.parametrize("rounds", [0, -1, 1.5, "2", True])
def test_rounds_that_are_no_number(rounds: Any) -> None:
    with pytest.raises(ValueError, match=r"rounds is .*must be a whole number"):
        expand_rounds({"raft": {**RAFT, "rounds": rounds}})


def test_rounds_make_their_own_samples() -> None:
    with pytest.raises(ValueError, match="make their own samples"):
        expand_rounds({"raft": {**RAFT, "samples": "made"}})


def test_what_a_teacher_spent_is_inherited() -> None:
    steps = steps_of(
        made={"method": "verified-samples", "init": "sft", "problems": 10},
        cache={"method": "teacher-logits", "teacher": "sft", "samples": "made"},
        student={"method": "distill-logits", "init": "base", "logits": "cache", "steps": 5},
        own={"method": "distill-on-policy", "init": "student", "teacher": "sft", "steps": 5},
    )
    assert steps["cache-s0"].parents == {"data": "data", "teacher": "sft-s0", "samples": "made-s0"}
    assert steps["student-s0"].parents["logits"] == "cache-s0"
    assert steps["own-s1"].parents["teacher"] == "sft-s1" and not steps["own-s1"].references
    assert "eval-cache-s0" not in steps and "eval-own-s0" in steps


def test_weak_slices_feed_synthetic_data() -> None:
    steps = steps_of(
        find={"method": "weak-slices", "init": "sft"},
        made={"method": "synthetic", "init": "sft", "weak": "find", "rows": 20},
        filled={"method": "sft-made", "init": "sft", "samples": "made", "steps": 5},
        gains={"method": "compare-slices", "before": "sft", "after": "filled"},
    )
    assert steps["data"].spec["slice_problems"] == 30
    assert steps["made-s0"].parents["weak"] == "find-s0"
    assert steps["gains-s1"].references == {"before": "sft-s1", "after": "filled-s1"}
    assert "eval-gains-s0" not in steps


def test_slices_are_named_or_searched_for() -> None:
    with pytest.raises(ValueError, match="leave one out"):
        steps_of(
            find={"method": "weak-slices", "init": "sft"},
            made={"method": "synthetic", "init": "sft", "weak": "find", "slices": ["rare"]},
        )
