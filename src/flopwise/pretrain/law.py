"""The pretraining law of a ladder: chosen on its own largest rung, then asked about a run nobody has made."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from flopwise.flops.count import count_params, train_flops
from flopwise.models.config import ModelConfig

if TYPE_CHECKING:
    from flopwise.records.folder import RunFolder
    from flopwise.records.record import RunRecord


def observation(record: RunRecord) -> dict[str, Any]:
    """One row of the fit's table from a finished cooldown run.

    N counts non-embedding parameters (Kaplan et al., arXiv 2001.08361, section 2.1: the count that makes
    small models line up), D tokens seen from the trunk's start, C the measured training FLOPs of its lineage,
    `run` the trunk, which is the cluster: branches of one trunk share its noise.
    """
    assert record.model is not None and record.data is not None  # pretraining has both
    shape = record.model["architecture"]
    loss = record.metrics["loss"]
    return {
        "id": record.id, "width": shape["d_model"], "seed": record.seed,
        "N": float(record.model["n_params_non_embedding"]), "N_total": float(record.model["n_params_total"]),
        "D": float(record.data["tokens_seen"]), "C": float(record.lineage_spend.train_flops),
        "loss": loss.value, "loss_se": loss.se, "run": f"w{shape['d_model']}-s{record.seed}",
    }  # fmt: skip


def columns(rows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Rows as a table of columns."""
    return {key: np.array([row[key] for row in rows]) for key in rows[0]}


def run_step(folder: RunFolder, parents: dict[str, RunFolder], progress: Callable[[float], None]) -> None:
    """Fit every candidate, choose by back-test, predict the held-out run in writing, before it is run."""
    from flopwise.flops.spend import Stopwatch
    from flopwise.laws import choose
    from flopwise.records.folder import atomic_write
    from flopwise.records.record import Metric

    watch = Stopwatch()
    spec = folder.spec
    rows = [observation(f.record()) for f in parents.values()]
    rows.sort(key=lambda r: (r["N"], r["seed"], r["D"]))
    table = columns(rows)
    progress(0.1)
    choice = choose(table, spec["candidates"], target="loss", cluster="run", by="N", seed=folder.seed)
    progress(0.8)
    cfg = ModelConfig(**spec["model"])
    N, D = float(count_params(cfg).non_embedding), float(spec["held_out"]["tokens"])
    C = D / spec["seq_len"] * train_flops(cfg, spec["seq_len"]).total
    prediction = choice.fit.predict(N=N, D=D, level=0.95)
    choice.fit.to_json(folder.path / "fit.json")
    folder_files = {
        "points.json": rows,
        "choice.json": choice.to_dict(),
        "prediction.json": {
            "N": N, "D": D, "C": C, "width": cfg.d_model, "level": 0.95, "value": float(prediction.value),
            "low": float(prediction.low), "high": float(prediction.high), "law": choice.fit.law,
            "extrapolation": prediction.extrapolation, "made_at": time.time(),
        },
    }  # fmt: skip
    for name, content in folder_files.items():
        atomic_write(folder.path / name, json.dumps(content, indent=1, default=float))
    half = (float(prediction.high) - float(prediction.low)) / 2
    folder.finish(
        metrics={
            "predicted_loss": Metric(value=float(prediction.value), se=half / 1.96, n=len(rows)),
            "predicted_low": Metric(value=float(prediction.low), se=None, n=None),
            "predicted_high": Metric(value=float(prediction.high), se=None, n=None),
        },
        spend=watch.spend(tokens=0),
    )
