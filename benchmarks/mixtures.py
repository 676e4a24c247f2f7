"""Mixtures of experts against the dense model of equal active FLOPs: tokens per second of one core.

    python -m benchmarks.mixtures [WIDTH...]

Models take turns, one update each, and the median over updates is shown as a share of the dense model's
speed. Time is that of the process, so that other work on the machine disturbs little. An optimiser costs the
same whatever the batch: with larger batches the shares come close to those of the passes alone.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch

from flopwise.flops.hardware import keep_freed_memory
from flopwise.models.config import ModelConfig
from flopwise.models.transformer import Transformer
from flopwise.train.objectives import Batch, cross_entropy
from flopwise.train.optim import Optimiser, Rates

DEPTH, VOCAB, BATCH, SEQ_LEN, UPDATES = 2, 512, 16, 128, 9
SHAPES: dict[str, dict[str, int | str]] = {
    "dense": {},
    "4 experts": {"expansion": 4},
    "8 experts": {"expansion": 8},
    "16 experts": {"expansion": 16},
    "16 fine experts, 4 at work": {"expansion": 4, "granularity": 4},
    "15 fine experts, 3 at work, 1 shared, bias": {
        "expansion": 4, "granularity": 4, "shared_experts": 1, "balance": "bias",
    },
}  # fmt: skip


def cpu_time(work: Callable[[], object]) -> float:
    """Seconds of this process."""
    start = time.process_time()
    work()
    return time.process_time() - start


def measure(width: int) -> dict[str, dict[str, float]]:
    """Median seconds of forward and backward pass, of an update by Muon and of one by AdamW, per shape."""
    ids = torch.randint(VOCAB, (BATCH, SEQ_LEN + 1), generator=torch.Generator().manual_seed(0))
    batch = Batch(ids[:, :-1], ids[:, 1:])
    seconds: dict[str, dict[str, list[float]]] = {name: {} for name in SHAPES}
    for optimiser_name in ("muon", "adamw"):
        held = {}
        for name, options in SHAPES.items():
            cfg = ModelConfig.from_width(width, DEPTH, VOCAB, SEQ_LEN, **options)  # type: ignore[arg-type]
            model = Transformer(cfg).initialise(0).train()
            held[name] = model, Optimiser(model, Rates(optimiser=optimiser_name))
        for _ in range(UPDATES):
            for name, (model, optimiser) in held.items():
                passes = cpu_time(lambda m=model: cross_entropy(m, batch)[0].backward())  # type: ignore[misc]
                update = cpu_time(lambda o=optimiser: (o.step(1e-3), o.zero_grad()))  # type: ignore[misc]
                seconds[name].setdefault("passes", []).append(passes)
                seconds[name].setdefault(optimiser_name, []).append(update)
    return {n: {k: statistics.median(v[1:]) for k, v in of.items()} for n, of in seconds.items()}


def main() -> None:
    """Print one table for all widths."""
    torch.set_num_threads(1)
    keep_freed_memory()
    tokens = BATCH * SEQ_LEN
    print("| width | model | ms per batch | passes | with AdamW | with Muon | Muon, batch x 8 (computed) |")
    print("|---|---|---|---|---|---|---|")
    for width in map(int, sys.argv[1:] or ["32", "64", "128", "256"]):
        found = measure(width)
        dense = found["dense"]
        for name, of in found.items():
            shares = [
                (factor * dense["passes"] + dense.get(update, 0.0))
                / (factor * of["passes"] + of.get(update, 0.0))
                for factor, update in ((1, ""), (1, "adamw"), (1, "muon"), (8, "muon"))
            ]
            cells = " | ".join(f"{share:.2f}" for share in shares)
            print(f"| {width} | {name} | {1e3 * of['passes']:.1f} | {cells} |", flush=True)
    print(f"\nBatches of {tokens} tokens, {DEPTH} layers, vocabulary {VOCAB}, float32, one core.")


if __name__ == "__main__":
    main()
