"""Best-of-n as a teacher: the highest-scored of n samples of each problem, kept as data to learn from.

A model tuned on its own best-of-n answers like best-of-n at the price of one sample; repeated, each round
starts from the last one's model (as BOND, Sessa et al., arXiv 2407.14622, which also weighs a backward KL).
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import numpy as np

from flopwise.flops.ledger import Ledger
from flopwise.flops.spend import Stopwatch
from flopwise.posttrain.bench import Bench, Progress, completion_ids, load_model, model_fields
from flopwise.posttrain.rejection import pool, sample_blocks, write_rows

if TYPE_CHECKING:
    from flopwise.infer.engine import SampleBatch
    from flopwise.records.folder import RunFolder


def run_step(folder: RunFolder, parents: dict[str, RunFolder], progress: Progress) -> None:
    """Sample n for each problem from parent `init` and keep the best: by the score of parent `reward`, by the
    verifier, or by the model's own log-probability.

    Samples that did not come to an end are taken only where none did. The record says how often the kept
    sample is right beside how often any is, and the largest KL divergence from the model that the choice can
    make, log n - (n - 1)/n (an upper bound: Beirami et al., arXiv 2401.01879).
    """
    from flopwise.infer.local import LocalEngine
    from flopwise.records.record import Metric

    watch, ledger = Stopwatch(), Ledger()
    bench = Bench.open(folder, parents)
    spec, n = bench.spec, bench.spec["n"]
    scorer = LocalEngine(load_model(parents["reward"])) if spec["by"] == "reward" else None
    problems = pool(bench)
    rows, right_any, right_kept, tokens = [], 0, 0, 0

    def scores(part: list[object], samples: SampleBatch, right: np.ndarray) -> np.ndarray:
        if scorer is None:
            return right.astype(float) if spec["by"] == "verifier" else samples.logprobs.sum(axis=1)
        start = time.perf_counter()
        whole = [[*e.prompt, *e.completion] for e in bench.sampled_examples(part, samples)]
        found, flops = scorer.reward(whole)
        read = sum(map(len, whole))
        ledger.post("reward", parents["reward"].id, read, flops, time.perf_counter() - start)
        return found

    for part, samples in sample_blocks(bench, problems, ledger, parents["init"].id, progress):
        right = (
            bench.verify(part, samples) if bench.asked.task else np.zeros(len(samples.lengths), dtype=bool)
        )
        tokens += samples.usage.decode_tokens
        value = np.where(samples.finished, scores(part, samples, right), -math.inf).reshape(len(part), n)
        best = value.argmax(1) + np.arange(len(part)) * n
        texts = bench.tokenizer.decode_batch(completion_ids(samples, strip_stop=True))
        for problem, i in zip(part, best.tolist(), strict=True):
            rows.append({"prompt": problem.prompt, "completion": texts[i], "right": bool(right[i])})
        right_any += int(right.sum())
        right_kept += int(right[best].sum())
    write_rows(folder, rows)
    metrics = {"kept": Metric(value=len(rows)), "kl_bound": Metric(value=math.log(n) - (n - 1) / n)}
    if bench.asked.task:
        of = len(problems)
        metrics |= {
            "accept_rate": Metric(value=right_any / (of * n), n=of * n),
            "kept_right": Metric(
                value=right_kept / of, se=math.sqrt(right_kept / of * (1 - right_kept / of) / of), n=of
            ),
        }
    folder.finish(
        metrics=metrics,
        spend=watch.spend(ledger, tokens=tokens),
        model=model_fields(bench.model),
        data={"corpus": bench.asked.task, "tokens_seen": 0, "tokens_unique": None, "modality": "text"},
        extra={"sampled_from": parents["init"].id, "by": spec["by"]},
    )  # fmt: skip
