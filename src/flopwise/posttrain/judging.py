"""The step that names a judge and measures it against the verifier, before anything is learned from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from flopwise.errors import FlopwiseError
from flopwise.flops.ledger import Ledger
from flopwise.flops.spend import Stopwatch
from flopwise.infer import calibration
from flopwise.posttrain.bench import Bench, Progress, completion_ids, model_fields
from flopwise.posttrain.judge import Judge, ModelJudge, open_judge

if TYPE_CHECKING:
    from flopwise.infer.engine import Usage
    from flopwise.records.folder import RunFolder
    from flopwise.records.record import Metric

CACHE = "judged"
"""Folder of a run in which a server's answers are kept."""
MOST_PAIRS = 200
SURE = 1e-6
"""Chances are kept so far from 0 and 1: a verdict in words claims to be certain."""


def run_step(folder: RunFolder, parents: dict[str, RunFolder], progress: Progress) -> None:
    """Judge n answers of `init` to each of some validation problems, one by one and in pairs.

    All that is measured here is evaluation, not spend: a judge learns nothing.

    Raises:
        FlopwiseError: the judge cannot be had, or no answer differs in worth from another.
    """
    watch, ledger, bench = Stopwatch(), Ledger(), Bench.open(folder, parents)
    spec = bench.spec
    if not bench.asked.task:
        raise FlopwiseError("judge: it is measured against a verifier; these data have no task")
    problems = bench.problems("val")[: spec["problems"]]
    judge = open_judge(folder, bench.asked.open_task(), folder.path / CACHE)
    samples = bench.sample(problems, spec["n"], folder.seed * 1_000_003 + 29, 1.0, spec["max_tokens"])
    ledger.used("evaluate", parents["init"].id, samples.usage)
    texts = bench.tokenizer.decode_batch(completion_ids(samples, strip_stop=True))
    right = bench.verify(problems, samples)
    if right.all() or not right.any():
        raise FlopwiseError(
            f"judge: all {len(right)} answers are {'right' if right[0] else 'wrong'}; more problems would "
            "tell how well it judges"
        )
    progress(0.3)
    places = samples.prompt_index.astype(int)
    asked = [problems[p] for p in places]
    scores, usage = judge.score(asked, texts)
    progress(0.6)
    chances = np.clip(scores, SURE, 1 - SURE)
    logits = np.log(chances) - np.log1p(-chances)
    metrics, extra = calibration.describe(logits, right, places)
    metrics |= calibration.within(scores, right, places)
    first, second = _pairs(right, places, folder.seed)
    if len(first):
        preferred, cost = judge.prefer(
            [asked[i] for i in first], [texts[i] for i in first], [texts[i] for i in second]
        )
        usage += cost
        metrics |= _of_pairs(preferred, right[first], places[first], judge)
    ledger.used("evaluate", judge.name, usage)
    folder.finish(
        metrics=metrics, spend=watch.spend(ledger, tokens=0), model=model_fields(bench.model),
        extra={
            "judge": judge.name, "by": spec["by"], "calibration": extra, "unreadable": judge.unreadable,
            "usage": _counted(usage, len(texts) + 2 * len(first)),
        },
        data={"corpus": bench.asked.task, "tokens_seen": 0, "tokens_unique": None, "modality": "text"},
    )  # fmt: skip
    progress(1.0)


def _counted(usage: Usage, verdicts: int) -> dict[str, Any]:
    """What so many verdicts cost."""
    flops = None if usage.unknown else usage.flops
    return {
        "verdicts": verdicts, "prefill_tokens": usage.prefill_tokens, "decode_tokens": usage.decode_tokens,
        "flops": flops, "unknown": usage.unknown,
    }  # fmt: skip


def _pairs(right: np.ndarray, places: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A right and a wrong answer to each problem that has both, which of them comes first being drawn."""
    rng = np.random.default_rng((seed, 31))
    pairs = []
    for p in np.unique(places):
        good, bad = (np.flatnonzero((places == p) & (right == kind)) for kind in (True, False))
        if len(good) and len(bad):
            pair = [rng.choice(good), rng.choice(bad)]
            pairs.append(pair if rng.random() < 0.5 else pair[::-1])
    drawn = np.array(pairs[:MOST_PAIRS], dtype=np.int64).reshape(-1, 2)
    return drawn[:, 0], drawn[:, 1]


def _of_pairs(
    preferred: np.ndarray, first_is_right: np.ndarray, places: np.ndarray, judge: Judge
) -> dict[str, Metric]:
    """How often the right answer is preferred, and how often both orders name the same one."""
    from flopwise.records.record import Metric

    hits = np.where(preferred == 0.5, 0.5, (preferred > 0.5) == first_is_right)
    n = len(hits)
    se = calibration.cluster_error(hits, places)
    found = {"pair_accuracy": Metric(value=float(hits.mean()), se=se, n=n)}
    if isinstance(judge, ModelJudge):
        agreed = np.array(judge.agreed, dtype=float)
        se = calibration.cluster_error(agreed, places)
        found["orders_agree"] = Metric(value=float(agreed.mean()), se=se, n=n)
    return found
