"""From a recipe to its steps: what runs, what it needs, what it should cost."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from flopwise.errors import FlopwiseError
from flopwise.flops.count import count_params
from flopwise.launch.costs import (
    PROMPT_TOKENS,
    sample_cost,
    train_seconds,
    train_seconds_of,
    tuning_cost,
)
from flopwise.launch.ladder_sections import LawEntry
from flopwise.launch.steps import Step
from flopwise.models.config import ModelConfig
from flopwise.pretrain.ladder import Plan, branch_name, ladder_steps
from flopwise.pretrain.observations import size_columns

if TYPE_CHECKING:
    from flopwise.launch.recipe import AnyRecipe, Recipe

SFT = "flopwise.posttrain.sft:run_step"


class Expansion:
    """Builds the list of steps; each method adds one part of the experiment."""

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.steps: list[Step] = []
        self.models: dict[str, ModelConfig] = {}
        self.held_out = ""

    @property
    def names(self) -> set[str]:
        """Names of the steps so far."""
        return {s.name for s in self.steps}

    @property
    def tuned_names(self) -> list[str]:
        """Post-trained models that answer questions, in order."""
        return [s.name for s in self.steps if s.kind in ("sft", "rl", "rejection", "distill")]

    def add(self, step: Step) -> str:
        """Append a step; returns its name."""
        self.steps.append(step)
        return step.name

    @cached_property
    def rungs(self) -> Plan:
        """The ladder's plan: one variant, text and the task in one mixture."""
        recipe = self.recipe
        return Plan(recipe.ladder, recipe.data.vocab_size, dict(recipe.ladder.mixture))

    def config(self, width: int) -> ModelConfig:
        """The ladder's model of this width."""
        return self.rungs.config(width)

    def data(self) -> None:
        """Corpora, tokenizer, shards, problems."""
        d = self.recipe.data
        self.add(
            Step(
                name="data", kind="data", method=d.task, seed=self.recipe.seed, spec=d.model_dump(),
                seconds=3 + len(d.corpora) * d.max_chars / 4e6 * 5, run="flopwise.data.prepare:run_step",
            )
        )  # fmt: skip

    def ladder(self) -> None:
        """Law 1: rungs, the law, then the held-out run, which waits for the prediction."""
        recipe, ladder = self.recipe, self.recipe.ladder
        branches: dict[str, str] = {}
        for width in ladder.widths:
            for seed in self.rungs.seeds(width, recipe.seed):
                new = ladder_steps(self.rungs, width, ladder.budgets, seed, seconds=train_seconds_of)
                self.steps += new
                for step in new:
                    if step.method == "cooldown":
                        branches[f"rung{len(branches)}"] = step.name
                        self.models[step.name] = self.config(width)
        held = ladder.held_out
        new = ladder_steps(
            self.rungs, held.width, [held.tokens], recipe.seed, held_out=True, after=("law",),
            seconds=train_seconds_of,
        )  # fmt: skip
        entry = LawEntry(name="law", candidates=recipe.law.candidates)
        known = {"run": new[-1].name, "variant": "base", "width": held.width} | size_columns(
            self.config(held.width), new[-1].spec["last_step"] * self.rungs.tokens_per_step, ladder.seq_len
        )
        self.add(
            Step(
                name="law", kind="fit", method="pretraining_law", references=branches, seed=recipe.seed,
                spec=entry.model_dump(exclude={"variants", "held_out"}) | {"held_out": [known]},
                seconds=6.0, run="flopwise.pretrain.law:run_step",
            )
        )  # fmt: skip
        self.steps += new
        self.held_out = new[-1].name
        self.models[self.held_out] = self.config(held.width)

    def tuned(
        self, name: str, kind: str, method: str, init: str, spec: dict[str, Any], run: str,
        parents: dict[str, str] | None = None, seconds: float | None = None, flops: float | None = None,
        references: dict[str, str] | None = None,
    ) -> str:  # fmt: skip
        """A step that trains from the model of step `init` on the task."""
        cfg = self.models[init]
        if flops is None:
            flops, seconds = tuning_cost(cfg, spec["steps"] * spec["batch_size"])
        self.models[name] = cfg
        rates = self.recipe.ladder.rates.model_dump()
        val = {"val_problems": self.recipe.posttrain.val_problems}
        return self.add(
            Step(
                name=name, kind=kind, method=method, run=run, seed=self.recipe.seed,
                parents={"data": "data", "init": init, **(parents or {})}, references=references or {},
                spec={"rates": rates, **val, **spec}, flops=flops, seconds=seconds or 1.0,
                n_params=count_params(cfg).non_embedding,
            )
        )  # fmt: skip

    def synthesize(
        self, name: str, init: str, spec: dict[str, Any], parents: dict[str, str] | None = None
    ) -> str:
        """A step that samples from a model and keeps what is right."""
        flops, seconds = sample_cost(self.models[init], spec["problems"], spec["n"])
        return self.tuned(
            name, "synthesize", "verified_samples", init, spec,
            "flopwise.posttrain.rejection:synthesize_step", parents, seconds, flops,
        )  # fmt: skip

    def control(self, name: str, init: str, match: list[str]) -> str:
        """More fine-tuning on the same demonstrations, for exactly what the matched steps spent."""
        by_name = {s.name: s for s in self.steps}
        flops = sum(by_name[m].flops for m in match)
        spec = self.recipe.posttrain.sft.model_dump(exclude={"steps"})
        roles = {f"match{i}": m for i, m in enumerate(match)}  # read, not descended from
        seconds = train_seconds(flops, flops / 6 / count_params(self.models[init]).total)
        return self.tuned(name, "sft", "control", init, spec, SFT, None, seconds, flops, roles)

    def posttrain(self) -> None:
        """Law 2: every method from one base, each with its control."""
        p, seed = self.recipe.posttrain, self.recipe.seed
        sft = p.sft.model_dump()
        named = {"sft": p.base, "sft-more-pretraining": p.more_pretraining, "sft-student": p.student}
        for name, rung in named.items():
            where = {"sft": "base", "sft-student": "student"}.get(name, "more_pretraining")
            self.tuned(name, "sft", "demonstrations", self._rung(rung, where, seed), sft, SFT)
        for init in (*(self._rung(rung, "other_sizes", seed) for rung in p.other_sizes), self.held_out):
            self.tuned(f"sft-{init}", "sft", "demonstrations", init, sft, SFT)
        self._grpo()
        teacher = self._rejection()
        self.control("control-grpo", "sft", ["grpo"])
        self._distill(teacher)
        self._reward()

    def _grpo(self) -> None:
        g, cfg = self.recipe.posttrain.grpo, self.models["sft"]
        batch = g.problems_per_step * g.group_size
        made, decode_s = sample_cost(cfg, g.problems_per_step * g.steps, g.group_size)
        # Groups without a signal are not learned from: about half.
        learn, learn_s = tuning_cost(cfg, g.steps * batch / 2)
        spec = g.model_dump() | {"batch_size": batch}
        self.tuned(
            "grpo", "rl", "grpo", "sft", spec, "flopwise.posttrain.rl:run_step",
            None, decode_s + learn_s, made + learn,
        )  # fmt: skip

    def _rejection(self) -> str:
        """Rounds of sampling and fine-tuning, and their control; returns the last round's model."""
        r = self.recipe.posttrain.rejection
        shared = r.model_dump(include={"problems", "n", "keep_per_problem", "temperature"})
        current, spent = "sft", []
        for i in range(1, r.rounds + 1):
            spec = shared | {"first_problem": (i - 1) * r.problems}
            samples = self.synthesize(f"rejection-{i}-samples", current, spec)
            current = self._on_samples(f"rejection-{i}", "rejection", "verified_samples", current, samples, r)
            spent += [samples, current]
        self.control("control-rejection", "sft", spent)
        return current

    def _distill(self, candidate: str) -> None:
        """The better of GRPO's model and `candidate` teaches the student."""
        d = self.recipe.posttrain.distill
        spec = d.model_dump(include={"problems", "n", "keep_per_problem", "temperature"}) | {
            "first_problem": 0
        }
        samples = self.synthesize("teacher-samples", "grpo", spec, {"candidate": candidate})
        self._on_samples("distill", "distill", "verified_sequences", "sft-student", samples, d)
        self.control("control-distill", "sft-student", [samples, "distill"])

    def _on_samples(self, name: str, kind: str, method: str, init: str, samples: str, section: Any) -> str:
        """Fine-tuning on verified samples with the demonstrations mixed in."""
        phase = section.model_dump(include={"steps", "batch_size", "rate_factor", "curve_points"})
        spec = phase | {"with_demonstrations": True}
        return self.tuned(
            name, kind, method, init, spec, "flopwise.posttrain.rejection:run_step", {"samples": samples}
        )

    def _reward(self) -> None:
        w, cfg = self.recipe.posttrain.reward, self.models["sft"]
        made, decode_s = sample_cost(cfg, w.problems + w.test_problems, w.n)
        learn, learn_s = tuning_cost(cfg, w.steps * w.batch_size, n_logits=1)
        self.tuned(
            "reward", "reward", "outcome", "sft", w.model_dump(), "flopwise.posttrain.reward:run_step",
            None, decode_s + learn_s, made + learn,
        )  # fmt: skip

    def _rung(self, rung: Any, where: str, seed: int) -> str:
        """The ladder's run that a rung names."""
        name = branch_name(rung.width, rung.tokens, seed)
        if name not in self.models:
            raise FlopwiseError(
                f"recipe: posttrain.{where} asks for width {rung.width} at {rung.tokens:,} tokens, not "
                f"on the ladder (widths {self.recipe.ladder.widths}, budgets {self.recipe.ladder.budgets})"
            )
        return name

    def testtime(self) -> None:
        """Law 3: many samples of a few models, a few of the others; the joint law before the held-out one."""
        t, seed = self.recipe.testtime, self.recipe.seed
        deep, held_out = ("sft", "grpo", "sft-student", "distill"), f"sft-{self.held_out}"
        for name in deep:
            self.sample(name, t.n, "reward")
        for name in self.tuned_names:
            if name not in (*deep, held_out):
                self.sample(name, t.light_n)
        alike = [s.name for s in self.steps if s.kind == "sft" and s.method == "demonstrations"]
        sampled = [f"sample-{name}" for name in alike if name != held_out]
        self.add(
            Step(
                name="joint-law", kind="fit", method="testtime_law", seed=seed, spec={"up_to": t.light_n},
                references={"law": "law", **{f"sampled{i}": name for i, name in enumerate(sampled)}},
                seconds=2.0, run="flopwise.plan.joint:run_step",
            )
        )  # fmt: skip
        self.sample(held_out, t.light_n, after=("joint-law",))

    def sample(self, name: str, n: int, reward: str | None = None, after: tuple[str, ...] = ()) -> None:
        """A step that samples a model on the test problems."""
        t = self.recipe.testtime
        flops, seconds = sample_cost(self.models[name], t.problems, n)
        self.add(
            Step(
                name=f"sample-{name}", kind="sample", method="temperature", seed=self.recipe.seed,
                parents={"data": "data", "model": name}, references={"reward": reward} if reward else {},
                after=after, run="flopwise.infer.evaluate:run_step",
                spec={
                    "problems": t.problems, "n": n, "shown_problems": t.shown_problems,
                    "fit_up_to": t.fit_up_to, "max_tokens": t.max_tokens, "temperature": 1.0, "split": "test",
                },
                flops=flops, seconds=seconds * (1.4 if reward else 1.0),
                n_params=count_params(self.models[name]).non_embedding,
            )
        )  # fmt: skip

    def plan(self) -> None:
        """Exchange rates, the plan, the check of the joint law."""
        recipe, ladder, p = self.recipe, self.recipe.ladder, self.recipe.posttrain
        samples = {f"sample{i}": s.name for i, s in enumerate(s for s in self.steps if s.kind == "sample")}
        rounds = [f"rejection-{i}" for i in range(1, p.rejection.rounds + 1)]
        larger = [f"sft-{name}" for name in (*self._larger_rungs(), self.held_out)]
        ways = [
            ("pretraining", "pretrain more, then the same fine-tuning", ["sft-more-pretraining", *larger]),
            ("post-training", "reinforcement learning (GRPO)", ["grpo"]),
            ("post-training", "rejection sampling", rounds),
            ("post-training", "more fine-tuning on the same demonstrations", ["control-grpo"]),
        ]
        shapes = [self.config(w) for w in (*ladder.widths, ladder.held_out.width, 2 * ladder.held_out.width)]
        self.add(
            Step(
                name="plan", kind="plan", method="exchange_and_allocate", seed=recipe.seed,
                references={"law": "law", "joint": "joint-law", **samples},
                seconds=12.0, run="flopwise.plan.step:run_step",
                spec={
                    "budget_flops": recipe.plan.budget_flops, "questions": recipe.plan.questions,
                    "reference": "sft", "held_out": f"sft-{self.held_out}", "how": self.words(),
                    "seq_len": ladder.seq_len, "prompt_tokens": PROMPT_TOKENS,
                    "ways": [dict(zip(("law", "how", "models"), way, strict=True)) for way in ways],
                    "shapes": [shape.to_dict() for shape in shapes],
                    "tokens": [f * max(ladder.budgets) for f in (1, 2, 4)],
                },
            )
        )  # fmt: skip

    def _larger_rungs(self) -> list[str]:
        """Fine-tuned rungs that cost more to pretrain than the base, cheapest first."""
        base = self.recipe.posttrain.base
        rungs = [
            r for r in self.recipe.posttrain.other_sizes if r.width > base.width and r.tokens >= base.tokens
        ]
        rungs.sort(key=lambda r: r.width * r.tokens)
        return [self._rung(r, "other_sizes", self.recipe.seed) for r in rungs]

    def words(self) -> dict[str, str]:
        """How each model is made, in words."""
        words = {}
        ladder = self.recipe.ladder
        rungs = [(w, b) for w in ladder.widths for b in ladder.budgets]
        for width, budget in (*rungs, (ladder.held_out.width, ladder.held_out.tokens)):
            name = branch_name(width, budget, self.recipe.seed)
            words[name] = f"pretrain width {width} on {budget / 1e6:.3g}M tokens"
        rounds = 0
        for step in self.steps:
            if step.name not in self.tuned_names:
                continue
            start = words[step.parents["init"]]
            if step.method == "control":
                words[step.name] = f"{start} for longer"
            elif step.kind == "rejection":
                rounds += 1
                first = start.partition(", rejection")[0]
                words[step.name] = f"{first}, rejection sampling in {rounds} round{'s' if rounds > 1 else ''}"
            else:
                made = {
                    "sft": "fine-tune",
                    "rl": "reinforce with the verifier",
                    "distill": "distil from the best model",
                }
                words[step.name] = f"{start}, {made[step.kind]}"
        return words


def expand(recipe: AnyRecipe) -> list[Step]:
    """All steps of a recipe, parents before children."""
    from flopwise.launch.posttrain_recipe import PosttrainRecipe
    from flopwise.launch.recipe import Recipe

    if isinstance(recipe, PosttrainRecipe):
        from flopwise.launch.posttrain import expand_posttrain

        return expand_posttrain(recipe)
    if not isinstance(recipe, Recipe):
        from flopwise.launch.ladders import expand_ladder

        return expand_ladder(recipe)
    e = Expansion(recipe)
    e.data()
    e.ladder()
    e.posttrain()
    e.testtime()
    e.plan()
    return e.steps
