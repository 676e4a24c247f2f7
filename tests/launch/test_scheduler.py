"""The scheduler on toy steps: order, failures, deaths, damage, locks."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from flopwise.errors import FlopwiseError
from flopwise.launch import scheduler
from flopwise.launch.scheduler import finished, run_steps, step_ids
from flopwise.launch.steps import Step
from flopwise.records.store import RunStore


class Seen:
    """A display that remembers."""

    def __init__(self) -> None:
        self.events: list[tuple[str, ...]] = []

    def __getattr__(self, event: str) -> Any:
        return lambda *values: self.events.append((event, *map(str, values)))

    def of(self, event: str) -> list[str]:
        return [values[0] for e, *values in self.events if e == event]


def toy(name: str, function: str = "good", parents: dict[str, str] | None = None, **rest: Any) -> Step:
    spec = {"name": name, **rest.pop("spec", {})}
    return Step(name, "toy", "toy", f"toy_steps:{function}", spec=spec, parents=parents or {}, **rest)


def go(steps: list[Step], root: Path, workers: int = 0) -> tuple[scheduler.Summary, Seen]:
    seen = Seen()
    return run_steps(steps, RunStore(root), seen, workers=workers), seen


CHAIN = [toy("a"), toy("b", parents={"init": "a"}), toy("c", parents={"init": "b", "data": "a"})]


def test_runs_parents_first_and_nothing_twice(tmp_path: Path) -> None:
    summary, seen = go(CHAIN, tmp_path)
    assert summary.done == seen.of("started") == ["a", "b", "c"]
    store = RunStore(tmp_path)
    assert store.get("c").metrics["value"].value == 4.0
    assert store.get("c").lineage_spend.train_flops == 3.0  # a is an ancestor twice and counted once
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file() and p.name != ".lock"}
    summary, seen = go(CHAIN, tmp_path)
    assert (summary.done, summary.cached, seen.of("started")) == ([], ["a", "b", "c"], [])
    assert before == {p: p.stat().st_mtime_ns for p in before}
    assert finished(CHAIN, store) == {"a", "b", "c"}


def test_the_longest_way_to_the_end_goes_first(tmp_path: Path) -> None:
    steps = [
        toy("short", seconds=5),
        toy("first", seconds=1),
        toy("long", parents={"init": "first"}, seconds=9),
    ]
    _, seen = go(steps, tmp_path)
    assert seen.of("started") == ["first", "long", "short"]


def test_a_failure_takes_its_descendants_alone_and_is_tried_again(tmp_path: Path) -> None:
    allow = tmp_path / "allow"
    steps = [
        toy("bad", "refused", spec={"allow": str(allow)}), toy("child", parents={"init": "bad"}),
        toy("grandchild", parents={"init": "child"}), toy("defect", "defect"), toy("other"),
    ]  # fmt: skip
    summary, seen = go(steps, tmp_path / "runs")
    assert summary.done == ["other"]
    assert summary.failed == {
        "bad": "loss is nan at step 3; lower the learning rate or check the data",
        "child": "left out, because bad failed", "grandchild": "left out, because child failed",
        "defect": "ValueError: first line ?[31m[red] second line",
    }  # fmt: skip
    assert seen.of("left_out") == ["child", "grandchild"]
    record = RunStore(tmp_path / "runs").get("bad")
    assert (record.status, record.reason) == ("failed", summary.failed["bad"])
    allow.touch()
    summary, _ = go(steps, tmp_path / "runs")
    assert (summary.done, summary.cached) == (["bad", "child", "grandchild"], ["other"])
    assert RunStore(tmp_path / "runs").get("bad").reason is None


def test_two_names_of_one_run_run_once(tmp_path: Path) -> None:
    steps = [
        toy("one", spec={"name": ""}),
        toy("two", spec={"name": ""}),
        toy("end", parents={"a": "one", "b": "two"}),
    ]
    summary, _ = go(steps, tmp_path)
    assert sorted(summary.done + summary.cached) == ["end", "one", "two"]
    assert summary.cached == ["two"] and summary.ids["one"] == summary.ids["two"]


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([toy("a"), toy("a")], "two are named 'a'"),
        ([toy("b", parents={"init": "a"}), toy("a")], "step b needs 'a', which does not come before it"),
    ],
)
def test_what_is_no_graph_is_refused(steps: list[Step], message: str, tmp_path: Path) -> None:
    with pytest.raises(FlopwiseError, match=message):
        go(steps, tmp_path)


def test_ids_depend_on_specs_and_ancestors_alone() -> None:
    code = (
        "from flopwise.launch.expand import expand; from flopwise.launch.recipe import load\n"
        "from flopwise.launch.scheduler import step_ids; print(step_ids(expand(load('demo'))))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1
    changed = [toy("a", spec={"x": 1}), *CHAIN[1:]]
    assert not set(step_ids(changed).values()) & set(step_ids(CHAIN).values())


def test_a_deleted_parent_is_made_again_and_its_child_stays(tmp_path: Path) -> None:
    first, _ = go(CHAIN, tmp_path)
    child = RunStore(tmp_path).get("b")
    shutil.rmtree(tmp_path / first.ids["a"])
    assert {r.name for r in RunStore(tmp_path).records()} == {"b", "c"}
    second, _ = go(CHAIN, tmp_path)
    assert (second.done, second.cached, second.ids) == (["a"], ["b", "c"], first.ids)
    assert RunStore(tmp_path).get("b") == child


@pytest.mark.parametrize("damage", ["", "{", '{"id": "../x", "kind": "toy"}', "\x00\xff"])
def test_a_damaged_record_is_made_anew(damage: str, tmp_path: Path) -> None:
    ids = go(CHAIN, tmp_path)[0].ids
    (tmp_path / ids["b"] / "run.json").write_text(damage)
    store = RunStore(tmp_path)
    assert {r.name for r in store.records()} == {"a", "c"}
    assert len(store.problems) == 1 and "\n" not in store.problems[0]
    assert go(CHAIN, tmp_path)[0].done == ["b"]


@pytest.mark.parametrize(
    "damage", ["", "kind: [", "kind: toy\nmethod: toy\nseed: 0\nspec: {name: z}\nparents: {}\n"]
)
def test_a_damaged_or_edited_spec_is_written_anew(damage: str, tmp_path: Path) -> None:
    ids = go(CHAIN[:1], tmp_path)[0].ids
    spec = tmp_path / ids["a"] / "spec.yaml"
    whole = spec.read_text()
    spec.write_text(damage)
    (spec.parent / "run.json").unlink()
    assert go(CHAIN, tmp_path)[0].done == ["a", "b", "c"]
    assert spec.read_text() == whole


def test_what_a_kill_left_half_written_is_swept(tmp_path: Path) -> None:
    folder = RunStore(tmp_path).prepare("toy", "toy", {"name": "a"}, {}, 0, "a")
    (folder.path / "model").mkdir()
    left = [folder.path / ".run.json.77.tmp", folder.path / "model" / ".model.safetensors.77.tmp"]
    for path in left:
        path.write_bytes(b"half")
    folder.log(step=1, value=9.0)
    with open(folder.path / "metrics.jsonl", "a") as f:
        f.write('{"step": 2, "va')
    go(CHAIN, tmp_path)
    assert not any(path.exists() for path in left)


def test_its_own_damaged_state_is_set_aside_with_a_note(tmp_path: Path) -> None:
    step = toy("r", "resumes")
    folder = RunStore(tmp_path).prepare("toy", "toy", step.spec, {}, 0, "r")
    (folder.path / "state.safetensors").write_bytes(b"garbage")
    summary, seen = go([step], tmp_path)
    assert summary.done == ["r"]
    assert (folder.path / "state.safetensors.damaged").read_bytes() == b"garbage"
    notes = [text for event, *text in seen.events if event == "note"]
    assert len(notes) == 1 and "set aside" in notes[0][1]


def test_damage_in_a_finished_parent_names_the_folder_to_delete(tmp_path: Path) -> None:
    steps = [toy("a"), toy("b", "needs_model", parents={"init": "a"}), toy("c")]
    summary, _ = go(steps, tmp_path)
    assert summary.failed["b"].endswith(f"; delete {tmp_path / summary.ids['a']} and start again")
    assert sorted(summary.done) == ["a", "c"]


def test_a_full_disk_fails_the_step_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    summary, _ = go([toy("a"), toy("f", "full"), toy("b", parents={"init": "a"})], tmp_path)
    assert "No space left on device" in summary.failed["f"]
    assert summary.failed["f"].endswith("free some space and start again, nothing finished is lost")
    assert summary.done == ["a", "b"]

    def no_space(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("flopwise.records.store.atomic_write", no_space)  # not even a folder can be made
    with pytest.raises(OSError, match="No space left"):
        go([toy("a"), toy("new")], tmp_path)
    monkeypatch.undo()
    assert go([toy("a"), toy("new")], tmp_path)[0].cached == ["a"]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flopwise.records.folder import atomic_write

    path = tmp_path / "file"
    atomic_write(path, "old")

    def no_space(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space left"):
        atomic_write(path, "new and longer")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file"]


def test_one_scheduler_per_folder(tmp_path: Path) -> None:
    with (
        scheduler._Lock(tmp_path),
        pytest.raises(FlopwiseError, match=rf"process {os.getpid()}\) is running"),
    ):
        go(CHAIN, tmp_path)
    assert len(go(CHAIN, tmp_path)[0].done) == 3


def test_deaths_cost_a_retry_and_then_the_step_alone(tmp_path: Path) -> None:
    steps = [
        toy("once", "dies", spec={"times": 1}), toy("child", parents={"init": "once"}),
        toy("always", "dies", spec={"times": 9}), toy("orphan", parents={"init": "always"}), toy("other"),
    ]  # fmt: skip
    summary, _ = go(steps, tmp_path, workers=2)
    assert sorted(summary.done) == ["child", "once", "other"]
    assert "died twice (exit code -9)" in summary.failed["always"]
    assert summary.failed["orphan"] == "left out, because always failed"


def test_an_idle_worker_that_died_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between a's end and b's start the only worker is killed."""
    display = Seen()
    workers: list[Any] = []

    class Watched(scheduler._Worker):
        def __init__(self, threads: int):
            super().__init__(threads)
            workers.append(self)

    def finished_then_killed(*_: object) -> None:
        if len(workers) == 1:
            workers[0].process.kill()
            workers[0].process.join()

    monkeypatch.setattr(scheduler, "_Worker", Watched)
    display.finished = finished_then_killed
    summary = run_steps(CHAIN[:2], RunStore(tmp_path), display, workers=1)
    assert summary.done == ["a", "b"] and len(workers) == 2


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return (
        Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[-1][0] != "Z"
        if Path("/proc").exists()
        else True
    )


def test_workers_die_with_their_parent(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path[:0] = sys.argv[2:]\n"
        "from test_scheduler import Seen, toy; from flopwise.launch.scheduler import run_steps\n"
        "from flopwise.records.store import RunStore\n"
        "run_steps([toy('w', 'waits')], RunStore(sys.argv[1]), Seen(), workers=1)"
    )
    here = str(Path(__file__).parent)
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path), here], start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while not (found := list(tmp_path.glob("*/pid"))) or not found[0].read_text():
            assert parent.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        worker = int(found[0].read_text())
        assert alive(worker)
    finally:
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
    while alive(worker):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert not list(tmp_path.glob("*/run.json"))
