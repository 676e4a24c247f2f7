"""THE training loop. Everything that learns goes through `train`, and every FLOP of it is counted here."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Container
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from flopwise.errors import FlopwiseError
from flopwise.flops.count import PARTS, Trained, train_flops
from flopwise.flops.ledger import TOTALS, Ledger
from flopwise.flops.spend import Spend
from flopwise.models.transformer import Transformer
from flopwise.train import checkpoint
from flopwise.train.objectives import Batch, Objective
from flopwise.train.parallel import Steps, Team, alone


class Log(Protocol):
    """Where metrics go as they happen: a run's folder (`records.folder.RunFolder`)."""

    path: Path

    def log(self, **row: Any) -> None: ...
    def rewind(self, step: int) -> None: ...


@dataclass
class Counters:
    """What a run has spent so far; saved with each checkpoint, so a resumed run's ledger is whole."""

    step: int
    train_flops: float = 0.0
    generate_flops: float = 0.0
    score_flops: float = 0.0
    tokens: int = 0
    wall_s: float = 0.0
    device_s: float = 0.0

    peak_bytes: float = 0.0
    """Of all processes together: resident memory, or the accelerator's where there is one."""
    device: str | None = None
    by: list[dict[str, Any]] = field(default_factory=list)
    """Rows of the ledger; the three totals are the sums of theirs."""

    def __post_init__(self) -> None:
        if not self.by:  # of a checkpoint that was written before there were rows
            old = Ledger()
            for kind, spent in zip(("train", "sample", "score"), TOTALS, strict=True):
                if getattr(self, spent):
                    old.post(kind, "", None, getattr(self, spent))
            self.by = old.rows()

    def post(
        self, kind: str, model: str, tokens: float | None, flops: float | None,
        seconds: float | None = None,
    ) -> None:  # fmt: skip
        """Enter passes of a model (`flops.ledger.Ledger.post`)."""
        entry = Ledger()
        entry.post(kind, model, tokens, flops, seconds)
        self.add(entry)

    def add(self, entries: Ledger) -> None:
        """Enter a ledger's rows."""
        ledger = Ledger(self.by)
        ledger.add(entries)
        self.by = ledger.rows()
        for name in TOTALS:
            setattr(self, name, ledger.total(name))

    def made(self, batch: Batch, run: str) -> None:
        """Enter what making a batch of `run` cost."""
        if batch.ledger:
            self.add(batch.ledger)
        if batch.generate_flops:
            self.post("sample", run, None, batch.generate_flops)
        if batch.score_flops:
            self.post("score", run, None, batch.score_flops)

    def learned(self, batch: Batch, run: str, flops: float, seconds: float | None = None) -> None:
        """Enter an update on a batch."""
        self.post("train", run, batch.ids.numel(), flops, seconds)
        self.tokens += batch.ids.numel()

    def evaluated(self, row: dict[str, float], run: str, seconds: float) -> dict[str, float]:
        """Enter an evaluation, which is shown and no spend; the row without what it says of its cost."""
        row = dict(row)
        tokens, flops = row.pop("evaluate_tokens", None), row.pop("evaluate_flops", None)
        self.post("evaluate", run, tokens, flops, seconds)
        return row

    def spend(self) -> Spend:
        """As a record wants it."""
        from flopwise.flops.hardware import device_name

        peak = max(int(self.peak_bytes), 0 if self.device else _peak_bytes(None))
        return Spend(
            self.train_flops, self.generate_flops, self.score_flops, self.tokens,
            self.wall_s, self.device_s, self.device or device_name(), peak,
            tuple(self.by), Ledger(self.by).unknown,
        )  # fmt: skip


