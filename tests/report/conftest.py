"""A small store of made-up runs, with everything a finished experiment leaves."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flopwise.flops.spend import Spend
from flopwise.infer.estimators import mean_interval, pass_at_k
from flopwise.laws.coverage import forecast
from flopwise.records.folder import RunFolder
from flopwise.records.record import Metric
from flopwise.records.store import RunStore
from flopwise.report.collect import collect

PROBLEMS = 300


@dataclass
class Made:
    """The store's folder and the ids of its runs by name."""

    root: Path
    ids: dict[str, str]

    def folder(self, name: str) -> RunFolder:
        """A run's folder."""
        return RunFolder(self.root / self.ids[name])


class Maker:
    """Writes runs as the steps do, with numbers from a law and a generator instead of training."""

    def __init__(self, root: Path):
        self.store, self.made, self.rng = RunStore(root), Made(root, {}), np.random.default_rng(0)

    def run(
        self, name: str, kind: str, method: str, flops: float = 0.0, spec: dict | None = None, **rest: Any
    ) -> RunFolder:
        ids = self.made.ids
        parents, references = (
            {r: ids[n] for r, n in rest.pop(k, {}).items()} for k in ("parents", "references")
        )
        folder = self.store.prepare(
            kind, method, {"name": name, **(spec or {})}, parents, 0, name, references
        )
        ids[name] = folder.id
        spend = Spend(flops, rest.pop("generate", 0.0), 0.0, 1000, 2.0, 2.0, "a machine", 1 << 20)
        folder.finish(metrics=rest.pop("metrics", {}), spend=spend, **rest)
        return folder

    def data(self) -> None:
        folder = self.run("data", "data", "countdown")
        corpus = {
            "name": "kjv",
            "license": "public domain",
            "source": "somewhere",
            "documents": 9,
            "heldout_documents": 2,
            "duplicates_removed": 1,
            "tokens": 1000,
            "heldout_ngram_overlap": 0.01,
        }
        about = {
            "corpora": [corpus],
            "task": "countdown",
            "problems": {"demos": 4, "rl": 6, "val": 5, "test": 3},
            "demonstration_tokens": 99,
            "contamination": {"n_texts": 13, "n_hits": 0},
            "note": None,
        }
        (folder.path / "about.json").write_text(json.dumps(about))

    def pretrain(self, name: str, width: int, tokens: float, held_out: bool = False) -> None:
        N = 24.0 * width**2
        loss = 1.8 + 32 * N**-0.34 + 3200 * tokens**-0.6 + self.rng.normal(0, 0.005)
        C = 8 * N * tokens
        shape = {
            "n_params_total": 2 * N,
            "n_params_active": 2 * N,
            "n_params_non_embedding": N,
            "architecture": {"d_model": width},
        }
        extra = {"width": width, "six_nd": 1.2 * N * tokens, "held_out": held_out}
        seen = {"corpus": "text", "tokens_seen": tokens, "tokens_unique": tokens, "modality": "text"}
        common: dict[str, Any] = {"model": shape, "data": seen}
        self.run(
            f"trunk-{name}", "pretrain", "trunk", 0.8 * C, parents={"data": "data"}, extra=extra, **common
        )
        self.run(
            name,
            "pretrain",
            "cooldown",
            0.2 * C,
            parents={"data": "data", "init": f"trunk-{name}"},
            extra=extra,
            metrics={
                "loss": Metric(value=loss, se=0.01, n=80),
                "loss_kjv": Metric(value=loss, se=0.01, n=80),
            },
            **common,
        )

    def law(self, names: list[str], N: float, D: float) -> None:
        from flopwise.laws import fit

        records = [self.made.folder(n).record() for n in names]
        rows = [
            {
                "N": r.model["n_params_non_embedding"],
                "D": r.data["tokens_seen"],
                "loss": r.metrics["loss"].value,
            }
            for r in records
            if r.model and r.data
        ]
        fitted = fit("chinchilla", {k: np.array([row[k] for row in rows]) for k in rows[0]})
        p = fitted.predict(N=N, D=D)
        folder = self.run(
            "law", "fit", "pretraining_law", references={f"rung{i}": n for i, n in enumerate(names)}
        )
        fitted.to_json(folder.path / "fit.json")
        trial = {"law": "chinchilla", "held_out": 1e5, "errors": [0.01], "inside": [False], "rms": 0.01}
        choice = {
            "chosen": "chinchilla",
            "reasons": ["chinchilla was best"],
            "fits": [fitted.to_dict()],
            "trials": [trial],
        }
        (folder.path / "choice.json").write_text(json.dumps(choice))
        prediction = {
            "N": N,
            "D": D,
            "C": 8 * N * D,
            "width": 128,
            "value": p.value,
            "low": p.low,
            "high": p.high,
            "extrapolation": p.extrapolation,
            "made_at": 0.0,
        }
        (folder.path / "prediction.json").write_text(json.dumps(prediction))

    def tuned(self, name: str, kind: str, method: str, init: str, flops: float, **rest: Any) -> None:
        parents = {"data": "data", "init": init, **rest.pop("parents", {})}
        model = {"n_params_total": 5e4, "n_params_non_embedding": 2e4, "architecture": {}}
        folder = self.run(
            name,
            kind,
            method,
            flops,
            parents=parents,
            model=model,
            extra={"width": 32},
            metrics={"val_accuracy": Metric(value=0.3, se=0.03, n=256)},
            **rest,
        )
        for i in range(1, 5):
            folder.log(
                step=i,
                train_flops=flops * i / 4,
                generate_flops=0.0,
                score_flops=0.0,
                val_accuracy=0.3 + 0.02 * i,
                val_se=0.03,
            )

    def sample(self, model: str, skill: float, n: int = 64) -> None:
        hardness = np.random.default_rng(1).uniform(size=PROBLEMS)
        chance = np.clip(skill + 0.5 * (hardness - 0.5), 0.01, 0.99)
        correct = self.rng.uniform(size=(PROBLEMS, n)) < chance[:, None]
        greedy = self.rng.uniform(size=PROBLEMS) < np.clip(chance + 0.05, 0, 1)
        ks = [1 << i for i in range(n.bit_length())]
        curves = {
            "verifier": [
                {"n": k, "flops": 1e6 * (1 + k), **mean_interval(pass_at_k(correct, k))} for k in ks
            ],
            "majority": [
                {"n": k, "flops": 1e6 * (1 + k), **mean_interval(pass_at_k(correct, 1))} for k in ks
            ],
            "greedy": [{"n": 1, "flops": 2e6, **mean_interval(greedy.astype(float))}],
        }
        folder = self.run(
            f"sample-{model}",
            "sample",
            "temperature",
            parents={"data": "data", "model": model},
            generate=1e9,
            spec={"problems": PROBLEMS, "n": n, "split": "test", "fit_up_to": 16},
            extra={"width": 32, "flops_per_sample": 1e6},
            metrics={"greedy": Metric(value=greedy.mean(), se=0.02, n=PROBLEMS)},
        )
        np.savez_compressed(folder.path / "samples.npz", correct=correct, greedy=greedy)
        (folder.path / "curves.json").write_text(json.dumps(curves))
        if n > 16:
            ahead = forecast(correct[:, :16], n, draws=10).to_dict()
            (folder.path / "coverage.json").write_text(json.dumps(ahead))
        step = {"text": "3*7=21!", "ok": True, "why": ""}
        example = {
            "prompt": "3,7=21:",
            "completion": "3*7=21!",
            "correct": True,
            "steps": [step, {**step, "ok": False, "why": "no"}],
        }
        (folder.path / "examples.json").write_text(json.dumps([example]))

    def plan(self) -> None:
        def option(model: str, strategy: str, accuracy: float, total: float) -> dict[str, Any]:
            return {
                "model": model,
                "how": f"make {model}, then ask it ({strategy})",
                "origin": "measured",
                "strategy": strategy,
                "n": 16,
                "accuracy": accuracy,
                "low": accuracy - 0.03,
                "high": accuracy + 0.03,
                "one_off_flops": total / 2,
                "per_question_flops": total / 2e6,
                "total_flops": total,
                "chance_best": 0.7,
            }

        a, b = option("grpo", "verifier", 0.8, 4e13), option("grpo", "majority", 0.5, 3e13)
        once = {
            "law": "post-training",
            "how": "GRPO",
            "one_off_flops": 4e12,
            "one_off_low": 3e12,
            "one_off_high": 6e12,
            "per_question_flops": None,
            "reached": True,
            "note": "",
        }
        each = {
            "law": "test time",
            "how": "four samples",
            "one_off_flops": None,
            "per_question_flops": 3e6,
            "reached": True,
            "note": "",
        }
        never = {"law": "pretraining", "how": "longer", "reached": False, "note": "not reached"}
        point = {
            "k": 1,
            "predicted": 0.1,
            "low": 0.05,
            "high": 0.2,
            "measured": 0.12,
            "measured_low": 0.1,
            "measured_high": 0.14,
            "inside": True,
        }
        content = {
            "exchange": {
                "reference": {"model": "sft", "strategy": "greedy", "accuracy": 0.3, "se": 0.02},
                "rates": [
                    {
                        "target": 0.35,
                        "gain": 0.05,
                        "ways": [never, once, each],
                        "break_even": [{"a": "GRPO", "b": "four samples", "questions": 1.3e6}],
                    }
                ],
            },
            "plan": {
                "budget_flops": 5e13,
                "questions": 1e6,
                "checkable": a,
                "uncheckable": b,
                "options": [a, b],
                "by_questions": [{"questions": 1e3, "checkable": a, "uncheckable": None}],
                "reasons": ["it answers most"],
            },
            "verification": {
                "what": "pass@k of the larger run.",
                "points": [point, {**point, "k": 2, "measured": 0.3, "inside": False}],
            },
        }
        folder = self.run("plan", "plan", "exchange_and_allocate")
        (folder.path / "plan.json").write_text(json.dumps(content))


