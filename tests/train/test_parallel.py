"""Two processes learn what one does, a dead one ends all, and a run goes on with another number of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import team_steps  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from team_steps import PLAIN, STEPS, batch_at  # noqa: E402

from flopwise.errors import FlopwiseError  # noqa: E402
from flopwise.launch import torchrun  # noqa: E402
from flopwise.launch.worker import run_one  # noqa: E402
from flopwise.records.folder import RunFolder  # noqa: E402
from flopwise.records.store import RunStore  # noqa: E402
from flopwise.train.parallel import Share, Team, alone  # noqa: E402
from flopwise.train.settings import Settings  # noqa: E402
from flopwise.train.shards import Rows  # noqa: E402

HERE = Path(__file__).parent
EXPERTS = {"expansion": 4}
CASES: dict[str, dict[str, Any]] = {
    "ddp-muon": {"parallel": "ddp"},
    "ddp-adamw": {"parallel": "ddp", "rates": {"optimiser": "adamw"}},
    "fsdp-muon": {"parallel": "fsdp"},
    "fsdp-adamw": {"parallel": "fsdp", "rates": {"optimiser": "adamw"}},
    "fsdp-tied": {"parallel": "fsdp", "model": {"tie_embeddings": True}},
    "ddp-experts": {"parallel": "ddp", "model": EXPERTS, "rates": {"optimiser": "adamw"}},
    "fsdp-experts": {"parallel": "fsdp", "model": EXPERTS, "rates": {"optimiser": "adamw"}},
    "ep-adamw": {"parallel": "ep", "model": EXPERTS, "rates": {"optimiser": "adamw"}},
    "ep-muon": {"parallel": "ep", "model": EXPERTS},
    "ep-bias": {"parallel": "ep", "model": {**EXPERTS, "balance": "bias"}, "rates": {"optimiser": "adamw"}},
}


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Child processes find the steps of these tests."""
    monkeypatch.setenv("PYTHONPATH", str(HERE))


def step(root: Path, function: str, processes: int, **spec: Any) -> tuple[RunFolder, dict[str, Any]]:
    spec["train"] = {**PLAIN, "processes": processes, "parallel": spec.pop("parallel", "ddp")}
    folder = RunStore(root).prepare("pretrain", "test", spec)
    return folder, {"path": str(folder.path), "run": f"team_steps:{function}", "inputs": {}}


def go(root: Path, function: str, processes: int, **spec: Any) -> tuple[RunFolder, str | None]:
    folder, task = step(root, function, processes, **spec)
    return folder, run_one(task, lambda _: None, lambda _: None)


