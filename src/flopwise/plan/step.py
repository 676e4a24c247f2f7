"""The plan's step: from all that was sampled to exchange rates, a plan, and the check of the joint law."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from flopwise.errors import FlopwiseError
from flopwise.plan.allocate import Predicted, make_plan
from flopwise.plan.candidates import larger_models, more_samples
from flopwise.plan.exchange import Way, exchange_rates, to_dict
from flopwise.plan.joint import FIT_FILE, JOINT_FILE
from flopwise.plan.systems import Measured, System, lineage_flops

if TYPE_CHECKING:
    from flopwise.records.folder import RunFolder

PLAN_FILE = "plan.json"
GAINS = (0.02, 0.05, 0.1, 0.2, 0.3)
SAMPLES = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Evidence:
    """Everything a plan is drawn from: measured models by name, their systems, systems a law vouches for."""

    models: dict[str, Measured]
    systems: list[System]
    predicted: list[Predicted]
    how: dict[str, str]
    spec: dict[str, Any]
    seed: int

    @classmethod
    def read(cls, folder: RunFolder) -> Evidence:
        """From the folder of a plan step and the runs it refers to."""
        from flopwise.records.folder import RunFolder

        root, spec = folder.path.parent, folder.spec
        models, systems = {}, []
        for role, run in folder.references.items():
            if not role.startswith("sample"):
                continue
            sampled = RunFolder(root / run)
            m = Measured.read(sampled, RunFolder(root / sampled.roles["model"]))
            scorer = sampled.references.get("reward")
            models[m.name] = m
            systems += m.systems(
                lineage_flops(root, [m.record.id]),
                lineage_flops(root, [m.record.id, scorer]) if scorer else None,
            )
        how = spec["how"]
        predicted = _larger(folder, models)
        for name, m in models.items():
            predicted += more_samples(m, systems, how.get(name, name), folder.seed)
        return cls(models, systems, predicted, how, spec, folder.seed)

    def plan(self, budget: float, questions: float) -> dict[str, Any]:
        """The best options for a budget in FLOPs and a number of questions."""
        return make_plan(self.systems, self.predicted, self.how, budget, questions, self.seed)

    def ways(self) -> list[Way]:
        """The ways of spending more that the experiment laid out, from its reference's greedy answer."""
        by_model: dict[str, list[System]] = {}
        for s in self.systems:
            by_model.setdefault(s.model, []).append(s)

        def greedy(name: str) -> System | None:
            return next((s for s in by_model.get(name, []) if s.strategy == "greedy"), None)

        reference = greedy(self.spec["reference"])
        if reference is None:
            raise FlopwiseError(
                f"plan: the reference model {self.spec['reference']!r:.60} was not sampled; sample it first"
            )
        found = []
        for way in self.spec["ways"]:
            steps = [s for s in map(greedy, way["models"]) if s is not None]
            if steps:
                found.append(Way(way["law"], way["how"], (reference, *steps), per_question=False))
        words = {
            "verifier": "samples, the verifier chooses", "majority": "samples, the majority chooses",
            "reward_model": "samples, a reward model chooses",
        }  # fmt: skip
        for strategy, how in words.items():
            steps = [s for s in by_model[reference.model] if s.strategy == strategy and s.n > 1]
            if steps:
                found.append(Way("test time", how, (reference, *steps), per_question=True))
        return found


def _larger(folder: RunFolder, models: dict[str, Measured]) -> list[Predicted]:
    """Predicted systems of the joint law, with the lengths of prompts and answers seen on the ladder."""
    from flopwise.flops.count import train_flops
    from flopwise.laws import Fit
    from flopwise.models.config import ModelConfig
    from flopwise.records.folder import RunFolder

    root, spec = folder.path.parent, folder.spec
    law, joint = (RunFolder(root / folder.references[role]) for role in ("law", "joint"))
    shapes = [ModelConfig(**shape) for shape in spec["shapes"]]
    reference = models[spec["reference"]]
    length = float(reference.arrays["lengths"].mean())
    assert reference.record.model is not None  # what was sampled is a model
    tuned, shape = reference.record.spend.train_flops, ModelConfig(**reference.record.model["architecture"])
    per_token = train_flops(shape, spec["seq_len"]).total

    def tuning_flops(cfg: ModelConfig) -> float:
        """The reference's fine-tuning, on another shape."""
        return tuned * train_flops(cfg, spec["seq_len"]).total / per_token

    return larger_models(
        Fit.from_json(law.path / "fit.json"), Fit.from_json(joint.path / FIT_FILE),
        shapes, spec["tokens"], spec["seq_len"],
        tuning_flops, spec["prompt_tokens"], length, SAMPLES, folder.seed,
    )  # fmt: skip


def verification(folder: RunFolder, models: dict[str, Measured]) -> dict[str, Any]:
    """What the joint law said of the larger run before it was made, beside what was then measured."""
    from flopwise.records.folder import RunFolder

    joint = json.loads(
        (RunFolder(folder.path.parent / folder.references["joint"]).path / JOINT_FILE).read_bytes()
    )
    held = models[folder.spec["held_out"]]
    measured = {point["n"]: point for point in held.curves["verifier"]}
    points = []
    for p in joint["points"]:
        seen = measured.get(p["k"])
        if seen is not None:
            points.append({
                **p, "measured": seen["value"], "measured_low": seen["low"], "measured_high": seen["high"],
                "inside": p["low"] <= seen["value"] <= p["high"],
            })  # fmt: skip
    what = f"pass@k of {folder.spec['how'][held.name]}, which no fit saw, from its predicted loss"
    return {"what": what, "N": joint["N"], "D": joint["D"], "points": points}


def run_step(folder: RunFolder, parents: dict[str, RunFolder], progress: Callable[[float], None]) -> None:
    """Write plan.json: exchange rates, the plan for the recipe's budget and questions, the verification."""
    from flopwise.flops.spend import Stopwatch
    from flopwise.records.folder import atomic_write
    from flopwise.records.record import Metric

    watch = Stopwatch()
    spec = folder.spec
    evidence = Evidence.read(folder)
    progress(0.5)
    ways = evidence.ways()
    check = verification(folder, evidence.models)
    content = {
        "exchange": exchange_rates(ways, GAINS, folder.seed) | {"ways": [to_dict(w) for w in ways]},
        "plan": evidence.plan(spec["budget_flops"], spec["questions"]), "verification": check,
    }  # fmt: skip
    progress(0.9)
    atomic_write(folder.path / PLAN_FILE, json.dumps(content, indent=1))
    metrics = {
        f"{name}_accuracy": Metric(value=content["plan"][name]["accuracy"], n=len(evidence.systems[0].values))
        for name in ("checkable", "uncheckable")
        if content["plan"][name]
    }
    metrics["joint_law_inside"] = Metric(
        value=float(np.mean([p["inside"] for p in check["points"]])) if check["points"] else None,
        n=len(check["points"]),
    )
    folder.finish(
        metrics=metrics,
        spend=watch.spend(),
    )
