"""THE training loop. Everything that learns goes through `train`, and every FLOP of it is counted here."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Container
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from flopwise.errors import FlopwiseError
from flopwise.flops.count import train_flops
from flopwise.flops.spend import Spend
from flopwise.models.transformer import Transformer
from flopwise.train import checkpoint
from flopwise.train.objectives import Batch, Objective
from flopwise.train.optim import Optimiser


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

    def spend(self) -> Spend:
        """As a record wants it."""
        import resource

        from flopwise.flops.hardware import device_name

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return Spend(
            self.train_flops, self.generate_flops, self.score_flops, self.tokens,
            self.wall_s, self.device_s, device_name(), peak,
        )  # fmt: skip


def train(
    model: Transformer,
    optimiser: Optimiser,
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
    clip: float = 1.0,
    log_every: int = 20,
    checkpoint_every_s: float = 4.0,
) -> Counters:
    """Update `model` from `first_step` (inclusive) to `last_step` (exclusive).

    `next_batch(step)` must depend on its argument and on the model alone, so that a run killed anywhere
    and resumed from its last checkpoint ends with the same bits. It returns None where there is nothing to
    learn (no group with a signal); the cost of finding that out is then lost to the ledger, so methods
    return an empty-weight batch instead when they spent something.

    Raises:
        FlopwiseError: the loss or its gradient is not finite (the value, the step, what to change).
    """
    state_path = log.path / checkpoint.STATE_FILE
    counters = Counters(first_step)
    if state_path.exists():
        counters = Counters(**checkpoint.load(state_path, model, optimiser))
    log.rewind(counters.step)
    model.train()
    wall, device, saved_at = time.monotonic(), time.process_time(), time.monotonic()

    def settle_clock() -> None:
        nonlocal wall, device
        now, cpu = time.monotonic(), time.process_time()
        counters.wall_s += now - wall
        counters.device_s += cpu - device
        wall, device = now, cpu

    for step in range(counters.step, last_step):
        batch = next_batch(step)
        row: dict[str, float] = {}
        if batch is not None:
            counters.generate_flops += batch.generate_flops
            counters.score_flops += batch.score_flops
            if batch.weights is None or bool(batch.weights.any()):
                row = _update(model, optimiser, batch, objective, schedule(step), clip, step)
                counters.train_flops += update_flops(model, batch)
                counters.tokens += batch.ids.numel()
            row |= batch.info
        counters.step = step + 1
        if row and ((step + 1) % log_every == 0 or step + 1 == last_step):
            log.log(step=step + 1, **_ledger(counters), **row)
        if evaluate is not None and step + 1 in evaluate_at:
            log.log(step=step + 1, **_ledger(counters), **evaluate(step + 1))
            model.train()
        progress((step + 1 - first_step) / (last_step - first_step))
        if time.monotonic() - saved_at > checkpoint_every_s and step + 1 < last_step:
            settle_clock()
            checkpoint.save(state_path, model, optimiser, vars(counters))
            saved_at = time.monotonic()
    settle_clock()
    return counters


def update_flops(model: Transformer, batch: Batch) -> float:
    """FLOPs of one forward and backward pass on `batch`: the head is applied where something is learned."""
    B, T = batch.ids.shape
    if model.n_scores:
        # One score per sequence, which is 1/V of the logits of one position.
        n_logits = model.n_scores / model.cfg.vocab_size
    else:
        n_logits = T if batch.weights is None else int(torch.count_nonzero(batch.weights)) / B
    return train_flops(model.cfg, T, B, n_logits).total


def _ledger(counters: Counters) -> dict[str, float]:
    """The columns every logged row carries: what had been spent by then."""
    names = ("train_flops", "generate_flops", "score_flops", "tokens")
    return {name: getattr(counters, name) for name in names}


def _update(
    model: Transformer,
    optimiser: Optimiser,
    batch: Batch,
    objective: Objective,
    factor: float,
    clip: float,
    step: int,
) -> dict[str, float]:
    """One forward, backward, clip and step; returns what is worth logging."""
    loss, logs = objective(model, batch)
    value = loss.item()
    if not math.isfinite(value):
        raise FlopwiseError(f"loss is {value} at step {step}; lower the learning rate or check the data")
    loss.backward()
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
