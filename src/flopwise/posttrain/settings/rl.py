"""Reinforcement learning: settings and registry; each published variant is a few switches of one method."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from flopwise.posttrain.settings.method import Count, Method, PhaseSection

RewardName = Literal["verifier", "reward", "judge", "length"]
LEARNED = ("reward", "judge")
"""Rewards that stand in for the truth and can part from it."""

NonNegative = Annotated[float, Field(ge=0)]


class RlSection(PhaseSection):
    """Policy gradients on sampled answers. The defaults are GRPO with token means, clip-higher and groups
    without a signal left out.

    `steps` roll-outs of `group_size` answers to each of `problems_per_step` problems; each is learned from
    `epochs` times in `minibatches` parts, so there are steps x epochs x minibatches updates.
    """

    problems_per_step: Count = 48
    group_size: Annotated[int, Field(ge=2)] = 8
    temperature: float = Field(default=1.0, gt=0)
    max_tokens: Count = 64
    rate_factor: float = Field(default=0.25, gt=0)

    advantage: Literal["group", "leave-one-out", "batch", "group-batch", "gae"] = "group"
    """Baseline: the group's mean; the mean of its others; the batch's mean and deviation; both; a critic."""
    scale_by_std: bool = True
    """Of "group": divide by the group's deviation."""
    surrogate: Literal["clip", "sequence", "cispo"] = "clip"
    clip_low: NonNegative = 0.2
    clip_high: NonNegative = 0.28
    normalise: Literal["token", "sequence", "constant"] = "token"
    zero_variance: Literal["skip", "keep", "resample"] = "skip"
    """Groups whose answers were all rewarded alike: left out, learned from all the same, or replaced."""
    refills: Count = 3
    """Of "resample": further roll-outs in a step, at most."""
    overlong: int = Field(default=0, ge=0)
    """Tokens below the limit from which on a soft penalty grows to -1 (0: none)."""
    mask_overlong: bool = False
    """Answers that the limit cut are not learned from."""
    epochs: Count = 1
    minibatches: Count = 1
    entropy: NonNegative = 0.0

    kl: NonNegative = 0.0
    kl_in: Literal["loss", "reward"] = "loss"
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    track_kl: bool = False
    """Take the divergence from the reference also where nothing is made of it."""

    rewards: dict[RewardName, float] = Field(default={"verifier": 1.0}, min_length=1)
    """Weights of what is summed; `length` counts the answer's tokens."""
    reward_scale: Literal["none", "centre", "whiten"] = "none"
    """What is done to the learned rewards over a roll-out, before they are clipped and weighted."""
    reward_clip: float | None = Field(default=None, gt=0)

    alarm: bool = True
    """Watch whether a learned reward and the verifier part (`posttrain.alarm`)."""
    alarm_window: Count = 8
    alarm_z: float = Field(default=4.5, gt=0)
    stop_on_alarm: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> RlSection:
        if (self.advantage == "gae") != isinstance(self, PpoSection):
            raise ValueError("advantage gae is that of method ppo, which has the critic, and its only one")
        in_groups = self.advantage in ("group", "leave-one-out")
        if self.mask_overlong and not in_groups:
            raise ValueError("mask_overlong goes with advantage group or leave-one-out")
        if self.zero_variance != "keep" and not in_groups:
            raise ValueError(f"advantage {self.advantage} learns from all groups: zero_variance must be keep")
        if self.minibatches > self.problems_per_step * self.group_size:
            raise ValueError(
                f"minibatches {self.minibatches} are more than the "
                f"{self.problems_per_step * self.group_size} answers of a step"
            )
        if self.overlong >= self.max_tokens:
            raise ValueError(f"overlong {self.overlong} must be below max_tokens {self.max_tokens}")
        return self

    def lacks(self, roles: dict[str, str]) -> str | None:
        """A learned reward needs its run."""
        for name in LEARNED:
            weighted = bool(self.rewards.get(name))  # type: ignore[call-overload]
            if weighted and name not in roles:
                return f"rewards weigh {name}, so name the run: {name}: RUN"
            if not weighted and name in roles:
                return f"a {name} run is given, but rewards give it no weight, as in rewards: {{{name}: 1.0}}"
        return None


