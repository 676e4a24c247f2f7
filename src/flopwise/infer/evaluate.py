"""The sample step: n completions of each held-out problem, judged once; every strategy replays from them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from flopwise.infer.estimators import best_of_k, majority_at_k, mean_interval, pass_at_k
from flopwise.infer.samples import Samples

if TYPE_CHECKING:
    from flopwise.infer.room import Room
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


def run_step(folder: RunFolder, parents: dict[str, RunFolder], progress: Callable[[float], None]) -> None:
    """Sample parent `model` on the problems of a split; score with parent `reward` where given.

    Writes the judged samples, the curve of every strategy for n = 1, 2, 4, ..., and some examples with their
    steps. FLOPs per question: one prefill, n times the mean cost of a sample, and what scoring them takes.
    """
    from flopwise.data.prepare import PreparedData
    from flopwise.flops.spend import Stopwatch
    from flopwise.infer.asking import Asked
    from flopwise.infer.local import LocalEngine
    from flopwise.infer.room import Room
    from flopwise.infer.scorers import OutcomeScorer
    from flopwise.models import hf
    from flopwise.posttrain.bench import model_fields, read_by

    watch, spec = Stopwatch(), folder.spec
    data = read_by(PreparedData(parents["data"].path), parents["model"].path / "model")
    model = hf.load(parents["model"].path / "model").eval()
    problems = data.problems(spec["split"])[: spec["problems"]]
    asked = Asked(data.tokenizer.encode_batch([p.prompt for p in problems]), [data.tokenizer.eos_id], "plain")
    room = Room(
        LocalEngine(model), data.tokenizer, data.open_task(), problems, asked, spec["max_tokens"],
        spec["temperature"], keys=list(range(len(problems))),
    )  # fmt: skip
    if "reward" in parents:
        scorer = hf.load(parents["reward"].path / "model").eval()
        room.scorers["reward"] = OutcomeScorer(LocalEngine(scorer))
    samples = sample(room, spec["n"], folder.seed, progress)
    by_problem, points = curves(samples)
    samples.save(folder.path / SAMPLES_FILE, **{f"curve_{name}": rows for name, rows in by_problem.items()})
    write_findings(folder, room, samples, points)
    folder.finish(
        metrics=metrics(samples),
        spend=watch.spend(
            generate_flops=room.usage.flops, score_flops=float(room.flops["score"].sum()),
            tokens=room.usage.prefill_tokens + room.usage.decode_tokens,
        ),
        model=model_fields(model),
        data={"corpus": data.task, "tokens_seen": 0, "tokens_unique": None, "modality": "text"},
        extra={
            "width": model.cfg.d_model, "flops_per_sample": float(samples.decode_flops.mean()),
            "prefill_flops": float(samples.prefill_flops.mean()),
        },
    )  # fmt: skip


def sample(room: Room, n: int, seed: int, progress: Callable[[float], None]) -> Samples:
    """A greedy answer and n samples of each of the room's problems, scored where there is a scorer."""
    first = room.fresh()
    greedy = first.samples(1, temperature=0.0)
    samples = room.samples(
        n, seed * 1_000_003 + 91, list(room.scorers), on_progress=lambda f: progress(0.95 * f)
    )
    room.usage = first.usage + room.usage
    return replace(samples, greedy=greedy.correct[:, 0], greedy_flops=greedy.cost(1))


def curves(samples: Samples) -> tuple[dict[str, np.ndarray], dict[str, list[dict[str, Any]]]]:
    """Of every strategy at n = 1, 2, 4, ...: values [sizes, P]; points of n, FLOPs, mean and interval."""
    values: dict[str, list[np.ndarray]] = {}
    points: dict[str, list[dict[str, Any]]] = {}
    for k in powers_of_two(samples.n):
        cost = float(samples.cost(k).mean())
        by = {
            "verifier": (pass_at_k(samples.correct, k), cost),
            "majority": (majority_at_k(samples.correct, samples.answers, k), cost),
            "logprob": (best_of_k(samples.correct, samples.logprob, k), cost),
        }
        if "reward" in samples.scores:
            scored = float(samples.cost(k, "reward").mean())
            by["reward_model"] = (best_of_k(samples.correct, samples.scores["reward"], k), scored)
        for name, (row, flops) in by.items():
            values.setdefault(name, []).append(row)
            points.setdefault(name, []).append({"n": k, "flops": flops, **mean_interval(row)})
    assert samples.greedy is not None and samples.greedy_flops is not None
    one = float(samples.greedy_flops.mean())
    points["greedy"] = [{"n": 1, "flops": one, **mean_interval(samples.greedy.astype(float))}]
    return {name: np.stack(rows) for name, rows in values.items()}, points


def write_findings(
    folder: RunFolder, room: Room, samples: Samples, points: dict[str, list[dict[str, Any]]]
) -> None:
    """The curves, the forecast of coverage beside what was measured, and examples with their steps."""
    from flopwise.laws.coverage import forecast
    from flopwise.records.folder import atomic_write

    spec, n = folder.spec, samples.n
    atomic_write(folder.path / CURVES_FILE, json.dumps(points, indent=1))
    seen = samples.correct[:, : spec.get("fit_up_to", n)]
    if seen.shape[1] < n and seen.any():
        # The forecast sees the first samples alone; what all of them measured stands beside it.
        ahead = forecast(seen, n, seed=folder.seed).to_dict() | {"measured": points["verifier"][-1]}
        atomic_write(folder.path / COVERAGE_FILE, json.dumps(ahead, indent=1))
    assert samples.texts is not None
    shown = list(zip(room.problems, samples.texts, samples.correct[:, 0], strict=True))
    examples = [
        {
            "prompt": problem.prompt, "completion": texts[0], "correct": bool(right),
            "steps": [vars(s) for s in room.task.steps(texts[0], problem)],
        }
        for problem, texts, right in shown[: spec["shown_problems"]]
    ]  # fmt: skip
    atomic_write(folder.path / EXAMPLES_FILE, json.dumps(examples, indent=1))


def metrics(samples: Samples) -> dict[str, Metric]:
    """What the record says: greedy, pass@k and majority@k with their standard errors, and lengths."""
    assert samples.greedy is not None
    found = {
        "greedy": metric(samples.greedy.astype(float)), "pass_at_1": metric(pass_at_k(samples.correct, 1))
    }  # fmt: skip
    for k in (16, 64):
        if k <= samples.n:
            found[f"pass_at_{k}"] = metric(pass_at_k(samples.correct, k))
            found[f"majority_at_{k}"] = metric(majority_at_k(samples.correct, samples.answers, k))
    found["mean_tokens"] = metric(samples.tokens.reshape(-1).astype(float))
    return found


def metric(values: np.ndarray) -> Metric:
    """A mean over problems as a record holds it."""
    from flopwise.records.record import Metric

    m = mean_interval(values)
    return Metric(value=m["value"], se=m["se"], n=values.size)
