"""Pairs and thumbs from a model's own answers: who comes first, how noisy, what it cost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flopwise.data.prepared import PreparedData
from flopwise.errors import FlopwiseError
from flopwise.flops.spend import Spend
from flopwise.posttrain import pairs
from flopwise.posttrain.pairs import pair_up
from flopwise.posttrain.settings import METHODS
from flopwise.records.folder import RunFolder
from flopwise.records.store import RunStore

Make = Callable[..., RunFolder]


@pytest.fixture(scope="module")
def store(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    """The shortened demo's runs by links, with room for more."""
    root = tmp_path_factory.mktemp("runs")
    for run in tiny_run.iterdir():
        if run.is_dir():
            (root / run.name).symlink_to(run)
    return RunStore(root)


@pytest.fixture(scope="module")
def make(store: RunStore) -> Make:
    """make(method, **settings): a finished run on the fine-tuned model, made once."""

    def made(method: str, parents: dict[str, str] | None = None, **settings: Any) -> RunFolder:
        spec = METHODS[method].section.model_validate({"problems": 150, "n": 8, "max_tokens": 24, **settings})
        roles = {"data": store.folder("data").id, "init": store.folder("sft").id, **(parents or {})}
        run = store.prepare("synthesize", method, spec.spec(), roles, 1, f"{method}-{len(settings)}")
        if not run.done:
            step = pairs.pairs_step if method == "pairs" else pairs.thumbs_step
            step(run, {role: store.folder(i) for role, i in roles.items()}, lambda _: None)
        return run

    return made


def rows(run: RunFolder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.path / f"{run.method}.jsonl").read_text().splitlines()]


def test_a_pair_has_a_right_answer_before_a_wrong_one(make: Make, data: PreparedData) -> None:
    run = make("pairs")
    pool, task = data.problems("rl"), data.open_task()
    found = rows(run)
    assert found and len(found) == run.record().metrics["kept"].value
    for row in found:
        assert set(row) == {"prompt", "chosen", "rejected", "problem", "chosen_cut", "rejected_cut"}
        assert not row["chosen_cut"]
        problem = pool[row["problem"]]
        assert problem.prompt == row["prompt"]
        assert task.verify(problem, row["chosen"]) and not task.verify(problem, row["rejected"])
    counts = np.bincount([row["problem"] for row in found])
    assert counts.max() <= run.spec["per_problem"]
    assert run.record().metrics["label_accuracy"].value == 1.0
    used = [(row["problem"], row[side]) for row in found for side in ("chosen", "rejected")]
    assert len(used) == len(set(used))  # no answer is in two pairs


def test_sampling_is_what_pairs_cost(make: Make, store: RunStore) -> None:
    record = make("pairs").record()
    (row,) = record.spend.by
    assert (row["kind"], row["model"]) == ("sample", store.folder("sft").id)
    assert record.spend.generate_flops == row["flops"] > 0 and record.spend.train_flops == 0
    assert record.lineage_spend.train_flops == store.get("sft").lineage_spend.train_flops


def test_flip_turns_a_share_of_the_pairs_over(make: Make) -> None:
    run = make("pairs", flip=0.3)
    straight, turned = rows(make("pairs")), rows(run)
    assert len(straight) == len(turned)
    accuracy = run.record().metrics["label_accuracy"]
    assert accuracy.value is not None and accuracy.se is not None
    assert abs(accuracy.value - 0.7) < 4 * (0.21 / len(turned)) ** 0.5


def test_thumbs_say_what_the_verifier_says(make: Make, data: PreparedData) -> None:
    run = make("thumbs")
    pool, task, found = data.problems("rl"), data.open_task(), rows(run)
    assert all(set(row) == {"prompt", "completion", "label", "problem", "cut"} for row in found)
    assert all(task.verify(pool[row["problem"]], row["completion"]) == row["label"] for row in found)
    assert not any(row["label"] for row in found if row["cut"])
    distinct = {(row["problem"], row["completion"]) for row in found}
    assert len(distinct) == len(found)
    assert run.record().extra["up"] == sum(row["label"] for row in found) / len(found)


def test_noisy_thumbs_err_alike_when_asked_again(make: Make) -> None:
    run = make("thumbs", flip=0.25)
    accuracy = run.record().metrics["label_accuracy"]
    assert accuracy.value is not None and accuracy.n is not None
    assert abs(accuracy.value - 0.75) < 4 * (0.1875 / accuracy.n) ** 0.5
    again = make("thumbs", flip=0.25, first_problem=0, temperature=1.0)
    assert rows(again) == rows(run)


def test_a_reward_model_orders_answers_and_its_passes_are_counted(make: Make, store: RunStore) -> None:
    run = make("pairs", {"reward": store.folder("reward").id}, by="reward", per_problem=1)
    record = run.record()
    by = {row["kind"]: row for row in record.spend.by}
    assert by["reward"]["model"] == store.folder("reward").id
    assert record.spend.score_flops == by["reward"]["flops"] > 0
    # Every problem with two different answers makes a pair, right or wrong ones.
    assert len(rows(run)) > len({row["problem"] for row in rows(make("pairs"))})
    assert record.metrics["label_accuracy"].n < len(rows(run))


@pytest.mark.parametrize("method", ["pairs", "thumbs"])
def test_a_judge_that_never_errs_says_what_the_verifier_says(
    make: Make, store: RunStore, method: str
) -> None:
    spec = METHODS["judge"].section().spec()
    judge = store.prepare("reward", "judge", spec, {"init": store.folder("sft").id}, 0, "judge")
    judge.finish(metrics={}, spend=Spend())
    run = make(method, {"judge": judge.id}, by="judge")
    assert run.record().metrics["label_accuracy"].value == 1.0
    assert "judge" in {row["kind"] for row in run.record().spend.by}


def test_nothing_to_tell_apart_is_said(make: Make, store: RunStore) -> None:
    with pytest.raises(FlopwiseError, match="a better and a worse answer"):
        make("pairs", problems=1, n=1)
    with pytest.raises(FlopwiseError, match=r"point up|point down"):
        make("thumbs", threshold=2.0)


def test_best_goes_with_worst_while_they_differ() -> None:
    rng = np.random.default_rng(0)
    assert pair_up(np.array([0.5, 0.1, 0.9, 0.3]), 5, rng) == [(2, 1), (0, 3)]
    assert pair_up(np.array([1.0, 1.0, 1.0]), 5, rng) == []
    better = {pair_up(np.array([1.0, 0.0, 1.0, 1.0]), 1, np.random.default_rng(i))[0] for i in range(40)}
    assert better == {(0, 1), (2, 1), (3, 1)}  # ties in random order
