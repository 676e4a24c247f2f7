"""How many small models to train at once: measured on this machine, once per shape.

What an ensemble saves is the cost of calling kernels, which is the same for any width and batch; so it pays
where an update is small, and nowhere else (`docs/results/ensemble.md`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import torch

from flopwise.models.config import ModelConfig
from flopwise.models.ensemble import Ensemble
from flopwise.models.native_build import library
from flopwise.models.transformer import Transformer
from flopwise.train.ensemble import EnsembleOptimiser
from flopwise.train.measured import machine, remembered
from flopwise.train.objectives import Batch, cross_entropy
from flopwise.train.optim import Optimiser, Rates

SIZES = (2, 4, 8)
WORTH = 0.95
"""A group must take at most so much of the time of a smaller one: less is within what the probe can tell, and
a group has a price too (a kill stops all of it, another worker could have taken a part)."""

SHORT_S = 0.05
"""An update that takes longer alone is not probed: what can be saved was 2 ms with compiled kernels, 2 to 5
with torch's, whatever the shape."""

PROBE_S = 1.0


def best_size(cfg: ModelConfig, batch_size: int, seq_len: int, n: int) -> int:
    """How many of `n` models of one shape are best trained together, 1 for one by one.

    The first question about a shape takes two seconds of probing, the answer stays in the cache folder.
    Mixtures of experts are not stacked, so for them it is 1.
    """
    if n < 2 or cfg.n_experts:
        return 1
    about = (
        "vocab_size", "d_model", "n_layers", "n_heads", "n_kv_heads", "head_dim", "d_ff", "tie_embeddings",
        "qk_norm", "sliding_window",
    )  # fmt: skip
    question = {
        "group of models": [getattr(cfg, name) for name in about],
        "batch": [batch_size, seq_len],
        "compiled kernels": library() is not None,
    }
    times = remembered(machine(), question, lambda: _probe(cfg, batch_size, seq_len))
    return choose({int(size): float(seconds) for size, seconds in times.items()}, n)


def choose(times: dict[int, float], n: int) -> int:
    """The size that takes the least time per member, of those not far above `n`; larger only if worth it.

    >>> times = {1: 10.0, 2: 8.0, 4: 7.0, 8: 6.9}
    >>> [choose(times, n) for n in (2, 3, 4, 8)], choose({1: 10.0, 2: 9.8, 4: 9.7}, 4)
    ([2, 3, 4, 4], 1)
    """
    best = 1
    for size in sorted(times):
        if size < 2 * n and times[size] <= WORTH * times[best]:
            best = size
    return min(best, n)


def _probe(cfg: ModelConfig, batch_size: int, seq_len: int) -> dict[str, float]:
    """Seconds per member and update by size of the group: the least of a few."""
    alone = seconds_per_update(cfg, batch_size, seq_len, [1], lambda spent, rounds: rounds < 3)[1]
    if min(alone) > SHORT_S:
        return {"1": min(alone)}
    times = seconds_per_update(
        cfg, batch_size, seq_len, [1, *SIZES], lambda spent, rounds: rounds < 2 or spent < PROBE_S
    )
    return {str(size): min(values) for size, values in times.items()}


def seconds_per_update(
    cfg: ModelConfig, batch_size: int, seq_len: int, sizes: Iterable[int],
    go_on: Callable[[float, int], bool],
) -> dict[int, list[float]]:  # fmt: skip
    """Processor time per member and update of groups of each size (1: a model alone), in turns.

    One value per turn, in which each size makes the updates of as many members; `go_on(seconds so far,
    turns)` says whether there is another turn. The first one is not counted.
    """
    sizes = list(sizes)
    updates = {size: _update(cfg, batch_size, seq_len, size) for size in sizes}
    out: dict[int, list[float]] = {size: [] for size in sizes}
    started = time.process_time()
    turns = 0
    while turns == 0 or go_on(time.process_time() - started, turns - 1):
        for size, update in updates.items():
            n = max(1, max(sizes) // size)
            start = time.process_time()
            for _ in range(n):
                update()
            out[size].append((time.process_time() - start) / (n * size))
        turns += 1
    return {size: values[1:] for size, values in out.items()}


def _update(cfg: ModelConfig, batch_size: int, seq_len: int, size: int) -> Callable[[], None]:
    """One update of `size` models on random tokens, as the training loops make it."""
    rng = torch.Generator().manual_seed(0)
    rows = torch.randint(cfg.vocab_size, (size, batch_size, seq_len + 1), generator=rng)
    ids, targets = rows[..., :-1].contiguous(), rows[..., 1:].contiguous()
    models = [Transformer(cfg).initialise(seed) for seed in range(size)]
    optimisers = [Optimiser(model, Rates()) for model in models]
    if size == 1:
        model, optimiser, batch = models[0], optimisers[0], Batch(ids[0], targets[0])

        def alone() -> None:
            loss, _ = cross_entropy(model, batch)
            loss.item()
            loss.backward()
            float(optimiser.clip(1.0))
            optimiser.step(0.1)
            optimiser.zero_grad()

        return alone
    ensemble = Ensemble(models)
    joint = EnsembleOptimiser(ensemble, optimisers)

    def together() -> None:
        ensemble.backward(ids, targets).tolist()
        joint.clip(1.0)
        joint.step([0.1] * size)
        joint.zero_grad()

    return together
