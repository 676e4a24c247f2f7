"""Outcome reward models from what people or judges said: pairs (Bradley-Terry) and thumbs up or down."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from flopwise.errors import FlopwiseError
from flopwise.infer import calibration
from flopwise.infer.local import LocalEngine
from flopwise.posttrain.bench import Bench, Progress
from flopwise.posttrain.examples import epoch_rows
from flopwise.posttrain.feedback import Feedback, read
from flopwise.posttrain.reward import collate_outcomes, new_scorer
from flopwise.train.objectives import Batch, outcome_reward
from flopwise.train.reward_objectives import bradley_terry

if TYPE_CHECKING:
    from flopwise.models.transformer import Transformer
    from flopwise.records.folder import RunFolder
    from flopwise.records.record import Metric


def run_step(folder: RunFolder, parents: dict[str, RunFolder], progress: Progress) -> None:
    """Train a scorer on the trunk of `init`, by pairs (method reward-pairs) or by thumbs, and judge it on
    what was held out.

    Raises:
        FlopwiseError: no feedback, or all of it the same.
    """
    bench = Bench.open(folder, parents)
    paired = folder.method == "reward-pairs"
    train, held = read(bench, parents, paired)
    if not paired and len(set(train.signs.tolist())) < 2:
        kind = "up" if train.signs[0] > 0 else "down"
        raise FlopwiseError(f"reward: all {len(train):,} thumbs are {kind}; there is nothing to tell apart")
    bench.model = new_scorer(bench)

    units = epoch_rows(train.sizes(), bench.spec["batch_size"], folder.seed)

    def next_batch(step: int) -> Batch:
        places = train.places(units(step))
        return collate_outcomes(
            [train.rows[i] for i in places], train.signs[places] > 0, bench.tokenizer.pad_id
        )

    bench.validate = lambda step: {}  # type: ignore[method-assign]
    objective = bradley_terry(bench.spec["centre"]) if paired else outcome_reward
    counters = bench.fit(next_batch, bench.spec["steps"], progress, objective)
    metrics: dict[str, Metric] = {}
    extra: dict[str, Any] = {"learned_from": len(train), "held_out": len(held) if held else 0}
    if held is not None:
        metrics, extra["calibration"] = judged(bench.model, held)
    bench.finish(counters, metrics, None, extra)


def judged(scorer: Transformer, held: Feedback) -> tuple[dict[str, Metric], dict[str, Any]]:
    """Metrics of a scorer on feedback it has not seen, and its calibration.

    Of pairs, what is judged is the chance that the answer with the higher score was the chosen one: the zero
    of a Bradley-Terry score means nothing.
    """
    rows = [held.rows[i] for i in range(len(held.signs))]
    scores = LocalEngine(scorer.eval()).reward([e.prompt + e.completion for e in rows])[0].astype(float)
    prompts = {prompt: i for i, prompt in enumerate(dict.fromkeys(e.prompt for e in rows))}
    problems = np.array([prompts[e.prompt] for e in rows])
    if held.per_unit == 1:
        metrics, extra = calibration.describe(scores, held.signs > 0, problems)
        return metrics | calibration.within(scores, held.signs > 0, problems), extra
    margin, problems = scores[::2] - scores[1::2], problems[::2]
    metrics, extra = calibration.describe(np.abs(margin), margin > 0, problems)
    # Scores that are level name neither.
    hits = np.where(margin == 0, 0.5, margin > 0)
    metrics["accuracy"] = metrics["accuracy"].model_copy(
        update={"value": float(hits.mean()), "se": calibration.cluster_error(hits, problems)}
    )
    return metrics, extra
