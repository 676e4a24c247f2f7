"""Steps of a gang run together: who goes with whom, and each one's end is its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_scheduler import Seen, go, toy

from flopwise.launch.scheduler import run_steps
from flopwise.launch.steps import Step
from flopwise.records.store import RunStore


def member(name: str, gang: str = "g", size: str | None = None, **rest: Any) -> Step:
    return toy(name, gang=gang, run_group="toy_steps:group", group_size=size, **rest)


def together(root: Path) -> dict[str, str]:
    """Who was with whom, by run; runs that were alone are not in it."""
    store = RunStore(root)
    folders = [store.folder(r.name or "") for r in store.records()]
    return {str(f.name): (f.path / "together").read_text() for f in folders if (f.path / "together").exists()}


@pytest.mark.parametrize("workers", [0, 1])
def test_what_is_ready_together_runs_together(tmp_path: Path, workers: int) -> None:
    steps = [
        toy("data"), *(member(n, parents={"data": "data"}) for n in "abc"),
        member("x", "other"), toy("plain"), member("d", parents={"init": "b"}),
    ]  # fmt: skip
    summary, seen = go(steps, tmp_path, workers)
    assert not summary.failed and sorted(summary.done) == sorted(s.name for s in steps)
    # "b" goes first because "d" waits for it.
    assert together(tmp_path) == {n: "b+a+c" for n in "abc"}
    assert sorted(seen.of("started")) == sorted(seen.of("finished")) == sorted(s.name for s in steps)
    assert {"a", "b", "c"} <= set(seen.of("progress"))
    record = RunStore(tmp_path).get("d")
    assert record.lineage_spend.train_flops == 3.0 and record.status == "done"


def test_a_group_is_as_large_as_its_steps_say(tmp_path: Path) -> None:
    summary, seen = go([member(n, size="toy_steps:three") for n in "abcdefg"], tmp_path)
    assert sorted(summary.done) == list("abcdefg")
    sizes = sorted(group.count("+") + 1 for group in together(tmp_path).values())
    assert sizes == [2, 2, 2, 2, 3, 3, 3]  # the worker keeps three of seven, then four are halved
    assert sorted(seen.of("started")) == list("abcdefg")


def test_a_size_that_cannot_be_told_is_one(tmp_path: Path) -> None:
    summary, seen = go([member(n, size="toy_steps:absent") for n in "ab"], tmp_path)
    assert sorted(summary.done) == ["a", "b"] and together(tmp_path) == {}
    assert "how many to run together is not known" in next(t for e, *t in seen.events if e == "note")[1]


def test_two_idle_workers_share_a_gang(tmp_path: Path) -> None:
    summary, _ = go([member(n) for n in "abcd"], tmp_path, workers=2)
    assert sorted(summary.done) == list("abcd")
    assert together(tmp_path) == {"a": "a+b", "b": "a+b", "c": "c+d", "d": "c+d"}


def test_finished_members_are_left_out_and_twins_wait(tmp_path: Path) -> None:
    go([member("a")], tmp_path)
    twins = [member("b", spec={"name": "same"}), member("c", spec={"name": "same"})]
    summary, _ = go([member("a"), *twins, member("d")], tmp_path)
    assert sorted(summary.cached) == ["a", "c"] and sorted(summary.done) == ["b", "d"]
    assert set(together(tmp_path).values()) == {"same+d"}


@pytest.mark.parametrize("ends", ["left", "damaged", "raises"])
def test_what_a_group_leaves_is_run_alone(tmp_path: Path, ends: str) -> None:
    summary, seen = go([member("a"), member("b", spec={"ends": ends}), member("c")], tmp_path)
    assert sorted(summary.done) == ["a", "b", "c"] and not summary.failed
    notes = [text for event, *text in seen.events if event == "note"]
    assert len(notes) == (ends == "raises") and all("a defect of the group" in n[1] for n in notes)
    assert sorted(seen.of("finished")) == ["a", "b", "c"]


def test_a_member_fails_alone(tmp_path: Path) -> None:
    steps = [member("a"), member("b", spec={"ends": "fails"}), toy("child", parents={"init": "b"})]
    summary, _ = go(steps, tmp_path)
    assert summary.done == ["a"]
    assert summary.failed == {
        "b": "loss is nan at step 3",
        "child": "left out, because b failed",
    }
    record = RunStore(tmp_path).get("b")
    assert (record.status, record.reason) == ("failed", "loss is nan at step 3")


def test_a_group_whose_process_dies_goes_on_one_by_one(tmp_path: Path) -> None:
    steps = [member("a"), member("b", spec={"ends": "killed"}), member("c")]
    display = Seen()
    summary = run_steps(steps, RunStore(tmp_path), display, workers=1)
    assert sorted(summary.done) == ["a", "b", "c"] and not summary.failed
    assert sorted(display.of("finished")) == ["a", "b", "c"]
