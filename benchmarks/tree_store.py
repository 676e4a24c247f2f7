"""A folder of runs as years of post-training would leave it: made up, the same from a seed on every machine.

Two models pretrained here (a trunk and its end) and one brought from elsewhere, whose compute nobody knows;
from them derivatives of every kind, each made from a model that is there already, with teachers, reward
models and judges among their parents. A third of the models are sampled on held-out problems.
"""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from flopwise.flops.spend import Spend
from flopwise.records.folder import RECORD_FILE, SPEC_FILE
from flopwise.records.record import Metric, RunRecord
from flopwise.records.store import run_id

KINDS = {
    ("sft", "demonstrations"): 0.24, ("sft", "lora"): 0.1, ("distill", "verified_sequences"): 0.1,
    ("distill", "on_policy"): 0.06, ("rl", "grpo"): 0.16, ("rl", "ppo"): 0.06, ("preference", "dpo"): 0.12,
    ("preference", "kto"): 0.04, ("rejection", "verified_samples"): 0.06, ("reward", "outcome"): 0.06,
}  # fmt: skip
"""What is made, and how often."""
PROBLEMS, SAMPLES, SAMPLED = 200, 4, 1 / 3
START = datetime(2026, 1, 1, tzinfo=UTC)


class StoreMaker:
    """Writes records by hand: what a run would have taken hours for is a file each."""

    def __init__(self, root: Path, seed: int = 0):
        self.root, self.rng = root, np.random.default_rng(seed)
        self.records: dict[str, RunRecord] = {}
        self.skill: dict[str, float] = {}
        self.hard = self.rng.normal(0, 1, PROBLEMS)

    def run(
        self, name: str, kind: str, method: str, spend: Spend, roles: dict[str, str] | None = None,
        metrics: dict[str, Metric] | None = None, **fields: Any,
    ) -> str:  # fmt: skip
        """Write one run; its id."""
        roles = roles or {}
        spec = {"name": name, "problems": PROBLEMS, "split": "test", "n": SAMPLES}
        run = run_id(kind, method, spec, 0, roles, {})
        ancestors: dict[str, RunRecord] = {}
        todo = list(roles.values())
        while todo:
            if (parent := todo.pop()) not in ancestors:
                ancestors[parent] = self.records[parent]
                todo += ancestors[parent].parents
        record = RunRecord(
            id=run, name=name, kind=kind, method=method, parents=list(dict.fromkeys(roles.values())),
            roles=roles, spend=spend, lineage_spend=sum((r.spend for r in ancestors.values()), spend),
            metrics=metrics or {}, status="done", versions={"flopwise": "0.1.0"},
            created=(START + timedelta(minutes=len(self.records))).isoformat(), **fields,
        )  # fmt: skip
        self.records[run] = record
        folder = self.root / run
        folder.mkdir(parents=True)
        (folder / RECORD_FILE).write_text(record.model_dump_json(indent=1) + "\n")
        held = "".join(f"  {role}: {parent}\n" for role, parent in roles.items())
        (folder / SPEC_FILE).write_text(
            f"name: {name}\nkind: {kind}\nmethod: {method}\nseed: 0\nparents:{' {}' if not held else ''}\n"
            f"{held}references: {{}}\nspec:\n" + "".join(f"  {k}: {v}\n" for k, v in spec.items())
        )
        return run

    def spend(self, flops: float, shares: dict[str, float], model: str) -> Spend:
        """A spend of about `flops`, broken down by the purposes `shares` (kind -> share)."""
        flops *= float(self.rng.lognormal(0, 0.7))
        by = [
            {"kind": kind, "model": model, "tokens": 1000, "flops": round(flops * share), "seconds": 1.0}
            for kind, share in shares.items()
        ]
        score = sum(float(row["flops"]) for row in by if row["kind"] not in ("train", "sample"))
        train, sample = (sum(float(r["flops"]) for r in by if r["kind"] == k) for k in ("train", "sample"))
        return Spend(train, sample, score, 1000, 10.0, 10.0, "made up", 1 << 20, tuple(by))

    def model(self, n_params: float) -> dict[str, Any]:
        """A record's `model` part."""
        return {"n_params_total": n_params, "n_params_active": n_params, "n_params_non_embedding": n_params}

    def sampled(self, model: str, data: str) -> None:
        """Sample a model on the held-out problems."""
        p = 1 / (1 + np.exp(self.hard - self.skill[model]))
        right = self.rng.random((PROBLEMS, SAMPLES + 1)) < p[:, None]
        buffer = io.BytesIO()
        np.savez(buffer, greedy=right[:, 0], correct=right[:, 1:])
        greedy = right[:, 0].astype(float)
        metrics = {
            name: Metric(value=float(v.mean()), se=float(v.std(ddof=1) / PROBLEMS**0.5), n=PROBLEMS)
            for name, v in (("greedy", greedy), ("pass_at_1", right[:, 1:].mean(1)))
        }
        record = self.records[model]
        run = self.run(
            f"sample-{record.name}", "sample", "temperature", self.spend(1e11, {"sample": 1.0}, model),
            {"model": model, "data": data}, metrics, data={"corpus": "countdown"},
        )  # fmt: skip
        (self.root / run / "samples.npz").write_bytes(buffer.getvalue())


