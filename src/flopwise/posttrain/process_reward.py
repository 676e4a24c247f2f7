"""A process reward model: after every step, the log-odds that the answer will be right.

Labels come from roll-outs: each step is valued by how often the model, going on from it, ends right (Wang et
al., Math-Shepherd, arXiv 2312.08935, section 3.3), or from somebody's labelled steps (Lightman et al., arXiv
2305.20050). A whole answer's score is the least, the last or the product of its steps' values.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from flopwise.errors import FlopwiseError
from flopwise.flops.ledger import Ledger
from flopwise.infer import calibration
from flopwise.infer.engine import Usage
from flopwise.infer.estimators import best_of_k
from flopwise.infer.local import LocalEngine
from flopwise.infer.steps import HOW, aggregate, score_answers, step_ends
from flopwise.posttrain.bench import Bench, Progress, load_model
from flopwise.posttrain.examples import Example, epoch_rows, lengths
from flopwise.posttrain.reward import new_scorer, training_problems
from flopwise.train.objectives import Batch
from flopwise.train.reward_objectives import step_reward

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flopwise.infer.engine import SampleBatch
    from flopwise.records.folder import RunFolder
    from flopwise.records.record import Metric

VALUES_FILE = "values.npz"
BLOCK = 2048
"""Prefixes that are rolled out together."""


@dataclass(frozen=True)
class Trace:
    """An answer in steps: the places in prompt and completion at which each ends, and its value in [0, 1]."""

    example: Example
    ends: tuple[int, ...]
    values: tuple[float, ...]


def collate_steps(traces: Sequence[Trace], pad_id: int) -> Batch:
    """Whole sequences, right-padded; weight 1 where a step ends, its value in `extra["values"]`."""
    longest = max(len(t.example.prompt) + len(t.example.completion) for t in traces)
    ids = np.full((len(traces), longest), pad_id, dtype=np.int64)
    weights = np.zeros(ids.shape, dtype=np.float32)
    values = np.zeros(ids.shape, dtype=np.float32)
    for row, t in enumerate(traces):
        whole = t.example.prompt + t.example.completion
        ids[row, : len(whole)] = whole
        weights[row, list(t.ends)] = 1.0
        values[row, list(t.ends)] = t.values
    return Batch(
        torch.from_numpy(ids), weights=torch.from_numpy(weights), extra={"values": torch.from_numpy(values)}
    )


def run_step(folder: RunFolder, parents: dict[str, RunFolder], progress: Progress) -> None:
    """Train a scorer of steps on the trunk of `init`, and judge it on steps it has not seen; on the model's
    own samples also by what its choice among them is worth, beside parent `reward`.

    Raises:
        FlopwiseError: no step to learn from, or all of them alike.
    """
    bench = Bench.open(folder, parents)
    made = _Rollouts(bench, parents, progress) if _has_problems(bench) else None
    train, held = (made.train, made.held) if made else _labelled(bench)
    labels = np.array([v for t in train for v in t.values])
    if not len(labels) or labels.min() == labels.max():
        what = f"all {len(labels):,} have the value {labels[0]:g}" if len(labels) else "there is none"
        raise FlopwiseError(f"process reward: of steps {what}; take problems that are solved sometimes")
    bench.model = new_scorer(bench)
    rows = epoch_rows(lengths([t.example for t in train]), bench.spec["batch_size"], folder.seed)

    def next_batch(step: int) -> Batch:
        batch = collate_steps([train[i] for i in rows(step)], bench.tokenizer.pad_id)
        if step == 0 and made:
            batch.ledger = made.ledger
        return batch

    bench.validate = lambda step: {}  # type: ignore[method-assign]
    counters = bench.fit(
        next_batch, bench.spec["steps"], lambda f: progress((0.5 if made else 0.0) + f / (2 if made else 1)),
        step_reward,
    )  # fmt: skip
    engine = LocalEngine(bench.model.eval())
    metrics, extra = _judged(engine, held) if held else ({}, {})
    extra |= {"steps": len(labels), "mean_value": float(labels.mean())}
    if made:
        chosen, extra["best_of_n"] = made.choices(engine)
        metrics |= chosen
    bench.finish(counters, metrics, None, extra)


def _has_problems(bench: Bench) -> bool:
    return getattr(bench.data, "kind", "problems") != "steps"


def _labelled(bench: Bench) -> tuple[list[Trace], list[Trace]]:
    """A dataset's labelled steps, to learn from and held out."""
    data: Any = bench.data
    train, held = (
        [Trace(s.example, s.ends, tuple(map(float, s.labels))) for s in data.steps(split)]
        for split in ("train", "heldout")
    )
    return train, held


