"""Tokens of loss per second of training: rows packed with several samples against batches of one length.

Each model is trained (forward, backward, update) on the same samples in three ways, on one thread, in turns:

- shuffled: batches of 16 samples as they come, padded to the longest;
- by length: what `posttrain.examples.epochs` makes, batches of samples of about one length, padded;
- packed: what `posttrain.examples.pack` makes, rows of several samples, about as many samples per batch.

All have the same loss; counted are the tokens that it is taken over (completions), per second of processor
time, the median of three turns over eight batches. Two sets of samples: worked solutions of Countdown, all
about as long, and samples whose lengths are drawn from a log-normal distribution (median 60 tokens, deviation
0.8 of the logarithm, 8 to 256 tokens; assumed, as chats are), a third of each being prompt.

    python -m benchmarks.packing [SIZE ...]
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

N_SAMPLES, BATCH, LENGTH, VOCAB = 2000, 16, 256, 512
REPEATS, N_BATCHES = 3, 8
"""Eight batches are a block that `epochs` sorts: all lengths are in it."""
SIZES = {"0.2M": (64, 4), "0.9M": (128, 4), "5M": (256, 6)}
"""Width and depth by parameters outside of the embedding."""


def samples(kind: str) -> list[Any]:
    """Samples of a set."""
    import numpy as np

    from flopwise.data.tasks import countdown
    from flopwise.data.tokenizer import train_bpe
    from flopwise.posttrain.examples import Example

    rng = np.random.default_rng(0)
    if kind == "chat-like":
        sizes = np.clip(np.exp(rng.normal(np.log(60), 0.8, N_SAMPLES)), 8, LENGTH).astype(int)
        drawn = [tuple(rng.integers(3, VOCAB, n).tolist()) for n in sizes]
        return [Example(ids[: len(ids) // 3], ids[len(ids) // 3 :]) for ids in drawn]
    problems = countdown.split(0, demos=N_SAMPLES)["demos"]
    pairs = [(p.prompt, countdown.demonstration(p, 0)) for p in problems]
    tokenizer = train_bpe((a + b for a, b in pairs), VOCAB)
    return [Example(tuple(tokenizer.encode(a)), (*tokenizer.encode(b), tokenizer.eos_id)) for a, b in pairs]


def ways(examples: list[Any]) -> dict[str, Callable[[int], Any]]:
    """Batches by step."""
    import numpy as np

    from flopwise.posttrain.examples import collate, epochs, lengths, pack

    def shuffled(step: int) -> Any:
        drawn = np.random.default_rng((1, step)).choice(len(examples), BATCH, replace=False)
        return collate([examples[i] for i in drawn], 1)

    rows = max(1, round(BATCH * float((lengths(examples) - 1).mean()) / LENGTH))
    return {
        "shuffled": shuffled, "by length": epochs(examples, BATCH, 1, 0),
        "packed": pack(examples, LENGTH, rows, 1, 0),
    }  # fmt: skip


def trainer(width: int, depth: int) -> Callable[[Any], int]:
    """One update on a batch; gives the tokens of loss."""
    from flopwise.models import kernels
    from flopwise.models.config import ModelConfig
    from flopwise.models.transformer import Transformer
    from flopwise.train.optim import Optimiser, Rates

    model = Transformer(ModelConfig.from_width(width, depth, VOCAB, LENGTH)).initialise(0).train()
    optimiser = Optimiser(model, Rates())

    def update(batch: Any) -> int:
        learned = batch.weights.flatten().nonzero()[:, 0]
        hidden = model.hidden(batch.ids, batch.extra.get("segments")).flatten(0, 1)[learned]
        found = kernels.token_logprobs(hidden, model.head.weight, batch.targets.flatten()[learned])[0]
        (-found.mean()).backward()
        optimiser.clip(1.0)
        optimiser.step(0.0)
        optimiser.zero_grad()
        return len(learned)

    return update


def speeds(update: Callable[[Any], int], made: dict[str, list[Any]]) -> dict[str, float]:
    """Tokens of loss per second of each way: the median of `REPEATS` turns."""
    found: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(REPEATS):
        for name, batches in made.items():
            start = time.process_time()
            n_tokens = sum(update(b) for b in batches)
            found[name].append(n_tokens / (time.process_time() - start))
    return {name: statistics.median(values) for name, values in found.items()}


def main(sizes: list[str]) -> None:
    """Measure and print the page."""
    import torch

    from flopwise.flops.hardware import keep_freed_memory

    torch.set_num_threads(1)
    keep_freed_memory()
    print("# Packing against batches of one length\n")
    print((__doc__ or "").split("\n\n    python")[0].split("\n\n", 1)[1] + "\n")
    print(
        f"Rows of {LENGTH} positions, batches of {BATCH} samples; filled: share of positions with a token.\n"
    )
    print(
        "| samples | model | way | shape of a batch | filled | tokens of loss per CPU s | against by length |"
    )
    print("|---|---|---|---|---|---|---|")
    for kind in ("countdown", "chat-like"):
        by_step = ways(samples(kind))
        made = {name: [make(i) for i in range(N_BATCHES)] for name, make in by_step.items()}
        for size in sizes:
            update = trainer(*SIZES[size])
            for batches in made.values():
                update(batches[0])
            speed = speeds(update, made)
            for name, batches in made.items():
                rows, long = (statistics.mean(b.ids.shape[d] for b in batches) for d in (0, 1))
                filled = sum(int((b.ids != 1).sum()) for b in batches) / sum(b.ids.numel() for b in batches)
                ratio = speed[name] / speed["by length"]
                print(
                    f"| {kind} | {size} | {name} | {rows:.0f} x {long:.0f} | {filled:.0%} "
                    f"| {speed[name]:,.0f} | {ratio:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main(sys.argv[1:] or list(SIZES))