def train(
    model: Transformer,
    optimiser: Steps,
    next_batch: Callable[[int], Batch | None],
    objective: Objective,
    schedule: Callable[[int], float],
    log: Log,
    *,
    first_step: int,
    last_step: int,
    progress: Callable[[float], None] = lambda fraction: None,
    evaluate: Callable[[int], dict[str, float]] | None = None,
    evaluate_at: Container[int] = (),
    stop: Callable[[], bool] | None = None,
    clip: float = 1.0,
    log_every: int = 20,
    checkpoint_every_s: float = 4.0,
    checkpoint_between: int = 1,
    team: Team | None = None,
) -> Counters:
    """Update `model` from `first_step` (inclusive) to `last_step` (exclusive).

    `next_batch(step)` must depend on its argument and on the model alone, so that a run killed anywhere
    and resumed from its last checkpoint ends with the same bits. It returns None where there is nothing to
    learn (no group with a signal); the cost of finding that out is then lost to the ledger, so methods
    return an empty-weight batch instead when they spent something.

    What `evaluate` costs is shown in the ledger and no part of the spend; it may say so itself, as
    `evaluate_flops` and `evaluate_tokens` among its columns.

    `stop` is asked after each evaluation and must go by what was logged alone; where it says so, training
    ends.

    `team` says who trains (`Team.place` made model and optimiser); every process of it calls this with
    the same arguments, and the counters are those of all of them together. Checkpoints are written behind
    the loop's back, at most every `checkpoint_every_s` seconds and so rarely that they hold it up for less
    than a twentieth of the time; and after whole groups of `checkpoint_between` steps alone, where these
    share what the model of the group's first step made (several updates on one roll-out).

    Raises:
        FlopwiseError: the loss or its gradient is not finite (the value, the step, what to change).
        OSError: a checkpoint cannot be written.
    """
    team = team or alone()
    state_path = log.path / checkpoint.STATE_FILE
    writer = checkpoint.Writer(state_path, team.settings.keep)
    counters, compiled = Counters(first_step), None
    if team.agree(state_path.exists()):
        saved = checkpoint.load(state_path, model, optimiser, generators=True)
        writer.best, compiled = saved.pop("best", None), saved.pop("compiled", None)
        counters = Counters(**saved)
    if team.leads:
        log.rewind(counters.step)
        checkpoint.rewind_kept(state_path, counters.step)
    model.train()
    clock = _Clock(team, counters)
    recent: list[float] = []
    tuned, run = False, log.path.name

    def note(**row: float) -> None:
        if team.leads:
            log.log(step=counters.step, **_ledger(counters), **row)

    try:
        for step in range(counters.step, last_step):
            batch = next_batch(step)
            row: dict[str, float] = {}
            if batch is not None:
                counters.made(batch, run)
                if batch.weights is None or bool(batch.weights.any()):
                    if not tuned:
                        team.tune(model, batch, last_step - step, compiled)
                        tuned = True
                    began = time.perf_counter()
                    row = _update(team, model, optimiser, batch, objective, schedule(step), clip, step)
                    took = time.perf_counter() - began
                    counters.learned(batch, run, update_flops(model, batch), took)
                    recent.append(row["loss"])
                row |= batch.info
            counters.step = step + 1
            if row and ((step + 1) % log_every == 0 or step + 1 == last_step):
                note(**row)
            if evaluate is not None and step + 1 in evaluate_at:
                began = time.perf_counter()
                judged = evaluate(step + 1)
                note(**counters.evaluated(judged, run, time.perf_counter() - began))
                model.train()
                if stop is not None and team.agree(stop()):
                    break
            progress((step + 1 - first_step) / (last_step - first_step))
            wanted = writer.due(step + 1) or team.agree(clock.asks(checkpoint_every_s))
            if wanted and step + 1 < last_step and (step + 1) % checkpoint_between == 0:
                clock.settle()
                state = vars(counters) | ({"compiled": True} if team.compiles else {})
                loss = sum(recent) / len(recent) if recent else None
                clock.saving(partial(writer.save, model, optimiser, state, loss))
                recent.clear()
    finally:
        writer.wait()
    clock.settle()
    return counters


