"""The ladder: one warm-up/stable trunk per size, one cooldown branch per token budget.

A branch that decays the rate from a point of the trunk ends where a separate run of that length would
(Haegele et al., arXiv 2405.18392), so three budgets cost little more than the longest. Each piece of trunk
between two branch points is a run of its own: lineage then adds up exactly, and a stopped ladder resumes
at the last piece. Branches of one trunk share its noise: they are one cluster to every fit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from flopwise.errors import FlopwiseError
from flopwise.flops.count import count_params, six_nd, train_flops
from flopwise.launch.steps import Step
from flopwise.models.config import ModelConfig
from flopwise.train.settings import Settings

if TYPE_CHECKING:
    from flopwise.launch.ladder_sections import LadderSection
    from flopwise.pretrain.rules import Values

PIECE = "flopwise.pretrain.piece"
MOST_STEPS = 2**31 - 1
"""Of a run: 68 years at one a second."""


@dataclass(frozen=True)
class Plan:
    """A variant of a ladder: what all its runs share, and which runs there are.

    `mixture`: shares by source. `data`: the name of the data step. `prefix` goes before the names of steps,
    so that variants do not mix. `references`: further steps that every piece reads, by role. `train`: how
    runs are executed (`launch.ladder_sections.TrainSection`), where it is not as usual.
    """

    ladder: LadderSection
    vocab_size: int
    mixture: dict[str, float]
    variant: str = "base"
    data: str = "data"
    prefix: str = ""
    references: dict[str, str] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    ensemble: bool = True
    """Whether pieces of one shape may be trained together, where that is faster."""

    @property
    def tokens_per_step(self) -> int:
        """Of one update."""
        return self.ladder.batch_size * self.ladder.seq_len

    def config(self, width: int) -> ModelConfig:
        """The model of this width, of the depth that the shape rule gives it."""
        ladder = self.ladder
        return ladder.rule_set.config(
            width, self.vocab_size, ladder.context, ladder.depth, **ladder.model.model_dump()
        )

    def budgets(self, width: int) -> list[int]:
        """Token budgets of this width, smallest first, whatever they were given as."""
        ladder, cfg = self.ladder, self.config(width)
        if ladder.isoflop:
            per_token = train_flops(cfg, ladder.seq_len).total / ladder.seq_len
            tokens = [flops / per_token for flops in ladder.isoflop]
        elif ladder.per_parameter:
            tokens = [ratio * count_params(cfg).non_embedding for ratio in ladder.per_parameter]
        else:
            return sorted(ladder.budgets)
        return sorted(max(1, round(t / self.tokens_per_step)) * self.tokens_per_step for t in tokens)

    def seeds(self, width: int, seed: int) -> list[int]:
        """Seeds of this width's repeats."""
        return [seed + 1000 * repeat for repeat in range(1 + self.ladder.extra_seeds.get(width, 0))]

    def values(self, width: int) -> Values:
        """The hyperparameters that the ladder's rules give this width; a trunk takes its longest budget's."""
        ladder = self.ladder
        return ladder.rule_set.values(
            self.config(width), tokens=max(self.budgets(width)), batch_size=ladder.batch_size,
            seq_len=ladder.seq_len, rates=ladder.rates.model_dump(), optimiser=ladder.optimiser,
            warmup_steps=ladder.warmup, z_loss=ladder.z_loss, rate_factor=1.0,
        )  # fmt: skip

    def branch_name(self, width: int, budget: int, seed: int) -> str:
        """The step that ends with the model of this width and token budget."""
        return self.prefix + branch_name(width, budget, seed)

    @cached_property
    def common(self) -> dict[str, Any]:
        """What the specs of all pieces hold alike."""
        ladder = self.ladder
        out = {
            "variant": self.variant, "batch_size": ladder.batch_size, "seq_len": ladder.seq_len,
            "mixture": self.mixture, "unique_tokens": ladder.unique_tokens,
            "optimiser": ladder.optimiser, "rate_factor": ladder.rate_factor,
            "heldout_tokens": ladder.heldout_tokens, "accuracy_questions": ladder.accuracy_questions,
        }  # fmt: skip
        return out | ({"train": self.train} if self.train else {})


