"""How much less compute one way of training needs than another for the same loss.

Two variants of a ladder are fitted together with one Chinchilla law whose floor and exponents they share
(fits of their own are ill-conditioned: Volkova et al. 2026, arXiv 2602.07712), in which the other variant
multiplies N by n and D by F / n. A run of it is then worth one of the base with F times its compute, at every
budget: F is the factor, and a parameter with an interval. N is C / 6D, so that F is in FLOPs as counted,
routers and all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from flopwise.errors import FlopwiseError
from flopwise.laws.law import Law, Parameter
from flopwise.pretrain.observations import columns
from flopwise.records.record import Metric

if TYPE_CHECKING:
    from flopwise.pretrain.tuning import Tuning


def factor_law(target: str = "loss") -> Law:
    """The joint law of two variants; column `other` is 1 in runs of the second, 0 in those of the base."""
    return Law(
        name="advantage", regime="pretraining",
        formula=f"{target} = E + A / (N * n^other)^alpha + B / (D * (F / n)^other)^beta",
        parameters=(
            Parameter("E", (0.0, 1e3)), Parameter("A", (1e-6, 1e9), unit="N"),
            Parameter("B", (1e-6, 1e9), unit="D"), Parameter("alpha", (0.05, 2.0)),
            Parameter("beta", (0.05, 2.0)), Parameter("n", (0.05, 20.0)), Parameter("F", (0.02, 50.0)),
        ),
        from_zero=("other",), units={"other": "1 in runs of the other variant, else 0"},
        source="shared exponents, one rescaling each: Volkova et al. 2026, arXiv 2602.07712", status="own",
        needs="three sizes and three token budgets of each variant",
    )  # fmt: skip


def answer(
    rows: list[dict[str, Any]], spec: dict[str, Any], seed: int, tuned: Tuning | None = None
) -> tuple[dict[str, Any], dict[str, Metric]]:
    """comparison.json: each variant's factor over `spec["against"]`, and matched pairs without a law."""
    base = spec["against"]
    others = sorted({row["variant"] for row in rows} - {base})
    if not others:
        raise FlopwiseError(f"law {spec['name']}: there are no runs of any variant but {base}")
    comparison, notes, metrics = {}, [], {}
    for other in others:
        found = advantage([r for r in rows if r["variant"] in (base, other)], base, spec["target"], seed)
        comparison[other] = found
        low, high = found["low"], found["high"]
        verdict = "fewer" if low > 1 else "more" if high < 1 else "not clearly fewer or more"
        notes.append(
            f"{other} needs {1 / found['factor']:.2f} times the FLOPs of {base} for the same "
            f"{spec['target']} (factor {found['factor']:.2f}, 95% interval {low:.2f} to {high:.2f}: "
            f"{verdict})"
        )
        if found["matched"]:
            gap = found["matched_mean"]
            notes.append(
                f"at equal size, tokens and seed ({found['matched']} pairs) {other}'s {spec['target']} is "
                f"{abs(gap):.2%} {'lower' if gap < 0 else 'higher'} "
                f"(standard error {found['matched_se']:.2%})"
            )
        notes += found["warnings"]
        metrics[f"factor_{other}"] = Metric(value=found["factor"], se=found["se"], n=found["clusters"])
    return {"comparison.json": comparison, "notes.json": notes}, metrics


def advantage(rows: list[dict[str, Any]], base: str, target: str = "loss", seed: int = 0) -> dict[str, Any]:
    """Factor F with its 95% interval from the rows of two variants."""
    from flopwise.laws import fit

    table = columns(rows)
    table = {k: v for k, v in table.items() if not k.startswith("N_")} | {
        "N": table["N_flops"], "other": (table["variant"] != base).astype(float),
    }  # fmt: skip
    fitted = fit(factor_law(target), table, cluster="run", seed=seed)
    low, high = fitted.interval("F", 0.95)
    F = fitted.params["F"]
    return {
        "against": base, "factor": F, "low": low, "high": high,
        "se": (high - low) / 2 / 1.96, "n": len(rows), "clusters": fitted.n_clusters,
        "params": fitted.params, "warnings": list(fitted.warnings), **_matched(rows, base, target),
    }  # fmt: skip


def _matched(rows: list[dict[str, Any]], base: str, target: str) -> dict[str, Any]:
    """Relative differences of pairs alike in width, tokens and seed; their standard error over trunks."""
    places = {(r["width"], r["D"], r["seed"]): r[target] for r in rows if r["variant"] == base}
    by_trunk: dict[tuple[Any, Any], list[float]] = {}
    for row in rows:
        where = (row["width"], row["D"], row["seed"])
        if row["variant"] != base and where in places:
            by_trunk.setdefault((row["width"], row["seed"]), []).append(row[target] / places[where] - 1)
    means = np.array([np.mean(v) for v in by_trunk.values()])
    n = len(means)
    return {
        "matched": sum(map(len, by_trunk.values())), "matched_mean": float(means.mean()) if n else None,
        "matched_se": float(means.std(ddof=1) / n**0.5) if n > 1 else float("nan"),
    }  # fmt: skip
