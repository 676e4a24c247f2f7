"""Synthetic data, search for traces, and slices: settings and registry."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from flopwise.posttrain.settings.method import Count, Method, SamplingSection, Settings
from flopwise.posttrain.settings.tuning import OnSamplesSection

Source = Literal["program", "self", "back-translation"]
PartOf = Annotated[float, Field(ge=0, lt=1)]


class SyntheticSection(SamplingSection):
    """Up to `rows` rows for some `slices` (None: those that a run `weak` found, without one problems as they
    come), from `sources` in turn.

    Of the sources `self` and `back-translation` sample n answers to each of `problems` new problems.
    `near_duplicates` is the likeness (Jaccard) from which a row is dropped, 0 for none; `drop_long` and
    `drop_unlikely` are the shares of rows dropped because they are the longest, or least likely per token
    under the model.
    """

    sources: list[Source] = Field(default=["program"], min_length=1)
    rows: Count = 2000
    slices: list[str] | None = None
    keep_per_problem: Count = 2
    near_duplicates: Annotated[float, Field(ge=0, le=1)] = 0.95
    drop_long: PartOf = 0.0
    drop_unlikely: PartOf = 0.0

    @field_validator("sources")
    @classmethod
    def _once(cls, sources: list[Source]) -> list[Source]:
        if len(set(sources)) < len(sources):
            raise ValueError("names a source twice; once is enough")
        return sources

    def lacks(self, roles: dict[str, str]) -> str | None:
        """What must be said besides."""
        if self.slices is not None and "weak" in roles:
            return "slices are named, and a run says which are weak; leave one out"
        return None


class SearchSection(SamplingSection):
    """Beam or best-first tree search: each round `branch` next steps from each of the `width` best nodes, for
    at most `max_steps` rounds; a step ends at a token that ends in one of the characters `step_ends`."""

    search: Literal["beam", "tree"] = "beam"
    n: Count = Field(default=1, exclude=True)
    width: Count = 4
    branch: Count = 4
    max_steps: Count = 8
    step_tokens: Count = 24
    step_ends: Annotated[str, Field(min_length=1)] = ",;?\n"
    keep_per_problem: Count = 2


class WeakSlicesSection(Settings):
    """How many validation problems of each slice are answered, and the chance `alpha` that any slice is
    called weak where none is."""

    problems_per_slice: Count = 200
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    max_tokens: Count = 64


class CompareSection(Settings):
    """How many test problems of each slice are answered, greedily and n times (0: greedily only)."""

    problems_per_slice: Count = 400
    n: Annotated[int, Field(ge=0)] = 8
    max_tokens: Count = 64


MODULE = "flopwise.posttrain."
METHODS = [
    Method(
        "synthetic", "synthesize", SyntheticSection, MODULE + "synthesize:run_step",
        "made rows: by program, by a model with the verifier, or from answers; deduplicated and checked "
        "against the test set (Wang et al., Self-Instruct, arXiv 2212.10560)",
        {"init": True, "weak": False}, makes="data",
    ),
    Method(
        "sft-made", "sft", OnSamplesSection, MODULE + "rejection:run_step",
        "fine-tuning on made rows, the demonstrations mixed in on request",
        {"init": True, "samples": True},
    ),
    Method(
        "search-traces", "synthesize", SearchSection, MODULE + "search_traces:run_step",
        "beam or tree search over steps for verified traces (Zhang et al., ReST-MCTS*, arXiv 2406.03816)",
        {"init": True, "reward": False}, makes="data",
    ),
    Method(
        "weak-slices", "evaluate", WeakSlicesSection, MODULE + "slices:weak_step",
        "the slices of a task where a model is weaker than elsewhere, corrected for their number (Holm 1979)",
        {"init": True}, makes="data",
    ),
    Method(
        "compare-slices", "evaluate", CompareSection, MODULE + "slices:compare_step",
        "what each slice gained or lost from one model to another, problem by problem",
        {"before": True, "after": True}, makes="data",
    ),
]  # fmt: skip
