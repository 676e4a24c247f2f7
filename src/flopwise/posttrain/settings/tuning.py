"""Fine-tuning, rejection sampling and distillation: settings and registry."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from flopwise.posttrain.settings.method import Count, Method, SamplingSection, Settings, TrainingSection


class SftSection(TrainingSection):
    """Fine-tuning on pairs, chats or texts for so many `steps` or `epochs` (none given: 3 epochs); with runs
    to `match`, until it has spent what they did. `pack`: several samples in a row of so many tokens, apart
    from each other; without it, batches hold rows of like length."""

    steps: Count | None = None  # type: ignore[assignment]
    epochs: Annotated[float, Field(gt=0)] | None = None
    rate_factor: float = 1.0
    pack: Count | None = None
    demonstrations: Count | None = None
    """Only the first so many: how accuracy grows with data."""

    def lacks(self, roles: dict[str, str]) -> str | None:
        """What must be said besides."""
        matched = any(role.startswith("match") for role in roles)
        if matched + (self.steps is not None) + (self.epochs is not None) > 1:
            return "give one of steps, epochs, and the runs to match"
        return None


class OnSamplesSection(TrainingSection):
    """Fine-tuning on samples, the demonstrations mixed in on request."""

    with_demonstrations: bool = True


class SynthesizeSection(SamplingSection):
    """Samples that the verifier accepts (with `verify: false`: all that come to an end), a few distinct ones
    for each problem."""

    keep_per_problem: Count = 2
    verify: bool = True


class BestOfNSection(SamplingSection):
    """One sample of n for each problem: the best `by` a reward model's score, the verifier's word or the
    model's own log-probability."""

    by: Literal["reward", "verifier", "logprob"] = "reward"

    def lacks(self, roles: dict[str, str]) -> str | None:
        """What must be said besides."""
        if (self.by == "reward") != ("reward" in roles):
            return "by: reward needs the run `reward` to score with, and nothing else does"
        return None


class TeacherLogitsSection(Settings):
    """Which of a teacher's log-probabilities are kept: its `top_k` likeliest tokens at `temperature`, and the
    mass of all others; float16 is 6 bytes less a token than float32 for each 3 tokens kept."""

    top_k: Count = 16
    temperature: float = Field(default=1.0, gt=0)
    precision: Literal["float16", "float32"] = "float16"
    with_demonstrations: bool = False


class DivergenceSection(TrainingSection):
    """What is minimised: `beta` 0 is the forward KL, 1 the reverse, between them a Jensen-Shannon divergence;
    `hard_weight` is the share of the cross-entropy of the tokens themselves."""

    rate_factor: float = Field(default=1.0, gt=0)
    beta: float = Field(default=0.0, ge=0, le=1)
    hard_weight: float = Field(default=0.0, ge=0, le=1)


class OnPolicySection(DivergenceSection):
    """The student's own samples with a chance of `on_policy`, read by the teacher; else given sequences.
    `temperature` is that of the student's samples, `teacher_temperature` that of the distributions."""

    rate_factor: float = Field(default=0.3, gt=0)
    beta: float = Field(default=0.5, ge=0, le=1)
    on_policy: float = Field(default=1.0, ge=0, le=1)
    temperature: float = Field(default=1.0, gt=0)
    teacher_temperature: float = Field(default=1.0, gt=0)
    max_tokens: Count = 64
    top_k: Count = 64


