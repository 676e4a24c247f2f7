"""Published results on compute-optimal sizes and settings, computed again from the published runs.

`rows(data_dir)` gives one row per result: folder of the data, what it is, the published value, the value
found with its 95% interval, a verdict and a note. Verdicts: "comes out" (within rounding or 2%), "within the
interval", "differs" (outside), "no one value" (the published result is how far the answer moves), "bias"
(what the method returns without any noise, beside the truth in closed form).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from flopwise.laws import fit
from flopwise.laws.envelope import at_budgets, envelope
from flopwise.laws.isoflop import isoflop
from flopwise.laws.isoflop_lines import PowerLaw, power_law
from flopwise.laws.tuning import best_of, tuned
from flopwise.records.table import Table, read_table

Row = dict[str, Any]
POINTS = ("N", "D", "C", "loss")
SEED_NOISE = 0.002
"""Relative scatter of a loss by seed taken for the porian runs (their released points are single runs)."""


def rows(data_dir: str | Path) -> list[Row]:
    """All results, by folder; folders that are not there are left out."""
    out: list[Row] = []
    for folder, results in (
        ("porian_isoflop", porian), ("llama3_isoflop", llama3), ("misfitting", misfitting),
        ("steplaw_dense", steplaw), ("gemstones", gemstones), ("chinchilla_epoch", chinchilla_bias),
    ):  # fmt: skip
        if (Path(data_dir) / folder).is_dir():
            out.extend(results(Path(data_dir) / folder))
    return out


def porian(folder: Path) -> Iterator[Row]:
    """Exponents of N*(C) in 15 settings, from raw points by interpolation; arXiv 2406.19146."""
    points, fits = read_table(folder / "isoflop_points.csv"), read_table(folder / "published_fits.csv")
    for i, setting in enumerate(fits["setting"]):
        mine = _only(points, points["setting"] == setting)
        runs = {name: mine[name].astype(float) for name in POINTS}
        found = isoflop(runs, "akima", noise=SEED_NOISE, bias=False)
        near = isoflop(runs, window=8.0, bias=False)
        for kind, weighted in (("basic", False), ("weighted", True)):
            published = float(fits[f"n_exponent_{kind}"][i])
            law, theirs = found.law("N", weighted), _from_optima(mine, weighted)
            yield _row(
                folder, f"{setting}: exponent of N*(C), {kind}", published, law.exponents["C"],
                law.interval("C"),
                f"from their own optima {theirs.exponents['C']:.4f}; by parabola within a factor 8 "
                f"{near.law('N', weighted).exponents['C']:.3f} ({near.law('N', weighted).n} budgets)",
            )  # fmt: skip


def llama3(folder: Path) -> Iterator[Row]:
    """D* = A C^alpha and the model for 3.8e25 FLOP; arXiv 2407.21783. Two-digit rounding alone moves 16.55T
    from 10T to 17T."""
    table = read_table(folder / "runs.csv")
    flagged = np.array([str(v).lower() == "true" for v in table["outlier"]])
    for reading in ("raw_loss", "exp_loss"):
        for which, kept in (("all runs", flagged | True), ("without flagged runs", ~flagged)):
            runs = _only(table, (table["condition"] == reading) & kept)
            found = isoflop({name: runs[name] for name in POINTS}, bias=False)
            for weighted in (False, True):
                law, size = found.law("D", weighted), found.law("N", weighted)
                where = f"{reading}, {which}, {'weighted' if weighted else 'plain'}"
                note = f"parabola of log loss, {law.n} budgets"
                yield _row(folder, f"{where}: alpha", 0.53, law.exponents["C"], law.interval("C"), note)
                yield _row(folder, f"{where}: A", 0.29, law.coefficient, _coefficient(law), note, 0.05)
                D, low, high = law.predict(C=3.8e25)
                yield _row(folder, f"{where}: tokens at 3.8e25", 16.55e12, D, (low, high), note, 0.05)
                N, low, high = size.predict(C=3.8e25)
                yield _row(folder, f"{where}: parameters at 3.8e25", 402e9, N, (low, high), note, 0.05)


def misfitting(folder: Path) -> Iterator[Row]:
    """How far the exponent of N*(C) moves with what is fitted; arXiv 2502.18969."""
    table = read_table(folder / "runs.csv")
    for size in ("N", "N_no_emb"):
        whole = {"N": table[size], **{name: table[name] for name in ("D", "loss", "peak_lr")}}
        best = best_of(whole, over="peak_lr")
        edge = int((best["how"] == "edge").sum())
        for runs_name, runs in (("all runs", whole), ("best learning rate", best)):
            for cut, kept in (("", runs["D"] > 0), (", D >= 1e9", runs["D"] >= 1e9)):
                mine = _only({name: runs[name] for name in ("N", "D", "loss")}, kept)
                for loss in ("log_huber", "squared"):
                    made = _approach_3(mine, loss)
                    yield _row(
                        folder, f"approach 3, {size}, {runs_name}{cut}, {loss}: exponent", "0.4 to 0.7",
                        made[0], made[1], made[2],
                    )  # fmt: skip
            for method in ("parabola", "akima"):
                made = isoflop(
                    {name: runs[name] for name in ("N", "D", "loss")}, method, tolerance=0.25, bias=False,
                    repeats="min",
                )  # fmt: skip
                what = f"approach 2 ({method}), {size}, {runs_name}, budgets within 25%: exponent"
                usable = sum(b.usable for b in made.budgets)
                note = f"{usable} of {len(made.budgets)} budgets have a minimum; not an isoFLOP design"
                if runs is best:
                    note += f"; {edge} of {len(best['N'])} sweeps are lowest at the edge of the rates"
                value = (made.a, made.law("N").interval("C")) if made.laws else (None, None)
                yield _row(folder, what, "0.4 to 0.7", *value, note)


def steplaw(folder: Path) -> Iterator[Row]:
    """Learning rate and batch of least smoothed loss, by quadratic bowls; arXiv 2503.04715."""
    table = read_table(folder / "runs.csv")
    forms = {"lr": ("N", "D"), "bs_tokens": ("D",)}
    for within in (0.01, 0.02, 0.04):
        found = tuned(table, target="smooth_loss", laws=forms, within=within)
        rate, batch = found.laws["lr"], found.laws["bs_tokens"]
        note = f"bowls within {within:.0%} of the best, {rate.n} of {len(found.bowls)} minima inside the grid"
        for what, published, law, name in (
            ("lr*: power of N", -0.713, rate, "N"), ("lr*: power of D", 0.307, rate, "D"),
            ("bs* in tokens: power of D", 0.571, batch, "D"),
        ):  # fmt: skip
            what = f"{what}, within {within:.0%}"
            yield _row(folder, what, published, law.exponents[name], law.interval(name), note)
        what = f"bs* in tokens: coefficient, within {within:.0%}"
        yield _row(folder, what, 0.58, batch.coefficient, _coefficient(batch), note, 0.1)


def gemstones(folder: Path) -> Iterator[Row]:
    """How far the exponent moves with checkpoints, delta, loss and method; arXiv 2502.06857. Runs are the
    clusters. Embeddings are in N: the table has no count without them."""
    table = read_table(folder / "losses.csv")
    for data in ("fineweb_dclm", "fineweb_edu"):
        mine = _only(table, table["eval_set"] == data)
        columns = {name: mine[name] for name in ("N", "D", "loss", "run")}
        D = columns["D"]
        for which, kept in (
            ("all checkpoints", D > 0), ("to 100B tokens", D < 1.05e11), ("from 100B tokens", D > 0.95e11),
        ):  # fmt: skip
            for loss, delta in (("log_huber", 1e-3), ("log_huber", 1e-4), ("log_squared", 1e-3)):
                made = _approach_3(_only(columns, kept), loss, delta, "run")
                how = f"{loss} {delta:g}" if loss == "log_huber" else loss
                yield _row(folder, f"approach 3, {data}, {which}, {how}: exponent", None, *made)
        line = envelope(columns)
        note = f"{line.holders} of {line.runs} runs are anywhere lowest; bootstrap by run"
        what = f"approach 1 (envelope), {data}: exponent"
        yield _row(folder, what, None, line.a, line.laws["N"].interval("C"), note)
        slices = at_budgets(columns, np.geomspace(6e19, 3e21, 8))
        for method in ("parabola", "akima"):
            found = isoflop(slices, method, bias=False)
            note = f"{found.law('N').n} of {len(found.budgets)} budgets read off the curves have a minimum"
            what = f"approach 2 ({method}), {data}: exponent"
            yield _row(folder, what, None, found.a, found.law("N").interval("C"), note)


def chinchilla_bias(folder: Path) -> Iterator[Row]:
    """What approach 2 returns without noise for the law of 240 Chinchilla runs; truth in closed form."""
    table = read_table(folder / "runs.csv")
    law = fit("chinchilla", _only(table, table["outlier"] == 0))
    p = law.params
    for sizes, ends in (("7e7 to 1.6e10", (7e7, 1.6e10)), ("2e8 to 3e10", (2e8, 3e10))):
        N, C = (v.ravel() for v in np.meshgrid(np.geomspace(*ends, 9), np.geomspace(6e18, 3e21, 9)))
        loss = p["E"] + p["A"] / N ** p["alpha"] + p["B"] / (C / (6 * N)) ** p["beta"]
        for scale in ("log", "plain"):
            found = isoflop({"N": N, "D": C / (6 * N), "C": C, "loss": loss}, scale=scale, bias=law)
            assert found.bias is not None
            minima = [m for m in found.bias.minima if m is not None]
            what = f"approach 2 without noise, sizes {sizes}, parabola of {scale} loss: exponent"
            note = f"off by {found.bias.off['plain']:+.4f}; minima {min(minima):.2f} to {max(minima):.2f} "
            row = _row(folder, what, found.bias.true, found.bias.found["plain"], None, note + "of the true")
            yield row | {"verdict": "bias"}


def _approach_3(
    columns: Table, loss: str, delta: float = 1e-3, cluster: str | None = None
) -> tuple[float, tuple[float, float], str]:
    """beta / (alpha + beta) of a Chinchilla law, its interval over the fit's draws, and what to mind."""
    made = fit("chinchilla", columns, loss=loss, delta=delta, cluster=cluster)
    drawn = [d["beta"] / (d["alpha"] + d["beta"]) for d in made.draws(2000) if d["alpha"] + d["beta"] > 0]
    p = made.params
    low, high = np.quantile(drawn, [0.025, 0.975])
    note = f"{made.n} points, E {p['E']:.3g}, alpha {p['alpha']:.3f}, beta {p['beta']:.3f}, {made.status}"
    return p["beta"] / (p["alpha"] + p["beta"]), (float(low), float(high)), note


