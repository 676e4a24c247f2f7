"""Steps that a team of processes trains, for the tests of the launcher and of parallel training."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

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

VOCAB, ROWS, LENGTH = 40, 5, 20
Progress = Callable[[float], None]


def batch_at(step: int) -> Batch:
    """Five rows, so that two processes hold parts of different size; every other batch has weights."""
    rows = torch.randint(VOCAB, (ROWS, LENGTH + 1), generator=seeded(7, step))
    weights = (torch.rand(ROWS, LENGTH, generator=seeded(8, step)) < 0.6).float() if step % 2 else None
    return Batch(rows[:, :-1], rows[:, 1:], weights, generate_flops=1.0)


def trains(folder: RunFolder, parents: dict[str, RunFolder], progress: Progress) -> None:
    """As a real step does. The spec may ask for a disturbance: `kill` or `fail` [rank, step], once."""
    spec, last = folder.spec, folder.spec["steps"]
    team = Team.join(Settings.from_dict(spec["train"]))
    cfg = ModelConfig.from_width(16, 2, VOCAB, 64, **spec.get("model", {}))
    rates = Rates(weight_decay=0.1, **spec.get("rates", {}))
    model, optimiser = team.place(Transformer(cfg).initialise(3), lambda m: Optimiser(m, rates))

    def next_batch(step: int) -> Batch:
        mark = folder.path / "disturbed"
        for how in ("kill", "fail"):
            if [team.rank, step] == spec.get(how) and not mark.exists():
                mark.touch()
                if how == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                raise FlopwiseError("the data end here; make them longer")
        return batch_at(step)

    counters = train(
        model, optimiser, next_batch, cross_entropy, WSD(3, 8, 12), folder, first_step=0, last_step=last,
        progress=progress, log_every=1, checkpoint_every_s=-1.0, team=team,
    )  # fmt: skip
    checkpoint.save(folder.path / "end.safetensors", model, optimiser, {})
    whole = team.whole(model)
    if not team.leads:
        return
    with torch.no_grad():
        loss, _ = cross_entropy(whole.eval(), batch_at(99))
    folder.finish({"loss": Metric(value=loss.item())}, counters.spend(), extra={"training": team.disclosed()})