def _judged(engine: LocalEngine, held: Sequence[Trace]) -> tuple[dict[str, Metric], dict[str, Any]]:
    """How well values of held-out steps are known, answers to one prompt being one unit."""
    scores, _ = engine.rewards_at(
        [t.example.prompt + t.example.completion for t in held], [t.ends for t in held]
    )
    units = {prompt: i for i, prompt in enumerate(dict.fromkeys(t.example.prompt for t in held))}
    groups = np.repeat([units[t.example.prompt] for t in held], [len(t.ends) for t in held])
    flat, truth = np.concatenate(scores), np.array([v for t in held for v in t.values])
    metrics, calibrated = calibration.describe(flat, truth, groups)
    return metrics | calibration.within(flat, truth > 0.5, groups), {"calibration": calibrated}


class _Rollouts:
    """Traces of the model's own samples, valued by going on from each step; more samples to choose from."""

    def __init__(self, bench: Bench, parents: dict[str, RunFolder], progress: Progress):
        spec = bench.spec
        self.bench, self.parents, self.ledger = bench, parents, Ledger()
        self.task = bench.asked.open_task()
        self.engine = LocalEngine(bench.model.eval())
        problems = training_problems(bench, spec["problems"] + spec["test_problems"])
        first, self.test = problems[: spec["problems"]], problems[spec["problems"] :]
        seed, limit = bench.folder.seed * 1_000_003, spec["max_tokens"]
        learned = bench.sample(first, spec["n"], seed + 5, spec["temperature"], limit)
        self.samples = bench.sample(self.test, spec["test_n"], seed + 6, spec["temperature"], limit)
        self.right = bench.verify(self.test, self.samples)
        self.ledger.used("sample", parents["init"].id, learned.usage)
        self.ledger.used("evaluate", parents["init"].id, self.samples.usage)
        few = np.flatnonzero(self.samples.sample_index < spec["n"])
        todo = [
            (first, learned, np.arange(len(learned.lengths)), bench.verify(first, learned), "sample"),
            (self.test, self.samples, few, self.right, "evaluate"),
        ]
        self.train, self.held = (
            self._traces(*part, seed + 7 + i, lambda f, i=i: progress((f + i) / 4))  # type: ignore[misc]
            for i, part in enumerate(todo)
        )

    def _traces(
        self, problems: list[Any], samples: SampleBatch, which: np.ndarray, right: np.ndarray, kind: str,
        seed: int, progress: Progress,
    ) -> list[Trace]:  # fmt: skip
        examples = self.bench.sampled_examples(problems, samples)
        ends = {
            i: step_ends(self.task, examples[i].completion, self.bench.tokenizer, bool(samples.finished[i]))
            for i in which.tolist()
        }
        # What is written alike in several answers is rolled out once.
        prefixes: dict[tuple[int, tuple[int, ...]], int] = {}
        for i, each in ends.items():
            for end in each[:-1]:
                key = (int(samples.prompt_index[i]), examples[i].completion[: end + 1])
                prefixes.setdefault(key, len(prefixes))
        shares = self._values(problems, list(prefixes), kind, seed, progress)
        hard = self.bench.spec["labels"] == "hard"
        traces = []
        for i, each in ends.items():
            p, e = int(samples.prompt_index[i]), examples[i]
            inner = [shares[prefixes[p, e.completion[: end + 1]]] for end in each[:-1]]
            values = [float(v > 0) if hard else float(v) for v in inner] + [float(right[i])]
            traces.append(Trace(e, tuple(len(e.prompt) + end for end in each), tuple(values)))
        return traces

    def _values(
        self, problems: list[Any], prefixes: list[tuple[int, tuple[int, ...]]], kind: str, seed: int,
        progress: Progress,
    ) -> np.ndarray:  # fmt: skip
        """The share [prefixes] of roll-outs that end right; kept in the folder, as they cost the most."""
        from flopwise.records.folder import atomic_write

        kept = self.bench.folder.path / f"{kind}-{VALUES_FILE}"
        if kept.exists():
            with np.load(kept) as stored:
                (read, written, flops, seconds), shares = stored["usage"].tolist(), stored["shares"]
            usage = Usage(int(read), int(written), flops, seconds)
        else:
            shares, usage = self._roll_out(problems, prefixes, seed, progress)
            buffer = io.BytesIO()
            numbers = [usage.prefill_tokens, usage.decode_tokens, usage.flops, usage.seconds]
            np.savez(buffer, shares=shares, usage=np.array(numbers, dtype=float))
            atomic_write(kept, buffer.getvalue())
        self.ledger.used(kind, self.parents["init"].id, usage)
        return shares

    def _roll_out(
        self, problems: list[Any], prefixes: list[tuple[int, tuple[int, ...]]], seed: int, progress: Progress
    ) -> tuple[np.ndarray, Usage]:
        spec, tok = self.bench.spec, self.bench.tokenizer
        prompts, usage = self.bench.prompts(problems), Usage()
        shares = np.zeros(len(prefixes))
        # The shortest first, so that those rolled out together have about as far to go.
        order = sorted(range(len(prefixes)), key=lambda i: len(prefixes[i][1]))
        for start in range(0, len(order), BLOCK):
            part = [prefixes[i] for i in order[start : start + BLOCK]]
            begun = [[*prompts[p], *prefix] for p, prefix in part]
            room = self.engine.cfg.max_seq_len - max(map(len, begun))
            limit = min(spec["max_tokens"] - len(part[0][1]), room)
            out = self.engine.sample(
                begun, spec["rollouts"], limit, [tok.eos_id], spec["temperature"], seed=seed * 31 + start
            )
            usage += out.usage
            texts = tok.decode_batch(
                [*part[p][1], *c] for p, c in zip(out.prompt_index, out.completions(), strict=True)
            )
            right = [
                bool(done) and self.task.verify(problems[part[p][0]], text)
                for p, text, done in zip(out.prompt_index, texts, out.finished, strict=True)
            ]
            shares[order[start : start + BLOCK]] = np.reshape(right, (len(part), -1)).mean(axis=1)
            progress((start + len(part)) / len(order))
        return shares, usage

    def choices(self, scorer: LocalEngine) -> tuple[dict[str, Metric], dict[str, Any]]:
        """Accuracy of the best of n test samples by each way to sum up steps, and by parent `reward`."""
        from flopwise.infer.evaluate import powers_of_two

        examples = self.bench.sampled_examples(self.test, self.samples)
        ends = [
            step_ends(self.task, e.completion, self.bench.tokenizer, bool(done))
            for e, done in zip(examples, self.samples.finished, strict=True)
        ]
        prompts, completions = [e.prompt for e in examples], [e.completion for e in examples]
        values, _ = score_answers(scorer, prompts, completions, ends)
        shape = (len(self.test), -1)
        scores = {how: aggregate(values, how).reshape(shape) for how in HOW}
        if "reward" in self.parents:
            outcome = LocalEngine(load_model(self.parents["reward"]).eval())
            found = outcome.reward([p + c for p, c in zip(prompts, completions, strict=True)])[0]
            scores["outcome"] = found.reshape(shape)
        right, n = self.right.reshape(shape), self.bench.spec["test_n"]
        curves = {
            name: [{"n": k, "value": float(best_of_k(right, s, k).mean())} for k in powers_of_two(n)]
            for name, s in scores.items()
        }
        best = {name: best_of_k(right, s, n) for name, s in scores.items()}
        metrics = {f"best_of_{n}_{name}": _mean(rows) for name, rows in best.items()}
        metrics["pass_at_1"] = _mean(right.mean(axis=1))
        if "outcome" in best:
            metrics |= {f"{how}_over_outcome": _mean(best[how] - best["outcome"]) for how in HOW}
        return metrics, curves


def _mean(values: np.ndarray) -> Metric:
    from flopwise.records.record import Metric

    se = float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else None
    return Metric(value=float(values.mean()), se=se, n=len(values))
