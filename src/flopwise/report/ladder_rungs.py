"""What the report says of a ladder's runs: every rung, what branching saved, experts, sources of data."""

from __future__ import annotations

from typing import Any

import numpy as np

from flopwise.records.record import RunRecord
from flopwise.report.runs import Runs, number

MOST_LAYERS = 64
"""Layers whose experts' load is kept; no ladder comes near."""


def collect_rungs(runs: Runs) -> dict[str, Any]:
    """The `rungs` part of the results: each finished branch with all that was measured of it."""
    fitted, tuning = _fitted_ids(runs), tuning_ids(runs)
    rungs = [rung(r, runs, fitted, tuning) for r in runs.find("pretrain") if is_rung(r)]
    names = list(dict.fromkeys(q["variant"] for q in rungs))
    rungs.sort(
        key=lambda q: (q["held_out"], q["tuning"], names.index(q["variant"]), q["N"], q["D"], q["seed"])
    )
    missing = [] if rungs else [runs.why("pretrain", "Every rung of the ladder")]
    noise = _seed_noise(rungs)
    corpora = sorted({name for q in rungs for name in q["corpora"]})
    return {
        "points": rungs, "variants": list(dict.fromkeys(q["variant"] for q in rungs if not q["tuning"])),
        "measure": _measure(runs, [q for q in rungs if not q["tuning"]]),
        "corpora": corpora, "seed_noise": noise,
        "noise": _pooled(noise), "missing": missing,
    }  # fmt: skip


def _measure(runs: Runs, rungs: list[dict[str, Any]]) -> str | None:
    """What all runs can be compared by: their loss, bits per byte where tokens differ, or nothing."""
    if len({tuple(sorted(q["corpora"])) for q in rungs}) != 1:
        return None
    if len(runs.find("data")) < 2:
        return "loss"
    return "bpb" if all(q["bpb"] is not None for q in rungs) else None


def _pooled(noise: list[dict[str, Any]]) -> float | None:
    """Root mean square of the rungs' standard deviations, each as heavy as its degrees of freedom."""
    dof = sum(q["seeds"] - 1 for q in noise)
    return (sum((q["seeds"] - 1) * q["relative_sd"] ** 2 for q in noise) / dof) ** 0.5 if dof else None


def is_rung(record: RunRecord) -> bool:
    """Whether a run ends with a measured model: a cooldown, or a trunk that was measured itself."""
    metric = record.metrics.get("loss")
    return metric is not None and number(metric.value) is not None


def _fitted_ids(runs: Runs) -> set[str]:
    """Runs that a law was fitted to."""
    out: set[str] = set()
    for step in runs.find("fit", "pretraining_law"):
        rows = runs.json(step, "points.json")
        out |= {str(r.get("id")) for r in rows if isinstance(r, dict)} if isinstance(rows, list) else set()
    return out


def tuning_ids(runs: Runs) -> set[str]:
    """Runs of the search that came before the ladder."""
    wanted = {r.id for r in runs.find("pretrain") if r.extra.get("variant") == "tuning"}
    for step in runs.find("fit", "tuning"):
        wanted |= {i for i in step.references.values() if i in runs.done and runs.done[i].kind == "pretrain"}
    return wanted


def rung(record: RunRecord, runs: Runs, fitted: set[str], tuning: set[str]) -> dict[str, Any]:
    """One measured run; C is the training FLOPs of its lineage, counted from what was executed."""
    model, data, extra = record.model or {}, record.data or {}, record.extra
    loss, metrics = record.metrics["loss"], record.metrics
    corpora = {
        name[5:]: {
            "loss": number(m.value), "se": number(m.se),
            "bpb": number(metrics[f"bpb_{name[5:]}"].value) if f"bpb_{name[5:]}" in metrics else None,
        }
        for name, m in metrics.items()
        if name.startswith("loss_")
    }  # fmt: skip
    N, D = number(model.get("n_params_non_embedding")) or 0.0, number(data.get("tokens_seen")) or 0.0
    mixture = runs.spec(record).get("mixture")
    bits = [b for c in corpora.values() if (b := number(c["bpb"])) is not None]
    return {
        "id": record.id, "name": record.name or record.id, "variant": str(extra.get("variant") or "base"),
        "width": extra.get("width"), "seed": record.seed, "N": N, "D": D,
        "N_total": number(model.get("n_params_total")), "N_active": number(model.get("n_params_active")),
        "C": record.lineage_spend.train_flops, "own": record.spend.train_flops,
        "six_nd": 6.0 * N * D, "loss": number(loss.value), "se": number(loss.se), "n_documents": loss.n,
        "bpb": sum(bits) / len(bits) if bits and len(bits) == len(corpora) else None,
        "accuracy": number(metrics["accuracy"].value) if "accuracy" in metrics else None,
        "corpora": corpora, "modality": data.get("modality"),
        "mixture": mixture if isinstance(mixture, dict) else {},
        "held_out": bool(extra.get("held_out")), "fitted": record.id in fitted, "tuning": record.id in tuning,
        "unique": number(data.get("tokens_unique")),
        "epochs": _most(extra.get("epochs")), "batch_size": number(extra.get("batch_size")),
        "rate_factor": number(extra.get("rate_factor")), "seconds": record.spend.wall_s,
        "tokens_per_s": _speed(record),
    }  # fmt: skip


