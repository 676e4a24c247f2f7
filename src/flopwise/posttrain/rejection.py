"""Rejection sampling: sample n per problem, keep what the verifier accepts, fine-tune on it, repeat.

RAFT (Dong et al., arXiv 2304.06767) and rejection-sampling fine-tuning (Yuan et al., arXiv 2308.01825):
distinct verified solutions are kept, a few per problem, so that easy problems do not crowd the set.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from flopwise.errors import FlopwiseError
from flopwise.flops.ledger import Ledger
from flopwise.flops.spend import Stopwatch
from flopwise.posttrain.bench import Bench, Progress, completion_ids, model_fields, own_rows, to_examples
from flopwise.posttrain.examples import Example, epochs

if TYPE_CHECKING:
    from flopwise.infer.engine import SampleBatch
    from flopwise.records.folder import RunFolder

SAMPLES_FILE = "samples.jsonl"
BLOCK = 512
"""Problems sampled at once: progress shows, and memory stays small."""


def synthesize_step(folder: RunFolder, parents: dict[str, RunFolder], progress: Progress) -> None:
    """Sample from parent `init`, keep distinct verified solutions: `samples.jsonl` of prompt and completion.

    Also the offline half of sequence distillation, where `init` is the teacher; with more parents named
    `candidate...`, the teacher is the one with the best validation accuracy. With `verify: false` all that
    came to an end is kept, right or wrong (a row then says which), as where there is no verifier.
    """
    from flopwise.records.record import Metric

    watch, ledger, role = Stopwatch(), Ledger(), best_role(parents)
    bench = Bench.open(folder, parents, role=role)
    spec, verified = bench.spec, bench.spec.get("verify", True)
    kept: list[dict[str, Any]] = []
    right_total = tokens = kept_right = 0
    problems = pool(bench)
    for part, batch in sample_blocks(bench, problems, ledger, parents[role].id, progress):
        right = bench.verify(part, batch)
        right_total += int(right.sum())
        tokens += batch.usage.decode_tokens
        accepted = right if verified else batch.finished
        texts = bench.tokenizer.decode_batch(completion_ids(batch, strip_stop=True))
        distinct: dict[int, dict[str, bool]] = {}
        for index, text, ok, is_right in zip(
            batch.prompt_index.tolist(), texts, accepted, right.tolist(), strict=True
        ):
            found = distinct.setdefault(index, {})
            if ok and text not in found and len(found) < spec["keep_per_problem"]:
                found[text] = is_right
        for index, found in sorted(distinct.items()):
            for text, is_right in found.items():
                said = {} if verified else {"right": is_right}
                kept.append({"prompt": part[index].prompt, "completion": text} | said)
                kept_right += is_right
    n = len(problems) * spec["n"]
    if not kept:
        what = "was right" if verified else "came to an end"
        raise FlopwiseError(f"none of {n} samples {what}; start from a better model or sample more")
    write_rows(folder, kept)
    rate = right_total / n
    more = {} if verified else {"kept_right": Metric(value=kept_right / len(kept), n=len(kept))}
    folder.finish(
        metrics={
            "accept_rate": Metric(value=rate, se=float(np.sqrt(rate * (1 - rate) / n)), n=n),
            "kept": Metric(value=len(kept), se=None, n=n),
            **more,
        },
        spend=watch.spend(ledger, tokens=tokens),
        model=model_fields(bench.model),
        extra={"sampled_from": parents[role].id},
        data={"corpus": bench.asked.task, "tokens_seen": 0, "tokens_unique": None, "modality": "text"},
    )  # fmt: skip


def pool(bench: Bench) -> list[Any]:
    """The spec's training problems, from `first_problem` on and round again where they end."""
    spec, there = bench.spec, bench.problems("rl")
    if not there:
        raise FlopwiseError("there is no training problem to sample; give a task or rows with answers")
    return [there[(spec["first_problem"] + i) % len(there)] for i in range(spec["problems"])]


