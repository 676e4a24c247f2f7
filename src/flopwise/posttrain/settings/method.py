"""What a post-training method is, as far as a recipe and the command line need to know. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field

from flopwise.launch.basics import Count, Section, Share
from flopwise.models.adapters import TARGETS

Makes = Literal["policy", "scorer", "data"]


class Settings(Section):
    """The settings of any method. `backend: trl` lets TRL train (`posttrain.trl_backend`), else we do."""

    backend: Literal["trl"] | None = None

    def spec(self) -> dict[str, Any]:
        """As a run's spec holds them. What is left at none is absent, so that a setting that comes to exist
        later does not change the ids of runs made before: steps read such ones by `get`."""
        return self.model_dump(exclude_none=True)

    def lacks(self, roles: dict[str, str]) -> str | None:
        """What is missing, given the runs it reads by role (a dataset as `data`); None where all is there."""
        return None


class LoraSection(Section):
    """Low-rank adapters, see `models.adapters.LoRA`."""

    rank: Count = 16
    alpha: float = Field(default=32.0, gt=0)
    targets: tuple[str, ...] = TARGETS
    rslora: bool = False


class PhaseSection(Settings):
    """What everything that trains may set.

    `rate_factor` multiplies the recipe's rates; `curve_points` is how often the validation accuracy is taken;
    `keep: best` ends with the weights of the best one, and `patience` ends training after so many that were
    no better (0: never).
    """

    steps: Count
    rate_factor: float = Field(default=0.3, gt=0)
    warmup_steps: int = Field(default=10, ge=0)
    final_rate: float = Field(default=0.0, ge=0, le=1)
    curve_points: Count = 4
    keep: Literal["last", "best"] = "last"
    patience: int = Field(default=0, ge=0)
    val_max_tokens: Count | None = None
    """Of an answer in a validation; 64 where nothing is said."""
    lora: LoraSection | None = None
    """Train adapters alone; the rate is `rates.lora` times `rate_factor`."""


class TrainingSection(PhaseSection):
    """Training on rows that are there, in batches of them."""

    batch_size: Count = 32


class SamplingSection(Settings):
    """What every phase that samples may set: n samples for each of so many problems, from a first one on."""

    problems: Count = 2000
    first_problem: int = Field(default=0, ge=0)
    n: Count = 8
    temperature: float = Field(default=1.0, gt=0)
    max_tokens: Count = 64


@dataclass(frozen=True)
class Method:
    """One way to spend compute after pretraining.

    Attributes:
        name: what recipes and commands call it.
        kind: of its records: sft, distill, preference, reward, rl, rejection, synthesize.
        section: its settings, with their limits.
        run: "module:function" of its step.
        roles: other runs it reads, by role: True where it cannot do without. A role that ends in `*` takes
            several. The spend of `init`, `samples`, `pairs`, `thumbs`, `teacher`, `reward`, `judge` is
            inherited.
        makes: a policy answers problems and is sampled on held-out ones; a scorer or data are not.
        about: one line, with the source.
    """

    name: str
    kind: str
    section: type[Settings]
    run: str
    about: str
    roles: dict[str, bool] = field(default_factory=lambda: {"init": True})
    makes: Makes = "policy"


__all__ = [
    "Count",
    "Makes",
    "Method",
    "PhaseSection",
    "SamplingSection",
    "Section",
    "Settings",
    "Share",
    "TrainingSection",
]