def ladder_steps(
    plan: Plan,
    width: int,
    budgets: Sequence[int],
    seed: int,
    *,
    seconds: Callable[[ModelConfig, float], float],
    held_out: bool = False,
    after: tuple[str, ...] = (),
) -> list[Step]:
    """Trunk pieces and branches of one size. `after`: steps that must be finished before any starts.

    Step names are `trunk-w64-s0-1`, `w64-2.0M-s0`; `seconds(model, tokens)` estimates time.

    Raises:
        FlopwiseError: a budget too short for its warm-up, or two too close for a branch each.
    """
    ladder, cfg = plan.ladder, plan.config(width)
    flops_per_step = train_flops(cfg, ladder.seq_len, ladder.batch_size).total
    n_params = count_params(cfg).non_embedding
    values = plan.values(width)
    common = plan.common | {
        "rates": values.rates, "warmup_steps": values.warmup_steps, "z_loss": values.z_loss,
    }  # fmt: skip

    def piece(
        name: str, method: str, first: int, last: int, init: str | None, decay_from: int | None = None
    ) -> Step:
        tokens = (last - first) * plan.tokens_per_step
        spec: dict[str, Any] = {
            "model": cfg.to_dict(), **common, "held_out": held_out, "first_step": first,
            "last_step": last,
        }  # fmt: skip
        if decay_from is not None:
            spec["decay_from"] = decay_from
        return Step(
            name=plan.prefix + name, kind="pretrain", method=method, seed=seed, after=after, spec=spec,
            parents={"data": plan.data} | ({"init": plan.prefix + init} if init else {}),
            references=plan.references, flops=(last - first) * flops_per_step, seconds=seconds(cfg, tokens),
            run=f"{PIECE}:run_step", n_params=n_params, tokens=tokens,
            flops_6nd=six_nd(cfg, tokens), gang=gang(plan.variant, method, spec) if plan.ensemble else None,
            run_group=f"{PIECE}:run_group", group_size=f"{PIECE}:group_size",
        )  # fmt: skip

    steps: list[Step] = []
    previous, at = None, 0
    for i, budget in enumerate(sorted(budgets), 1):
        total = round(budget / plan.tokens_per_step)
        if total > MOST_STEPS:
            raise FlopwiseError(
                f"ladder: a budget of {budget:.3g} tokens is {total:.3g} steps, at most {MOST_STEPS:,} can "
                "be made; lower the budget, or raise batch_size or seq_len"
            )
        branch_at = total - max(1, round(total * ladder.decay_fraction))
        start = at if ladder.branched else 0
        if branch_at <= max(start, values.warmup_steps):
            raise FlopwiseError(
                f"ladder: a budget of {budget:,} tokens is {total} steps, too short to branch after step "
                f"{max(start, values.warmup_steps)}; raise it or lower warmup_steps"
            )
        decay_from = branch_at if ladder.decay_fraction else None
        branch = branch_name(width, budget, seed)
        if not ladder.branched:
            steps.append(piece(branch, "cooldown", 0, total, None, decay_from))
            continue
        trunk = f"trunk-w{width}-s{seed}-{i}"
        steps.append(piece(trunk, "trunk", at, branch_at, previous))
        steps.append(piece(branch, "cooldown", branch_at, total, trunk, decay_from))
        previous, at = trunk, branch_at
    return steps


def gang(variant: str, method: str, spec: dict[str, Any]) -> str | None:
    """What pieces that may be trained together have in common; None for those that must run alone."""
    cfg, train = spec["model"], Settings.from_dict(spec.get("train"))
    if cfg["n_experts"] or train.processes > 1 or train.compile != "off" or train.keep != "last":
        return None  # experts are not stacked; several processes and compiling have ways of their own
    same = (cfg["d_model"], spec["batch_size"], spec["seq_len"], spec["optimiser"], spec["z_loss"])
    return "-".join(map(str, (variant, method, *same)))


def branch_name(width: int, budget: int, seed: int) -> str:
    """The step that ends with the model of this width and token budget.

    >>> branch_name(64, 2_000_000, 0), branch_name(64, 750_000, 0)
    ('w64-2.0M-s0', 'w64-0.75M-s0')
    """
    millions = f"{budget / 1e6:.6f}".rstrip("0")  # exact, so that no two budgets share a name
    return f"w{width}-{millions}{'0' if millions.endswith('.') else ''}M-s{seed}"
