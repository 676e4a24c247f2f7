"""The sample step: n completions of each held-out problem, judged once; every strategy replays from them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from flopwise.infer.estimators import best_of_k, majority_at_k, mean_interval, pass_at_k

if TYPE_CHECKING:
    from flopwise.records.folder import RunFolder

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
    from flopwise.data import countdown
    from flopwise.data.prepare import PreparedData
    from flopwise.flops.count import prefill_flops
    from flopwise.flops.hardware import device_name
    from flopwise.flops.spend import Spend
    from flopwise.infer.local import LocalEngine
    from flopwise.laws.coverage import forecast
    from flopwise.models import hf
    from flopwise.posttrain.common import model_fields, verify_all
    from flopwise.records.folder import atomic_write
    from flopwise.records.record import Metric

    wall, cpu = time.monotonic(), time.process_time()
    spec = folder.spec
    data = PreparedData(parents["data"].path)
    problems = data.problems(spec["split"])[: spec["problems"]]
    n = spec["n"]
    model = hf.load(parents["model"].path / "model").eval()
    engine = LocalEngine(model)
    prompts = data.tokenizer.encode_batch([p.prompt for p in problems])
    stop = [data.tokenizer.eos_id]
    greedy = engine.sample(prompts, 1, spec["max_tokens"], stop, temperature=0.0)
    greedy_right = np.array(verify_all(data, problems, greedy))
    scored = "reward" in parents
    share = 0.7 if scored else 0.95
    samples = engine.sample(
        prompts, n, spec["max_tokens"], stop, spec["temperature"], seed=folder.seed * 1_000_003 + 91,
        on_progress=lambda f: progress(share * f),
    )  # fmt: skip
    correct = np.array(verify_all(data, problems, samples)).reshape(len(problems), n)
    texts = data.tokenizer.decode_batch(samples.completions())
    answers = [[countdown.answer(t) for t in texts[i * n : (i + 1) * n]] for i in range(len(problems))]
    logprob = samples.logprobs.sum(axis=1).reshape(len(problems), n)
    score_flops, rewards = 0.0, None
    if scored:
        scorer = LocalEngine(hf.load(parents["reward"].path / "model").eval())
        whole = [
            prompts[p] + c
            for p, c in zip(samples.prompt_index, samples.completions(strip_stop=False), strict=True)
        ]
        flat, score_flops = scorer.reward(whole)
        rewards = flat.reshape(len(problems), n)
        progress(0.95)
    prefill = float(np.mean([prefill_flops(model.cfg, len(p)).total for p in prompts]))
    per_sample = samples.usage.flops / samples.finished.size - prefill / n
    per_score = score_flops / samples.finished.size
    curves: dict[str, list[dict[str, Any]]] = {"verifier": [], "majority": [], "logprob": []}
    if rewards is not None:
        curves["reward_model"] = []
    values_by: dict[str, list[np.ndarray]] = {name: [] for name in curves}
    for k in powers_of_two(n):
        cost = prefill + k * per_sample
        by = {
            "verifier": (pass_at_k(correct, k), cost), "majority": (majority_at_k(correct, answers, k), cost),
            "logprob": (best_of_k(correct, logprob, k), cost),
        }  # fmt: skip
        if rewards is not None:
            by["reward_model"] = (best_of_k(correct, rewards, k), cost + k * per_score)
        for name, (values, flops) in by.items():
            values_by[name].append(values)
            curves[name].append({"n": k, "flops": flops, **mean_interval(values)})
    arrays = {
        "correct": correct,
        "logprob": logprob,
        "greedy": greedy_right,
        "lengths": samples.lengths.reshape(len(problems), n),
    }
    if rewards is not None:
        arrays["reward"] = rewards
    # Per problem, so that whoever compares two systems can pair them on the problems they share.
    arrays |= {f"curve_{name}": np.stack(rows) for name, rows in values_by.items()}
    with open(folder.path / f".{SAMPLES_FILE}.tmp", "wb") as f:
        np.savez_compressed(f, **arrays)  # type: ignore[arg-type]
    (folder.path / f".{SAMPLES_FILE}.tmp").replace(folder.path / SAMPLES_FILE)
    curves["greedy"] = [
        {"n": 1, "flops": greedy.usage.flops / len(problems), **mean_interval(greedy_right.astype(float))}
    ]
    atomic_write(folder.path / CURVES_FILE, json.dumps(curves, indent=1))
    if spec.get("fit_up_to", n) < n and correct[:, : spec["fit_up_to"]].any():
        # The forecast sees the first samples alone; what all of them measured stands beside it.
        ahead = forecast(correct[:, : spec["fit_up_to"]], n, seed=folder.seed)
        content = ahead.to_dict() | {"measured": curves["verifier"][-1]}
        atomic_write(folder.path / COVERAGE_FILE, json.dumps(content, indent=1))
    examples = [
        {
            "prompt": problems[i].prompt, "completion": texts[i * n], "correct": bool(correct[i, 0]),
            "steps": [vars(s) for s in countdown.steps(texts[i * n], problems[i])],
        }
        for i in range(min(spec["shown_problems"], len(problems)))
    ]  # fmt: skip
    atomic_write(folder.path / EXAMPLES_FILE, json.dumps(examples, indent=1))

    def metric(values: np.ndarray) -> Metric:
        m = mean_interval(values)
        return Metric(value=m["value"], se=m["se"], n=len(values))

    metrics = {"greedy": metric(greedy_right.astype(float)), "pass_at_1": metric(pass_at_k(correct, 1))}
    for k in (16, 64):
        if k <= n:
            metrics[f"pass_at_{k}"] = metric(pass_at_k(correct, k))
            metrics[f"majority_at_{k}"] = metric(majority_at_k(correct, answers, k))
    metrics["mean_tokens"] = metric(samples.lengths.astype(float))
    usage = greedy.usage + samples.usage
    folder.finish(
        metrics=metrics,
        spend=Spend(
            0.0, usage.flops, score_flops, usage.prefill_tokens + usage.decode_tokens,
            time.monotonic() - wall, time.process_time() - cpu, device_name(), None,
        ),
        model=model_fields(model),
        data={"corpus": data.task, "tokens_seen": 0, "tokens_unique": None, "modality": "text"},
        extra={"width": model.cfg.d_model, "flops_per_sample": per_sample, "prefill_flops": prefill},
    )  # fmt: skip
