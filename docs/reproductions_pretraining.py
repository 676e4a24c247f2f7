"""Published laws of pretraining, fitted again to the published runs.

`rows(data_dir)` gives one row per result: folder of the data, what it is, the published value, the value found
with its 95% interval, a verdict ("comes out", "within the interval", "does not come out", "nothing published
for these data") and a note.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from flopwise.laws import fit, get
from flopwise.records.table import Table, read_table

Row = dict[str, Any]
YES, INSIDE, NO = "comes out", "within the interval", "does not come out"
OWN = "nothing published for these data"
C4_BASE = {"A": np.exp(6.255414), "B": np.exp(7.3049974), "E": np.exp(0.6254804), "alpha": 0.3526596,
           "beta": 0.3526596}  # fmt: skip
"""Muennighoff et al. 2023: fitted by them to 54 runs of one epoch that are not in the table."""
CLARK = {
    "S-Base": (-0.082, -0.108, 0.009, 1.104, 1.847, 314.478),
    "RL-R": (-0.083, -0.126, 0.012, 1.111, 1.880, 469.982),
    "Hash": (-0.087, -0.136, 0.012, 1.157, 4.175, 477.741),
}
"""Clark et al. 2022, table 3: a, b, c, d, Es, Em."""


def rows(data_dir: str | Path) -> list[Row]:
    """All results, by folder; folders that are not there are left out."""
    out: list[Row] = []
    for folder, results in (
        ("chinchilla_epoch", chinchilla), ("data_constrained_c4", data_constrained),
        ("clark_moe_routing", clark), ("data_mixture_bimix", bimix),
        ("extrapolation_vision", vision), ("hitchhiker_opt", hitchhiker),
    ):  # fmt: skip
        if (Path(data_dir) / folder).is_dir():
            out += [{"folder": folder} | row for row in results(Path(data_dir) / folder)]
    return out


def _row(what: str, published: object, found: object, interval: object, verdict: str, note: str = "") -> Row:
    return {"what": what, "published": published, "found": found, "interval": interval, "verdict": verdict,
            "note": note}  # fmt: skip


def _only(table: Table, kept: np.ndarray) -> Table:
    return {name: values[kept] for name, values in table.items()}


def chinchilla(folder: Path) -> Iterator[Row]:
    """240 runs of Hoffmann et al. as Besiroglu et al. 2024 recovered them, arXiv 2404.10102."""
    table = read_table(folder / "runs.csv", where="outlier = 0")
    fitted = fit("chinchilla", table)
    yield _row("objective, sum of Huber terms, delta 1e-3", 0.00101827402901, fitted.objective, "",
               YES if fitted.objective <= 0.00101827402 else NO, "theirs from 4,500 starts")  # fmt: skip
    published = {"E": (1.81722, 0.03), "A": (477.83, 124.58), "B": (2143.4, 1293.23),
                 "alpha": (0.347311, 0.02), "beta": (0.367172, 0.02)}  # fmt: skip
    resampled = fit("chinchilla", table, bootstrap=4000)
    assert resampled.samples is not None
    errors = np.exp(resampled.samples).std(axis=0)
    for i, (name, (value, error)) in enumerate(published.items()):
        close = abs(fitted.params[name] - value) < 0.1 * error
        yield _row(name, value, fitted.params[name], fitted.interval(name), YES if close else NO)
        exact = {"E": 0.0257, "A": 124.5, "B": 1293.0, "alpha": 0.0154, "beta": 0.0206}[name]
        found = float(errors[fitted.form.names.index(name)])
        yield _row(
            f"bootstrap standard error of {name}, 4,000 converged draws", exact, found, "",
            YES if abs(found / exact - 1) < 0.1 else NO, f"seed {0}" if not i else "",
        )  # fmt: skip
    hoffmann = fit("chinchilla", table, fixed={"beta": 0.28491})
    yield _row(
        "Hoffmann et al.'s beta on these runs: objective with beta held at .28491", "", hoffmann.objective, "",
        NO if hoffmann.objective > 1.1 * fitted.objective else YES,
        f"at the optimum {fitted.objective:.6f}; their printed parameters are not the optimum of their own aim",
    )  # fmt: skip


def data_constrained(folder: Path) -> Iterator[Row]:
    """The 182 runs with repeated data that Muennighoff et al. fitted, arXiv 2305.16264."""
    table = read_table(folder / "runs.csv", where="in_fit = 1")
    law = get("data_constrained")
    point = {"N": np.array([6.34e9]), "D": np.array([242e9]), "U": np.array([25e9])}
    value = float(law(C4_BASE | {"RD": 15.387756, "RN": 5.309743}, point)[0])
    yield _row("the law at N 6.34e9, D 242e9, U 25e9", 2.2256440889984477, value, "",
               YES if abs(value / 2.2256440889984477 - 1) < 1e-9 else NO)  # fmt: skip
    fitted = fit(law, table, fixed=C4_BASE)
    yield _row("objective over (RD, RN), base constants held", 0.0158259366, fitted.objective, "",
               YES if fitted.objective <= 0.0158047 else NO,
               "lower than published: their search stopped early")  # fmt: skip
    for name, published in (("RD", 15.387756), ("RN", 5.309743)):
        low, high = fitted.interval(name)
        said = next((w for w in fitted.warnings if w.startswith(f"{name} is")), "")
        yield _row(name, published, fitted.params[name], (low, high),
                   INSIDE if low <= published <= high else NO, said)  # fmt: skip


def clark(folder: Path) -> Iterator[Row]:
    """Routed models of Clark et al. 2022, arXiv 2202.01169: the law with saturation, by router."""
    table = read_table(folder / "final_losses.csv")
    table["experts"] = table["E"]
    for router, published in CLARK.items():
        kept = np.isin(table["router_type"].astype(str), [router, "Dense"]) & (table["k"] == 1)
        kept &= (table["routing_frequency"] == 0.5) | (table["router_type"] == "Dense")
        fitted = fit("moe_clark", _only(table, kept), loss="log_squared")
        for name, value in zip(("a", "b", "c", "d", "Es", "Em"), published, strict=True):
            low, high = fitted.interval(name)
            yield _row(f"{router}: {name}", value, fitted.params[name], (low, high),
                       INSIDE if low <= value <= high else NO,
                       f"{fitted.n} rows" if name == "a" else "")  # fmt: skip


def bimix(folder: Path) -> Iterator[Row]:
    """BiMix, Ge et al. 2024, arXiv 2405.14908: fitted on four mixtures, tested on two others, by domain."""
    table = read_table(folder / "losses.csv", {"S": "step_10k", "r": "proportion", "loss": "ppl"})
    for corpus in ("Pile", "SlimPajama"):
        errors = []
        for domain in np.unique(table["domain"][table["corpus"] == corpus].astype(str)):
            mine = _only(table, (table["corpus"] == corpus) & (table["domain"] == domain) & (table["r"] > 0))
            seen = np.isin(mine["mixture"].astype(str), ["SE", "JE", "CE", "VNE"])
            fitted = fit("bimix", _only(mine, seen), cluster="mixture", intervals="delta")
            held = _only(mine, ~seen)
            p = fitted.predict(S=held["S"].astype(float), r=held["r"].astype(float))
            errors.append(np.abs(p.value / held["loss"].astype(float) - 1).mean())
        yield _row(
            f"{corpus}: mean relative error on the mixtures left out, over {len(errors)} domains", "",
            float(np.mean(errors)), (float(np.min(errors)), float(np.max(errors))), OWN,
            "found: mean; interval: best and worst domain. The source calls the target ppl",
        )  # fmt: skip


def vision(folder: Path) -> Iterator[Row]:
    """72 curves of Alabdulmohsin et al. 2022, arXiv 2209.06640: error of the extrapolation in logarithms."""
    table = read_table(folder / "curves.csv")
    keys = np.array([f"{d}|{t}|{m}" for d, t, m in zip(table["domain"], table["task"], table["model"], strict=True)])
    laws = ("m1", "m2", "m3", "m4", "bnsl")
    scores: list[list[float]] = []
    for key in np.unique(keys):
        mine = _only(table, keys == key)
        train = mine["is_train"] == 1
        y = get("m1").target
        seen = {"x": mine["x"][train].astype(float), y: mine["loss"][train].astype(float)}
        x, truth = mine["x"][~train].astype(float), mine["loss"][~train].astype(float)
        row = []
        for law in laws:
            fitted = fit(law, seen, loss="log_squared", intervals="delta")
            row.append(float(np.sqrt(np.mean((np.log(fitted.predict(x=x).value) - np.log(truth)) ** 2))))
        scores.append(row)
    S = np.array(scores)
    best = np.bincount(S.argmin(axis=1), minlength=len(laws)) / len(S)
    for i, law in enumerate(laws):
        published = 0.6944 if law == "bnsl" else ""
        yield _row(
            f"{law}: share of {len(S)} curves on which it extrapolates best", published, float(best[i]), "",
            OWN if law != "bnsl" else YES if abs(best[i] - 0.6944) < 0.1 else NO,
            f"root mean square error in logarithms: mean {S[:, i].mean():.4f}, median {np.median(S[:, i]):.4f}",
        )  # fmt: skip


def hitchhiker(folder: Path) -> Iterator[Row]:
    """OPT trajectories in Choshen et al. 2024, arXiv 2410.11840: the largest model from the smaller ones."""
    table = read_table(folder / "curves.csv" if (folder / "curves.csv").is_file() else folder)
    N, D, loss = (table[c].astype(float) for c in ("N", "D", "loss"))
    last = np.array([D[table["model"] == m].max() for m in table["model"]])
    largest = N == N.max()
    held = largest & (D >= 0.7 * last)
    for what, kept in (
        ("all checkpoints after the first 10%", ~largest & (D >= 0.1 * last)),
        ("all checkpoints", ~largest),
        ("last 10% of each run", ~largest & (D >= 0.9 * last)),
    ):
        seen = {"N": N[kept], "D": D[kept], "loss": loss[kept], "model": table["model"][kept]}
        fitted = fit("chinchilla", seen, cluster="model", intervals="delta")
        p = fitted.predict(N=N[held], D=D[held])
        error = float(np.abs(p.value / loss[held] - 1).mean())
        yield _row(
            f"last 30% of the largest model, from {what} of the smaller", 0.04, error, "",
            YES if error < 0.06 else NO,
            f"{fitted.n} points of {fitted.n_clusters} models; published: the best one can hope for; "
            f"{(np.mean((p.low <= loss[held]) & (loss[held] <= p.high))):.0%} inside the 95% interval",
        )  # fmt: skip
