"""From a post-training recipe to its steps: data, bases, every run with every seed and evaluation, laws."""

from __future__ import annotations

from typing import Any

from flopwise.flops.count import count_params
from flopwise.launch.compare_section import CompareSection
from flopwise.launch.costs import sample_cost, train_seconds, train_seconds_of, tuning_cost
from flopwise.launch.posttrain_recipe import PosttrainData, PosttrainLaw, PosttrainRecipe, RunEntry
from flopwise.launch.steps import Step
from flopwise.models.config import ModelConfig
from flopwise.pretrain.ladder import Plan, ladder_steps

INHERITED = ("init", "model", "samples", "logits", "weak", "pairs", "thumbs", "teacher", "reward", "judge")
"""Roles whose compute went into what is made of them; others are only looked at."""


def expand_posttrain(recipe: PosttrainRecipe) -> list[Step]:
    """All steps of a recipe, parents before children. A run `grpo` with seed 1 is the step `grpo-s1`."""
    return _Expansion(recipe).steps


class _Expansion:
    def __init__(self, recipe: PosttrainRecipe):
        self.recipe = recipe
        self.steps: list[Step] = []
        self.shapes: dict[str, ModelConfig | None] = {}
        self.bases: dict[str, str] = {}
        self.data()
        for name in recipe.bases:
            self.base(name)
        entries = recipe.entries
        for name, entry in entries.items():
            for seed in self.seeds(entry):
                self.run(name, entry, seed, entries)
        for comparison in recipe.compare:
            self.compare(comparison, entries)
        for law in recipe.laws:
            self.law(law, entries)

    def data(self) -> None:
        """The task, and the datasets of others, read with the tokenizer of the first base."""
        recipe, d = self.recipe, self.recipe.data
        if d is None:
            return
        first = next(iter(recipe.bases.values()))
        parents = {"init": self.imported(next(iter(recipe.bases)))} if first.model else {}
        self.steps.append(
            Step(
                name="data", kind="data", method=d.task, seed=recipe.seed,
                spec=d.model_dump(exclude_none=True), parents=parents,
                seconds=3 + len(d.corpora) * d.max_chars / 4e6 * 5,
                run="flopwise.data.prepare:run_step",
            )
        )  # fmt: skip

    def imported(self, name: str) -> str:
        """The step that brings a model from elsewhere."""
        from flopwise.posttrain import base

        if name not in self.bases:
            model = self.recipe.bases[name].model
            assert model is not None
            self.steps.append(base.step(model, name, self.recipe.seed))
            self.bases[name], self.shapes[name] = name, shape_of(model)
        return name

    def base(self, name: str) -> None:
        """A base, and the datasets as its tokenizer reads them."""
        recipe, base = self.recipe, self.recipe.bases[name]
        if base.model is not None:
            self.imported(name)
        else:
            assert base.width is not None and base.tokens is not None and recipe.data is not None
            plan = Plan(
                base.ladder(recipe.rates),
                recipe.data.vocab_size,
                base.mixture,
                prefix=f"{name}-",
                ensemble=False,
            )
            new = ladder_steps(plan, base.width, [base.tokens], recipe.seed, seconds=train_seconds_of)
            self.steps += new
            self.bases[name] = new[-1].name
            self.shapes[name] = plan.config(base.width)
        if recipe.evaluate.bases and recipe.data is not None:
            self.evaluation(self.bases[name], recipe.seed, self.shapes[name])
        if recipe.datasets:
            from flopwise.data.instruct import source_sha256
        for dataset, section in recipe.datasets.items():
            spec = {"path": section.path, "sha256": source_sha256(section.path), **section.options}
            self.steps.append(
                Step(
                    name=f"{dataset}-for-{name}", kind="data", method="instructions", seed=recipe.seed,
                    spec=spec, parents={"init": self.bases[name]}, seconds=5.0,
                    run="flopwise.data.instruct:run_step",
                )
            )  # fmt: skip

    def seeds(self, entry: RunEntry) -> list[int]:
        """With which an entry is run."""
        return entry.seeds if entry.seeds is not None else self.recipe.seeds

    def named(self, other: str, seed: int, entries: dict[str, RunEntry]) -> str:
        """The step that a run of this seed reads: that of the same seed, or of the only one there is."""
        if other in self.bases:
            return self.bases[other]
        seeds = self.seeds(entries[other])
        return f"{other}-s{seed if seed in seeds else seeds[0]}"

    def root(self, name: str, entries: dict[str, RunEntry]) -> str:
        """The base that a run descends from."""
        while name not in self.bases:
            roles = entries[name].roles
            name = roles.get("init") or next(iter(roles.values()))
        return name

    def run(self, name: str, entry: RunEntry, seed: int, entries: dict[str, RunEntry]) -> None:
        """One run and, where it makes a policy, its evaluation."""
        recipe, step_name = self.recipe, f"{name}-s{seed}"
        base = self.root(name, entries)
        cfg = self.shapes[base]
        data = f"{entry.data}-for-{base}" if entry.data else "data"
        roles = {role: self.named(other, seed, entries) for role, other in entry.roles.items()}
        parents = {"data": data} | {r: n for r, n in roles.items() if r.rstrip("0123456789") in INHERITED}
        references = {r: n for r, n in roles.items() if r not in parents}
        if entry.data and recipe.data is not None:
            references["task"] = "data"
        spec = {"rates": self.rates(base), "val_problems": recipe.val_problems, **entry.settings}
        flops, seconds = self.cost(cfg, entry.settings, roles)
        self.steps.append(
            Step(
                name=step_name, kind=entry.kind.kind, method=entry.method, run=entry.run, seed=seed,
                spec=spec, parents=parents, references=references, flops=flops, seconds=seconds,
                n_params=count_params(cfg).non_embedding if cfg else None,
            )
        )  # fmt: skip
        if entry.kind.makes == "policy" and entry.evaluate and recipe.data is not None:
            self.evaluation(step_name, seed, cfg)

    def rates(self, base: str) -> dict[str, Any]:
        """The base rates of runs that descend from a base."""
        rates = self.recipe.rates
        found = rates.model_dump(exclude_none=True)
        if "lora" not in rates.model_fields_set:
            del found["lora"]  # the usual one is no part of a run's id
        if self.recipe.bases[base].model is not None:
            found["optimiser"] = rates.optimiser or "adamw"
        return found

    def cost(
        self, cfg: ModelConfig | None, settings: dict[str, Any], roles: dict[str, str]
    ) -> tuple[float, float]:
        """Estimated FLOPs and seconds of a run: its training and its samples, or what it matches."""
        if cfg is None:
            return 0.0, 60.0
        flops, seconds = 0.0, 1.0
        if (steps := settings.get("steps")) is not None:
            group = settings.get("group_size")
            examples = settings["problems_per_step"] * group if group else settings["batch_size"]
            parts = [tuning_cost(cfg, steps * examples)]
            if group:
                parts.append(sample_cost(cfg, steps * settings["problems_per_step"], group))
        else:
            matched = {n for role, n in roles.items() if role.startswith("match")}
            parts = [(s.flops, train_seconds(s.flops, s.flops / 6 / count_params(cfg).total))
                     for s in self.steps if s.name in matched]  # fmt: skip
        if "problems" in settings:
            parts.append(sample_cost(cfg, settings["problems"], settings.get("n", 1)))
        return flops + sum(f for f, _ in parts), seconds + sum(t for _, t in parts)

    def evaluation(self, policy: str, seed: int, cfg: ModelConfig | None) -> None:
        """Greedy answers and samples of a policy on the held-out problems."""
        e = self.recipe.evaluate
        flops, seconds = sample_cost(cfg, e.problems, e.n + 1) if cfg else (0.0, 60.0)
        spec = {
            "problems": e.problems, "n": e.n, "shown_problems": e.shown_problems, "max_tokens": e.max_tokens,
            "temperature": 1.0, "split": "test", "fit_up_to": e.n,
        }  # fmt: skip
        self.steps.append(
            Step(
                name=f"eval-{policy}", kind="sample", method="temperature", seed=seed, spec=spec,
                parents={"data": "data", "model": policy}, flops=flops, seconds=seconds,
                run="flopwise.infer.evaluate:run_step",
            )
        )  # fmt: skip

    def compare(self, c: CompareSection, entries: dict[str, RunEntry]) -> None:
        """Strategies at test time on one model, of the recipe's first seed."""
        seed = self.recipe.seeds[0]
        base = self.root(c.model, entries)
        data = c.task_step or "data"
        if c.task_step is not None and data not in {s.name for s in self.steps}:
            self.other_task(c, data, base)
        cfg = self.shapes[base]
        # About as many samples for each of the other strategies as for all that replay from the same ones.
        flops, seconds = sample_cost(cfg, c.problems, c.n * len(c.strategies)) if cfg else (0.0, 600.0)
        self.steps.append(
            Step(
                name=f"compare-{c.name}", kind="evaluate", method="compare", seed=seed, spec=c.spec(),
                parents={"data": data, "model": self.named(c.model, seed, entries)},
                references={role: self.named(run, seed, entries) for role, run in c.scorers.items()},
                flops=flops, seconds=seconds, run="flopwise.infer.compare:run_step",
            )
        )  # fmt: skip

    def other_task(self, c: CompareSection, name: str, base: str) -> None:
        """Problems of a task that nothing was trained on, in the tokens of the base that is asked them."""
        assert c.task is not None
        asked = PosttrainData(
            task=c.task, demonstrations=1, rl_problems=1, val_problems=1, test_problems=c.problems
        )
        self.steps.append(
            Step(
                name=name, kind="data", method=c.task, seed=self.recipe.seed,
                spec=asked.model_dump(exclude_none=True), parents={"init": self.bases[base]}, seconds=3.0,
                run="flopwise.data.prepare:run_step",
            )
        )  # fmt: skip

    def law(self, law: PosttrainLaw, entries: dict[str, RunEntry]) -> None:
        """A question to the finished runs and their evaluations, or to comparisons."""
        if law.of_comparisons:
            self.steps.append(
                Step(
                    name=f"law-{law.name}", kind="fit", method="posttraining_law", seed=self.recipe.seed,
                    spec=law.model_dump(), seconds=10.0, run="flopwise.posttrain.testtime_laws:run_step",
                    references={f"compare{i}": f"compare-{name}" for i, name in enumerate(law.runs)},
                )
            )  # fmt: skip
            return
        there = {s.name for s in self.steps}
        references: dict[str, str] = {}
        for i, name in enumerate(law.runs):
            for seed in self.seeds(entries[name]):
                step = f"{name}-s{seed}"
                references[f"run{i}s{seed}"] = step
                if f"eval-{step}" in there:
                    references[f"eval{i}s{seed}"] = f"eval-{step}"
        self.steps.append(
            Step(
                name=f"law-{law.name}", kind="fit", method="posttraining_law", seed=self.recipe.seed,
                spec=law.model_dump(), references=references, seconds=10.0,
                run="flopwise.posttrain.laws:run_step",
            )
        )  # fmt: skip


def shape_of(model: str) -> ModelConfig | None:
    """The shape of a model from elsewhere, for estimates; None where its files do not say."""
    import json

    from flopwise.infer.resolve import find_model
    from flopwise.models.families import from_hf

    try:
        return from_hf(json.loads((find_model(model).folder / "config.json").read_bytes()))
    except (OSError, ValueError):
        return None