def _most(epochs: Any) -> float | None:
    """How often the source that was read most was read through."""
    values = [number(v) for v in (epochs.values() if isinstance(epochs, dict) else [epochs])]
    return max((v for v in values if v is not None), default=None)


def _speed(record: RunRecord) -> float | None:
    seconds, tokens = number(record.spend.wall_s), number(record.spend.tokens)
    return tokens / seconds if seconds and tokens else None


def _seed_noise(rungs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Standard deviation of the loss between seeds, relative, wherever a rung was repeated."""
    groups: dict[tuple[Any, ...], list[float]] = {}
    for q in rungs:
        if not q["tuning"]:
            key = (q["variant"], q["width"], q["N"], q["D"], q["batch_size"], q["rate_factor"])
            groups.setdefault(key, []).append(q["loss"])
    return [
        {
            "variant": key[0], "width": key[1], "N": key[2], "D": key[3], "seeds": len(v),
            "relative_sd": float(np.std(v, ddof=1) / np.mean(v)),
        }
        for key, v in groups.items()
        if len(v) > 1
    ]  # fmt: skip


def collect_savings(runs: Runs, points: list[dict[str, Any]]) -> dict[str, Any]:
    """The `savings` part: training FLOPs of the branched ladder beside those of the same runs made apart.

    `spent` counts each piece of trunk once; `separate` each branch with its whole lineage, as if every budget
    were a run of its own; `grid` every size at every budget that occurs, each as often as the most repeated.
    `by_variant` has the same of each variant.
    """
    ladder = [q for q in points if not q["held_out"] and not q["tuning"]]
    if not ladder:
        return {"spent": None, "by_variant": [], "missing": ["No rung of the ladder is finished."]}
    names = list(dict.fromkeys(q["variant"] for q in ladder))
    each = [{"variant": n} | _saved(runs, [q for q in ladder if q["variant"] == n]) for n in names]
    out = each[0] if len(each) == 1 else _saved(runs, ladder)
    return out | {
        "by_variant": each, "missing": [],
        "held_out": _lineage_flops(runs, [q["id"] for q in points if q["held_out"]]),
        "tuning": _lineage_flops(runs, [q["id"] for q in points if q["tuning"]]),
    }  # fmt: skip


def _saved(runs: Runs, ladder: list[dict[str, Any]]) -> dict[str, Any]:
    spent, separate = _lineage_flops(runs, [q["id"] for q in ladder]), sum(q["C"] for q in ladder)
    grid, cells = _grid(ladder)
    trunks = {(q["variant"], q["width"], q["seed"], q["batch_size"]) for q in ladder}
    return {
        "spent": spent, "separate": separate, "ratio": spent / separate if separate else None,
        "grid": grid, "grid_cells": cells, "grid_ratio": spent / grid if grid else None,
        "branches": len(ladder), "trunks": len(trunks),
    }  # fmt: skip


def _lineage_flops(runs: Runs, ids: list[str]) -> float:
    """Training FLOPs of runs and their pretrained ancestors, each counted once."""
    chosen = {i: runs.done[i] for i in ids}
    for i in ids:
        chosen |= {a.id: a for a in runs.ancestors(runs.done[i]) if a.kind == "pretrain"}
    return sum(r.spend.train_flops for r in chosen.values())


def _grid(ladder: list[dict[str, Any]]) -> tuple[float | None, dict[str, int] | None]:
    """FLOPs of the plain grid, and its size; None where sizes do not share their budgets."""
    total, cells = 0.0, {"sizes": 0, "budgets": 0, "seeds": 1, "runs": 0}
    for variant in sorted({q["variant"] for q in ladder}):
        mine = [q for q in ladder if q["variant"] == variant]
        budgets = {q["D"] for q in mine}
        sizes = {q["width"]: [q2 for q2 in mine if q2["width"] == q["width"]] for q in mine}
        if len(budgets) > max(len({q["D"] for q in s}) for s in sizes.values()):
            return None, None
        seeds = max(len({q["seed"] for q in s}) for s in sizes.values())
        per_token = [float(np.median([q["C"] / q["D"] for q in s if q["D"]])) for s in sizes.values()]
        total += seeds * sum(per_token) * sum(budgets)
        cells["sizes"] = max(cells["sizes"], len(sizes))
        cells["budgets"] = max(cells["budgets"], len(budgets))
        cells["seeds"] = max(cells["seeds"], seeds)
        cells["runs"] += seeds * len(sizes) * len(budgets)
    return total, cells


def collect_experts(runs: Runs) -> list[dict[str, Any]]:
    """The `experts` part: of each mixture-of-experts run, the tokens of each expert, by layer."""
    out = []
    for r in runs.find("pretrain"):
        layers = [_shares(v) for v in _layers(r.extra.get("expert_load"))]
        layers = [v for v in layers if v][:MOST_LAYERS]
        if not (layers and is_rung(r)):
            continue
        out.append(
            {
                "id": r.id, "name": r.name or r.id, "variant": str(r.extra.get("variant") or "base"),
                "width": r.extra.get("width"), "C": r.lineage_spend.train_flops,
                "D": number((r.data or {}).get("tokens_seen")), "seed": r.seed,
                "balance": (r.model or {}).get("architecture", {}).get("balance"),
                "layers": [
                    {
                        "shares": v, "highest": max(v) * len(v), "lowest": min(v) * len(v),
                        "idle": sum(s < 0.1 / len(v) for s in v),
                    }
                    for v in layers
                ],
            }
        )  # fmt: skip
    return sorted(out, key=lambda e: (e["variant"], -e["C"]))


def _layers(load: Any) -> list[Any]:
    """The load of each layer, given as a list, or as a mapping by layer."""
    if isinstance(load, dict):
        load = load.get("layers", list(load.values()))
    if not isinstance(load, list) or not load:
        return []
    return load if isinstance(load[0], list | dict) else [load]


def _shares(layer: Any) -> list[float]:
    """Shares of the tokens, summing to 1; empty for what is no load."""
    layer = list(layer.values()) if isinstance(layer, dict) else layer
    values = [number(v) for v in layer] if isinstance(layer, list) else []
    total = sum(v for v in values if v is not None)
    if not values or total <= 0 or any(v is None or v < 0 for v in values):
        return []
    return [v / total for v in values if v is not None]


def collect_sources(runs: Runs) -> list[dict[str, Any]]:
    """The `sources` of the data part: every corpus of every data step, in the same words for all kinds."""
    out = []
    steps = runs.find("data")
    for step in steps:
        about = runs.json(step, "about.json")
        corpora = about.get("corpora") if isinstance(about, dict) else None
        for c in corpora if isinstance(corpora, list) else []:
            if not isinstance(c, dict):
                continue
            out.append(
                {
                    "step": (step.name or step.id) if len(steps) > 1 else None, "name": str(c.get("name")),
                    "modality": str(c.get("modality") or "text"), "license": c.get("license"),
                    "source": c.get("source") or c.get("path"),
                    "documents": number(c.get("documents")),
                    "heldout_documents": number(c.get("heldout_documents")),
                    "tokens": number(c.get("tokens")), "heldout_tokens": number(c.get("heldout_tokens")),
                    "duplicates": number(c.get("duplicates_removed", c.get("duplicates"))),
                    "bytes_per_token": number(c.get("bytes_per_token")),
                    "overlap": number(c.get("heldout_ngram_overlap")), "note": c.get("note"),
                }
            )  # fmt: skip
    return out