def _from_optima(points: Table, weighted: bool) -> PowerLaw:
    """The line through published optima, one per budget."""
    first = np.unique(points["C"], return_index=True)[1]
    C, N, se = (points[name][first].astype(float) for name in ("C", "n_star", "n_star_log_std"))
    kept = np.isfinite(N)
    return power_law("N", N[kept], {"C": C[kept]}, se[kept] if weighted else None)


def _coefficient(law: PowerLaw) -> tuple[float, float]:
    """Interval of a coefficient: the line where each variable is 1."""
    _, low, high = law.predict(**dict.fromkeys(law.centre, 1.0))
    return low, high


def _only(table: Table, kept: np.ndarray) -> Table:
    return {name: np.asarray(values)[kept] for name, values in table.items()}


def _row(
    folder: Path, what: str, published: float | str | None, found: float | None,
    interval: tuple[float, float] | None, note: str, within: float = 0.02,
) -> Row:  # fmt: skip
    if not isinstance(published, float) or found is None:
        verdict = "no one value"
    elif abs(found - published) <= within * abs(published):
        verdict = "comes out"
    else:
        inside = interval is not None and interval[0] <= published <= interval[1]
        verdict = "within the interval" if inside else "differs"
    return {
        "folder": folder.name, "what": what, "published": published, "found": found,
        "interval": list(interval) if interval else None, "verdict": verdict, "note": note,
    }  # fmt: skip
