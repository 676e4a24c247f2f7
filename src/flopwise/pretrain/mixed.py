"""Do two kinds of data help or hinder each other? The mixed-modal law on a ladder of one's own.

Each source alone has a law of its own, fitted to the variants that read nothing else. A model that reads two
shows each of them D_i = r_i D tokens; what it loses or gains against models that read those tokens alone is
competition (it falls with size and tokens) or synergy (Aghajanyan et al. 2023, arXiv 2301.03728).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from flopwise.errors import FlopwiseError
from flopwise.pretrain.observations import columns
from flopwise.records.record import Metric

if TYPE_CHECKING:
    from flopwise.laws.result import Fit
    from flopwise.pretrain.tuning import Tuning


def answer(
    rows: list[dict[str, Any]], spec: dict[str, Any], seed: int, tuned: Tuning | None = None
) -> tuple[dict[str, Any], dict[str, Metric]]:
    """mixed.json: laws of single sources, each mixed run's loss over what they say, the mixed-modal law."""
    from flopwise.laws import fit

    alone, mixed = split(rows)
    laws: dict[str, Fit] = {}
    for source, own in alone.items():
        table = _table(own)
        laws[source] = fit("chinchilla", table, cluster="run", seed=seed)
    gaps = [gap for row in mixed for gap in interference(row, laws)]
    if not gaps:
        raise FlopwiseError(
            f"law {spec['name']}: no variant reads two sources that other variants read alone"
        )
    out: dict[str, Any] = {
        "alone": {name: made.to_dict() for name, made in laws.items()}, "interference": gaps
    }  # fmt: skip
    notes, metrics = [], {}
    for source in laws:
        found = summary([g for g in gaps if g["source"] == source])
        if found is None:
            continue
        mean, se, trend, trend_se = found
        way = "higher" if mean > 0 else "lower"
        notes.append(
            f"{source} in mixtures: loss {abs(mean):.2%} {way} than alone on as many tokens of its own "
            f"(standard error {se:.2%}, over trunks); {trend:+.2%} per doubling of size (standard error "
            f"{trend_se:.2%})"
        )
        metrics[f"interference_{source}"] = Metric(value=mean, se=se, n=len({g["run"] for g in gaps}))
    try:
        joint = fit("mixed_modal", _pairs(mixed, laws), cluster="run", seed=seed)
        out["law"] = joint.to_dict()
        low, high = joint.interval("K")
        p = joint.params
        notes.append(
            f"mixed-modal law: synergy K = {p['K']:.3g} nats (95% interval {low:.3g} to {high:.3g}), "
            f"competition {p['A']:.3g} / N^{p['alpha']:.2g} + {p['B']:.3g} / (D1 + D2)^{p['beta']:.2g}"
        )
    except FlopwiseError as e:
        notes.append(f"mixed-modal law: {e}")
    return {"mixed.json": out, "notes.json": notes}, metrics


def split(
    rows: list[dict[str, Any]],
) -> tuple[dict[str, list[dict[str, Any]]], list[dict[str, Any]]]:
    """Rows of runs that read one source, by its name, and those that read several."""
    alone: dict[str, list[dict[str, Any]]] = {}
    mixed = []
    for row in rows:
        read = sources(row)
        if len(read) == 1:
            alone.setdefault(next(iter(read)), []).append(row)
        else:
            mixed.append(row)
    return alone, mixed


def sources(row: dict[str, Any]) -> dict[str, float]:
    """Share of each source that a run read."""
    return {name[6:]: share for name, share in row.items() if name.startswith("share_") and share}


def interference(row: dict[str, Any], laws: dict[str, Fit]) -> list[dict[str, Any]]:
    """For each source of a mixed run: its loss over that of a model of its own on as many tokens, less 1."""
    out = []
    for source, share in sources(row).items():
        if source in laws:
            expected = float(laws[source].predict(N=row["N"], D=share * row["D"]).value)
            out.append({
                "source": source, "variant": row["variant"], "run": row["run"], "width": row["width"],
                "N": row["N"], "D": row["D"], "share": share, "loss": row[f"loss_{source}"],
                "alone": expected, "gap": row[f"loss_{source}"] / expected - 1,
            })  # fmt: skip
    return out


def summary(gaps: list[dict[str, Any]]) -> tuple[float, float, float, float] | None:
    """Mean gap and its standard error over trunks, its slope per doubling of N and that one's."""
    by_run: dict[str, list[dict[str, Any]]] = {}
    for gap in gaps:
        by_run.setdefault(gap["run"], []).append(gap)
    if len(by_run) < 3:
        return None
    y = np.array([np.mean([g["gap"] for g in runs]) for runs in by_run.values()])
    x = np.log2([runs[0]["N"] for runs in by_run.values()])
    n = len(y)
    spread = float(np.square(x - x.mean()).sum())
    if spread == 0:
        return float(y.mean()), float(y.std(ddof=1) / n**0.5), 0.0, float("nan")
    slope = float((x - x.mean()) @ y / spread)
    left = y - y.mean() - slope * (x - x.mean())
    sigma = float(np.sqrt(left @ left / max(1, n - 2)))
    return float(y.mean()), float(y.std(ddof=1) / n**0.5), slope, sigma / spread**0.5


def _pairs(mixed: list[dict[str, Any]], laws: dict[str, Fit]) -> dict[str, np.ndarray]:
    """The mixed-modal law's table: mean loss of two sources, the mean of their own laws, tokens of each."""
    made = []
    for row in mixed:
        read = sources(row)
        if len(read) == 2 and set(read) <= set(laws):
            gaps = interference(row, laws)
            made.append({
                "N": row["N"], "D1": gaps[0]["share"] * row["D"], "D2": gaps[1]["share"] * row["D"],
                "unimodal": (gaps[0]["alone"] + gaps[1]["alone"]) / 2,
                "loss": (gaps[0]["loss"] + gaps[1]["loss"]) / 2, "run": row["run"],
            })  # fmt: skip
    if not made:
        raise FlopwiseError("no run reads exactly two sources that others read alone")
    return columns(made)


def _table(rows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    return columns([{k: row[k] for k in ("N", "D", "loss", "run")} for row in rows])