def sample_blocks(
    bench: Bench, problems: list[Any], ledger: Ledger, model_id: str, progress: Progress
) -> Iterator[tuple[list[Any], SampleBatch]]:
    """The spec's n samples of each problem by blocks, each with a seed of its own; posted as `model_id`'s."""
    spec = bench.spec
    for start in range(0, len(problems), BLOCK):
        part = problems[start : start + BLOCK]
        seed = bench.folder.seed * 1_000_003 + start
        batch = bench.sample(part, spec["n"], seed, spec["temperature"], spec.get("max_tokens", 64))
        ledger.used("sample", model_id, batch.usage)
        yield part, batch
        progress(min(0.99, (start + BLOCK) / len(problems)))


def best_role(parents: dict[str, RunFolder]) -> str:
    """`init`, or the `candidate` whose validation accuracy is higher."""
    roles = ["init", *(role for role in parents if role.startswith("candidate"))]
    if len(roles) == 1:
        return roles[0]
    return max(roles, key=lambda role: parents[role].record().metrics["val_accuracy"].value or 0.0)


def write_rows(folder: RunFolder, rows: Iterable[dict[str, Any]]) -> None:
    """Write what a step made: a row each with prompt, completion, and what else is known of it."""
    from flopwise.records.folder import atomic_write

    atomic_write(folder.path / SAMPLES_FILE, "".join(json.dumps(row) + "\n" for row in rows))


def read_rows(folder: RunFolder) -> list[dict[str, Any]]:
    """What a data-making step left.

    Raises:
        FlopwiseError: it left nothing that can be read.
    """
    path = folder.path / SAMPLES_FILE
    try:
        with open(path, encoding="utf-8") as f:
            return [json.loads(line) for line in f]
    except FileNotFoundError:
        raise FlopwiseError(
            f"run {folder.id} ({folder.name or folder.method}) made no samples; give a run that makes data"
        ) from None
    except (OSError, ValueError) as e:
        raise FlopwiseError(
            f"{path} cannot be read ({type(e).__name__}); delete {folder.path} and start again"
        ) from e


def read_samples(folder: RunFolder) -> list[tuple[str, str]]:
    """Prompt and completion pairs of a data-making step."""
    return [(r["prompt"], r["completion"]) for r in read_rows(folder)]


def read_examples(bench: Bench, folder: RunFolder) -> list[Example]:
    """The same as this bench's model reads them: texts go through its own tokenizer."""
    return examples_of(bench, read_samples(folder))


def examples_of(bench: Bench, pairs: list[tuple[str, str]]) -> list[Example]:
    """Prompts and completions as token ids; the prompt of a chat with the special tokens that its text
    lacks."""
    rows = own_rows(bench.data)
    examples = to_examples(bench.data, pairs)
    if rows is None or rows.kind == "text":
        return examples
    known = {p.prompt: p.prompt_ids for p in rows.problems("rl")}
    end = rows.stop_ids[-1]
    return [
        Example(known[prompt], (*e.completion[:-1], end)) if prompt in known else e
        for (prompt, _), e in zip(pairs, examples, strict=True)
    ]


def run_step(folder: RunFolder, parents: dict[str, RunFolder], progress: Progress) -> None:
    """Fine-tune parent `init` on samples of parent `samples`, demonstrations mixed in on request.

    One round of rejection sampling; with a teacher's samples, sequence distillation (Kim and Rush, arXiv
    1606.07947). The demonstrations keep the variety that self-made samples lose.
    """
    bench = Bench.open(folder, parents)
    spec = bench.spec
    made = read_examples(bench, parents["samples"])
    examples = made + (bench.demonstrations() if spec["with_demonstrations"] else [])
    next_batch = epochs(examples, spec["batch_size"], bench.data.tokenizer.pad_id, folder.seed)
    counters = bench.fit(next_batch, spec["steps"], progress)
    unique = sum(map(len, examples))
    bench.finish(counters, {}, unique, {"made": len(made), "examples": len(examples)})