def make(root: Path, derivatives: int, seed: int = 0) -> Path:
    """Write the store; returns `root`."""
    maker, rng = StoreMaker(root, seed), np.random.default_rng((seed, 1))
    data = maker.run("data", "data", "countdown", Spend())
    policies: list[str] = []
    scorers: list[str] = []
    for size in (64, 128):
        n = 24.0 * size**2
        trunk = maker.run(
            f"w{size}-trunk", "pretrain", "trunk", Spend(train_flops=6 * n * 2e7), {"data": data},
            model=maker.model(n),
        )  # fmt: skip
        end = maker.run(
            f"w{size}", "pretrain", "cooldown", Spend(train_flops=6 * n * 5e6), {"data": data, "init": trunk},
            {"loss": Metric(value=2.0, se=0.01, n=80)}, model=maker.model(n),
        )  # fmt: skip
        policies.append(end)
    elsewhere = Spend(unknown="made elsewhere: its compute is not known")
    policies.append(maker.run("elsewhere", "base", "import", elsewhere, model=maker.model(1.3e8)))
    for base in policies:
        maker.skill[base] = -2.0
        maker.sampled(base, data)
    kinds, weights = list(KINDS), np.array(list(KINDS.values()))
    for i in range(derivatives):
        kind, method = kinds[int(rng.choice(len(kinds), p=weights / weights.sum()))]
        # Popular models are those that were there early; one in ten is made of a late one.
        late = rng.random() < 0.1
        init = policies[int(len(policies) * (rng.random() if late else rng.random() ** 6))]
        roles = {"data": data, "init": init}
        shares = {"train": 1.0}
        if kind == "distill":
            roles["teacher"] = policies[int(rng.integers(len(policies)))]
            shares = {"train": 0.6, "sample": 0.3, "teacher": 0.1}
        if kind == "rl":
            shares = {"train": 0.5, "sample": 0.45, "reference": 0.05}
            if method == "ppo" and scorers:
                roles["reward"] = scorers[int(rng.integers(len(scorers)))]
                shares["reward"] = 0.03
        if kind == "preference":
            shares = {"train": 0.8, "reference": 0.2}
            if method == "kto":
                roles["judge"] = policies[int(rng.integers(len(policies)))]
                shares["judge"] = 0.1
        skill = maker.skill[init] + float(rng.normal(0.25, 0.4))
        judged = (1 / (1 + np.exp(maker.hard - skill))).mean()
        metrics = {"val_accuracy": Metric(value=float(min(1.0, judged)), se=0.02, n=500)}
        flops = 6.0 * float((maker.records[init].model or {})["n_params_total"]) * 5e4
        run = maker.run(
            f"{method}-{i}", kind, method, maker.spend(flops, shares, init), roles,
            {} if kind == "reward" else metrics, model=maker.records[init].model,
        )  # fmt: skip
        maker.skill[run] = skill
        if kind == "reward":
            scorers.append(run)
            continue
        policies.append(run)
        if rng.random() < SAMPLED:
            maker.sampled(run, data)
    return root
