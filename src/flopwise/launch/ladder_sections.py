"""The sections of a ladder recipe (`kind: ladder`), and the ladder section that the three-laws recipe shares.

Imports no torch: a recipe is checked before anything heavy starts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from flopwise.data import corpora, media
from flopwise.data.documents import label
from flopwise.errors import FlopwiseError
from flopwise.launch.basics import Count, Rung, Section, Share

if TYPE_CHECKING:
    from flopwise.pretrain.rules import RuleSet

Modality = Literal["text", "image", "audio", "video", "sensor", "calibration"]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,40}$")]
"""A label that becomes part of step names, columns and metrics."""


class SourceSection(Section):
    """One stream of data: a shipped corpus, or somebody's own files."""

    corpus: Name | None = None
    path: str | None = None
    """File, folder, glob, or a Hugging Face dataset (saved folder or hub id)."""
    name: Name | None = None
    modality: Modality | None = None
    """None: what the corpus is; text for own files."""
    field: str = "text"
    options: dict[str, Any] = Field(default={})
    """Of the modality: levels, sample rate, patch size; see `docs/modalities.md`."""
    max_bytes: Count | None = None

    @property
    def label(self) -> str:
        """The source's name in mixtures and metrics."""
        return label(self.model_dump())

    @model_validator(mode="after")
    def _one_of_two(self) -> SourceSection:
        if (self.corpus is None) == (self.path is None):
            raise ValueError("give either corpus (a shipped one) or path (your own files)")
        known = (*corpora.NAMES, *media.MEDIA)
        if self.corpus is not None and self.corpus not in known:
            raise ValueError(f"corpus {self.corpus!r} is unknown; there are {', '.join(known)}")
        return self


class TokenizerSection(Section):
    """How text becomes tokens."""

    kind: Literal["byte", "bpe", "hub"] = "bpe"
    vocab_size: Annotated[int, Field(ge=258, le=1_000_000)] = 512
    path: str | None = None
    """Folder or hub id of a tokenizer, for kind hub."""

    @model_validator(mode="after")
    def _hub_needs_a_path(self) -> TokenizerSection:
        if (self.kind == "hub") != (self.path is not None):
            raise ValueError("path is for kind hub, which needs one: a folder or hub id with tokenizer.json")
        return self


class CorpusSection(Section):
    """What a ladder's models read."""

    sources: list[SourceSection] = Field(min_length=1)
    tokenizer: TokenizerSection = TokenizerSection()
    heldout_fraction: Share = 0.04
    deduplicate: bool = True

    @model_validator(mode="after")
    def _labels_differ(self) -> CorpusSection:
        labels = [s.label for s in self.sources]
        if twice := {label for label in labels if labels.count(label) > 1}:
            raise ValueError(f"two sources are named {min(twice)!r}; give one a name of its own")
        return self


class RatesSection(Section):
    """Base learning rates, see `train.optim.Rates`."""

    muon: float = Field(default=0.02, gt=0)
    adam: float = Field(default=0.008, gt=0)
    """Of hidden matrices under AdamW, at width 64."""
    embed: float = Field(default=0.01, gt=0)
    head: float = Field(default=0.004, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)


class ModelSection(Section):
    """The architecture, but for size; see `models.config.ModelConfig.from_width`."""

    tie_embeddings: bool = False
    qk_norm: bool = False
    sliding_window: Count | None = None
    expansion: Count = 1
    """Expert parameters over those a token uses; 1 is a dense model."""
    granularity: Count = 1
    shared_experts: Annotated[int, Field(ge=0)] = 0
    balance: Literal["aux", "bias", "none"] = "aux"

    @model_validator(mode="after")
    def _experts_are_of_a_mixture(self) -> ModelSection:
        if self.expansion == 1 and (self.granularity > 1 or self.shared_experts):
            raise ValueError(
                f"granularity {self.granularity} and shared_experts {self.shared_experts} are of a mixture "
                "of experts, and expansion is 1: a dense model; raise expansion"
            )
        return self


class HeldOut(Rung):
    """The larger run that no fit sees, for each of these variants (none named: the first)."""

    variants: list[Name] = Field(default=[])


