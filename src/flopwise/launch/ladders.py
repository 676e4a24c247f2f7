"""From a ladder recipe to its steps: data, tuning, rungs, laws, the held-out run, its test."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from flopwise.data.build import vocab_size
from flopwise.errors import FlopwiseError
from flopwise.launch.costs import train_seconds_of
from flopwise.launch.steps import Step
from flopwise.pretrain.ladder import Plan, ladder_steps
from flopwise.pretrain.observations import share_columns, size_columns

if TYPE_CHECKING:
    from flopwise.launch.ladder_sections import CorpusSection, LawEntry
    from flopwise.launch.recipe import LadderRecipe

LAW = "flopwise.pretrain.law:run_step"


class LadderExpansion:
    """Builds the list of steps of one recipe."""

    def __init__(self, recipe: LadderRecipe):
        self.recipe = recipe
        self.steps: list[Step] = []
        self.data_steps: dict[str, str] = {}
        """Names of data steps by what they prepare: variants that read the same share one."""
        self.branches: dict[str, str] = {}
        """Variant of each finished model, by the name of its step."""

    @cached_property
    def plans(self) -> dict[str, Plan]:
        """Every variant's plan, by its name."""
        recipe = self.recipe
        train = recipe.train.model_dump(exclude={"ensemble"})
        out = {}
        for name in recipe.names:
            ladder, data = recipe.variant(name)
            mixture = ladder.mixture or {s.label: 1 / len(data.sources) for s in data.sources}
            out[name] = Plan(
                ladder, vocab_size(data.model_dump()), mixture, variant=name, data=self._data(name, data),
                prefix=f"{name}-" if len(recipe.names) > 1 else "", train=train,
                ensemble=recipe.train.ensemble != "off",
            )  # fmt: skip
        return out

    def _data(self, variant: str, data: CorpusSection) -> str:
        key = data.model_dump_json()
        if key not in self.data_steps:
            name = "data" if not self.data_steps else f"data-{variant}"
            self.data_steps[key] = name
            size = sum(source.max_bytes or 5_000_000 for source in data.sources)
            self.steps.append(
                Step(
                    name=name, kind="data", method="corpus", seed=self.recipe.seed, spec=data.model_dump(),
                    seconds=3 + size / 1e6, run="flopwise.data.build:run_step",
                )
            )  # fmt: skip
        return self.data_steps[key]

    def tuning(self) -> None:
        """A search over rate and batch on small rungs of the first variant; later steps read its outcome."""
        from flopwise.pretrain.tuning import grid

        section, plan = self.recipe.tuning, self.plans[self.recipe.names[0]]
        if section is None:
            return
        searched: dict[str, str] = {}
        seeds = [self.recipe.seed + 1000 * i for i in range(section.seeds)]
        for i, run in enumerate(
            grid(section.widths, section.rates, section.batches, seeds, plan.ladder.batch_size)
        ):
            ladder = plan.ladder.model_copy(
                update={
                    "batch_size": run["batch_size"], "rate_factor": run["rate_factor"], "branched": False,
                    # The same warm-up in tokens for every batch size.
                    "warmup_tokens": plan.ladder.warmup * plan.tokens_per_step,
                }
            )  # fmt: skip
            one = replace(plan, ladder=ladder, prefix=f"tune{i}-", variant="tuning")
            new = ladder_steps(one, run["width"], [section.tokens], run["seed"], seconds=train_seconds_of)
            self.steps += new
            searched[f"run{i}"] = new[-1].name
        self.steps.append(
            Step(
                name="tuning", kind="fit", method="tuning", references=searched, seed=self.recipe.seed,
                spec={"batch_size": plan.ladder.batch_size}, seconds=2.0,
                run="flopwise.pretrain.tuning:run_step",
            )
        )  # fmt: skip
        self.plans = {k: replace(p, references={"tuning": "tuning"}) for k, p in self.plans.items()}

    def rungs(self) -> None:
        """All runs that laws are fitted to."""
        for name, plan in self.plans.items():
            for width in plan.ladder.widths:
                for seed in plan.seeds(width, self.recipe.seed):
                    new = ladder_steps(plan, width, plan.budgets(width), seed, seconds=train_seconds_of)
                    self.steps += new
                    self.branches |= {s.name: name for s in new if s.method == "cooldown"}

    def held_out(self) -> dict[str, tuple[list[Step], dict[str, Any]]]:
        """Steps of each variant's held-out run, and what is known of it before it is made."""
        out = {}
        for name, plan in self.plans.items():
            held = plan.ladder.held_out
            if held is None or name not in (held.variants or self.recipe.names[:1]):
                continue
            steps = ladder_steps(
                plan, held.width, [held.tokens], self.recipe.seed, seconds=train_seconds_of, held_out=True,
                after=tuple(f"law-{law.name}" for law in self.recipe.laws),
            )  # fmt: skip
            tokens = steps[-1].spec["last_step"] * plan.tokens_per_step
            unique = plan.ladder.unique_tokens
            known = {
                "run": steps[-1].name, "variant": name, "width": held.width,
                **size_columns(plan.config(held.width), tokens, plan.ladder.seq_len),
                "U": float(tokens if unique is None else min(tokens, unique)), **share_columns(plan.mixture),
            }  # fmt: skip
            out[steps[-1].name] = (steps, known)
        return out

    def laws(self, held_out: list[dict[str, Any]]) -> None:
        """Every question to the finished runs; predictions are written before the held-out runs are made."""
        for law in self.recipe.laws:
            wanted = set(law.variants or self.recipe.names) | ({law.against} if law.against else set())
            if len({self.plans[name].ladder.seq_len for name in wanted}) > 1:
                raise FlopwiseError(
                    f"laws: {law.name} joins variants of different seq_len; losses of different contexts are "
                    "not comparable: name variants of one"
                )
            used = {f"rung{i}": s for i, (s, v) in enumerate(self.branches.items()) if v in wanted}
            self.steps.append(
                Step(
                    name=f"law-{law.name}", kind="fit", method="pretraining_law", seed=self.recipe.seed,
                    references=used | self._tuned(), seconds=6.0, run=LAW,
                    spec=law.model_dump(exclude={"variants", "held_out"}) | self._more(law, wanted, held_out),
                )
            )  # fmt: skip

    def _tuned(self) -> dict[str, str]:
        return {"tuning": "tuning"} if self.recipe.tuning else {}

    def _more(self, law: LawEntry, variants: set[str], held_out: list[dict[str, Any]]) -> dict[str, Any]:
        """What a question needs beside the recipe's words."""
        if law.method == "rates":
            ladder = self.plans[min(variants)].ladder
            hidden = {"muon": "muon", "adamw": "adam"}[ladder.optimiser]
            return {"held_out": [], "seq_len": ladder.seq_len, "rate": getattr(ladder.rates, hidden)}
        names = law.held_out or law.variants
        wanted = [h for h in held_out if not names or h["variant"] in names]
        return {"held_out": wanted if law.method == "fit" else []}

    def verify(self, held_out: list[str]) -> None:
        """Predicted beside measured."""
        laws = [law for law in self.recipe.laws if law.method == "fit"]
        if not held_out or not laws:
            return
        runs = {f"run{i}": name for i, name in enumerate(held_out)}
        fits = {f"law{i}": f"law-{law.name}" for i, law in enumerate(laws)}
        self.steps.append(
            Step(
                name="verify", kind="verify", method="held_out", seed=self.recipe.seed,
                references=runs | fits, seconds=1.0, run="flopwise.pretrain.verify:run_step",
                spec={
                    "runs": {name: role for role, name in runs.items()},
                    "laws": {law.name: f"law{i}" for i, law in enumerate(laws)},
                },
            )
        )  # fmt: skip


def expand_ladder(recipe: LadderRecipe) -> list[Step]:
    """All steps of a ladder recipe, parents before children."""
    e = LadderExpansion(recipe)
    e.tuning()
    e.rungs()
    held = e.held_out()
    e.laws([known for _, known in held.values()])
    for steps, _ in held.values():
        e.steps += steps
    e.verify(list(held))
    return e.steps
