"""Reinforcement learning with a verifiable reward: GRPO with its group baseline.

Shao et al., DeepSeekMath, arXiv 2402.03300, section 4.1: n samples per problem, advantage = reward minus the
group's mean, over the group's standard deviation. Groups that are all right or all wrong carry no signal and
are dropped before the update (DAPO, arXiv 2503.14476, section 3.2), which saves training FLOPs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from flopwise.errors import FlopwiseError
from flopwise.posttrain.bench import Bench, Progress, completion_ids, sample, verify_all
from flopwise.posttrain.examples import Example, collate
from flopwise.train.objectives import Batch, policy_gradient

if TYPE_CHECKING:
    from flopwise.records.folder import RunFolder


def group_advantages(rewards: np.ndarray, by_std: bool = True) -> np.ndarray:
    """Advantages [problems, n] of rewards [problems, n]: centred per group, scaled by its deviation.

    `by_std` False leaves the scale alone (Dr. GRPO, arXiv 2503.20783): hard and easy problems then
    weigh less than those in between.

    >>> group_advantages(np.array([[1.0, 0.0], [1.0, 1.0]])).tolist()
    [[1.0, -1.0], [0.0, 0.0]]
    """
    centred = rewards - rewards.mean(axis=1, keepdims=True)
    if not by_std:
        return centred
    spread = rewards.std(axis=1, keepdims=True)
    return np.divide(centred, spread, out=np.zeros_like(centred), where=spread > 0)


class Rollouts:
    """Makes GRPO's batch for a step: sample groups from the current model, verify, weigh.

    Depends on the step, the seed and the model's weights alone, so a resumed run repeats it exactly.
    """

    def __init__(self, bench: Bench):
        self.bench = bench
        self.pool = bench.data.problems("rl")
        wanted = bench.spec["problems_per_step"]
        if len(self.pool) < wanted:
            raise FlopwiseError(
                f"grpo: {wanted} problems per step, but only {len(self.pool)} exist; ask for fewer"
            )

    def problems(self, step: int) -> list[Any]:
        """A fresh permutation of the pool each epoch."""
        k = self.bench.spec["problems_per_step"]
        per_epoch = len(self.pool) // k
        epoch, slot = divmod(step, per_epoch)
        order = np.random.default_rng((self.bench.folder.seed, 77, epoch)).permutation(len(self.pool))
        return [self.pool[i] for i in order[slot * k : (slot + 1) * k]]

    def __call__(self, step: int) -> Batch:
        """The batch of one on-policy step."""
        bench, spec = self.bench, self.bench.spec
        problems, n = self.problems(step), spec["group_size"]
        samples = sample(
            bench.model,
            bench.data,
            problems,
            n,
            bench.folder.seed * 1_000_003 + step,
            spec["temperature"],
            spec["max_tokens"],
        )
        bench.model.train()
        rewards = np.zeros((len(problems), n))
        right = verify_all(bench.data, problems, samples)
        rewards[samples.prompt_index, samples.sample_index] = right
        advantages = group_advantages(rewards, spec["scale_by_std"])
        flat = advantages[samples.prompt_index, samples.sample_index]
        keep = np.flatnonzero(flat != 0.0)
        info = {
            "reward": float(rewards.mean()), "signal": len(keep) / len(flat),
            "mean_tokens": float(samples.lengths.mean()), "finished": float(samples.finished.mean()),
        }  # fmt: skip
        if not len(keep):
            nothing = torch.zeros(1, 1, dtype=torch.int64)
            return Batch(nothing, nothing, torch.zeros(1, 1), generate_flops=samples.usage.flops, info=info)
        completions = completion_ids(samples)
        prompts = bench.data.tokenizer.encode_batch([p.prompt for p in problems])
        examples = [Example(tuple(prompts[samples.prompt_index[i]]), tuple(completions[i])) for i in keep]
        old = [samples.logprobs[i, : samples.lengths[i]] for i in keep]
        batch = collate(examples, bench.data.tokenizer.pad_id, old)
        assert batch.weights is not None
        batch.advantages = batch.weights * torch.from_numpy(flat[keep].astype(np.float32))[:, None]
        batch.generate_flops, batch.info = samples.usage.flops, info
        return batch


def run_step(folder: RunFolder, parents: dict[str, RunFolder], progress: Progress) -> None:
    """Reinforce parent `init` for `steps` on-policy steps."""
    from flopwise.records.record import Metric

    bench = Bench.open(folder, parents)
    spec = bench.spec
    objective = policy_gradient(spec["clip_low"], spec["clip_high"])
    counters = bench.fit(Rollouts(bench), spec["steps"], progress, objective, log_every=1)
    rows = folder.curve("reward")
    tail = [r["reward"] for r in rows[-max(1, len(rows) // 10) :]]
    metrics = {"train_reward": Metric(value=float(np.mean(tail)), se=None, n=len(tail))}
    bench.finish(counters, metrics, None, {"steps": spec["steps"]})
