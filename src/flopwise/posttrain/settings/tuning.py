"""Fine-tuning and what is made of samples: settings and registry."""

from __future__ import annotations

from flopwise.posttrain.settings.method import Count, Method, SamplingSection, TrainingSection


class SftSection(TrainingSection):
    """Fine-tuning on pairs; with runs to `match`, it trains until it has spent what they did."""

    steps: Count | None = None  # type: ignore[assignment]
    rate_factor: float = 1.0

    def lacks(self, roles: dict[str, str]) -> str | None:
        """What must be said besides."""
        matched = any(role.startswith("match") for role in roles)
        if matched == (self.steps is not None):
            return "give either steps, or the runs to match"
        return None


class OnSamplesSection(TrainingSection):
    """Fine-tuning on verified samples, the demonstrations mixed in on request."""

    with_demonstrations: bool = True


class SynthesizeSection(SamplingSection):
    """Samples that the verifier accepts, a few distinct ones for each problem."""

    keep_per_problem: Count = 2


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
        "rejection", "rejection", OnSamplesSection, MODULE + "rejection:run_step",
        "fine-tuning on one's own verified samples (Dong et al., RAFT, arXiv 2304.06767)",
        {"init": True, "samples": True},
    ),
    Method(
        "distill-sequences", "distill", OnSamplesSection, MODULE + "rejection:run_step",
        "fine-tuning on a teacher's verified samples (Kim and Rush, arXiv 1606.07947)",
        {"init": True, "samples": True},
    ),
]  # fmt: skip
