"""From a recipe to its steps: what runs, what it needs, what it should cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flopwise.errors import FlopwiseError
from flopwise.flops.count import count_params, decode_flops, prefill_flops, train_flops
from flopwise.launch.steps import Step
from flopwise.models.config import ModelConfig
from flopwise.pretrain.ladder import branch_name, ladder_steps

if TYPE_CHECKING:
    from flopwise.launch.recipe import Recipe

PROMPT_TOKENS, COMPLETION_TOKENS = 12, 32
"""Typical lengths of the task, for estimates alone; what is recorded is counted."""

KERNEL_SECONDS_PER_TOKEN = 7e-6
FLOP_PER_S = 8e10
DECODE_SECONDS_PER_TOKEN = 2.5e-5
"""Time model for estimates: a cost per token that does not depend on size, and a matmul rate; measured on one
core of an EPYC 9005 (`benchmarks/README.md`). The progress display corrects it by the speed it sees."""


def train_seconds(flops: float, tokens: float) -> float:
    """Estimated time of a training phase on one core."""
    return tokens * KERNEL_SECONDS_PER_TOKEN + flops / FLOP_PER_S


def sample_cost(cfg: ModelConfig, problems: int, n: int) -> tuple[float, float]:
    """Estimated FLOPs and seconds of n samples for each problem."""
    per_problem = prefill_flops(cfg, PROMPT_TOKENS).total
    per_sample = COMPLETION_TOKENS * decode_flops(cfg, PROMPT_TOKENS + COMPLETION_TOKENS // 2).total
    return problems * (
        per_problem + n * per_sample
    ), 0.3 + problems * n * COMPLETION_TOKENS * DECODE_SECONDS_PER_TOKEN


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

    def config(self, width: int) -> ModelConfig:
        """The ladder's model of this width."""
        ladder = self.recipe.ladder
        return ModelConfig.from_width(width, ladder.depth, self.recipe.data.vocab_size, ladder.context)

    def data(self) -> None:
        """Corpora, tokenizer, shards, problems."""
        d = self.recipe.data
        self.add(
            Step(
                name="data", kind="data", method=d.task, parents={}, seed=self.recipe.seed, spec=d.model_dump(),
                flops=0.0, seconds=8 + len(d.corpora) * d.max_chars / 4e6 * 5, run="flopwise.data.prepare:run_step",
            )
        )  # fmt: skip

    def ladder(self) -> None:
        """Law 1: rungs, the law, then the held-out run, which waits for the prediction."""
        recipe, ladder = self.recipe, self.recipe.ladder
        unknown = set(ladder.extra_seeds) - set(ladder.widths)
        if unknown:
            raise FlopwiseError(
                f"recipe: ladder.extra_seeds names width {min(unknown)}, which is not in ladder.widths"
            )
        branches: dict[str, str] = {}
        for width in ladder.widths:
            for repeat in range(1 + ladder.extra_seeds.get(width, 0)):
                seed = recipe.seed + 1000 * repeat
                new = ladder_steps(
                    ladder, recipe.data.vocab_size, width, ladder.budgets, seed, seconds=train_seconds
                )
                self.steps += new
                for step in new:
                    if step.method == "cooldown":
                        branches[f"rung{len(branches)}"] = step.name
                        self.models[step.name] = self.config(width)
        self.add(
            Step(
                name="law", kind="fit", method="pretraining_law", parents={}, references=branches, seed=recipe.seed,
                spec={
                    "candidates": recipe.law.candidates, "held_out": ladder.held_out.model_dump(),
                    "model": self.config(ladder.held_out.width).to_dict(), "seq_len": ladder.seq_len,
                },
                flops=0.0, seconds=8.0, run="flopwise.pretrain.law:run_step",
            )
        )  # fmt: skip
        held = ladder.held_out
        new = ladder_steps(
            ladder, recipe.data.vocab_size, held.width, [held.tokens], recipe.seed,
            held_out=True, after="law", seconds=train_seconds,
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
        T = PROMPT_TOKENS + COMPLETION_TOKENS
        if flops is None:
            flops = spec["steps"] * train_flops(cfg, T, spec["batch_size"]).total
            seconds = train_seconds(flops, spec["steps"] * spec["batch_size"] * T)
        self.models[name] = cfg
        rates = self.recipe.ladder.rates.model_dump()
        val = {"val_problems": self.recipe.posttrain.val_problems}
        return self.add(
            Step(
                name=name, kind=kind, method=method, parents={"data": "data", "init": init, **(parents or {})},
                references=references or {}, seed=self.recipe.seed, spec={"rates": rates, **val, **spec}, flops=flops, seconds=seconds or 1.0,
                run=run, n_params=count_params(cfg).non_embedding,
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
        p = self.recipe.posttrain
        by_name = {s.name: s for s in self.steps}
        flops = sum(by_name[m].flops for m in match)
        spec = p.sft.model_dump(exclude={"steps"})
        roles = {f"match{i}": m for i, m in enumerate(match)}  # read, not descended from
        seconds = train_seconds(flops, flops / 6 / count_params(self.models[init]).total)
        return self.tuned(
            name, "sft", "control", init, spec, "flopwise.posttrain.sft:run_step", None, seconds, flops, roles
        )  # fmt: skip

    def posttrain(self) -> None:
        """Law 2: every method from one base, each with its control."""
        recipe, p = self.recipe, self.recipe.posttrain
        seed = recipe.seed
        base, more, student = (
            self._rung(r, where, seed)
            for r, where in (
                (p.base, "base"),
                (p.more_pretraining, "more_pretraining"),
                (p.student, "student"),
            )
        )
        sft_run = "flopwise.posttrain.sft:run_step"
        self.tuned("sft", "sft", "demonstrations", base, p.sft.model_dump(), sft_run)
        self.tuned("sft-more-pretraining", "sft", "demonstrations", more, p.sft.model_dump(), sft_run)
        self.tuned("sft-student", "sft", "demonstrations", student, p.sft.model_dump(), sft_run)
        for rung in p.other_sizes:
            init = self._rung(rung, "other_sizes", seed)
            self.tuned(f"sft-{init}", "sft", "demonstrations", init, p.sft.model_dump(), sft_run)
        self.tuned(
            f"sft-{self.held_out}", "sft", "demonstrations", self.held_out, p.sft.model_dump(), sft_run
        )

        g = p.grpo.model_dump() | {"batch_size": p.grpo.problems_per_step * p.grpo.group_size}
        made, decode_s = sample_cost(
            self.models["sft"], p.grpo.problems_per_step * p.grpo.steps, p.grpo.group_size
        )
        rows = p.grpo.steps * g["batch_size"] // 2
        learn = train_flops(self.models["sft"], PROMPT_TOKENS + COMPLETION_TOKENS, rows).total
        learn_s = train_seconds(learn, rows * (PROMPT_TOKENS + COMPLETION_TOKENS))
        self.tuned(
            "grpo",
            "rl",
            "grpo",
            "sft",
            g,
            "flopwise.posttrain.grpo:run_step",
            None,
            decode_s + learn_s,
            made + learn,
        )

        r = p.rejection
        shared = {
            "problems": r.problems,
            "n": r.n,
            "keep_per_problem": r.keep_per_problem,
            "temperature": r.temperature,
        }
        phase = r.model_dump(include={"steps", "batch_size", "rate_factor", "curve_points"}) | {
            "with_demonstrations": True
        }
        current, spent = "sft", []
        for i in range(1, r.rounds + 1):
            samples = self.synthesize(
                f"rejection-{i}-samples", current, {**shared, "first_problem": (i - 1) * r.problems}
            )
            current = self.tuned(
                f"rejection-{i}", "rejection", "verified_samples", current, phase,
                "flopwise.posttrain.rejection:run_step", {"samples": samples},
            )  # fmt: skip
            spent += [samples, current]
        self.control("control-rejection", "sft", spent)
        self.control("control-grpo", "sft", ["grpo"])

        d = p.distill
        wanted = {
            "problems": d.problems, "n": d.n, "keep_per_problem": d.keep_per_problem,
            "temperature": d.temperature, "first_problem": 0,
        }  # fmt: skip
        samples = self.synthesize("teacher-samples", "grpo", wanted, {"candidate": current})
        phase = d.model_dump(include={"steps", "batch_size", "rate_factor", "curve_points"}) | {
            "with_demonstrations": True
        }
        self.tuned(
            "distill", "distill", "verified_sequences", "sft-student", phase,
            "flopwise.posttrain.rejection:run_step", {"samples": samples},
        )  # fmt: skip
        self.control("control-distill", "sft-student", [samples, "distill"])

        w = p.reward.model_dump()
        cfg = self.models["sft"]
        made, decode_s = sample_cost(cfg, p.reward.problems + p.reward.test_problems, p.reward.n)
        learn = train_flops(
            cfg, PROMPT_TOKENS + COMPLETION_TOKENS, w["steps"] * w["batch_size"], n_logits=1
        ).total
        learn_s = train_seconds(learn, w["steps"] * w["batch_size"] * (PROMPT_TOKENS + COMPLETION_TOKENS))
        self.tuned(
            "reward", "reward", "outcome", "sft", w, "flopwise.posttrain.reward:run_step",
            None, decode_s + learn_s, made + learn,
        )  # fmt: skip

    def _rung(self, rung: Any, where: str, seed: int) -> str:
        """The ladder's run that a rung names."""
        name = branch_name(rung.width, rung.tokens, seed)
        if name not in self.models:
            raise FlopwiseError(
                f"recipe: posttrain.{where} asks for width {rung.width} at {rung.tokens:,} tokens, which is not on the "
                f"ladder (widths {self.recipe.ladder.widths}, budgets {self.recipe.ladder.budgets})"
            )
        return name

    def testtime(self) -> None:
        """Law 3: many samples of a few models, a few of all others; the joint law before the held-out model's."""
        t, seed = self.recipe.testtime, self.recipe.seed
        deep, held_out = ("sft", "grpo", "sft-student", "distill"), f"sft-{self.held_out}"
        for name in deep:
            self.sample(name, t.n, "reward")
        for name in self.tuned_names:
            if name not in (*deep, held_out):
                self.sample(name, t.light_n)
        same = [
            s.name
            for s in self.steps
            if s.kind == "sft" and s.method == "demonstrations" and s.name != held_out
        ]
        sampled = {f"sampled{i}": f"sample-{name}" for i, name in enumerate(same)}
        self.add(
            Step(
                name="joint-law", kind="fit", method="testtime_law", references={"law": "law", **sampled}, seed=seed,
                spec={"up_to": t.light_n}, seconds=4.0, run="flopwise.plan.joint:run_step",
            )
        )  # fmt: skip
        self.sample(held_out, t.light_n, after=("joint-law",))

    def sample(self, name: str, n: int, reward: str | None = None, after: tuple[str, ...] = ()) -> None:
        """A step that samples a model on the test problems."""
        t = self.recipe.testtime
        flops, seconds = sample_cost(self.models[name], t.problems, n)
        self.add(
            Step(
                name=f"sample-{name}", kind="sample", method="temperature", parents={"data": "data", "model": name},
                references={"reward": reward} if reward else {}, after=after, seed=self.recipe.seed,
                spec={
                    "problems": t.problems, "n": n, "shown_problems": t.shown_problems, "fit_up_to": t.fit_up_to,
                    "max_tokens": t.max_tokens, "temperature": 1.0, "split": "test",
                },
                flops=flops, seconds=seconds * (1.4 if reward else 1.0), run="flopwise.infer.evaluate:run_step",
                n_params=count_params(self.models[name]).non_embedding,
            )
        )  # fmt: skip

    def plan(self) -> None:
        """Exchange rates, the plan, the check of the joint law."""
        recipe, ladder, p = self.recipe, self.recipe.ladder, self.recipe.posttrain
        samples = {f"sample{i}": s.name for i, s in enumerate(s for s in self.steps if s.kind == "sample")}
        rounds = [f"rejection-{i}" for i in range(1, p.rejection.rounds + 1)]
        more = "pretrain longer, then the same fine-tuning"
        self.add(
            Step(
                name="plan", kind="plan", method="exchange_and_allocate", seed=recipe.seed,
                references={"law": "law", "joint": "joint-law", **samples}, seconds=10.0, run="flopwise.plan.step:run_step",
                spec={
                    "budget_flops": recipe.plan.budget_flops, "questions": recipe.plan.questions, "reference": "sft",
                    "held_out": f"sft-{self.held_out}", "how": self.words(), "seq_len": ladder.seq_len, "prompt_tokens": PROMPT_TOKENS,
                    "ways": [
                        {"law": "pretraining", "how": more, "models": ["sft-more-pretraining"]},
                        {"law": "post-training", "how": "reinforcement learning (GRPO)", "models": ["grpo"]},
                        {"law": "post-training", "how": "rejection sampling", "models": rounds},
                        {"law": "post-training", "how": "more fine-tuning on the same demonstrations", "models": ["control-grpo"]},
                    ],
                    "shapes": [self.config(w).to_dict() for w in (*ladder.widths, ladder.held_out.width, 2 * ladder.held_out.width)],
                    "tokens": [f * max(ladder.budgets) for f in (1, 2, 4)],
                },
            )
        )  # fmt: skip

    def words(self) -> dict[str, str]:
        """How each model is made, in words."""
        rungs = {
            branch_name(w, b, self.recipe.seed): f"pretrain width {w} on {b / 1e6:.2g}M tokens"
            for w in (*self.recipe.ladder.widths, self.recipe.ladder.held_out.width)
            for b in (*self.recipe.ladder.budgets, self.recipe.ladder.held_out.tokens)
        }
        words = {name: text for name, text in rungs.items() if name in self.models}
        tuned = {
            "sft": "fine-tune", "control": "fine-tune longer", "grpo": "reinforce with the verifier (GRPO)",
            "verified_samples": "rejection sampling", "verified_sequences": "distil from the best model",
            "demonstrations": "fine-tune", "outcome": "train a reward model",
        }  # fmt: skip
        for step in self.steps:
            if step.name in self.tuned_names:
                words[step.name] = f"{words[step.parents['init']]}, {tuned[step.method]}"
        return words


def expand(recipe: Recipe) -> list[Step]:
    """All steps of a three-laws recipe, parents before children."""
    e = Expansion(recipe)
    e.data()
    e.ladder()
    e.posttrain()
    e.testtime()
    e.plan()
    return e.steps