@pytest.fixture(scope="session")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A finished experiment; tests that change it take a copy."""
    return make(tmp_path_factory.mktemp("experiment"))


@pytest.fixture(scope="session")
def results(experiment: Made) -> dict[str, Any]:
    """All results of the finished experiment."""
    return collect(experiment.root)


def make(root: Path) -> Made:
    """Write the whole experiment under `root`."""
    m = Maker(root)
    m.data()
    rungs = []
    for width in (32, 48, 64):
        for tokens in (7.5e5, 1.5e6, 3e6):
            rungs.append(f"w{width}-{tokens / 1e6:g}M")
            m.pretrain(rungs[-1], width, tokens)
    m.law(rungs, 24.0 * 96**2, 3e6)
    m.pretrain("larger", 96, 3e6, held_out=True)
    base = "w32-1.5M"
    m.tuned("sft", "sft", "demonstrations", base, 1e12)
    m.tuned("grpo", "rl", "grpo", "sft", 3e12, generate=1e12)
    rl = m.made.folder("grpo")
    for i in range(1, 61):
        reward = 0.3 + 0.4 / (1 + (1.5e12 / (i * 6e10)) ** 2) + m.rng.normal(0, 0.01)
        rl.log(step=i, train_flops=i * 5e10, generate_flops=i * 1e10, score_flops=0.0, reward=reward)
    for i, start in ((1, "sft"), (2, "rejection-1")):
        m.tuned(f"samples-{i}", "synthesize", "verified_samples", start, 0.0, generate=2e11)
        m.tuned(
            f"rejection-{i}",
            "rejection",
            "verified_samples",
            start,
            1e12,
            parents={"samples": f"samples-{i}"},
        )
    matched = ["samples-1", "rejection-1", "samples-2", "rejection-2"]
    m.tuned(
        "control-rejection",
        "sft",
        "control",
        "sft",
        2.4e12,
        references={f"match{i}": n for i, n in enumerate(matched)},
    )
    m.tuned("control-grpo", "sft", "control", "sft", 4e12, references={"match0": "grpo"})
    for name, skill, n in (
        (base, 0.05, 16),
        ("sft", 0.3, 64),
        ("grpo", 0.5, 64),
        ("rejection-2", 0.42, 16),
        ("control-grpo", 0.3, 16),
        ("control-rejection", 0.42, 16),
    ):
        m.sample(name, skill, n)
    m.plan()
    return m.made
