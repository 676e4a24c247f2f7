"""Preferences and feedback: what makes them, what learns from them; settings and registry."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from flopwise.posttrain.settings.method import Count, Method, SamplingSection, TrainingSection

NonNegative = Annotated[float, Field(ge=0)]
By = Literal["verifier", "reward", "judge"]


class _FeedbackSection(SamplingSection):
    """Answers of init, and what is said of them `by` the verifier or a run in the role reward or judge."""

    by: By = "verifier"
    flip: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of what the verifier says that is turned over: a judge that errs."""
    cut: Literal["wrong", "drop"] = "wrong"
    """Of answers that the token limit cut: they count as wrong ones, or are left out."""

    def lacks(self, roles: dict[str, str]) -> str | None:
        """Whoever judges must be named, and nobody else."""
        for role in ("reward", "judge"):
            if (self.by == role) != (role in roles):
                return f"by: {self.by} and {role} do not go together; by: {role} needs {role}: RUN"
        if self.flip and self.by != "verifier":
            return "flip is the noise of by: verifier; a model makes its own mistakes"
        return None


class PairsSection(_FeedbackSection):
    """Pairs of one problem's answers, at most `per_problem`, no answer in two of them."""

    per_problem: Count = 2


class ThumbsSection(_FeedbackSection):
    """A thumb up or down for each answer; up where a score is above `threshold` (a judge gives 0 to 1, a
    reward model log-odds)."""

    n: Count = 4
    threshold: float | None = None
    """None: 0.5 of a judge, 0 of a reward model."""


class PreferenceSection(TrainingSection):
    """What learning from preferences has in common. A batch is `batch_size` pairs, or answers for KTO.

    `epochs` over the data where no `steps` are given. The `anchor` is a weight on -log p per token of the
    preferred answers (`chosen`), or of as many `demonstrations`. By default the weights are kept that
    validated best.
    """

    steps: Count | None = None  # type: ignore[assignment]
    epochs: float = Field(default=1.0, gt=0)
    rate_factor: float = Field(default=0.15, gt=0)
    curve_points: Count = 8
    keep: Literal["last", "best"] = "best"
    anchor: NonNegative = 1.0
    anchor_on: Literal["chosen", "demonstrations"] = "chosen"
    heldout: Annotated[float, Field(ge=0, lt=0.9)] = 0.05
    """Of the problems, whose pairs are only judged on (self-made feedback; a dataset has its own)."""
    kl_problems: int = Field(default=0, ge=0)
    """Validation problems on whose samples KL(policy || start) is estimated at each validation."""

    def lacks(self, roles: dict[str, str]) -> str | None:
        """Pairs to learn from."""
        return _feedback(roles, ("pairs",))


class ReferencedSection(PreferenceSection):
    """Learning that stays near its start, the reference. Its log-probabilities are computed once before
    training (`cached`) or with each batch (`online`)."""

    beta: float = Field(default=0.1, gt=0)
    reference: Literal["cached", "online"] = "cached"


class DpoSection(ReferencedSection):
    """`per_token` takes log-ratios per token."""

    loss: Literal["sigmoid", "ipo"] = "sigmoid"
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    per_token: bool = False


class KtoSection(ReferencedSection):
    """Weights of the two classes; None gives the rarer one as much as the other has together."""

    up_weight: NonNegative | None = None
    down_weight: NonNegative | None = None

    def lacks(self, roles: dict[str, str]) -> str | None:
        """Thumbs, or pairs taken apart."""
        return _feedback(roles, ("thumbs", "pairs"))


class OrpoSection(PreferenceSection):
    """`odds_weight` is the paper's lambda; its fine-tuning term is the anchor."""

    odds_weight: NonNegative = 0.1


class SimpoSection(PreferenceSection):
    """`margin` is the paper's gamma."""

    beta: float = Field(default=2.0, gt=0)
    margin: NonNegative = 1.0


def _feedback(roles: dict[str, str], kinds: tuple[str, ...]) -> str | None:
    given = [role for role in kinds if role in roles]
    if len(given) > 1:
        return f"{given[0]} and {given[1]} exclude each other; give one of them"
    if not given and "data" not in roles:
        return f"give {' or '.join(f'{kind}: RUN' for kind in kinds)}, or a dataset as data"
    return None


MODULE = "flopwise.posttrain."
METHODS = [
    Method(
        "pairs", "synthesize", PairsSection, MODULE + "pairs:pairs_step",
        "pairs of a model's own answers, the better one first (Bai et al., arXiv 2212.08073, for a judge)",
        {"init": True, "reward": False, "judge": False}, makes="data",
    ),
    Method(
        "thumbs", "synthesize", ThumbsSection, MODULE + "pairs:thumbs_step",
        "a model's own answers, each with a thumb up or down",
        {"init": True, "reward": False, "judge": False}, makes="data",
    ),
    Method(
        "dpo", "preference", DpoSection, MODULE + "preference:run_step",
        "direct preference optimisation on pairs (Rafailov et al., arXiv 2305.18290)",
        {"init": True, "pairs": False},
    ),
    Method(
        "kto", "preference", KtoSection, MODULE + "preference:run_step",
        "learning from thumbs, unpaired (Ethayarajh et al., arXiv 2402.01306)",
        {"init": True, "thumbs": False, "pairs": False},
    ),
    Method(
        "orpo", "preference", OrpoSection, MODULE + "preference:run_step",
        "fine-tuning with an odds ratio, no reference (Hong et al., arXiv 2403.07691)",
        {"init": True, "pairs": False},
    ),
    Method(
        "simpo", "preference", SimpoSection, MODULE + "preference:run_step",
        "likelihood per token as reward, no reference (Meng et al., arXiv 2405.14734)",
        {"init": True, "pairs": False},
    ),
]  # fmt: skip
