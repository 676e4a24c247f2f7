"""How a ladder's settings follow from its sizes: each rule with its formula and source.

A rule turns one run (model, tokens, batch) into concrete numbers; a `RuleSet` names one rule for each
question. No torch: the dry run prints them. Base rates are those of the reference width, 64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from flopwise.errors import FlopwiseError
from flopwise.flops.count import count_params
from flopwise.models.config import ModelConfig

REFERENCE_WIDTH = 64
"""Width at which base rates are stated (`train.optim.REFERENCE_WIDTH`)."""
GROUPS = ("hidden", "embed", "head", "norm")
"""Groups of weights that have a rate of their own."""


@dataclass(frozen=True)
class Run:
    """What a rule is asked about. `tokens`: the whole budget; `batch_size` in sequences of `seq_len` tokens.

    `rates`: base rates (muon, adam, embed, head, norm, weight_decay). `hidden`: the hidden rate that the rate
    rule gave, for rules that come after it.
    """

    cfg: ModelConfig
    tokens: float
    batch_size: int
    seq_len: int
    rates: Mapping[str, float]
    optimiser: str = "muon"
    warmup_steps: int = 40
    z_loss: float = 0.0
    hidden: float = 0.0

    @property
    def steps(self) -> float:
        """Updates of the whole budget."""
        return self.tokens / (self.batch_size * self.seq_len)


Constants = Mapping[str, float | None]
Function = Callable[[Run, Mapping[str, float]], Mapping[str, float]]


@dataclass(frozen=True)
class Rule:
    """One answer to one question, `what`.

    `checked`: how far source and formula were checked ("read": in the source's own words; "second hand": in
    others' accounts of it; "measured": by us; "as given": nothing to check; "unverified"). `constants`: with
    defaults; None must be given.
    `needs`: which part of the run it depends on.
    """

    what: str
    name: str
    formula: str
    source: str
    checked: str
    function: Function
    needs: tuple[str, ...] = ()
    constants: Constants = field(default_factory=dict)


def _base(run: Run) -> dict[str, float]:
    """Base rates by group."""
    hidden = run.rates["muon" if run.optimiser == "muon" else "adam"]
    return {"hidden": hidden, "embed": run.rates["embed"], "head": run.rates["head"],
            "norm": run.rates.get("norm", run.rates["embed"])}  # fmt: skip


def _mup(run: Run, k: Mapping[str, float]) -> dict[str, float]:
    out, ratio = _base(run), REFERENCE_WIDTH / run.cfg.d_model
    out["head"] *= ratio
    if run.optimiser == "adamw":
        out["hidden"] *= ratio
    return out


def _completep(run: Run, k: Mapping[str, float]) -> dict[str, float]:
    # A residual multiplier m inside the block's last matrix: Adam and Muon see its rate and scale times m.
    shallow = k["depth"] / run.cfg.n_layers
    return _mup(run, k) | {"residual": shallow, "residual_init": math.sqrt(shallow)}


def _step_law_rate(run: Run, k: Mapping[str, float]) -> dict[str, float]:
    base = _base(run)
    hidden = k["c"] * count_params(run.cfg).non_embedding ** -k["a"] * run.tokens ** k["b"]
    return {name: rate * hidden / base["hidden"] for name, rate in base.items()}


def _sequences(run: Run, tokens: float) -> dict[str, float]:
    return {"batch_size": max(1, round(tokens / run.seq_len))}


def _aspect(run: Run, k: Mapping[str, float]) -> dict[str, float]:
    return {"depth": max(1, round(run.cfg.d_model / k["ratio"]))}


def _by_parameters(run: Run, k: Mapping[str, float]) -> dict[str, float]:
    tokens = k["ratio"] * count_params(run.cfg).non_embedding
    return {"warmup_steps": max(1, round(tokens / (run.batch_size * run.seq_len)))}


def _init(run: Run, k: Mapping[str, float]) -> dict[str, float]:
    cfg = run.cfg
    deep = 1 / math.sqrt(2 * cfg.n_layers)
    return {
        "hidden": k["gain"] / math.sqrt(cfg.d_model),
        "attention_out": k["gain"] * deep / math.sqrt(cfg.n_heads * cfg.head_dim),
        "mlp_down": k["gain"] * deep / math.sqrt(cfg.d_expert if cfg.n_experts else cfg.d_ff),
        "embed": cfg.d_model**-0.5 if cfg.tie_embeddings else 1.0,
        "head": cfg.d_model**-0.5 if cfg.tie_embeddings else 0.0,
    }


_STEP = "Li et al. 2025 (Step law), arXiv 2503.04715"

RULES = (
    Rule("shape", "width", "one dial: the width, at a fixed depth",
         "docs/design.md: depth and tokens interact below a million parameters", "measured",
         lambda run, k: {"depth": run.cfg.n_layers}),
    Rule("shape", "aspect", "depth = width / ratio, rounded",
         "Kaplan et al. 2020, arXiv 2001.08361, section 3: loss depends little on the ratio", "unverified",
         _aspect, constants={"ratio": 64.0}),
    Rule("init", "fan_in",
         "gain / sqrt(fan-in); block outputs also 1 / sqrt(2 depth); head 0, embedding 1 (tied: both "
         "1 / sqrt(width))",
         "docs/design.md for the gain; block outputs: Radford et al. 2019 (GPT-2), section 2.3",
         "second hand", _init, constants={"gain": 0.7}),
    Rule("rate", "spectral",
         "hidden: updates of spectral norm rate * sqrt(max(1, fan-out / fan-in)), one rate for all widths "
         "(AdamW: 64 / width); head 64 / width; embedding and norms the same",
         "Yang, Simon and Bernstein 2023, arXiv 2310.17813, condition 1", "second hand", _mup, ("width",)),
    Rule("rate", "mup", "AdamW: hidden and head 64 / width, embedding and norms the same (Muon: as spectral)",
         "Yang et al. 2022 (muP), arXiv 2203.03466, tables 3 and 8", "second hand", _mup, ("width",)),
    Rule("rate", "completep",
         "as mup; rate and scale of block outputs times depth0 / depth (the residual multiplier 1 / depth, "
         "alpha = 1, folded into the matrix)",
         "Dey et al. 2025 (CompleteP), arXiv 2505.01618, table 1", "second hand", _completep,
         ("width", "depth"), {"depth": 2.0}),
    Rule("rate", "step_law", "hidden = c N^-a D^b, N without embeddings; other groups in proportion", _STEP,
         "read; published for AdamW, refit c, a, b on the ladder", _step_law_rate, ("N", "tokens"),
         {"c": 1.79, "a": 0.713, "b": 0.307}),
    Rule("rate", "constant", "the same rates at every size: the control", "none", "as given",
         lambda run, k: _base(run)),
    Rule("batch", "constant", "the recipe's batch at every size", "none", "as given",
         lambda run, k: {"batch_size": run.batch_size}),
    Rule("batch", "step_law", "batch = c D^b tokens", _STEP, "read; refit c, b on the ladder",
         lambda run, k: _sequences(run, k["c"] * run.tokens ** k["b"]), ("tokens",),
         {"c": 0.58, "b": 0.571}),
    Rule("batch", "critical",
         "batch = Bc / loss^(1 / aB) tokens: above it a step saved costs more tokens than it is worth",
         "McCandlish et al. 2018, arXiv 1812.06162; Kaplan et al. 2020, arXiv 2001.08361, eq. 1.4",
         "second hand", lambda run, k: _sequences(run, k["Bc"] / k["loss"] ** (1 / k["aB"])), ("loss",),
         {"Bc": 2e8, "aB": 0.21, "loss": None}),
    Rule("warmup", "constant", "the recipe's steps", "none", "as given",
         lambda run, k: {"warmup_steps": run.warmup_steps}),
    Rule("warmup", "share", "share * tokens", "usual practice", "unverified",
         lambda run, k: {"warmup_steps": max(1, round(k["share"] * run.steps))}, ("tokens",),
         {"share": 0.02}),
    Rule("warmup", "parameters", "ratio * N tokens: a fixed warm-up is too long for small models",
         "Porian et al. 2024, arXiv 2406.19146: that it matters is read, this length is unverified",
         "unverified", _by_parameters, ("N",), {"ratio": 1.0}),
    Rule("weight_decay", "constant", "the recipe's", "none", "as given",
         lambda run, k: {"weight_decay": run.rates.get("weight_decay", 0.0)}),
    Rule("weight_decay", "timescale",
         "decay = 1 / (tau * hidden rate * steps): weights are averages over the same share tau of any run",
         "Wang and Aitchison 2024, arXiv 2405.13698; tau falls with tokens per parameter: Bergsma et al. "
         "2025, arXiv 2505.13738", "read (abstracts)",
         lambda run, k: {"weight_decay": 1 / (k["tau"] * run.hidden * run.steps)}, ("tokens", "rate"),
         {"tau": None}),
    Rule("z_loss", "constant", "weight * (log Z)^2 per token; 1e-4 in the source",
         "Chowdhery et al. 2022 (PaLM), arXiv 2204.02311, section 5", "second hand",
         lambda run, k: {"z_loss": run.z_loss}),
)  # fmt: skip
"""All rules; of each question the recipe names one."""
WHAT = tuple(dict.fromkeys(rule.what for rule in RULES))


@dataclass(frozen=True)
class Values:
    """What the rules make of one run.

    `rates`: for `train.optim.Rates`, whose optimiser itself scales head and hidden AdamW rates by 64 / width.
    `effective`: the rates that weights get, by group. `residual`, `residual_init`: factors on rate and scale
    of block outputs (1 but for CompleteP away from its reference depth). `init`: standard deviations.
    """

    rates: dict[str, float]
    effective: dict[str, float]
    batch_size: int
    warmup_steps: int
    z_loss: float
    depth: int
    residual: float
    residual_init: float
    init: dict[str, float]


@dataclass(frozen=True)
class RuleSet:
    """One rule for each question, and constants by "question.constant" in place of the rules' own.

    Raises:
        FlopwiseError: no such rule or constant, or one without which a rule cannot be used.

    >>> RuleSet(rate="mup").rule("rate").needs
    ('width',)
    """

    rate: str = "spectral"
    batch: str = "constant"
    warmup: str = "constant"
    weight_decay: str = "constant"
    z_loss: str = "constant"
    shape: str = "width"
    init: str = "fan_in"
    options: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.options, Mapping):
            raise FlopwiseError(f"rules: options are {self.options!r:.40}, must be constants by name")
        known = {f"{r.what}.{c}" for r in self.rules for c in r.constants}
        for name, value in self.options.items():
            if name not in known:
                raise FlopwiseError(
                    f"rules: {name!r:.60} is no constant of the rules named; there are "
                    f"{', '.join(sorted(known)) or 'none'}"
                )
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise FlopwiseError(f"rules: {name} is {value!r:.40}, must be a number")
        for rule in self.rules:
            self.constants(rule)

    def rule(self, what: str) -> Rule:
        """The rule for `what`."""
        name = getattr(self, what)
        found = {r.name: r for r in RULES if r.what == what}
        if name not in found:
            raise FlopwiseError(f"rules: {what} {name!r:.40} is unknown; there are {', '.join(found)}")
        return found[name]

    @property
    def rules(self) -> list[Rule]:
        """All of them, in the order of `WHAT`."""
        return [self.rule(what) for what in WHAT]

    @property
    def uses_tokens(self) -> list[str]:
        """Questions whose answer depends on the token budget; a trunk of several takes its longest."""
        return [r.what for r in self.rules if "tokens" in r.needs]

    def constants(self, rule: Rule) -> dict[str, float]:
        """Of the rule, the recipe's in place of its own."""
        out = {}
        for name, default in rule.constants.items():
            value = self.options.get(f"{rule.what}.{name}", default)
            if value is None:
                raise FlopwiseError(
                    f"rules: {rule.what} {rule.name} needs the constant {rule.what}.{name} ({rule.formula})"
                )
            out[name] = float(value)
        return out

    def config(self, width: int, vocab_size: int, max_seq_len: int, depth: int, **shape: Any) -> ModelConfig:
        """The model of this width; `depth` is the recipe's, which the aspect rule replaces."""
        cfg = ModelConfig.from_width(width, depth, vocab_size, max_seq_len, **shape)
        rule = self.rule("shape")
        deep = int(rule.function(Run(cfg, 0.0, 1, max_seq_len, {}), self.constants(rule))["depth"])
        return cfg if deep == depth else ModelConfig.from_width(width, deep, vocab_size, max_seq_len, **shape)

    def values(
        self, cfg: ModelConfig, *, tokens: float, batch_size: int, seq_len: int, rates: Mapping[str, float],
        optimiser: str = "muon", warmup_steps: int = 40, z_loss: float = 0.0, rate_factor: float = 1.0,
        scales_outputs: bool = False,
    ) -> Values:  # fmt: skip
        """Concrete numbers for one run.

        Args:
            tokens: the whole budget; of a trunk with several branches, the longest.
            batch_size: the recipe's, in sequences of `seq_len` tokens.
            rates: the recipe's base rates by name: muon, adam, embed, head, norm (as embed), weight_decay.
            rate_factor: all rates times this.
            scales_outputs: whether the trainer gives block outputs a rate and a scale of their own.

        Raises:
            FlopwiseError: published constants of the Step law under Muon, an optimiser they are not for; or
                CompleteP at another depth than its reference, and a trainer that does not scale outputs.
        """
        if optimiser not in ("muon", "adamw"):
            raise FlopwiseError(f"rules: optimiser {optimiser!r:.40} is unknown; there are muon, adamw")
        if (
            self.rate == "step_law"
            and optimiser == "muon"
            and not {"rate.c", "rate.a", "rate.b"} <= set(self.options)
        ):
            raise FlopwiseError(
                "rules: the Step law's published constants are for AdamW; refit c, a and b on the ladder "
                "(recipes/pretraining-rates.yaml) and set rate.c, rate.a, rate.b"
            )
        run = Run(cfg, float(tokens), batch_size, seq_len, rates, optimiser, warmup_steps, z_loss)
        run = replace(run, batch_size=int(self._apply("batch", run)["batch_size"]))
        found = self._apply("rate", run)
        if found.get("residual", 1.0) != 1 and not scales_outputs:
            raise FlopwiseError(
                f"rules: completep at depth {cfg.n_layers} wants block outputs at {found['residual']:.3g} of "
                f"the rate, which the trainer cannot give them; set rate.depth to the ladder's one depth"
            )
        effective = {name: rate_factor * found[name] for name in GROUPS}
        run = replace(run, hidden=effective["hidden"])
        ratio = cfg.d_model / REFERENCE_WIDTH
        own = {
            "muon": effective["hidden"] if optimiser == "muon" else rate_factor * rates["muon"],
            "adam": effective["hidden"] * ratio if optimiser == "adamw" else rate_factor * rates["adam"],
            "embed": effective["embed"], "head": effective["head"] * ratio, "norm": effective["norm"],
            "weight_decay": self._apply("weight_decay", run)["weight_decay"],
        }  # fmt: skip
        return Values(
            rates=own, effective=effective, batch_size=run.batch_size,
            warmup_steps=int(self._apply("warmup", run)["warmup_steps"]),
            z_loss=self._apply("z_loss", run)["z_loss"], depth=int(self._apply("shape", run)["depth"]),
            residual=found.get("residual", 1.0), residual_init=found.get("residual_init", 1.0),
            init=dict(self._apply("init", run)),
        )  # fmt: skip

    def _apply(self, what: str, run: Run) -> Mapping[str, float]:
        rule = self.rule(what)
        return rule.function(run, self.constants(rule))


def describe(rules: RuleSet, cfg: ModelConfig | None = None, **run: Any) -> list[dict[str, str]]:
    """A row per rule: what, rule, formula, source, checked, needs, constants, and its value for one run.

    Args:
        cfg: a model; with it, `run` is what `RuleSet.values` takes, and `value` is filled in.
    """
    made = None if cfg is None else rules.values(cfg, **run)
    shown: dict[str, str] = {}
    if made is not None:
        residual = {} if made.residual == 1 else {"block outputs times": made.residual}
        shown = {
            "shape": f"width {cfg.d_model}, depth {made.depth}" if cfg else "", "init": _listed(made.init),
            "rate": _listed({**made.effective, **residual}), "batch": f"{made.batch_size} sequences",
            "warmup": f"{made.warmup_steps} steps", "weight_decay": f"{made.rates['weight_decay']:.3g}",
            "z_loss": f"{made.z_loss:.3g}",
        }  # fmt: skip
    return [
        {
            "what": r.what, "rule": r.name, "formula": r.formula, "source": r.source, "checked": r.checked,
            "needs": ", ".join(r.needs), "constants": _listed(rules.constants(r)),
            "value": shown.get(r.what, ""),
        }
        for r in rules.rules
    ]  # fmt: skip


def _listed(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in values.items())
