"""Every kind of step that trains goes on from its checkpoint and ends with the same numbers and weights."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from flopwise.launch.expand import expand
from flopwise.launch.recipe import load
from flopwise.launch.steps import Step
from flopwise.launch.worker import limit_threads, run_one
from flopwise.records.folder import RunFolder
from flopwise.records.store import RunStore
from flopwise.train.loop import train

STEPS = ["trunk-w16-s0-2", "w32-0.01M-s0", "control-grpo", "grpo", "rejection-1", "reward"]


class Stopped(BaseException):
    """As sudden as a kill: no step may catch it."""


@pytest.fixture(scope="module")
def steps(tiny_overrides: list[str]) -> dict[str, Step]:
    return {s.name: s for s in expand(load("demo", tiny_overrides))}


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint after every step."""
    limit_threads(1)
    assert train.__kwdefaults__ is not None
    monkeypatch.setitem(train.__kwdefaults__, "checkpoint_every_s", 0.0)


def again(tiny_run: Path, root: Path, step: Step) -> tuple[RunFolder, RunFolder, dict[str, object]]:
    """The finished run, a new folder for the same among links to its ancestors, and the task."""
    whole = RunStore(tiny_run).folder(step.name)
    for run in tiny_run.iterdir():
        if run.is_dir() and run.name != whole.id:
            (root / run.name).symlink_to(run)
    new = RunStore(root).prepare(
        step.kind, step.method, step.spec, whole.roles, step.seed, step.name, whole.references
    )  # fmt: skip
    assert new.id == whole.id
    return whole, new, {"path": str(new.path), "run": step.run, "inputs": {**whole.roles, **whole.references}}


def same(a: RunFolder, b: RunFolder) -> None:
    one, two = a.record(), b.record()
    assert (one.metrics, one.model, one.data) == (two.metrics, two.model, two.data)
    for record in (one, two):  # how many were trained together is how a run was carried out, not what it is
        record.extra.pop("trained_together", None)
    assert one.extra == two.extra
    for x, y in ((one.spend, two.spend), (one.lineage_spend, two.lineage_spend)):
        assert (x.train_flops, x.generate_flops, x.score_flops, x.tokens) == (
            y.train_flops, y.generate_flops, y.score_flops, y.tokens,
        )  # fmt: skip
    assert a.curve() == b.curve()
    weights = "model/model.safetensors" if (a.path / "model").exists() else "state.safetensors"
    if weights.startswith("model"):
        assert (a.path / weights).read_bytes() == (b.path / weights).read_bytes()


@pytest.mark.parametrize("name", STEPS)
def test_stopped_twice_it_ends_as_if_it_had_not_been(
    tiny_run: Path, tmp_path: Path, steps: dict[str, Step], eager: None, name: str
) -> None:
    whole, new, task = again(tiny_run, tmp_path, steps[name])
    module, _, function = steps[name].run.partition(":")
    run = getattr(importlib.import_module(module), function)
    parents = {r: RunFolder(tmp_path / i) for r, i in {**whole.roles, **whole.references}.items()}
    for stop in (0.3, 0.7):

        def progress(fraction: float, stop: float = stop) -> None:
            if fraction >= stop:
                raise Stopped

        with pytest.raises(Stopped):
            run(new, parents, progress)
        assert not new.done and (new.path / "state.safetensors").exists()
    assert run_one(task, lambda _: None, lambda _: None) is None
    same(whole, new)


@pytest.mark.parametrize("damage", [b"", b"garbage" * 9, None])
def test_a_damaged_checkpoint_is_set_aside_and_the_step_starts_over(
    tiny_run: Path, tmp_path: Path, steps: dict[str, Step], eager: None, damage: bytes | None
) -> None:
    whole, new, task = again(tiny_run, tmp_path, steps["rejection-1"])
    state = new.path / "state.safetensors"
    state.write_bytes(damage if damage is not None else _cut(tiny_run))
    notes: list[str] = []
    assert run_one(task, lambda _: None, notes.append) is None
    assert len(notes) == 1 and "set aside as state.safetensors.damaged" in notes[0]
    same(whole, new)


def _cut(tiny_run: Path) -> bytes:
    """Half of a real state."""
    whole = (RunStore(tiny_run).folder("trunk-w16-s0-1").path / "state.safetensors").read_bytes()
    return whole[: len(whole) // 2]


def test_a_damaged_parent_is_named_with_what_to_delete(
    tiny_run: Path, tmp_path: Path, steps: dict[str, Step]
) -> None:
    _, new, task = again(tiny_run, tmp_path, steps["rejection-1"])
    init = tmp_path / new.roles["init"]
    source = init.resolve()
    init.unlink()
    (init / "model").mkdir(parents=True)
    for name in ("spec.yaml", "run.json", "model/config.json", "model/model.safetensors"):
        (init / name).write_bytes((source / name).read_bytes())
    weights = init / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    reason = run_one(task, lambda _: None, lambda _: None)
    assert reason is not None and reason.endswith(f"; delete {init} and start again") and "\n" not in reason
    record = new.record()
    assert (record.status, record.reason) == ("failed", reason)


def test_a_loss_that_is_no_number_fails_the_step_in_one_line(
    tiny_run: Path, tmp_path: Path, steps: dict[str, Step], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, new, task = again(tiny_run, tmp_path, steps["rejection-1"])
    real = importlib.import_module("flopwise.posttrain.bench").cross_entropy

    def poisoned(model: object, batch: object) -> object:
        loss, logs = real(model, batch)
        return loss * float("nan"), logs

    bench = importlib.import_module("flopwise.posttrain.bench").Bench
    fit = bench.fit
    monkeypatch.setattr(bench, "fit", lambda self, *a: fit(self, *a, poisoned))
    reason = run_one(task, lambda _: None, lambda _: None)
    assert reason is not None and reason.startswith("loss is nan at step 0")
    assert new.record().status == "failed"
