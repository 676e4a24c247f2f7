"""Supervised fine-tuning on input-output pairs, and its use as the equal-compute control of other methods."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flopwise.posttrain.bench import Bench, Progress, steps_for_flops
from flopwise.posttrain.examples import epochs, pack

if TYPE_CHECKING:
    from flopwise.records.folder import RunFolder


EPOCHS = 3.0
"""Where neither steps nor epochs are given."""


def run_step(folder: RunFolder, parents: dict[str, RunFolder], progress: Progress) -> None:
    """Fine-tune parent `init` on the fixed demonstrations.

    With parents `match`, `match2`, ... instead of `steps`, it trains until it has spent what those runs
    spent together (training, sampling and scoring): the control that says whether a method beat more of
    the same.
    """
    bench = Bench.open(folder, parents)
    spec = bench.spec
    examples = bench.demonstrations()[: spec.get("demonstrations")]
    rows, pad = spec["batch_size"], bench.tokenizer.pad_id
    if spec.get("pack"):
        next_batch = pack(examples, spec["pack"], rows, pad, folder.seed)
    else:
        next_batch = epochs(examples, rows, pad, folder.seed)
    matched = [f for role, f in parents.items() if role.startswith("match")]
    if matched:
        target = sum(f.record().spend.total_flops for f in matched)
        steps = steps_for_flops(bench.model, target, [next_batch(i) for i in range(50)])
    elif spec.get("steps"):
        steps = spec["steps"]
    else:
        # Of a packed batch the learned tokens say how much of an epoch it is.
        first = [next_batch(i) for i in range(min(50, max(1, len(examples) // rows)))]
        learned = sum(len(e.completion) for e in examples)
        per_step = sum(float((b.weights > 0).sum()) for b in first if b.weights is not None) / len(first)
        steps = max(1, round((spec.get("epochs") or EPOCHS) * learned / per_step))
    counters = bench.fit(next_batch, steps, progress)
    unique = sum(len(e.prompt) + len(e.completion) for e in examples)
    seen = steps * rows / len(examples)
    bench.finish(
        counters,
        {},
        unique,
        {"steps": steps, "examples": len(examples)} | ({} if spec.get("pack") else {"epochs": seen}),
    )
