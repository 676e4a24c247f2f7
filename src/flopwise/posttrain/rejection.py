"""Rejection sampling: sample n per problem, keep what the verifier accepts, fine-tune on it, repeat.

RAFT (Dong et al., arXiv 2304.06767) and rejection-sampling fine-tuning (Yuan et al., arXiv 2308.01825):
distinct verified solutions are kept, a few per problem, so that easy problems do not crowd the set.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from flopwise.errors import FlopwiseError
from flopwise.flops.spend import Stopwatch
from flopwise.posttrain.bench import (
    Bench,
    Progress,
    completion_ids,
    model_fields,
    sample,
    to_examples,
    verify_all,
)
from flopwise.posttrain.examples import epochs

if TYPE_CHECKING:
    from flopwise.records.folder import RunFolder


def synthesize_step(folder: RunFolder, parents: dict[str, RunFolder], progress: Progress) -> None:
    """Sample from parent `init`, keep distinct verified solutions: `samples.jsonl` of prompt and completion.

    Also the offline half of sequence distillation, where `init` is the teacher; with more parents named
    `candidate...`, the teacher is the one with the best validation accuracy.
    """

    from flopwise.records.folder import atomic_write
    from flopwise.records.record import Metric

    watch = Stopwatch()
    bench = Bench.open(folder, parents, role=best_role(parents))
    spec = bench.spec
    pool = bench.data.problems("rl")
    first = spec["first_problem"]
    problems = [pool[(first + i) % len(pool)] for i in range(spec["problems"])]
    kept: list[dict[str, Any]] = []
    right_total = tokens = 0
    flops = 0.0
    # In blocks, so that progress shows and memory stays small; each block has a seed of its own.
    block = 512
    for start in range(0, len(problems), block):
        part = problems[start : start + block]
        batch = sample(
            bench.model, bench.data, part, spec["n"], folder.seed * 1_000_003 + start, spec["temperature"]
        )
        right = verify_all(bench.data, part, batch)
        right_total += sum(right)
        flops += batch.usage.flops
        tokens += batch.usage.decode_tokens
        texts = bench.data.tokenizer.decode_batch(completion_ids(batch, strip_stop=True))
        distinct: dict[int, list[str]] = {}
        for index, text, ok in zip(batch.prompt_index.tolist(), texts, right, strict=True):
            found = distinct.setdefault(index, [])
            if ok and text not in found and len(found) < spec["keep_per_problem"]:
                found.append(text)
        for index, found in sorted(distinct.items()):
            kept += [{"prompt": part[index].prompt, "completion": text} for text in found]
        progress(min(0.99, (start + block) / len(problems)))
    n = len(problems) * spec["n"]
    if not kept:
        raise FlopwiseError(f"none of {n} samples was right; start from a better model or sample more")
    atomic_write(folder.path / "samples.jsonl", "".join(json.dumps(k) + "\n" for k in kept))
    rate = right_total / n
    folder.finish(
        metrics={
            "accept_rate": Metric(value=rate, se=float(np.sqrt(rate * (1 - rate) / n)), n=n),
            "kept": Metric(value=len(kept), se=None, n=n),
        },
        spend=watch.spend(generate_flops=flops, tokens=tokens),
        model=model_fields(bench.model),
        extra={"sampled_from": parents[best_role(parents)].id},
        data={"corpus": bench.data.task, "tokens_seen": 0, "tokens_unique": None, "modality": "text"},
    )  # fmt: skip


def best_role(parents: dict[str, RunFolder]) -> str:
    """`init`, or the `candidate` whose validation accuracy is higher."""
    roles = ["init", *(role for role in parents if role.startswith("candidate"))]
    if len(roles) == 1:
        return roles[0]
    return max(roles, key=lambda role: parents[role].record().metrics["val_accuracy"].value or 0.0)


def read_samples(folder: RunFolder) -> list[tuple[str, str]]:
    """Prompt and completion pairs that `synthesize_step` kept."""
    with open(folder.path / "samples.jsonl", encoding="utf-8") as f:
        rows = [json.loads(line) for line in f]
    return [(r["prompt"], r["completion"]) for r in rows]


def run_step(folder: RunFolder, parents: dict[str, RunFolder], progress: Progress) -> None:
    """Fine-tune parent `init` on verified samples of parent `samples`, demonstrations mixed in on request.

    One round of rejection sampling; with a teacher's samples, verified sequence distillation (Kim and Rush,
    arXiv 1606.07947). The demonstrations keep the variety that self-made samples lose.
    """
    bench = Bench.open(folder, parents)
    spec = bench.spec
    made = to_examples(bench.data, read_samples(parents["samples"]))
    examples = made + (bench.demonstrations() if spec["with_demonstrations"] else [])
    next_batch = epochs(examples, spec["batch_size"], bench.data.tokenizer.pad_id, folder.seed)
    counters = bench.fit(next_batch, spec["steps"], progress)
    unique = sum(len(e.prompt) + len(e.completion) for e in examples)
    bench.finish(counters, {}, unique, {"made": len(made), "examples": len(examples)})
