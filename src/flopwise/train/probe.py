"""How long a step takes here, and whether compiling makes a run shorter: measured in short, remembered."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from flopwise.flops.count import train_flops
from flopwise.models.config import ModelConfig
from flopwise.models.transformer import Block, Transformer
from flopwise.train import precision
from flopwise.train.measured import machine, remembered
from flopwise.train.objectives import Batch, cross_entropy
from flopwise.train.optim import Optimiser, Rates
from flopwise.train.settings import PLAIN, Settings

if TYPE_CHECKING:
    from flopwise.train.parallel import Team

SECONDS = 1.2
"""A probe's steps take about this long together, after the first."""
SLOW = 2e10
"""FLOP/s that any machine has: it decides how many rows a probe takes, never what it answers."""
COMPILING = 45.0
"""Seconds that compiling a block's forward and backward pass takes at least: assumed, before it is tried."""
MOST = 2.0
"""No compiled step is hoped to be faster than this many times: decides whether trying is worth it."""


def probe(
    cfg: ModelConfig, batch_size: int, seq_len: int, settings: Settings = PLAIN, optimiser: str = "muon"
) -> float:
    """Seconds that one step takes on this machine: a few steps on random tokens, on one thread.

    At most about two seconds, and once per machine and shape (kept in the cache folder). Long steps are tried
    with fewer sequences and scaled. Of several processes each takes its rows; sending is not counted.
    """
    device = precision.choose_device(settings.device)
    kind, _ = precision.choose_precision(settings.precision, device)
    rows = -(-batch_size // settings.processes)
    fits = int(0.5 * SLOW / train_flops(cfg, seq_len).total)
    tried = max(1, min(rows, fits)) if device.type == "cpu" else rows
    question = {
        "seconds per step": [tried, seq_len], "model": cfg.to_dict(), "precision": kind,
        "optimiser": optimiser,
    }  # fmt: skip
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds = remembered(
            machine(device.type),
            question,
            lambda: _Trial(cfg, tried, seq_len, kind, device, optimiser).time(),
        )
    finally:
        torch.set_num_threads(threads)
    return float(seconds) * rows / tried


class _Trial:
    """A model of its own with random tokens, to be timed."""

    def __init__(
        self,
        cfg: ModelConfig,
        rows: int,
        seq_len: int,
        kind: str,
        device: torch.device,
        optimiser: str = "muon",
    ):
        self.kind, self.device = kind, device
        self.compiled: Callable[..., Any] | None = None
        generator = torch.Generator().manual_seed(0)
        self.model = Transformer(cfg).initialise(0).to(device)
        self.optimiser = Optimiser(self.model, Rates(optimiser=optimiser))
        ids = torch.randint(cfg.vocab_size, (rows, seq_len + 1), generator=generator).to(device)
        self.batch = Batch(ids[:, :-1], ids[:, 1:])

    def step(self) -> float:
        """Make one step; the seconds it took."""
        start = time.perf_counter()
        with precision.autocast(self.kind, self.device), compiled_blocks(self.model, self.compiled):
            loss, _ = cross_entropy(self.model, self.batch)
        loss.backward()
        float(self.optimiser.clip(1.0))
        self.optimiser.step(1.0)
        self.optimiser.zero_grad()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - start

    def time(self) -> float:
        """Seconds per step: the lower quartile of those that fit, for what else runs here only adds."""
        first = self.step()
        until = time.perf_counter() + SECONDS - first
        times: list[float] = []
        while not times or (time.perf_counter() < until and len(times) < 40):
            times.append(self.step())
        return sorted(times)[len(times) // 4]


@dataclass(frozen=True)
class Compiling:
    """What compiling would bring: seconds per step without and with it, and what it costs once."""

    eager: float
    compiled: float
    once: float

    def gain(self, steps: int) -> float:
        """Seconds that a run of so many steps would save (negative: lose)."""
        return steps * (self.eager - self.compiled) - self.once


def decide_compiling(team: Team, model: Transformer, batch: Batch, steps: int) -> tuple[bool, str]:
    """Whether to compile a run of `steps` more steps on batches like this one, and why, for its record.

    With "auto" the run must be long enough that it could pay at all; then it is tried, once per machine and
    shape, and what was measured decides.
    """
    wanted, kind = team.settings.compile, team.settings.parallel
    if wanted == "off":
        return False, "off"
    if model.cfg.n_experts or (team.size > 1 and kind != "ddp"):
        what = (
            "experts are called by where tokens go" if model.cfg.n_experts else f"{kind} splits the weights"
        )
        return False, f"off: {what}, which is not compiled"
    if wanted == "on":
        return True, "on: asked for"
    rows, length = len(batch.ids), batch.ids.shape[1]
    eager = probe(model.cfg, rows, length, team.settings)
    most = steps * eager * (1 - 1 / MOST)
    if most < COMPILING:
        return False, f"off: {steps} steps of {eager:.2g} s are too few to pay for compiling"
    question = {"compiling": [rows, length], "model": model.cfg.to_dict(), "precision": team.precision}
    measured = Compiling(
        **remembered(
            machine(team.device.type), question,
            lambda: vars(measure_compiling(model.cfg, rows, length, team.precision, team.device)),
        )
    )  # fmt: skip
    gain = measured.gain(steps)
    word = f"{measured.eager:.3g} s a step without it, {measured.compiled:.3g} s with it"
    return gain > 0, f"{'on' if gain > 0 else 'off'}: {word}, {measured.once:.0f} s once"


def measure_compiling(
    cfg: ModelConfig, rows: int, seq_len: int, kind: str = "fp32", device: torch.device | None = None
) -> Compiling:
    """Try both ways on this shape (about a minute on two cores, most of it the compiler's)."""
    trial = _Trial(cfg, rows, seq_len, kind, device or torch.device("cpu"))
    eager = trial.time()
    trial.compiled = compile_block()
    start = time.perf_counter()
    trial.step()
    trial.step()
    once = time.perf_counter() - start
    return Compiling(eager, trial.time(), once)


def compile_block() -> Callable[..., Any]:
    """The forward pass of a block, compiled: one for all layers, so that the time for it does not grow."""
    return torch.compile(Block.forward)


@contextmanager
def compiled_blocks(model: Transformer, compiled: Callable[..., Any] | None) -> Iterator[None]:
    """The model with its blocks' forward pass replaced by `compile_block()`, and as it was afterwards:
    evaluations have other shapes and are not worth compiling for."""
    if compiled is None:
        yield
        return
    for block in model.blocks:
        block.forward = partial(compiled, block)
    try:
        yield
    finally:
        for block in model.blocks:
            del block.forward
