"""Reinforcement learning: GRPO with its published variants as switches, and PPO with a critic.

One roll-out (`posttrain.rollouts`), rewarded by a verifier, a reward model, a judge or their sum
(`posttrain.rl_rewards`), weighed (`posttrain.advantages`) and learned from by one loss
(`train.rl_objectives`). A method of the registry is this function with other defaults
(`posttrain.settings.rl`, where each variant's source is named).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from flopwise.posttrain.bench import Bench, Progress, load_model
from flopwise.posttrain.critic import Critic, WithCritic
from flopwise.posttrain.rl_rewards import Rewards
from flopwise.posttrain.rollouts import Rollouts
from flopwise.posttrain.settings.rl import PpoSection, RlSection
from flopwise.train.optim import Rates
from flopwise.train.rl_objectives import PolicyLoss, actor_critic, policy_gradient

if TYPE_CHECKING:
    from flopwise.records.folder import RunFolder
    from flopwise.train.objectives import Objective


def settings_of(spec: dict[str, Any]) -> RlSection:
    """The settings in a step's spec; what it does not name has its default."""
    section = PpoSection if spec.get("advantage") == "gae" else RlSection
    return section.model_validate({k: v for k, v in spec.items() if k in section.model_fields})


def loss_of(settings: RlSection) -> PolicyLoss:
    """How the settings make a loss of advantages."""
    answers = settings.problems_per_step * settings.group_size / settings.minibatches
    return PolicyLoss(
        settings.surrogate, settings.clip_low, settings.clip_high, settings.normalise,
        answers * settings.max_tokens, settings.kl if settings.kl_in == "loss" else 0.0,
        settings.kl_estimator, settings.entropy,
    )  # fmt: skip


def run_step(folder: RunFolder, parents: dict[str, RunFolder], progress: Progress) -> None:
    """Reinforce parent `init` for `steps` roll-outs."""
    from flopwise.records.record import Metric

    bench = Bench.open(folder, parents)
    settings = settings_of(bench.spec)
    reference = None
    if settings.kl or settings.track_kl:
        # Under adapters the model itself is there, untouched.
        start = load_model(parents["init"]) if bench.model.lora is None else None
        reference = start, parents["init"].id
    objective: Objective = policy_gradient(loss_of(settings))
    critic = None
    if isinstance(settings, PpoSection):
        factor = settings.rate_factor * settings.critic_rate_factor
        rates = Rates(**bench.spec["rates"]).scaled(factor)
        critic = Critic(settings.critic, bench.model, rates, folder.id)
        objective = actor_critic(loss_of(settings), critic.values, settings.value_weight, settings.value_clip)
    say = getattr(progress, "note", lambda text: None)
    rollouts = Rollouts(bench, settings, Rewards(settings, bench, parents), reference, critic, say)
    counters = bench.fit(
        rollouts, settings.steps * rollouts.updates, progress, objective, log_every=1,
        also=(lambda optimiser: WithCritic(optimiser, critic)) if critic else None,
        checkpoint_between=rollouts.updates,
        stop=(lambda: rollouts.alarmed) if settings.stop_on_alarm else None,
    )  # fmt: skip
    rows = folder.curve("reward")
    tail = [r["reward"] for r in rows[-max(1, len(rows) // 10) :]]
    metrics = {"train_reward": Metric(value=float(np.mean(tail)), se=None, n=len(tail))}
    extra: dict[str, Any] = {"steps": len(rows)}
    if rollouts.monitor is not None:
        alarm = rollouts.monitor.alarm
        extra["alarm"] = None if alarm is None else alarm.to_dict()
    bench.finish(counters, metrics, None, extra)
