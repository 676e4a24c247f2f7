"""The sample step: n completions of each held-out problem, judged once; every strategy replays from them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from flopwise.infer.estimators import best_of_k, majority_at_k, mean_interval, pass_at_k

if TYPE_CHECKING:
    from flopwise.data.prepare import PreparedData
    from flopwise.data.tasks import Problem, Task
    from flopwise.infer.engine import Usage
    from flopwise.models.transformer import Transformer
    from flopwise.records.folder import RunFolder
    from flopwise.records.record import Metric

SAMPLES_FILE, CURVES_FILE, EXAMPLES_FILE = "samples.npz", "curves.json", "examples.json"
COVERAGE_FILE = "coverage.json"


def powers_of_two(n: int) -> list[int]:
    """1, 2, 4, ... up to n.

    >>> powers_of_two(20)
    [1, 2, 4, 8, 16]
    """
    return [1 << i for i in range(n.bit_length()) if 1 << i <= n]


@dataclass(frozen=True)
class Judged:
    """A model's samples of P problems, n each, with the verdict on every one."""

    problems: list[Problem]
    texts: list[str]
    """P * n completions, problem by problem."""
    task: Task[Any]
    answers: list[list[str | None]]
    """[P][n]; None where a completion gives no answer."""
    greedy: np.ndarray
    """[P] bool: whether the greedy answer is right."""
    correct: np.ndarray
    """[P, n] bool."""
    logprob: np.ndarray
    """[P, n] nats of whole completions, under the model itself."""
    lengths: np.ndarray
    """[P, n] tokens, the stop token included."""
    rewards: np.ndarray | None
    """[P, n] log-odds of the reward model."""
    prefill_flops: float
    """Mean over problems; a question's samples share it."""
    greedy_usage: Usage
    usage: Usage
    score_flops: float

    @property
    def n(self) -> int:
        """Samples per problem."""
        return self.correct.shape[1]

    @property
    def sample_flops(self) -> float:
        """Mean FLOPs of decoding one sample."""
        return self.usage.flops / self.correct.size - self.prefill_flops / self.n


def run_step(folder: RunFolder, parents: dict[str, RunFolder], progress: Callable[[float], None]) -> None:
    """Sample parent `model` on the problems of a split; score with parent `reward` where given.

    Writes the judged samples, the curve of every strategy for n = 1, 2, 4, ..., and some examples with their
    steps. FLOPs per question: one prefill, n times the mean cost of a sample, and what scoring them takes.
    """
    from flopwise.data.prepare import PreparedData
    from flopwise.flops.spend import Stopwatch
    from flopwise.models import hf
    from flopwise.posttrain.bench import model_fields, read_by

    watch = Stopwatch()
    data = read_by(PreparedData(parents["data"].path), parents["model"].path / "model")
    model = hf.load(parents["model"].path / "model").eval()
    scorer = hf.load(parents["reward"].path / "model").eval() if "reward" in parents else None
    judged = sample_and_judge(model, scorer, data, folder.spec, folder.seed, progress)
    by_problem, points = curves(judged)
    write_samples(folder, judged, by_problem)
    write_findings(folder, judged, points)
    usage = judged.greedy_usage + judged.usage
    folder.finish(
        metrics=metrics(judged),
        spend=watch.spend(
            generate_flops=usage.flops, score_flops=judged.score_flops,
            tokens=usage.prefill_tokens + usage.decode_tokens,
        ),
        model=model_fields(model),
        data={"corpus": data.task, "tokens_seen": 0, "tokens_unique": None, "modality": "text"},
        extra={
            "width": model.cfg.d_model,
            "flops_per_sample": judged.sample_flops, "prefill_flops": judged.prefill_flops,
        },
    )  # fmt: skip


def sample_and_judge(
    model: Transformer, scorer: Transformer | None, data: PreparedData, spec: dict[str, Any], seed: int,
    progress: Callable[[float], None],
) -> Judged:  # fmt: skip
    """A greedy answer and n samples of each problem of the spec: verified, scored where there is a scorer."""
    from flopwise.flops.count import prefill_flops
    from flopwise.infer.local import LocalEngine
    from flopwise.posttrain.bench import verify_all

    task = data.open_task()
    problems, n = data.problems(spec["split"])[: spec["problems"]], spec["n"]
    shape = (len(problems), n)
    engine = LocalEngine(model)
    prompts = data.tokenizer.encode_batch([p.prompt for p in problems])
    stop = [data.tokenizer.eos_id]
    greedy = engine.sample(prompts, 1, spec["max_tokens"], stop, temperature=0.0)
    share = 0.95 if scorer is None else 0.7
    samples = engine.sample(
        prompts, n, spec["max_tokens"], stop, spec["temperature"], seed=seed * 1_000_003 + 91,
        on_progress=lambda f: progress(share * f),
    )  # fmt: skip
    texts = data.tokenizer.decode_batch(samples.completions())
    rewards, score_flops = None, 0.0
    if scorer is not None:
        completions = samples.completions(strip_stop=False)
        whole = [prompts[p] + c for p, c in zip(samples.prompt_index, completions, strict=True)]
        flat, score_flops = LocalEngine(scorer).reward(whole)
        rewards = flat.reshape(shape)
        progress(0.95)
    return Judged(
        problems=problems, texts=texts, task=task,
        answers=[[task.answer(t) for t in texts[i * n : (i + 1) * n]] for i in range(len(problems))],
        greedy=np.array(verify_all(data, problems, greedy)),
        correct=np.array(verify_all(data, problems, samples)).reshape(shape),
        logprob=samples.logprobs.sum(axis=1).reshape(shape), lengths=samples.lengths.reshape(shape),
        rewards=rewards,
        prefill_flops=float(np.mean([prefill_flops(model.cfg, len(p)).total for p in prompts])),
        greedy_usage=greedy.usage, usage=samples.usage, score_flops=score_flops,
    )  # fmt: skip


