"""Laws of the best learning rate and batch, from sweeps at several sizes and budgets.

The minimum of each size and budget becomes a row with its standard error; the catalogue's forms `lr`, `batch`
(Step law, Li et al. 2025, arXiv 2503.04715) and `critical_batch` (Kaplan et al. 2020, arXiv 2001.08361, eq.
1.4) are fitted to those rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from flopwise.errors import FlopwiseError
from flopwise.laws.bowl import quadratic
from flopwise.laws.law import Array
from flopwise.laws.tuning import bowls
from flopwise.pretrain.tuning_fit import WITHIN

if TYPE_CHECKING:
    from flopwise.laws.result import Fit
    from flopwise.pretrain.tuning_fit import Tuning
    from flopwise.records.record import Metric

Columns = dict[str, Array]


def optima(rows: Iterable[Mapping[str, Any]], *, rate: float, seq_len: int) -> Columns:
    """The best rate, and where three batches or more were tried the best batch, of each size and budget.

    Args:
        rows: runs with N, D, rate_factor, batch_size (sequences), seed and loss (`pretrain.tuning.row`).
        rate: the hidden rate at factor 1. Sweeps for a law run under the rule `constant`, so that it is the
            same at every size; under another rule the law is one of the factor that the rule leaves open.
        seq_len: tokens of a sequence.

    Returns:
        Columns N, D, lr, lr_se (of its logarithm), loss at the minimum, runs, and batch (tokens), batch_se
        where batches were tried. Sizes and budgets without a minimum among the settings are left out.

    Raises:
        FlopwiseError: no size and budget has a minimum.
    """
    found = [r for r in rows if 0 < float(r["loss"] or 0) < math.inf]
    names = {"N": "N", "D": "D", "lr": "rate_factor", "bs_tokens": "batch_size", "loss": "loss"}
    table = {name: np.array([float(r[key]) for r in found]) for name, key in names.items()}
    seeds = np.array([int(r.get("seed", 0)) for r in found])
    if not found:
        raise FlopwiseError("rates: no finished run of a sweep; its records need a loss")
    table["lr"] *= rate
    table["bs_tokens"] *= seq_len
    several = len(np.unique(table["bs_tokens"])) > 2
    made = _of_bowls(table) if several else _of_curves(table, seeds)
    if not made:
        raise FlopwiseError(
            "rates: no size and budget has its lowest loss inside the settings tried; widen rates or batches"
        )
    return {name: np.array([m[name] for m in made]) for name in made[0]}


def _of_bowls(table: Columns) -> list[dict[str, float]]:
    return [
        {
            **b.group, "lr": b.at["lr"], "lr_se": b.se["lr"], "batch": b.at["bs_tokens"],
            "batch_se": b.se["bs_tokens"], "loss": b.loss or math.nan, "runs": b.n,
        }
        for b in bowls(table, within=WITHIN)
        if b.at is not None and b.se is not None
    ]  # fmt: skip


def _of_curves(table: Columns, seeds: Array) -> list[dict[str, float]]:
    """Noise is pooled over all curves, and never below what they leave together."""
    groups = {}
    for n, d in sorted(set(zip(table["N"].tolist(), table["D"].tolist(), strict=True))):
        m = np.flatnonzero((table["N"] == n) & (table["D"] == d))
        m = m[table["loss"][m] <= (1 + WITHIN) * table["loss"][m].min()]
        q = quadratic(np.log(table["lr"][m])[None], np.log(table["loss"][m]), seeds[m])
        if q is not None:
            groups[n, d] = q, len(m)
    dof = sum(q.dof for q, _ in groups.values())
    sigma = math.sqrt(sum(q.rss for q, _ in groups.values()) / max(dof, 1))
    return [
        {"N": n, "D": d, "lr": math.exp(q.at[0]), "lr_se": math.sqrt(q.covariance(sigma)[0, 0]),
         "loss": math.exp(q.lowest), "runs": runs}
        for (n, d), (q, runs) in groups.items()
        if q.convex and q.box[0, 0] <= q.at[0] <= q.box[0, 1]
    ]  # fmt: skip


def critical_batches(table: Mapping[str, Any], targets: Sequence[float] | None = None) -> Columns:
    """The batch at which reaching a loss costs twice the least tokens, for several losses of one size.

    Tokens to a loss at batch B are Dmin (1 + B / Bcrit) (McCandlish et al. 2018, arXiv 1812.06162, section
    2.3: (S / Smin - 1) (E / Emin - 1) = 1); they are read off each batch's curve of loss by tokens.

    Args:
        table: columns N, D, batch (tokens) and loss: for one N, three batches at two budgets or more each.
        targets: losses; by default five that all batches reach between their first and last budget.

    Returns:
        Columns loss, batch (Bcrit in tokens), batch_se (of its logarithm), D (Dmin), one row per loss.

    Raises:
        FlopwiseError: fewer than three batches, or no loss that all of them reach.
    """
    curves = {}
    batch, D, loss = (np.asarray(table[name], dtype=float) for name in ("batch", "D", "loss"))
    if len(np.unique(np.asarray(table["N"]))) > 1:
        raise FlopwiseError("critical batch: rows of several sizes; take one, as --where 'width = 64'")
    for b in np.unique(batch):
        at = np.unique(D[batch == b])
        if len(at) > 1:
            curves[float(b)] = at, np.array([loss[(batch == b) & (d == D)].mean() for d in at])
    low = max((y.min() for _, y in curves.values()), default=1.0)
    high = min((y.max() for _, y in curves.values()), default=0.0)
    if len(curves) < 3 or low >= high:
        raise FlopwiseError(
            f"critical batch: {len(curves)} batches have two budgets or more"
            f"{' but no loss is reached by all' if len(curves) > 2 else ', three are needed'}"
        )
    inner = np.linspace(high, low, 7)[1:-1] if targets is None else np.asarray(targets, dtype=float)
    made = [_critical(curves, float(y)) for y in inner if low <= y <= high]
    kept = [m for m in made if m is not None]
    if not kept:
        raise FlopwiseError("critical batch: tokens do not rise with the batch; add larger batches")
    return {name: np.array([m[name] for m in kept]) for name in kept[0]}


def _critical(curves: Mapping[float, tuple[Array, Array]], target: float) -> dict[str, float] | None:
    B = np.array([*curves])
    # Loss falls with tokens; np.interp wants it rising.
    need = np.array([np.interp(-target, -y, np.log(d)) for d, y in curves.values()])
    ratios = np.geomspace(B[0] / 30, B[-1] * 100, 2000)
    shape = np.log1p(B / ratios[:, None])
    r = need - shape
    r = r - r.mean(axis=1, keepdims=True)
    cost = (r**2).sum(axis=1)
    i = int(cost.argmin())
    if i in (0, len(ratios) - 1):
        return None
    slope = (B / ratios[i]) / (1 + B / ratios[i])  # of the shape by minus log Bcrit
    slope = slope - slope.mean()
    sigma = math.sqrt(cost[i] / max(len(B) - 2, 1))
    least = float(np.exp((need - shape[i]).mean()))
    return {
        "loss": target,
        "batch": float(ratios[i]),
        "batch_se": sigma / float(np.linalg.norm(slope)),
        "D": least,
    }


def answer(
    rows: list[dict[str, Any]], spec: dict[str, Any], seed: int, tuned: Tuning | None = None
) -> tuple[dict[str, Any], dict[str, Metric]]:
    """rates.json: best settings of each size and budget, critical batches of each size, laws of all three.

    Args:
        rows: of `pretrain.observations`: rate (a factor), batch (sequences), width, N, D, seed, loss.
        spec: seq_len, and rate, the hidden rate at factor 1 (1 without: laws are of the factor).
    """
    from flopwise.records.record import Metric

    sweep = [{**r, "rate_factor": r["rate"], "batch_size": r["batch"]} for r in rows]
    found = optima(sweep, rate=float(spec.get("rate") or 1.0), seq_len=spec["seq_len"])
    parts, words = [], []
    for width in sorted({r["width"] for r in rows}):
        own = [r for r in rows if r["width"] == width]
        best: dict[tuple[float, float], dict[str, Any]] = {}
        for r in own:  # every batch at its best rate
            key = r["batch"], r["D"]
            best[key] = min(best.get(key, r), r, key=lambda row: row["loss"])
        table = {
            name: np.array([float(r[name]) for r in best.values()]) for name in ("N", "D", "loss", "batch")
        }
        table["batch"] *= spec["seq_len"]
        try:
            parts.append(critical_batches(table))
        except FlopwiseError as e:
            words.append(f"width {width}: {e}")
    critical = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]} if parts else None
    fits, missing = rate_laws(found, critical)
    notes = [_sentence(law, made) for law, made in fits.items()] + missing + words
    files = {
        "rates.json": {
            "optima": _rows(found), "critical": _rows(critical) if critical else [],
            "laws": {law: made.to_dict() for law, made in fits.items()},
        },
        "notes.json": notes,
    }  # fmt: skip
    metrics = {
        f"{law}_{name}": Metric(value=float(value), n=made.n)
        for law, made in fits.items()
        for name, value in made.params.items()
    }
    return files, metrics


def _sentence(law: str, made: Fit) -> str:
    """The law with the intervals of its exponents."""
    ends = {p: made.interval(p) for p in made.params}
    said = ", ".join(f"{p} {v:.3g} ({ends[p][0]:.3g} to {ends[p][1]:.3g})" for p, v in made.params.items())
    return f"{made.form.formula}: {said}; {made.n} best settings"


def _rows(columns: Columns) -> list[dict[str, float]]:
    return [
        dict(zip(columns, map(float, values), strict=True)) for values in zip(*columns.values(), strict=True)
    ]


def rate_laws(columns: Columns, critical: Columns | None = None) -> tuple[dict[str, Fit], list[str]]:
    """Fits of `lr`, `batch` and `critical_batch` to what `optima` and `critical_batches` found.

    Returns:
        Fits by law, and a sentence for each law that the rows cannot give.
    """
    from flopwise.laws.fitting import fit

    fits, words = {}, []
    tables = {"lr": columns, "batch": columns if "batch" in columns else None, "critical_batch": critical}
    for law, table in tables.items():
        if table is None:
            words.append(f"{law}: no sweep over batches")
            continue
        try:
            fits[law] = fit(law, table, loss="log_squared")
        except FlopwiseError as e:
            words.append(f"{law}: {e}")
    return fits, words