@pytest.mark.slow
def test_two_processes_learn_what_one_does(tmp_path: Path, importable: None) -> None:
    """Losses to 1e-5, and the whole state that they leave: every weight, momentum and second moment."""
    folders = []
    for processes in (1, 2):
        folder, reason = go(tmp_path / str(processes), "cases", processes, cases=CASES)
        assert reason is None
        folders.append(folder.path)
    one, two = (json.loads((f / "losses.json").read_text()) for f in folders)
    for name in CASES:
        assert len(one[name]) == STEPS + 1
        assert one[name] == pytest.approx(two[name], abs=1e-5, rel=0), name
        a, b = (load_file(f / name / "end.safetensors") for f in folders)
        assert a.keys() == b.keys()
        for key in a:
            if key.startswith("model."):
                torch.testing.assert_close(a[key], b[key], atol=2e-4, rtol=1e-3, msg=f"{name}: {key}")
            assert a[key].shape == b[key].shape


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_dead_process_ends_all_and_another_number_goes_on(
    tmp_path: Path, importable: None, parallel: str
) -> None:
    whole, reason = go(tmp_path / "whole", "trains", 1)
    assert reason is None
    broken, reason = go(tmp_path / "broken", "trains", 2, kill=[1, 7], parallel=parallel)
    assert reason is not None and "process 1 of 2 was ended by SIGKILL" in reason and "\n" not in reason
    assert not [p for p in broken.path.glob("pid-*") if alive(int(p.read_text()))]
    # One process reads what two have left.
    other, task = step(tmp_path / "other", "trains", 1)
    for name in ("state.safetensors", "metrics.jsonl"):
        (other.path / name).write_bytes((broken.path / name).read_bytes())
    assert run_one(task, lambda _: None, lambda _: None) is None
    for a, b in zip(whole.curve("loss"), other.curve("loss"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)
        assert (a["step"], a["tokens"], a["train_flops"]) == (b["step"], b["tokens"], b["train_flops"])
    ours, theirs = whole.record(), other.record()
    assert ours.metrics["loss"].value == pytest.approx(theirs.metrics["loss"].value, abs=1e-5)
    assert ours.spend.train_flops == theirs.spend.train_flops and ours.spend.generate_flops == STEPS


@pytest.mark.slow
def test_a_refusal_is_passed_on_and_progress_too(tmp_path: Path, importable: None) -> None:
    seen: list[float] = []
    folder, task = step(tmp_path, "trains", 2, fail=[0, 9], pause=0.1)
    with pytest.raises(FlopwiseError, match=r"^the data end here; make them longer$"):
        torchrun.run(task, 2, seen.append)
    assert seen == sorted(seen) and seen and 0 < seen[-1] < 1
    torchrun.run(task, 2, seen.append)
    record = folder.record()
    assert record.status == "done" and record.extra["training"]["processes"] == 2
    rows = folder.curve("loss")
    assert [r["step"] for r in rows] == list(range(1, STEPS + 1))  # one process writes, and nothing twice
    assert rows[-1]["tokens"] == STEPS * 5 * 20 == record.spend.tokens  # all rows, each counted once


@pytest.mark.slow
def test_the_end_of_the_parent_is_the_end_of_all(tmp_path: Path, importable: None) -> None:
    folder, task = step(tmp_path, "trains", 2, pause=60.0)
    code = f"from flopwise.launch.worker import run_one; run_one({task!r}, lambda _: None, lambda _: None)"
    parent = subprocess.Popen([sys.executable, "-c", code])
    pids = [folder.path / f"pid-{rank}" for rank in range(2)]
    until = time.monotonic() + 300
    while not all(p.exists() and p.read_text() for p in pids):
        assert time.monotonic() < until and parent.poll() is None
        time.sleep(0.1)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    until = time.monotonic() + 60
    while any(alive(int(p.read_text())) for p in pids):
        assert time.monotonic() < until
        time.sleep(0.1)


def alive(pid: int) -> bool:
    """Whether a process runs (one that has ended but was not waited for does not)."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_what_each_process_means_count_adds_up() -> None:
    batch = batch_at(1)
    shares = []
    for rank in range(2):
        team = Team(Settings(**PLAIN), rank, 2)
        mine, share = team.share(batch)
        assert torch.equal(mine.ids, batch.ids[rank::2]) and mine.generate_flops == batch.generate_flops
        assert mine.weights is not None and batch.weights is not None
        assert share.learned == pytest.approx(2 * float(mine.weights.sum() / batch.weights.sum()))
        shares.append(share)
    assert sum(s.learned for s in shares) == pytest.approx(2) and sum(s.tokens for s in shares) == 2
    assert alone().share(batch)[1] == Share()


def test_fewer_rows_than_processes_are_refused() -> None:
    with pytest.raises(FlopwiseError, match="5 sequences cannot be split over 6 processes; raise batch_size"):
        Team(Settings(**PLAIN), 0, 6).share(batch_at(0))


def test_rows_are_those_of_chunk() -> None:
    for total in (1, 2, 5, 7, 16):
        whole = torch.arange(total)
        for size in (1, 2, 3, 4):
            parts = [Rows.of(total, r, size).cut(whole) for r in range(size)]
            assert [len(p) for p in parts if len(p)] == [len(c) for c in whole.chunk(size)]
            assert torch.equal(torch.cat(parts), whole)


def test_a_model_without_experts_cannot_split_them() -> None:
    team = Team(Settings(**PLAIN, parallel="ep"), 0, 2)
    with pytest.raises(FlopwiseError, match="the model has no experts; use ddp or fsdp"):
        team_steps.prepare(team, {}, {})


def test_a_spec_says_how_many_processes() -> None:
    assert torchrun.processes({"train": {"processes": 3}}) == 3
    assert torchrun.processes({"train": {}}) == torchrun.processes({}) == 1