def expand_rounds(runs: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Runs of method `rejection` that say `rounds: k`, as the k rounds of sampling and tuning they stand for.

    `raft: {rounds: 2, init: sft, problems: 2000, ..., steps: 400}` becomes raft-1-samples, raft-1,
    raft-2-samples and raft, each round on other problems; with `by` the samples are best-of-n. A run that
    matches `raft` then matches all four.

    Raises:
        ValueError: rounds is not a whole number of at least 1, or it stands beside a run `samples`.
    """
    out: dict[str, dict[str, Any]] = {}
    parts: dict[str, list[str]] = {}
    for name, content in runs.items():
        if content.get("method") != "rejection" or "rounds" not in content:
            out[name] = content
            continue
        new = _rounds(name, dict(content))
        parts[name] = list(new)
        out |= new
    for name, content in out.items():
        if (match := content.get("match")) is not None:
            listed = match if isinstance(match, list) else [match]
            whole = [part for other in listed for part in parts.get(str(other), [other])]
            out[name] = content | {"match": whole}
    return out


def _rounds(name: str, content: dict[str, Any]) -> dict[str, dict[str, Any]]:
    rounds = content.pop("rounds")
    if not isinstance(rounds, int) or isinstance(rounds, bool) or rounds < 1:
        raise ValueError(f"runs.{name}.rounds is {rounds!r:.40}, must be a whole number of at least 1")
    if "samples" in content:
        raise ValueError(f"runs.{name} has rounds, which make their own samples; leave samples out")
    section = BestOfNSection if "by" in content else SynthesizeSection
    sampling = {k: content.pop(k) for k in [*section.model_fields, "reward"] if k in content}
    first = sampling.get("first_problem", 0)
    each = sampling.get("problems", section.model_fields["problems"].default)
    out: dict[str, dict[str, Any]] = {}
    for i in range(rounds):
        samples, tuned = f"{name}-{i + 1}-samples", name if i + 1 == rounds else f"{name}-{i + 1}"
        method = "best-of-n" if "by" in sampling else "verified-samples"
        shared = {key: value for key, value in content.items() if key in ("init", "seeds", "data")}
        out[samples] = {"method": method, **shared, **sampling, "first_problem": first + i * each}
        out[tuned] = content | {"samples": samples}
        content["init"] = tuned
    return out


MODULE = "flopwise.posttrain."
METHODS = [
    Method(
        "sft", "sft", SftSection, MODULE + "sft:run_step",
        "fine-tuning on input-output pairs; with match, the equal-compute control of other runs",
        {"init": True, "match*": False},
    ),
    Method(
        "verified-samples", "synthesize", SynthesizeSection, MODULE + "rejection:synthesize_step",
        "samples of a model that the verifier accepts (Zelikman et al., STaR, arXiv 2203.14465)",
        {"init": True, "candidate*": False}, makes="data",
    ),
    Method(
        "best-of-n", "synthesize", BestOfNSection, MODULE + "best_of_n:run_step",
        "the best of n samples by a reward model, to be distilled (Sessa et al., BOND, arXiv 2407.14622)",
        {"init": True, "reward": False}, makes="data",
    ),
    Method(
        "rejection", "rejection", OnSamplesSection, MODULE + "rejection:run_step",
        "fine-tuning on one's own verified samples, in rounds (Dong et al., RAFT, arXiv 2304.06767)",
        {"init": True, "samples": True},
    ),
    Method(
        "distill-sequences", "distill", OnSamplesSection, MODULE + "rejection:run_step",
        "fine-tuning on a teacher's samples, across tokenizers too (Kim and Rush, arXiv 1606.07947)",
        {"init": True, "samples": True},
    ),
    Method(
        "teacher-logits", "synthesize", TeacherLogitsSection, MODULE + "teacher:run_step",
        "a teacher's top-k log-probabilities, written once for many students",
        {"teacher": True, "samples": False}, makes="data",
    ),
    Method(
        "distill-logits", "distill", DivergenceSection, MODULE + "distill:run_step",
        "learning a teacher's cached distributions (Hinton et al., arXiv 1503.02531)",
        {"init": True, "logits": True},
    ),
    Method(
        "distill-on-policy", "distill", OnPolicySection, MODULE + "distill:on_policy_step",
        "the student writes, the teacher says what it would have (Agarwal et al., GKD, arXiv 2306.13649)",
        {"init": True, "teacher": True, "samples": False},
    ),
]  # fmt: skip
