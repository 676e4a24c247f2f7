"""A small store of made-up runs of a ladder, with everything its steps leave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from conftest import Made
from flopwise.flops.spend import Spend
from flopwise.laws import fit
from flopwise.records.folder import RunFolder
from flopwise.records.record import Metric
from flopwise.records.store import RunStore

WIDTHS, BUDGETS = (32, 48, 64, 96), (1e6, 2e6, 4e6)
CORPORA = {"kjv": "text", "digits": "image"}


class LadderMaker:
    """Writes runs as the steps of a ladder do, with losses from a law and a generator."""

    def __init__(self, root: Path, variants: dict[str, float]):
        """`variants`: by name, how many times the FLOPs of the first its own are worth."""
        self.store, self.made, self.rng = RunStore(root), Made(root, {}), np.random.default_rng(0)
        self.variants = variants

    def run(
        self, name: str, kind: str, method: str, flops: float = 0.0, spec: dict | None = None,
        seed: int = 0, files: dict[str, Any] | None = None, wait: bool = False, **rest: Any,
    ) -> RunFolder:  # fmt: skip
        ids = self.made.ids
        roles = {k: {r: ids[n] for r, n in rest.pop(k, {}).items()} for k in ("parents", "references")}
        spec = {"name": name, **(spec or {})}
        folder = self.store.prepare(kind, method, spec, roles["parents"], seed, name, roles["references"])
        ids[name] = folder.id
        for file, content in (files or {}).items():
            (folder.path / file).write_text(json.dumps(content, default=float))
        if not wait:
            spend = Spend(flops, 0.0, 0.0, 1000, 2.0, 2.0, "a machine", 1 << 20)
            folder.finish(spend=spend, **{"metrics": {}, **rest})
        return folder

    def data(self) -> None:
        about = {
            "corpora": [
                {
                    "name": name, "modality": kind, "license": "public domain", "source": "somewhere",
                    "documents": 900, "heldout_documents": 40, "duplicates_removed": 3, "tokens": 4_000_000,
                    "heldout_tokens": 160_000, "bytes_per_token": 2.41,
                }
                for name, kind in CORPORA.items()
            ]
        }  # fmt: skip
        sources = [{"corpus": name} for name in CORPORA]
        self.run("data", "data", "corpus", spec={"sources": sources}, files={"about.json": about})

    def loss(self, variant: str, N: float, D: float) -> float:
        F = self.variants.get(variant, 1.0) ** 0.5
        return 1.5 + 30 * (N * F) ** -0.34 + 1500 * (D * F) ** -0.56

    def rungs(
        self, variant: str, width: int, budgets: tuple[float, ...], seed: int = 0, **extra: Any
    ) -> None:
        """The trunk of a size and its branches."""
        N, prefix = 24.0 * width**2, "" if variant == "dense" else f"{variant}-"
        experts = variant.startswith("moe")
        held = 4 * N if experts else N
        shape = {
            "n_params_total": held + 512 * width, "n_params_active": N + 512 * width,
            "n_params_non_embedding": held, "architecture": {"d_model": width, "balance": "aux"},
        }  # fmt: skip
        drift, before, spent = self.rng.normal(0, 0.002), {}, 0.0
        mark = {"width": width, "variant": variant, "held_out": False, "batch_size": 16, "rate_factor": 1.0}
        for i, D in enumerate(budgets, 1):
            C = 9 * N * D
            parents = {"data": "data", **before}
            trunk, branch = (f"{prefix}{what}w{width}-s{seed}-{i}" for what in ("trunk-", ""))
            data = {"corpus": "kjv+digits", "tokens_seen": D, "tokens_unique": D, "modality": "image+text"}
            common: dict[str, Any] = {"model": shape, "seed": seed}
            extra = mark | {"epochs": {"kjv": D / 4e6}} | extra
            self.run(
                trunk, "pretrain", "trunk", 0.8 * C - spent, parents=parents, extra=extra, data=data, **common
            )
            spent = 0.8 * C
            loss = self.loss(variant, N, D) * np.exp(drift + self.rng.normal(0, 0.001))
            metrics = {"loss": Metric(value=loss, se=0.01, n=80)}
            for k, name in enumerate(CORPORA):
                metrics[f"loss_{name}"] = Metric(value=loss + 0.2 * k - 0.1, se=0.01, n=40)
                metrics[f"bpb_{name}"] = Metric(value=(loss + 0.2 * k - 0.1) / 1.67, se=0.006, n=40)
            if experts:
                share = self.rng.dirichlet(np.full(8, 8.0), size=2)
                extra["expert_load"] = share.tolist()
            self.run(
                branch, "pretrain", "cooldown", 0.2 * C, parents={"data": "data", "init": trunk},
                extra=extra, data=data, metrics=metrics, spec={"mixture": dict.fromkeys(CORPORA, 0.5)},
                **common,
            )  # fmt: skip
            before = {"init": trunk}

    def rows(self, names: list[str]) -> list[dict[str, Any]]:
        """The table of a law step."""
        out = []
        for name in names:
            r = self.made.folder(name).record()
            model, data = r.model or {}, r.data or {}
            N = 24.0 * r.extra["width"] ** 2
            out.append(
                {
                    "id": r.id, "variant": r.extra["variant"], "width": r.extra["width"], "seed": r.seed,
                    "N": N, "N_total": model["n_params_total"], "D": data["tokens_seen"],
                    "C": r.lineage_spend.train_flops, "C_6nd": 6 * N * data["tokens_seen"],
                    "U": data["tokens_unique"], "loss_se": 0.01,
                    "run": f"{r.extra['variant']}-w{r.extra['width']}-s{r.seed}",
                    **{key: m.value for key, m in r.metrics.items()},
                }
            )  # fmt: skip
        return out

    def branches(self, *variants: str) -> list[str]:
        """Names of finished branches of these variants that are not held out."""
        out = []
        for name in self.made.ids:
            r = (
                self.made.folder(name).record()
                if (self.made.folder(name).path / "run.json").exists()
                else None
            )
            if r and r.method == "cooldown" and r.extra["variant"] in variants and not r.extra["held_out"]:
                out.append(name)
        return out

    def law(self, name: str = "main", variant: str = "dense", width: int = 128, tokens: float = 8e6) -> None:
        """A law fitted to one variant, with its prediction of the held-out run."""
        branches = self.branches(variant)
        rows = self.rows(branches)
        fitted = fit(
            "chinchilla",
            {k: np.array([row[k] for row in rows]) for k in ("N", "D", "loss", "run")},
            cluster="run",
        )
        N = 24.0 * width**2
        held: dict[str, Any] = {
            "run": f"w{width}-s0-1",
            "variant": variant,
            "width": width,
            "N": N,
            "D": tokens,
            "C": 9 * N * tokens,
        }
        wide, narrow = fitted.predict(N=N, D=tokens), fitted.predict(N=N, D=tokens, level=0.9)
        prediction = held | {
            "law": "chinchilla", "target": "loss", "level": 0.95, "made_at": 0.0, "value": wide.value,
            "low": wide.low, "high": wide.high, "low90": narrow.low, "high90": narrow.high,
            "C_ratio": held["C"] / max(r["C"] for r in rows), "others": [],
        }  # fmt: skip
        trial = {"law": "chinchilla", "held_out": 1e5, "errors": [0.004], "inside": [True], "rms": 0.004}
        choice = {
            "chosen": "chinchilla",
            "reasons": ["chinchilla was best"],
            "fits": [fitted.to_dict()],
            "trials": [trial],
        }
        files = {
            "points.json": rows, "fit.json": fitted.to_dict(), "choice.json": choice,
            "prediction.json": prediction, "notes.json": ["noise between seeds is 0.2%"],
        }  # fmt: skip
        spec = {"name": name, "method": "fit", "target": "loss", "columns": {}}
        refs = {f"rung{i}": n for i, n in enumerate(branches)}
        self.run(f"law-{name}", "fit", "pretraining_law", spec=spec, references=refs, files=files)

    def verify(self, name: str = "main", run: str = "w128-s0-1") -> None:
        """The held-out run beside its prediction."""
        made = json.loads((self.made.folder(f"law-{name}").path / "prediction.json").read_text())
        measured = self.made.folder(run).record().metrics["loss"].value
        assert measured is not None
        keys = ("law", "variant", "target", "low", "high", "level", "low90", "high90", "C_ratio")
        row = {k: made[k] for k in keys} | {
            "name": name, "run": run, "predicted": made["value"], "measured": measured, "se": 0.01,
            "inside": made["low"] <= measured <= made["high"],
            "inside90": made["low90"] <= measured <= made["high90"],
            "relative_error": made["value"] / measured - 1, "written_before_s": 100.0,
        }  # fmt: skip
        refs = {"run0": run, "law0": f"law-{name}"}
        self.run("verify", "verify", "held_out", references=refs, files={"verification.json": [row]})

    def comparison(self, variant: str) -> None:
        """How much compute a variant saves against the first."""
        found = {
            variant: {
                "against": "dense", "factor": 1.6, "low": 1.2, "high": 2.1, "matched": 12,
                "matched_mean": -0.012, "matched_se": 0.003,
            }
        }  # fmt: skip
        rows = self.rows(self.branches("dense", variant))
        files = {"points.json": rows, "comparison.json": found, "notes.json": [f"{variant} needs less"]}
        self.run(
            "law-factor", "fit", "pretraining_law", spec={"name": "factor", "method": "factor"}, files=files
        )

    def tuning(self) -> None:
        """A search over five rates at two sizes, and its outcome."""
        from flopwise.pretrain.tuning import fit_tuning

        rows, refs = [], {}
        for width in (32, 64):
            for factor in (0.5, 0.7, 1.0, 1.4, 2.0):
                loss = (3.0 - width / 100) * np.exp(
                    0.02 * np.log(factor / 1.15) ** 2 + self.rng.normal(0, 1e-4)
                )
                row = {
                    "width": width,
                    "rate_factor": factor,
                    "batch_size": 16,
                    "seed": 0,
                    "loss": float(loss),
                }
                rows.append(row)
                name = refs[f"run{len(refs)}"] = f"tune{len(refs)}-w{width}"
                N = 24.0 * width**2
                self.run(
                    name, "pretrain", "cooldown", 9 * N * 5e5, parents={"data": "data"},
                    extra={"width": width, "variant": "tuning", "rate_factor": factor, "batch_size": 16},
                    metrics={"loss": Metric(value=float(loss), se=0.01, n=80)},
                    model={"n_params_non_embedding": N, "n_params_total": 2 * N, "architecture": {}},
                    data={"tokens_seen": 5e5, "tokens_unique": 5e5},
                )  # fmt: skip
        content = fit_tuning(rows, batch_size=16).to_dict() | {"runs": rows}
        self.run("tuning", "fit", "tuning", references=refs, files={"tuning.json": content})

    def isoflop(self) -> None:
        """Five sizes at each of four budgets of equal compute."""
        names = []
        for C in (3e11, 1e12, 3e12, 1e13):
            for width in (24, 32, 48, 64, 96):
                tokens = C / (9 * 24.0 * width**2)
                before = set(self.made.ids)
                self.rungs("iso", width, (tokens,), int(C // 1e11))
                names += [n for n in self.made.ids if n not in before and "trunk" not in n]
        rows = self.rows(names)
        curves = {key: [r[key] for r in rows] for key in ("N", "C", "loss")}
        found = {"iso": {"all parameters, FLOPs as executed": {"curves": curves}}}
        files = {"points.json": rows, "isoflop.json": found, "notes.json": ["N* grows as C^0.62"]}
        self.run("law-iso", "fit", "pretraining_law", spec={"name": "iso", "method": "isoflop"}, files=files)


def make(root: Path, variants: dict[str, float] | None = None) -> Made:
    """A whole ladder under `root`: two variants, seeds, a law, the run held out, its test."""
    m = LadderMaker(root, variants or {"dense": 1.0, "moe8": 1.8})
    m.data()
    m.tuning()
    for variant in m.variants:
        for width in WIDTHS:
            for seed in (0, 1000) if width == WIDTHS[0] else (0,):
                m.rungs(variant, width, BUDGETS, seed)
    m.law()
    if "moe8" in m.variants:
        m.comparison("moe8")
        m.isoflop()
    m.rungs("dense", 128, (8e6,), held_out=True)
    m.verify()
    return m.made
