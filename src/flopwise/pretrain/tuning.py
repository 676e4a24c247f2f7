"""A small search over rate and batch at a few rungs, before the ladder: its runs, its step, its outcome.

What the finished runs say is worked out in `tuning_fit`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flopwise.errors import FlopwiseError
from flopwise.pretrain.mistuned import mistuned
from flopwise.pretrain.tuning_fit import Rung, Tuning, fit_tuning

if TYPE_CHECKING:
    from flopwise.records.folder import RunFolder
    from flopwise.records.record import RunRecord

__all__ = [
    "Rung",
    "Tuning",
    "fit_tuning",
    "grid",
    "mistuned",
    "read",
    "run_step",
    "tuned_batch",
    "tuned_factor",
]

TUNING_FILE = "tuning.json"


def grid(
    widths: Sequence[int], rates: Sequence[float], batches: Sequence[int], seeds: Sequence[int],
    batch_size: int,
) -> list[dict[str, Any]]:  # fmt: skip
    """Every run of the search: width, rate_factor, batch_size (sequences) and seed.

    No `batches`: the ladder's own, `batch_size`, alone.

    Raises:
        FlopwiseError: too few rates to judge a parabola by, or two batches, which show no minimum.
    """
    us, vs = sorted({float(r) for r in rates}), sorted(set(batches) or {batch_size})
    if len(us) < (3 if len(seeds) * len(vs) > 1 else 4):
        raise FlopwiseError(
            f"tuning: {len(us)} rates leave nothing to judge a parabola by; give five, as 0.5, 0.7, 1, 1.4, 2"
        )
    if len(vs) == 2:
        raise FlopwiseError(f"tuning: batches {vs[0]} and {vs[1]} show no minimum; give three, or one")
    return [
        {"width": w, "rate_factor": u, "batch_size": v, "seed": s}
        for s in seeds
        for w in sorted(set(widths))
        for v in vs
        for u in us
    ]


def row(record: RunRecord) -> dict[str, Any]:
    """A search's run as `fit_tuning` takes it, with N, D and C for laws of rate and batch."""
    assert record.model is not None and record.data is not None
    extra = record.extra
    return {
        "width": int(extra["width"]), "rate_factor": float(extra["rate_factor"]),
        "batch_size": int(extra["batch_size"]), "seed": record.seed, "loss": record.metrics["loss"].value,
        "N": float(record.model["n_params_non_embedding"]), "D": float(record.data["tokens_seen"]),
        "C": float(record.lineage_spend.train_flops),
    }  # fmt: skip


def run_step(folder: RunFolder, parents: dict[str, RunFolder], progress: Callable[[float], None]) -> None:
    """Fit the finished search and write tuning.json, which later steps of the ladder read.

    `folder.spec`: batch_size (the ladder's own), level.
    """
    from flopwise.flops.spend import Stopwatch
    from flopwise.records.folder import atomic_write
    from flopwise.records.record import Metric

    watch = Stopwatch()
    runs = [f.record() for f in parents.values()]
    rows = [row(r) for r in runs if "loss" in r.metrics]
    made = fit_tuning(rows, batch_size=folder.spec["batch_size"], level=folder.spec.get("level", 0.95))
    content = {**made.to_dict(), "curves": _curves(made, rows), "runs": rows}
    atomic_write(folder.path / TUNING_FILE, json.dumps(content, indent=1))
    progress(1.0)
    folder.finish(
        metrics={
            "rate_factor": Metric(value=made.rate_factor, n=len(rows)),
            "batch_size": Metric(value=float(made.batch_size), n=len(rows)),
        },
        spend=watch.spend(tokens=0),
        extra={"words": made.words},
    )  # fmt: skip


def _curves(made: Tuning, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Losses over the rate factor for each width and batch, for figures; the fitted best beside its batch."""
    out = []
    for rung in made.to_dict()["rungs"]:
        for batch in sorted({r["batch_size"] for r in rows if r["width"] == rung["width"]}):
            own = [r for r in rows if (r["width"], r["batch_size"]) == (rung["width"], batch)]
            points = [{"rate_factor": r["rate_factor"], "loss": r["loss"]} for r in own]
            curve = {"width": rung["width"], "batch_size": batch, "points": points}
            if batch == made.batch_size and rung["where"] == "inside":
                curve |= {"best": rung["rate_factor"], "low": rung["low"], "high": rung["high"]}
            out.append(curve)
    return out


def read(path: Path) -> Tuning:
    """The outcome in a tuning step's folder.

    Raises:
        FlopwiseError: there is none, or it is damaged.
    """
    try:
        found = json.loads((path / TUNING_FILE).read_text(encoding="utf-8"))
        return Tuning.from_dict({k: v for k, v in found.items() if k not in ("curves", "runs")})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise FlopwiseError(
            f"tuning: {path / TUNING_FILE} cannot be read ({type(e).__name__}); delete it and run again"
        ) from e


def tuned_factor(folder: RunFolder | None, width: int | None = None) -> float:
    """The rate factor of a tuning step's folder for a width; 1 without a search."""
    if folder is None:
        return 1.0
    made = read(folder.path)
    return made.rate_factor if width is None else made.factor(width)


def tuned_batch(folder: RunFolder | None, default: int) -> int:
    """The batch of a tuning step's folder, in sequences; `default` without a search."""
    return default if folder is None else read(folder.path).batch_size
