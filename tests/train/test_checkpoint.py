"""Checkpoints: written behind the loop's back, kept by rule, never half-written, whole to the bit."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from safetensors import safe_open  # noqa: E402
from team_steps import PLAIN, STEPS, Memory, batch_at, config  # noqa: E402

from flopwise.errors import DamagedFile  # noqa: E402
from flopwise.models.transformer import Transformer  # noqa: E402
from flopwise.train import checkpoint  # noqa: E402
from flopwise.train.loop import train  # noqa: E402
from flopwise.train.objectives import cross_entropy  # noqa: E402
from flopwise.train.optim import Optimiser, Rates  # noqa: E402
from flopwise.train.parallel import Team  # noqa: E402
from flopwise.train.settings import Settings  # noqa: E402

STATE = checkpoint.STATE_FILE


class Killed(Exception):
    """Stands for kill -9: nothing after it runs."""


def pair(**model: Any) -> tuple[Transformer, Optimiser]:
    made = Transformer(config(**model)).initialise(3)
    return made, Optimiser(made, Rates())


def run(path: Path, keep: Any = "last", every_s: float = -1.0, kill_at: int | None = None, **model: Any):
    """Train on weights that are drawn anew at each step from the global generator."""
    made, optimiser = pair(**model)

    def next_batch(step: int):
        if step == kill_at:
            raise Killed
        batch = batch_at(step)
        batch.weights = torch.rand(batch.ids.shape)
        return batch

    log = Memory(path)
    train(
        made, optimiser, next_batch, cross_entropy, lambda step: 1.0, log, first_step=0, last_step=STEPS,
        log_every=1, checkpoint_every_s=every_s, team=Team(Settings(**PLAIN, keep=keep)),
    )  # fmt: skip
    return made, optimiser, log


def kept(path: Path) -> list[str]:
    return sorted(p.name for p in (path / checkpoint.KEPT_FOLDER).glob("*"))


def steps(path: Path) -> int:
    with safe_open(path, framework="pt") as f:
        import json

        return json.loads(f.metadata()["counters"])["step"]


@pytest.mark.parametrize("model", [{}, {"expansion": 4, "balance": "bias"}], ids=["dense", "experts"])
def test_a_killed_run_goes_on_bit_for_bit_with_its_generators_and_biases(tmp_path: Path, model) -> None:
    torch.manual_seed(5)
    one, optimiser, _ = run(tmp_path / "whole", **model)
    torch.manual_seed(5)
    with pytest.raises(Killed):
        run(tmp_path / "broken", kill_at=7, **model)
    torch.manual_seed(99)  # a new process starts anywhere
    two, optimiser2, _ = run(tmp_path / "broken", **model)
    for (name, a), (_, b) in zip(one.state_dict().items(), two.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    if model:
        assert any("bias" in n and t.any() for n, t in one.state_dict().items())
    a, b = optimiser.state(), optimiser2.state()
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_what_stays_is_what_the_rule_says(tmp_path: Path) -> None:
    run(tmp_path / "last")
    assert kept(tmp_path / "last") == [] and steps(tmp_path / "last" / STATE) == STEPS - 1
    run(tmp_path / "three", keep=3)
    names = kept(tmp_path / "three")
    assert names == [f"step-{n:09d}.safetensors" for n in (9, 10, 11)]
    assert [steps(tmp_path / "three" / "checkpoints" / n) for n in names] == [9, 10, 11]
    run(tmp_path / "every", keep={"every": 5}, every_s=1e9)
    assert kept(tmp_path / "every") == [f"step-{n:09d}.safetensors" for n in (5, 10)]
    assert steps(tmp_path / "every" / STATE) == 10
    _, _, log = run(tmp_path / "best", keep="best")
    losses = [row["loss"] for row in log.rows[: STEPS - 1]]
    assert kept(tmp_path / "best") == ["best.safetensors"]
    assert steps(tmp_path / "best" / "checkpoints" / "best.safetensors") == 1 + losses.index(min(losses))


def test_a_resumed_run_drops_what_was_kept_after_its_state(tmp_path: Path) -> None:
    run(tmp_path, keep=2)
    late = tmp_path / "checkpoints" / "step-000000011.safetensors"
    (tmp_path / STATE).write_bytes((tmp_path / "checkpoints" / "step-000000010.safetensors").read_bytes())
    checkpoint.rewind_kept(tmp_path / STATE, 10)
    assert not late.exists() and kept(tmp_path) == ["step-000000010.safetensors"]


def test_the_loop_goes_on_while_a_checkpoint_is_written(tmp_path: Path, monkeypatch) -> None:
    model, optimiser = pair()
    started, release, order = threading.Event(), threading.Event(), []
    real = checkpoint._write

    def slow(path, tensors, counters, link=""):
        started.set()
        assert release.wait(60)
        order.append(counters["step"])
        real(path, tensors, counters, link)

    monkeypatch.setattr(checkpoint, "_write", slow)
    writer = checkpoint.Writer(tmp_path / STATE)
    before = model.embed.weight.detach().clone()
    writer.save(model, optimiser, {"step": 1})  # returns though nothing is written
    assert started.wait(60) and not (tmp_path / STATE).exists()
    with torch.no_grad():
        model.embed.weight.add_(1.0)  # the run goes on: the file holds what was
    threading.Timer(0.05, release.set).start()
    writer.save(model, optimiser, {"step": 2})  # waits for the first
    assert order[0] == 1
    writer.wait()
    assert order == [1, 2] and steps(tmp_path / STATE) == 2
    release.set()
    writer = checkpoint.Writer(tmp_path / "again")
    with torch.no_grad():
        model.embed.weight.copy_(before)
    writer.save(model, optimiser, {"step": 3})
    with torch.no_grad():
        model.embed.weight.add_(1.0)
    writer.wait()
    other, _ = pair()
    checkpoint.load(tmp_path / "again", other)
    assert torch.equal(other.embed.weight, before)


def test_a_failed_write_is_raised_and_leaves_the_old_file(tmp_path: Path, monkeypatch) -> None:
    model, optimiser = pair()
    writer = checkpoint.Writer(tmp_path / STATE, keep=2)
    writer.save(model, optimiser, {"step": 1})
    writer.wait()
    before = (tmp_path / STATE).read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    writer.save(model, optimiser, {"step": 2})
    with pytest.raises(OSError, match="No space left"):
        writer.wait()
    writer.wait()  # said once
    assert (tmp_path / STATE).read_bytes() == before and kept(tmp_path) == ["step-000000001.safetensors"]
    assert not list(tmp_path.rglob(".*"))


def test_a_start_from_another_runs_state_leaves_the_generators(tmp_path: Path) -> None:
    model, optimiser = pair()
    checkpoint.save(tmp_path / STATE, model, optimiser, {"step": 1})
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    checkpoint.load(tmp_path / STATE, model, optimiser)
    assert torch.equal(torch.rand(3), expected)


def test_a_state_of_another_optimiser_is_named(tmp_path: Path) -> None:
    model, _ = pair()
    adamw = Optimiser(model, Rates(optimiser="adamw"))
    checkpoint.save(tmp_path / STATE, model, adamw, {"step": 1})
    with pytest.raises(DamagedFile, match="cannot be read"):
        checkpoint.load(tmp_path / STATE, *pair())
