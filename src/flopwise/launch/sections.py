"""The sections of a three-laws recipe: every knob of `flopwise demo`, with its limits.

Imports no torch: a recipe is checked before anything heavy starts.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, field_validator, model_validator

from flopwise.data import corpora, tasks
from flopwise.launch.basics import Count, Rung, Section, Share, one_of
from flopwise.launch.ladder_sections import HeldOut, LadderSection

Corpus = Annotated[str, one_of(corpora.NAMES)]


def _known_task(name: str) -> str:
    if not tasks.is_task(name):
        raise ValueError(f"must be one of {tasks.NAMES}")
    return name


Task = Annotated[str, AfterValidator(_known_task)]


class DataSection(Section):
    """What the models read, and the task they are judged on."""

    corpora: list[Corpus] = Field(min_length=1)
    max_chars: Count = 3_500_000
    vocab_size: Annotated[int, Field(ge=300, le=65_535)] = 512
    heldout_fraction: Share = 0.04
    task: Task = "countdown"
    demonstrations: Count = 4000
    rl_problems: Count = 6000
    val_problems: Count = 512
    test_problems: Count = 1000


class DemoLadder(LadderSection):
    """The ladder of the three-laws recipe: text and the task in one mixture, one larger run held out."""

    widths: list[Count] = Field(min_length=2)
    budgets: list[Count] = Field(min_length=2)
    held_out: HeldOut
    mixture: dict[str, Share] = Field(default={"text": 0.75, "task": 0.25}, min_length=1)

    @model_validator(mode="after")
    def _held_out_is_larger(self) -> DemoLadder:
        if self.held_out.width <= max(self.widths):
            raise ValueError(
                f"held_out.width is {self.held_out.width}, must be above the ladder's largest, "
                f"{max(self.widths)}"
            )
        return self


class LawSection(Section):
    """Which forms compete to predict the held-out run."""

    candidates: list[str] = Field(default=["chinchilla", "coupled", "broken"], min_length=1)

    @field_validator("candidates")
    @classmethod
    def _predict_from_size_and_tokens(cls, names: list[str]) -> list[str]:
        from flopwise.laws.law import laws

        known = [
            law.name for law in laws("pretraining") if (law.variables, law.target) == (("N", "D"), "loss")
        ]
        if wrong := [name for name in names if name not in known]:
            raise ValueError(
                f"{wrong[0]!r:.60} is not a law of loss in N and D; there are {', '.join(known)}"
            )
        return names


class MethodSection(Section):
    """A fine-tuning phase."""

    steps: Count
    batch_size: Count = 64
    rate_factor: float = Field(default=0.3, gt=0)
    curve_points: Count = 4


class RejectionSection(MethodSection):
    """Rejection sampling in rounds; steps are per round."""

    rounds: Count = 2
    problems: Count = 2000
    n: Count = 8
    keep_per_problem: Count = 2
    temperature: float = Field(default=1.0, gt=0)


class DistillSection(MethodSection):
    """Verified sequence distillation from the best model."""

    problems: Count = 4000
    n: Count = 4
    keep_per_problem: Count = 2
    temperature: float = Field(default=1.0, gt=0)


class GrpoSection(Section):
    """Reinforcement learning with the verifier as reward."""

    steps: Count
    problems_per_step: Count = 64
    group_size: Annotated[int, Field(ge=2)] = 16
    max_tokens: Count = 64
    temperature: float = Field(default=1.0, gt=0)
    rate_factor: float = Field(default=0.05, gt=0)
    final_rate: float = Field(default=0.3, ge=0)
    clip_low: float = Field(default=0.2, gt=0)
    clip_high: float = Field(default=0.28, gt=0)
    scale_by_std: bool = True
    curve_points: Count = 12


class RewardSection(MethodSection):
    """The outcome reward model."""

    problems: Count = 1500
    test_problems: Count = 200
    n: Count = 8
    temperature: float = Field(default=1.0, gt=0)


class PosttrainSection(Section):
    """Law 2: every method from one base, its control beside it."""

    base: Rung
    more_pretraining: Rung
    student: Rung
    other_sizes: list[Rung] = Field(default=[])
    """More rungs that get the same fine-tuning: with them accuracy can be predicted over sizes."""
    val_problems: Count = 256
    sft: MethodSection
    rejection: RejectionSection
    grpo: GrpoSection
    distill: DistillSection
    reward: RewardSection

    @property
    def rungs(self) -> dict[str, Rung]:
        """Every rung that is fine-tuned, by its key."""
        named = {"base": self.base, "more_pretraining": self.more_pretraining, "student": self.student}
        return named | {f"other_sizes.{i}": rung for i, rung in enumerate(self.other_sizes)}

    @model_validator(mode="after")
    def _rungs_differ(self) -> PosttrainSection:
        seen: dict[Rung, str] = {}
        for key, rung in self.rungs.items():
            if seen.setdefault(rung, key) != key:
                raise ValueError(f"{key} and {seen[rung]} are both {rung}; each must be a rung of its own")
        return self


class TestTimeSection(Section):
    """Law 3: how many samples, of how many held-out problems; the limits are those of a forecast."""

    problems: Annotated[int, Field(ge=10)] = 512
    n: Count = 64
    fit_up_to: Annotated[int, Field(ge=8)] = 16
    shown_problems: Count = 4
    light_n: Count = 16
    max_tokens: Count = 64


class PlanSection(Section):
    """What to plan for."""

    budget_flops: float = Field(gt=0)
    questions: float = Field(gt=0)
