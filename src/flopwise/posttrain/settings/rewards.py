"""Reward models, judges and what comes of optimising them: settings and registry."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from flopwise.posttrain.settings.method import Count, Method, SamplingSection, Settings, TrainingSection

Probability = Annotated[float, Field(ge=0, le=1)]


class _ScorerSection(TrainingSection):
    """What every scorer's training may set; it is judged once, at the end."""

    rate_factor: float = Field(default=0.3, gt=0)
    heldout: Annotated[float, Field(gt=0, lt=0.9)] = 0.15
    """Share of the problems kept for judging it, where the data name no held-out rows."""


class OutcomeSection(SamplingSection, TrainingSection):
    """From samples that the verifier labels, of `problems`; judged on those of `test_problems` more."""

    problems: Count = 1500
    test_problems: Count = 200


class PairsSection(_ScorerSection):
    """From pairs. `centre` is the weight of the squared sum of a pair's scores, which fixes their zero."""

    centre: Annotated[float, Field(ge=0)] = 0.01


class ThumbsSection(_ScorerSection):
    """From answers with a thumb up or down; of pairs, each answer by itself."""


class ProcessSection(SamplingSection, TrainingSection):
    """From the steps of n answers to each problem: each step is valued by `rollouts` ways to go on from it.

    `labels: soft` learns the share of them that ends right, `hard` whether any does. `test_problems` more are
    sampled `test_n` times, to be judged on.
    """

    problems: Count = 600
    n: Count = 4
    rollouts: Annotated[int, Field(ge=1, le=256)] = 8
    labels: Literal["soft", "hard"] = "soft"
    test_problems: Count = 150
    test_n: Annotated[int, Field(ge=2)] = 16


class JudgeSection(Settings):
    """Who judges: the `verifier` with a share `flip` of its verdicts turned over; a `local` model (role
    `model`, else init); or `model_name` behind an OpenAI-compatible server (`endpoint`), whose key is in the
    environment variable `key`.

    It is measured against the verifier on `n` answers of init to each of `problems` validation problems.
    """

    by: Literal["verifier", "local", "endpoint"] = "verifier"
    flip: Probability = 0.0
    rubric: str | None = None
    scale: Annotated[int, Field(ge=2, le=9)] = 5
    max_chars: Annotated[int, Field(ge=100, le=100_000)] = 4000
    url: str | None = None
    model_name: str | None = None
    key: str = "OPENAI_API_KEY"
    logprobs: bool = False
    timeout_s: float = Field(default=60.0, gt=0)
    retries: int = Field(default=5, ge=0, le=20)
    concurrency: Annotated[int, Field(ge=1, le=256)] = 8
    problems: Count = 50
    n: Annotated[int, Field(ge=2)] = 4
    max_tokens: Count = 64

    def lacks(self, roles: dict[str, str]) -> str | None:
        """A server's address, or the noise that a stand-in was given for nothing."""
        if self.by == "endpoint" and (self.url is None or self.model_name is None):
            return "by: endpoint needs url (up to /v1) and model_name"
        if self.by != "verifier" and self.flip:
            return "flip is the noise of by: verifier; a model makes its own mistakes"
        return None


class OveroptimiseSection(SamplingSection):
    """Best of 1 to n answers by the reward model, to problems of a split that nothing was trained on."""

    problems: Annotated[int, Field(ge=10)] = 1000
    n: Annotated[int, Field(ge=4)] = 64
    split: Literal["val", "test"] = "test"
    bootstrap: Annotated[int, Field(ge=100, le=100_000)] = 2000


MODULE = "flopwise.posttrain."
METHODS = [
    Method(
        "reward-samples", "reward", OutcomeSection, MODULE + "reward:run_step",
        "outcome reward model from samples that the verifier labels (Cobbe et al., arXiv 2110.14168)",
        makes="scorer",
    ),
    Method(
        "reward-pairs", "reward", PairsSection, MODULE + "reward_feedback:run_step",
        "outcome reward model from pairs (Bradley and Terry 1952; Ouyang et al., arXiv 2203.02155, eq. 1)",
        {"init": True, "pairs": False}, makes="scorer",
    ),
    Method(
        "reward-thumbs", "reward", ThumbsSection, MODULE + "reward_feedback:run_step",
        "outcome reward model from thumbs up and down, or from pairs taken apart",
        {"init": True, "thumbs": False, "pairs": False}, makes="scorer",
    ),
    Method(
        "process-reward", "reward", ProcessSection, MODULE + "process_reward:run_step",
        "process reward model: a value for every step, from roll-outs (Wang et al., Math-Shepherd, arXiv "
        "2312.08935) or from labelled steps (Lightman et al., arXiv 2305.20050)",
        {"init": True, "reward": False}, makes="scorer",
    ),
    Method(
        "judge", "reward", JudgeSection, MODULE + "judging:run_step",
        "a judge for AI feedback (Lee et al., RLAIF, arXiv 2309.00267), measured against the verifier",
        {"init": True, "model": False}, makes="scorer",
    ),
    Method(
        "overoptimise", "evaluate", OveroptimiseSection, MODULE + "overoptimise:run_step",
        "true and learned reward against sqrt KL, best of n and RL (Gao et al., arXiv 2210.10760)",
        {"init": True, "reward": True, "rl*": False}, makes="scorer",
    ),
]  # fmt: skip
