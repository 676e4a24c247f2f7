"""Tokens per second of assembling batches: our mixture against torch's DataLoader and a plain random draw.

All read the same memory-mapped file of 16-bit ids and end with a tensor of int64 ids, inputs and targets in
one row. They take turns in one process; the median over turns counts. With worker processes the clock is
compared, else processor time. The last row sets our loader beside what the fastest training step eats: the
ladder's smallest model, forward, backward and update.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

TOKENS = 20_000_000
SHAPES = {(16, 128): 200, (64, 1024): 20}
"""Batches of a turn by rows and tokens a row."""
TURNS, WORKERS, WIDTH = 5, 2, 32

Batches = Callable[[int], Iterator[Any]]
"""Endless batches from a seed on."""


def run() -> list[dict[str, Any]]:
    """A row per shape and peer, and one on the training step."""
    import torch

    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        path = _corpus(Path(folder))
        for (batch, length), n in SHAPES.items():
            setup = f"{batch} x {length} tokens, one thread, {TOKENS // 10**6}M tokens of 16 bits on disk"
            ours = _ours(path, batch, length)
            several = _data_loader(path, batch, length, WORKERS)
            peers = (
                ("DataLoader without workers", time.process_time, _data_loader(path, batch, length, 0)),
                (f"DataLoader with {WORKERS} workers", time.perf_counter, several),
                ("a plain random draw", time.process_time, _plain(path, batch, length)),
            )
            for peer, clock, theirs in peers:
                rows.append(_race(peer, ours, theirs, n, batch * length, clock, setup))
        rows.append(_beside_training(_ours(path, 16, 128)))
    return rows


def _corpus(folder: Path) -> Path:
    from flopwise.data import shards

    rng = np.random.default_rng(0)
    documents = (rng.integers(2, 512, 10_000) for _ in range(TOKENS // 10_000))
    shards.write(documents, folder / "train", 0)
    return folder / "train"


def _ours(path: Path, batch: int, length: int) -> Batches:
    import torch

    from flopwise.data.mixture import Mixture
    from flopwise.data.shards import Shards

    mixture = Mixture({"text": [Shards(path)]}, {"text": 1.0})

    def batches(seed: int) -> Iterator[Any]:
        step = 0
        while True:
            yield torch.from_numpy(mixture.batch(step, batch, length, seed))
            step += 1

    return batches


def _data_loader(path: Path, batch: int, length: int, workers: int) -> Batches:
    import torch
    from torch.utils.data import DataLoader

    data = Windows(path, length)

    def batches(seed: int) -> Iterator[Any]:
        order = torch.Generator().manual_seed(seed)
        while True:
            yield from DataLoader(
                data, batch, shuffle=True, drop_last=True, num_workers=workers, generator=order
            )  # type: ignore[misc]

    return batches


class Windows:
    """The same windows as a map-style data set, one at a time."""

    def __init__(self, path: Path, length: int):
        self.tokens = np.memmap(f"{path}-00000.bin", dtype="<u2", mode="r")
        self.length = length

    def __len__(self) -> int:
        return (len(self.tokens) - 1) // self.length

    def __getitem__(self, index: int) -> Any:
        import torch

        start = index * self.length
        return torch.from_numpy(self.tokens[start : start + self.length + 1].astype(np.int64))


def _plain(path: Path, batch: int, length: int) -> Batches:
    """Windows at random places, stacked: what small training scripts do. No epochs, nothing shown once."""
    import torch

    tokens = np.memmap(f"{path}-00000.bin", dtype="<u2", mode="r")

    def batches(seed: int) -> Iterator[Any]:
        draw = torch.Generator().manual_seed(seed)
        while True:
            starts = torch.randint(len(tokens) - length, (batch,), generator=draw).tolist()
            yield torch.stack([torch.from_numpy(tokens[i : i + length + 1].astype(np.int64)) for i in starts])

    return batches


def _rate(batches: Batches, n: int, tokens: int, seed: int, clock: Callable[[], float]) -> float:
    source = batches(seed)
    next(source)  # the first batch of an epoch makes its order, or starts workers
    start = clock()
    for rows in islice(source, n):
        assert rows.shape[1] * rows.shape[0] >= tokens
    return n * tokens / (clock() - start)


def _race(
    peer: str, ours: Batches, theirs: Batches, n: int, tokens: int, clock: Callable[[], float], setup: str
) -> dict[str, Any]:
    mine, others = [], []
    for turn in range(TURNS):
        mine.append(_rate(ours, n, tokens, turn, clock))
        others.append(_rate(theirs, n, tokens, turn, clock))
    ratios = [a / b for a, b in zip(mine, others, strict=True)]
    return {
        "name": f"loading against {peer}", "unit": "tokens/s", "ours": statistics.median(mine),
        "peer": statistics.median(others), "peer_name": peer, "ratio": statistics.median(ratios),
        "ratio_low": min(ratios), "ratio_high": max(ratios), "setup": setup,
    }  # fmt: skip


def _beside_training(batches: Batches, steps: int = 10) -> dict[str, Any]:
    """Our loader's tokens per second over those of the quickest step."""
    import torch

    from flopwise.models.config import ModelConfig
    from flopwise.models.transformer import Transformer
    from flopwise.train.objectives import Batch, cross_entropy
    from flopwise.train.optim import Optimiser, Rates

    model = Transformer(ModelConfig.from_width(WIDTH, 2, 512, 128)).initialise(0)
    optimiser = Optimiser(model, Rates())
    model.train()

    def trained(seed: int) -> Iterator[Any]:
        for rows in batches(seed):
            loss, _ = cross_entropy(model, Batch(rows[:, :-1], rows[:, 1:]))
            loss.backward()
            optimiser.clip(1.0)
            optimiser.step(1.0)
            optimiser.zero_grad()
            yield rows

    torch.manual_seed(0)
    return _race(
        f"a training step of width {WIDTH}", batches, trained, steps, 16 * 128, time.process_time,
        "16 x 128 tokens, one thread; the step's time includes its loading",
    )  # fmt: skip
