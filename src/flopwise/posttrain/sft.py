"""Supervised fine-tuning on input-output pairs, and its use as the equal-compute control of other methods."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flopwise.posttrain.bench import Bench, Progress, steps_for_flops
from flopwise.posttrain.examples import epochs

if TYPE_CHECKING:
    from flopwise.records.folder import RunFolder


def run_step(folder: RunFolder, parents: dict[str, RunFolder], progress: Progress) -> None:
    """Fine-tune parent `init` on the fixed demonstrations.

    With parents `match`, `match2`, ... instead of `steps`, it trains until it has spent what those runs
    spent together (training, sampling and scoring): the control that says whether a method beat more of
    the same.
    """
    bench = Bench.open(folder, parents)
    spec = bench.spec
    examples = bench.demonstrations()
    next_batch = epochs(examples, spec["batch_size"], bench.data.tokenizer.pad_id, folder.seed)
    matched = [f for role, f in parents.items() if role.startswith("match")]
    if matched:
        target = sum(f.record().spend.total_flops for f in matched)
        steps = steps_for_flops(bench.model, target, [next_batch(i) for i in range(50)])
    else:
        steps = spec["steps"]
    counters = bench.fit(next_batch, steps, progress)
    unique = sum(len(e.prompt) + len(e.completion) for e in examples)
    bench.finish(counters, {}, unique, {"steps": steps, "epochs": steps * spec["batch_size"] / len(examples)})