def curves(judged: Judged) -> tuple[dict[str, np.ndarray], dict[str, list[dict[str, Any]]]]:
    """Of every strategy at n = 1, 2, 4, ...: values [sizes, P]; points of n, FLOPs, mean and interval."""
    values: dict[str, list[np.ndarray]] = {}
    points: dict[str, list[dict[str, Any]]] = {}
    for k in powers_of_two(judged.n):
        cost = judged.prefill_flops + k * judged.sample_flops
        by = {
            "verifier": (pass_at_k(judged.correct, k), cost),
            "majority": (majority_at_k(judged.correct, judged.answers, k), cost),
            "logprob": (best_of_k(judged.correct, judged.logprob, k), cost),
        }
        if judged.rewards is not None:
            scoring = k * judged.score_flops / judged.correct.size
            by["reward_model"] = (best_of_k(judged.correct, judged.rewards, k), cost + scoring)
        for name, (row, flops) in by.items():
            values.setdefault(name, []).append(row)
            points.setdefault(name, []).append({"n": k, "flops": flops, **mean_interval(row)})
    one = judged.greedy_usage.flops / len(judged.problems)
    points["greedy"] = [{"n": 1, "flops": one, **mean_interval(judged.greedy.astype(float))}]
    return {name: np.stack(rows) for name, rows in values.items()}, points


def write_samples(folder: RunFolder, judged: Judged, by_problem: dict[str, np.ndarray]) -> None:
    """samples.npz: the verdicts, and the curves per problem, so that two systems can be compared in pairs."""
    from flopwise.records.folder import atomic_write

    arrays = {name: getattr(judged, name) for name in ("correct", "logprob", "greedy", "lengths")}
    if judged.rewards is not None:
        arrays["reward"] = judged.rewards
    arrays |= {f"curve_{name}": rows for name, rows in by_problem.items()}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    atomic_write(folder.path / SAMPLES_FILE, buffer.getvalue())


def write_findings(folder: RunFolder, judged: Judged, points: dict[str, list[dict[str, Any]]]) -> None:
    """The curves, the forecast of coverage beside what was measured, and examples with their steps."""
    from flopwise.laws.coverage import forecast
    from flopwise.records.folder import atomic_write

    spec, n = folder.spec, judged.n
    atomic_write(folder.path / CURVES_FILE, json.dumps(points, indent=1))
    seen = judged.correct[:, : spec.get("fit_up_to", n)]
    if seen.shape[1] < n and seen.any():
        # The forecast sees the first samples alone; what all of them measured stands beside it.
        ahead = forecast(seen, n, seed=folder.seed).to_dict() | {"measured": points["verifier"][-1]}
        atomic_write(folder.path / COVERAGE_FILE, json.dumps(ahead, indent=1))
    shown = list(zip(judged.problems, judged.texts[::n], judged.correct[:, 0], strict=True))
    examples = [
        {
            "prompt": problem.prompt, "completion": text, "correct": bool(right),
            "steps": [vars(s) for s in judged.task.steps(text, problem)],
        }
        for problem, text, right in shown[: spec["shown_problems"]]
    ]  # fmt: skip
    atomic_write(folder.path / EXAMPLES_FILE, json.dumps(examples, indent=1))


def metrics(judged: Judged) -> dict[str, Metric]:
    """What the record says: greedy, pass@k and majority@k with their standard errors, and lengths."""
    from flopwise.records.record import Metric

    def metric(values: np.ndarray) -> Metric:
        m = mean_interval(values)
        return Metric(value=m["value"], se=m["se"], n=values.size)

    found = {"greedy": metric(judged.greedy.astype(float)), "pass_at_1": metric(pass_at_k(judged.correct, 1))}
    for k in (16, 64):
        if k <= judged.n:
            found[f"pass_at_{k}"] = metric(pass_at_k(judged.correct, k))
            found[f"majority_at_{k}"] = metric(majority_at_k(judged.correct, judged.answers, k))
    found["mean_tokens"] = metric(judged.lengths.reshape(-1).astype(float))
    return found
