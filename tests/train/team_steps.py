"""Steps that a team of processes trains, for the tests of the launcher and of parallel training."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from flopwise.errors import FlopwiseError
from flopwise.models.config import ModelConfig
from flopwise.models.transformer import Transformer
from flopwise.records.folder import RunFolder
from flopwise.records.record import Metric
from flopwise.train import checkpoint
from flopwise.train.loop import seeded, train
from flopwise.train.objectives import Batch, cross_entropy
from flopwise.train.optim import Optimiser, Rates
from flopwise.train.parallel import Team
from flopwise.train.schedule import WSD
from flopwise.train.settings import Settings

VOCAB, ROWS, LENGTH, STEPS = 40, 5, 20, 12
PLAIN = {"precision": "fp32", "compile": "off", "device": "cpu"}
Progress = Callable[[float], None]


def batch_at(step: int) -> Batch:
    """Five rows, so that two processes hold parts of different size; every other batch has weights."""
    rows = torch.randint(VOCAB, (ROWS, LENGTH + 1), generator=seeded(7, step))
    weights = (torch.rand(ROWS, LENGTH, generator=seeded(8, step)) < 0.6).float() if step % 2 else None
    return Batch(rows[:, :-1], rows[:, 1:], weights, generate_flops=1.0)


def config(**model: Any) -> ModelConfig:
    return ModelConfig.from_width(16, 2, VOCAB, 64, **model)


def prepare(team: Team, model: dict[str, Any], rates: dict[str, Any]) -> tuple[Transformer, Any]:
    """Model and optimiser of one process."""
    made = Rates(weight_decay=0.1, **rates)
    return team.place(Transformer(config(**model)).initialise(3), lambda m: Optimiser(m, made))


class Memory:
    """A log that stays in memory; its folder is for checkpoints."""

    def __init__(self, path: Path):
        self.path, self.rows = path, list[dict[str, Any]]()
        path.mkdir(parents=True, exist_ok=True)

    def log(self, **row: Any) -> None:
        self.rows.append(row)

    def rewind(self, step: int) -> None: ...


def cases(folder: RunFolder, parents: dict[str, RunFolder], progress: Progress) -> None:
    """Train every case of the spec (name -> parallel, model, rates) and write losses and the end state."""
    losses: dict[str, list[float]] = {}
    for name, case in folder.spec["cases"].items():
        team = Team.join(Settings(**PLAIN, parallel=case["parallel"]))
        model, optimiser = prepare(team, case.get("model", {}), case.get("rates", {}))
        log = Memory(folder.path / name)
        train(
            model, optimiser, batch_at, cross_entropy, WSD(3, 8, STEPS), log, first_step=0, last_step=STEPS,
            log_every=1, checkpoint_every_s=1e9, team=team,
        )  # fmt: skip
        checkpoint.save(log.path / "end.safetensors", model, optimiser, {})
        whole = team.whole(model)
        with torch.no_grad():
            losses[name] = [r["loss"] for r in log.rows] + [
                cross_entropy(whole.eval(), batch_at(99))[0].item()
            ]
    if team.leads:
        (folder.path / "losses.json").write_text(json.dumps(losses))


def trains(folder: RunFolder, parents: dict[str, RunFolder], progress: Progress) -> None:
    """As a real step does. The spec may ask for a disturbance: `kill` or `fail` [rank, step], once."""
    spec = folder.spec
    team = Team.join(Settings.from_dict(spec["train"]))
    model, optimiser = prepare(team, spec.get("model", {}), spec.get("rates", {}))
    (folder.path / f"pid-{team.rank}").write_text(str(os.getpid()))

    def next_batch(step: int) -> Batch:
        mark = folder.path / "disturbed"
        for how in ("kill", "fail"):
            if [team.rank, step] == spec.get(how) and not mark.exists():
                mark.touch()
                if how == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                raise FlopwiseError("the data end here; make them longer")
        time.sleep(spec.get("pause", 0.0))
        return batch_at(step)

    counters = train(
        model, optimiser, next_batch, cross_entropy, WSD(3, 8, STEPS), folder, first_step=0, last_step=STEPS,
        progress=progress, log_every=1, checkpoint_every_s=-1.0, team=team,
    )  # fmt: skip
    whole = team.whole(model)
    if not team.leads:
        return
    with torch.no_grad():
        loss, _ = cross_entropy(whole.eval(), batch_at(99))
    folder.finish({"loss": Metric(value=loss.item())}, counters.spend(), extra={"training": team.disclosed()})
