"""An outcome reward model: the log-odds that a finished solution is right, learned from verified samples.

Cobbe et al., arXiv 2110.14168: sample from the model to be judged, label by the verifier, train a scorer
that starts from the model's own trunk. At test time it needs no verifier, which is its whole point.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from flopwise.errors import FlopwiseError
from flopwise.infer import calibration
from flopwise.infer.calibration import auc
from flopwise.posttrain.bench import Bench, Progress
from flopwise.posttrain.examples import Example
from flopwise.train.objectives import Batch, outcome_reward

__all__ = ["auc", "collate_outcomes", "new_scorer", "run_step", "scorer_from", "training_problems"]

if TYPE_CHECKING:
    from flopwise.models.transformer import Transformer
    from flopwise.records.folder import RunFolder


def scorer_from(model: Transformer) -> Transformer:
    """A scorer with the model's trunk and a zero head."""
    from flopwise.models.transformer import Transformer

    scorer = Transformer(model.cfg.with_(tie_embeddings=False), n_scores=1)
    weights = {k: v for k, v in model.state_dict().items() if k != "head.weight"}
    scorer.load_state_dict(weights | {"head.weight": torch.zeros(1, model.cfg.d_model)})
    return scorer


def new_scorer(bench: Bench) -> Transformer:
    """A scorer on the trunk of a bench's model, with adapters where that has them."""
    from flopwise.models import lora

    adapters = bench.model.lora
    if adapters is None:
        return scorer_from(bench.model)
    # Fresh adapters change nothing, so what they are merged into is the trunk itself.
    return lora.attach(scorer_from(lora.merged(bench.model)), adapters, bench.folder.seed)


def collate_outcomes(examples: list[Example], labels: np.ndarray, pad_id: int) -> Batch:
    """Whole sequences, right-padded; `last` points at each one's final token."""
    longest = max(len(e.prompt) + len(e.completion) for e in examples)
    ids = np.full((len(examples), longest), pad_id, dtype=np.int64)
    last = np.zeros(len(examples), dtype=np.int64)
    for row, e in enumerate(examples):
        whole = e.prompt + e.completion
        ids[row, : len(whole)] = whole
        last[row] = len(whole) - 1
    return Batch(
        torch.from_numpy(ids), labels=torch.from_numpy(labels.astype(np.float32)), last=torch.from_numpy(last)
    )


def training_problems(bench: Bench, count: int) -> list[Any]:
    """So many training problems from the spec's `first_problem` on.

    Raises:
        FlopwiseError: there are fewer.
    """
    pool, first = bench.problems("rl"), bench.spec.get("first_problem", 0)
    if first + count > len(pool):
        raise FlopwiseError(
            f"reward: problems {first} to {first + count} are asked for, there are {len(pool)} to train on; "
            "lower problems or test_problems, or raise data.rl_problems"
        )
    return pool[first : first + count]


def run_step(folder: RunFolder, parents: dict[str, RunFolder], progress: Progress) -> None:
    """Sample from `init` on training problems, label, train the scorer, test it within held-out problems."""
    bench = Bench.open(folder, parents)
    spec = bench.spec
    problems = training_problems(bench, spec["problems"] + spec["test_problems"])
    seed = folder.seed * 1_000_003 + 5
    samples = bench.sample(problems, spec["n"], seed, spec["temperature"], spec.get("max_tokens", 64))
    right = bench.verify(problems, samples)
    examples = bench.sampled_examples(problems, samples)
    training = np.flatnonzero(samples.prompt_index < spec["problems"])
    if right[training].all() or not right[training].any():
        raise FlopwiseError(
            f"reward: all {len(training)} samples are {'right' if right[training].any() else 'wrong'}; "
            "sample harder or easier problems, there is nothing to tell apart"
        )
    bench.model = new_scorer(bench)
    pad, B = bench.tokenizer.pad_id, spec["batch_size"]

    def next_batch(step: int) -> Batch:
        rng = np.random.default_rng((folder.seed, 13, step))
        rows = rng.choice(training, size=B, replace=False)
        batch = collate_outcomes([examples[i] for i in rows], right[rows], pad)
        if step == 0:
            # Sampling the training set is part of what the reward model costs, once.
            batch.generate_flops = samples.usage.flops
        return batch

    bench.validate = lambda step: {}  # type: ignore[method-assign]
    counters = bench.fit(next_batch, spec["steps"], progress, outcome_reward)
    test = np.flatnonzero(samples.prompt_index >= spec["problems"])
    with torch.inference_mode():
        bench.model.eval()
        batch = collate_outcomes([examples[i] for i in test], right[test], pad)
        hidden = bench.model.hidden(batch.ids)
        scores = bench.model.head(hidden[torch.arange(len(test)), batch.last]).squeeze(-1).numpy()
    judged = scores, right[test], samples.prompt_index[test]
    metrics, calibrated = calibration.describe(*judged)
    extra = {"positives": float(right[training].mean()), "calibration": calibrated}
    bench.finish(counters, calibration.within(*judged) | metrics, None, extra)