class _Clock:
    """Seconds by the clock and of the device, kept in the counters; when the last checkpoint was."""

    def __init__(self, team: Team, counters: Counters):
        self.team, self.counters = team, counters
        self.wall, self.cpu = time.monotonic(), time.process_time()
        self.saved_at, self.held_up = self.wall, 0.0

    def asks(self, every_s: float) -> bool:
        """Whether a checkpoint is due: after `every_s` and twenty times what the last one held up the loop
        (0 or less: always)."""
        return every_s <= 0 or time.monotonic() - self.saved_at > max(every_s, 20 * self.held_up)

    def saving(self, save: Callable[[], None]) -> None:
        """Save, and note how long that held up the loop."""
        start = time.monotonic()
        save()
        self.saved_at = time.monotonic()
        self.held_up = self.saved_at - start

    def settle(self) -> None:
        """Add the time since the last settling to the counters; in a team, that of all processes."""
        now, cpu = time.monotonic(), time.process_time()
        accelerated = self.team.device.type == "cuda"
        device, peak = self.team.add_up(
            now - self.wall if accelerated else cpu - self.cpu, _peak_bytes(self.team.device)
        )
        self.counters.wall_s += now - self.wall
        self.counters.device_s += device
        self.counters.peak_bytes = max(self.counters.peak_bytes, peak)
        if accelerated:
            self.counters.device = torch.cuda.get_device_name(self.team.device)
        self.wall, self.cpu = now, cpu


def _peak_bytes(device: torch.device | None) -> int:
    """Largest memory so far: allocated on the accelerator, else resident in this process."""
    if device is not None and device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def update_flops(model: Transformer, batch: Batch) -> float:
    """FLOPs of one forward and backward pass on `batch`: the head is applied where something is learned, and
    the gradient goes where the model lets it."""
    B, T = batch.ids.shape
    trained = trained_of(model)
    if model.n_scores:
        return train_flops(model.cfg, T, B, 1, trained, head=model.n_scores).total
    n_logits = T if batch.weights is None else int(torch.count_nonzero(batch.weights)) / B
    return train_flops(model.cfg, T, B, n_logits, trained).total


def trained_of(model: Transformer) -> Trained | None:
    """What of a model learns, by its adapters and by which weights ask for a gradient; None if all do.

    A part counts as learning, in every layer from the lowest on, where any weight of it does.
    """
    lora = getattr(model, "lora", None)
    if lora is None and all(p.requires_grad for p in model.parameters()):
        return None
    parts, layers = set(), set()
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            if layer := LAYER.search(name):
                layers.add(int(layer[1]))
            if not name.endswith((".A", ".B")):  # of an adapter (models.lora)
                parts.add(next(part for word, part in PART_OF.items() if word in name))
    first = 0 if "embedding" in parts else min(layers, default=model.cfg.n_layers)
    return Trained(tuple(part for part in PARTS if part in parts), first, lora)


LAYER = re.compile(r"blocks\.(\d+)\.")
PART_OF = {
    "norm": "norms", "embed": "embedding", "attn.": "attention", "router": "router", "mlp.": "mlp",
    "head.": "output",
}  # fmt: skip
"""Parts of `flops.count.PARTS` by what the names of their weights hold; the first that fits."""


def _ledger(counters: Counters) -> dict[str, float]:
    """The columns every logged row carries: what had been spent by then."""
    names = ("train_flops", "generate_flops", "score_flops", "tokens")
    return {name: getattr(counters, name) for name in names}


def _update(
    team: Team,
    model: Transformer,
    optimiser: Steps,
    batch: Batch,
    objective: Objective,
    factor: float,
    clip: float,
    step: int,
) -> dict[str, float]:
    """One forward, backward, clip and step; returns what is worth logging."""
    mine, share = team.share(batch)
    loss, value, logs = team.loss(objective, model, mine, share)
    value, logs = team.total(value, logs, share)
    if not math.isfinite(value):
        raise FlopwiseError(f"loss is {value} at step {step}; lower the learning rate or check the data")
    loss.backward()
    team.join_gradients(model)
    norm = float(optimiser.clip(clip))
    if not math.isfinite(norm):
        raise FlopwiseError(f"gradient norm is {norm} at step {step}; lower the learning rate")
    optimiser.step(factor)
    optimiser.zero_grad()
    return {"loss": value, "grad_norm": norm, "lr_factor": factor, **logs}


def seeded(*parts: int) -> torch.Generator:
    """A generator that depends on all parts: step-derived randomness that survives a resume.

    >>> bool(torch.equal(torch.rand(2, generator=seeded(1, 2)), torch.rand(2, generator=seeded(1, 2))))
    True
    """
    import numpy as np

    return torch.Generator().manual_seed(
        int(np.random.SeedSequence(list(parts)).generate_state(1, np.uint64)[0] >> 1)
    )