class DrGrpoSection(RlSection):
    """GRPO done right: neither the group's deviation nor an answer's length scales what is learned."""

    scale_by_std: bool = False
    normalise: Literal["token", "sequence", "constant"] = "constant"
    clip_high: NonNegative = 0.2


class DapoSection(RlSection):
    """Clip-higher, token means, groups without a signal replaced."""

    zero_variance: Literal["skip", "keep", "resample"] = "resample"


class GspoSection(RlSection):
    """One ratio for each answer; published limits."""

    surrogate: Literal["clip", "sequence", "cispo"] = "sequence"
    clip_low: NonNegative = 3e-4
    clip_high: NonNegative = 4e-4
    normalise: Literal["token", "sequence", "constant"] = "sequence"


class CispoSection(RlSection):
    """Ratios clipped from above, as constant weights."""

    surrogate: Literal["clip", "sequence", "cispo"] = "cispo"
    clip_low: NonNegative = 1.0
    clip_high: NonNegative = 4.0


class RlooSection(RlSection):
    """REINFORCE with the mean of the others as baseline; unclipped where there is one update a roll-out."""

    advantage: Literal["group", "leave-one-out", "batch", "group-batch", "gae"] = "leave-one-out"


class ReinforceSection(RlSection):
    """A baseline and a scale over the whole batch, KL in the reward of each token."""

    advantage: Literal["group", "leave-one-out", "batch", "group-batch", "gae"] = "batch"
    kl_in: Literal["loss", "reward"] = "reward"
    kl_estimator: Literal["k1", "k2", "k3"] = "k1"
    zero_variance: Literal["skip", "keep", "resample"] = "keep"


class ReinforceBaselineSection(ReinforceSection):
    """The group's mean taken off first, KL in the loss."""

    advantage: Literal["group", "leave-one-out", "batch", "group-batch", "gae"] = "group-batch"
    kl_in: Literal["loss", "reward"] = "loss"
    kl_estimator: Literal["k1", "k2", "k3"] = "k2"


class PpoSection(RlSection):
    """A critic's values as baseline of every token; the divergence is part of the tokens' rewards."""

    advantage: Literal["group", "leave-one-out", "batch", "group-batch", "gae"] = "gae"
    clip_high: NonNegative = 0.2
    epochs: Count = 2
    minibatches: Count = 2
    kl_in: Literal["loss", "reward"] = "reward"
    kl_estimator: Literal["k1", "k2", "k3"] = "k1"
    zero_variance: Literal["skip", "keep", "resample"] = "keep"

    critic: Literal["head", "model"] = "head"
    """One more output of the policy, or a model of its own that starts from the policy's trunk."""
    critic_rate_factor: float = Field(default=1.0, gt=0)
    """Of the critic's own weights, times the policy's rates."""
    gamma: float = Field(default=1.0, gt=0, le=1)
    lam: float = Field(default=0.95, ge=0, le=1)
    value_weight: NonNegative = 0.5
    value_clip: float | None = Field(default=0.2, gt=0)


def _method(name: str, section: type[RlSection], about: str) -> Method:
    roles = {"init": True, "reward": False, "judge": False}
    return Method(name, "rl", section, "flopwise.posttrain.rl:run_step", about, roles)


METHODS = [
    _method("grpo", RlSection, "answers weighed within their groups (Shao et al., arXiv 2402.03300)"),
    _method("dr-grpo", DrGrpoSection, "GRPO without its two biases (Liu et al., arXiv 2503.20783)"),
    _method("dapo", DapoSection, "GRPO with dynamic sampling (Yu et al., arXiv 2503.14476)"),
    _method("gspo", GspoSection, "one ratio for a whole answer (Zheng et al., arXiv 2507.18071)"),
    _method("cispo", CispoSection, "clipped ratios as constant weights (MiniMax, arXiv 2506.13585)"),
    _method("rloo", RlooSection, "leave-one-out baseline (Ahmadian et al., arXiv 2402.14740)"),
    _method("reinforce++", ReinforceSection, "the batch as baseline (Hu et al., arXiv 2501.03262)"),
    _method(
        "reinforce++-baseline", ReinforceBaselineSection,
        "group, then batch as baseline (Hu et al., arXiv 2501.03262)",
    ),
    _method("ppo", PpoSection, "a critic and clipped ratios (Schulman et al., arXiv 1707.06347)"),
]  # fmt: skip