class LadderSection(Section):
    """Law 1: sizes times budgets, and the larger run that no fit sees."""

    widths: list[Count] = Field(min_length=1)
    depth: Count = 2
    model: ModelSection = ModelSection()
    budgets: list[Count] = Field(default=[])
    """Tokens; or else one of the next two."""
    isoflop: list[Annotated[float, Field(gt=0)]] = Field(default=[])
    """Training FLOPs, counted exactly: tokens follow for each width."""
    per_parameter: list[Annotated[float, Field(gt=0)]] = Field(default=[])
    """Tokens per non-embedding parameter."""
    held_out: HeldOut | None = None
    extra_seeds: dict[int, Count] = Field(default={})
    batch_size: Count = 16
    seq_len: Annotated[int, Field(ge=16)] = 128
    warmup_steps: Count = 40
    warmup_tokens: Count | None = None
    """In place of `warmup_steps`."""
    decay_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """0: the rate stays, and the trunk itself is measured at each budget."""
    branched: bool = True
    """False: every budget is a run of its own from the start, the control that branching is judged by."""
    mixture: dict[str, Annotated[float, Field(gt=0, le=1)]] = Field(default={})
    """Shares by source; none named: all sources alike."""
    unique_tokens: Count | None = None
    """Only so many tokens of each source are shown, again and again."""
    heldout_tokens: Count = 65_536
    optimiser: Literal["muon", "adamw"] = "muon"
    rates: RatesSection = RatesSection()
    rate_factor: float = Field(default=1.0, gt=0)
    """All rates times this."""
    rules: dict[str, Any] = Field(default={})
    """How rates, warm-up, decay and shape follow size, by name: `pretrain.rules` has formulas and sources."""
    z_loss: float = Field(default=0.0, ge=0)
    accuracy_questions: Annotated[int, Field(ge=0)] = 0
    """So many held-out questions 'which of four continuations is the true one' are put to each model."""

    @property
    def context(self) -> int:
        """The models' context: training length, so that nothing is extrapolated in position."""
        return self.seq_len

    @property
    def warmup(self) -> int:
        """Warm-up in steps."""
        if self.warmup_tokens is None:
            return self.warmup_steps
        return max(1, round(self.warmup_tokens / (self.batch_size * self.seq_len)))

    @property
    def rule_set(self) -> RuleSet:
        """The rules, checked."""
        from flopwise.pretrain.rules import RuleSet

        rules = dict(self.rules)
        if self.optimiser == "adamw":
            rules.setdefault("rate", "mup")
        return RuleSet(**rules)

    @model_validator(mode="after")
    def _rules_exist(self) -> LadderSection:
        try:
            rules = self.rule_set
        except (FlopwiseError, TypeError) as e:
            raise ValueError(str(e)) from None
        if rules.batch != "constant":
            raise ValueError(
                f"rules.batch is {rules.batch!r}, must be constant: budgets that branch off one trunk share "
                "its batch; give variants with a batch_size each"
            )
        return self

    @model_validator(mode="after")
    def _one_kind_of_budget(self) -> LadderSection:
        given = [name for name in ("budgets", "isoflop", "per_parameter") if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(
                f"give one of budgets (tokens), isoflop (FLOPs) and per_parameter, not {len(given)} of them"
            )
        return self

    @field_validator("widths", "budgets")
    @classmethod
    def _no_repeats(cls, values: list[int]) -> list[int]:
        if len(set(values)) < len(values):
            raise ValueError("two are the same; each is a rung of its own")
        return values

    @model_validator(mode="after")
    def _held_out_is_larger(self) -> LadderSection:
        if self.held_out is not None and self.held_out.width < max(self.widths):
            raise ValueError(
                f"held_out.width is {self.held_out.width}, must not be below the ladder's largest, "
                f"{max(self.widths)}"
            )
        return self

    @model_validator(mode="after")
    def _seeds_are_of_rungs(self) -> LadderSection:
        unknown = set(self.extra_seeds) - set(self.widths)
        if unknown:
            raise ValueError(f"extra_seeds names width {min(unknown)}, which is not in widths")
        return self


class LawEntry(Section):
    """One question put to the finished runs.

    `fit`: forms compete to predict the held-out run. `isoflop`: compute-optimal size from curves of equal
    compute, with parameters and FLOPs counted both ways. `factor`: how much less compute `variants` need than
    `against` for the same loss. `rates`: the best learning rate and batch by size and tokens, from variants
    that sweep them. `mixed`: whether sources help or hinder each other, from variants that read one or two.
    """

    name: Name = "law"
    method: Literal["fit", "isoflop", "factor", "rates", "mixed"] = "fit"
    candidates: list[str] = Field(default=["chinchilla", "coupled", "broken"])
    """Names of laws, or formulas: `loss = E + A / N^a`."""
    target: str = "loss"
    columns: dict[str, str] = Field(default={})
    """Which column serves as a variable of the law, where it is not the one of the same name."""
    by: str = "N"
    """The column whose largest value is held out when forms compete."""
    leave_out: bool = True
    """Whether the smallest sizes are left out where the largest is then predicted better."""
    variants: list[Name] = Field(default=[])
    """None named: all."""
    held_out: list[Name] = Field(default=[])
    """Variants whose held-out runs are predicted; none named: those that are fitted."""
    against: Name | None = None

    @model_validator(mode="after")
    def _factor_needs_a_base(self) -> LawEntry:
        if (self.method == "factor") != (self.against is not None):
            raise ValueError("against names the variant that others are compared with, for method factor")
        return self


class TuningSection(Section):
    """A small search over learning rate and batch size, whose outcome the ladder takes."""

    widths: list[Count] = Field(min_length=1, max_length=4)
    tokens: Count
    rates: list[Annotated[float, Field(gt=0)]] = Field(default=[0.5, 0.7, 1.0, 1.4, 2.0])
    """Multiples of the base rates."""
    batches: list[Count] = Field(default=[])
    """None: the ladder's own alone."""
    seeds: Count = 1


class TrainSection(Section):
    """How runs are executed; what is learned does not depend on it, up to rounding."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: Literal["auto", "on", "off"] = "off"
    processes: Annotated[int, Field(ge=1, le=4096)] = 1
    parallel: Literal["ddp", "fsdp", "ep"] = "ddp"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    keep: Literal["last", "best"] | Count | dict[Literal["every"], Count] = "last"
    """Which checkpoints stay beside the newest."""
    ensemble: Literal["auto", "off"] = "auto"
    """Whether runs of one shape are trained together as one batched model, where that is faster here."""
