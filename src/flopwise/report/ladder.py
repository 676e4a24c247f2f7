"""What the report says of a ladder's laws: points, fit, curves, candidates, predictions and their tests."""

from __future__ import annotations

from typing import Any

import numpy as np

from flopwise.errors import FlopwiseError
from flopwise.records.record import RunRecord
from flopwise.report.law1 import candidates, seconds_before
from flopwise.report.runs import MISSHAPEN, Runs, misshapen, number

CURVE_POINTS = 40
_ALONG = ("id", "run", "loss_se", "seed", "name")
"""Columns of a row that tell which run it is, not where it lies."""


def is_ladder(runs: Runs) -> bool:
    """Whether a folder holds an experiment of `kind: ladder`: nothing but pretraining and its laws.

    Its data step takes sources of any kind, or there is a step that verifies.
    """
    records = [*runs.done.values(), *runs.failed.values()]
    found = {(r.kind, r.method) for r in records} | {(f.kind, f.method) for f in runs.unfinished}
    if {kind for kind, _ in found} - {"data", "pretrain", "fit", "verify", "evaluate"}:
        return False
    return any(kind == "verify" or (kind, method) == ("data", "corpus") for kind, method in found)


def collect_ladders(runs: Runs) -> list[dict[str, Any]]:
    """The `ladders` part of the results: one entry per law step (keys: see `collect`)."""
    tests = verifications(runs)
    steps = law_steps(runs)
    out = []
    for step in steps:
        try:
            out.append(_ladder(runs, step, tests, alone=len(steps) == 1))
        except MISSHAPEN as e:
            what = f"The law of step {step.name or step.id}"
            out.append(_EMPTY | {"id": step.id, "name": step.name} | misshapen(what, e))
    # Steps end in any order; the law of the loss is what a reader looks for first.
    return sorted(out, key=lambda e: (not e["fit"], e["target"] != "loss", e["name"] != "loss"))


_EMPTY: dict[str, Any] = {
    "law": None, "target": "loss", "formula": None, "status": None, "points": [], "variants": [],
    "curves": [], "fit": None, "predictions": [], "candidates": [], "chosen": None, "reasons": [],
    "comparison": [], "verification": [], "notes": [],
    "variables": [], "line": None, "optima": [],
}  # fmt: skip


def law_steps(runs: Runs) -> list[RunRecord]:
    """Steps that fitted a law to the ladder."""
    return runs.find("fit", "pretraining_law")


def verifications(runs: Runs) -> list[dict[str, Any]]:
    """Every prediction that was tested; `record` is the id of the run it was about, if it can be told."""
    by_name = {r.name: r.id for r in runs.find("pretrain")}
    out = []
    for step in runs.find("verify"):
        rows = runs.json(step, "verification.json")
        rows = rows if isinstance(rows, list) else [rows]
        for row in rows:
            if isinstance(row, dict):
                run = row.get("run")
                out.append(_tested(row) | {"record": run if run in runs.done else by_name.get(run)})
    return out


def _tested(row: dict[str, Any]) -> dict[str, Any]:
    """A row of verification.json with what it leaves out worked out from what it says."""
    out = dict(row)
    predicted, measured = number(row.get("predicted")), number(row.get("measured"))
    if number(row.get("relative_error")) is None and predicted is not None and measured:
        out["relative_error"] = predicted / measured - 1
    for key, low, high in (("inside", "low", "high"), ("inside90", "low90", "high90")):
        a, b = number(row.get(low)), number(row.get(high))
        if not isinstance(row.get(key), bool):
            out[key] = a <= measured <= b if None not in (a, b, measured) else None  # type: ignore[operator]
    return out


def _ladder(runs: Runs, step: RunRecord, tests: list[dict[str, Any]], alone: bool) -> dict[str, Any]:
    spec = runs.spec(step)
    missing: list[str] = []
    rows = runs.json(step, "points.json")
    rows = [r for r in rows if isinstance(r, dict)] if isinstance(rows, list) else []
    if not rows:
        missing.append("The points of the fit are missing: the step left no points.json.")
    choice = runs.json(step, "choice.json")
    choice = choice if isinstance(choice, dict) else {}
    target = str(spec.get("target") or "loss")
    names = spec["columns"] if isinstance(spec.get("columns"), dict) else {}
    points = [p for p in (_point(_renamed(row, names), target) for row in rows) if p["y"] is not None]
    variants = list(dict.fromkeys(p["variant"] for p in points))
    predictions = [
        _renamed(p, names) for p in _predictions(runs.json(step, "prediction.json"), variants)
    ]  # fmt: skip
    out: dict[str, Any] = _EMPTY | {
        "id": step.id, "name": spec.get("name") or step.name, "target": target, "points": points,
        "variants": variants, "predictions": predictions, "candidates": candidates(choice),
        "chosen": choice.get("chosen"), "reasons": _sentences(choice.get("reasons")),
        "verification": _mine(runs, tests, step, spec, predictions, alone),
        "notes": _sentences(runs.json(step, "notes.json")),
        "comparison": _comparison(runs.json(step, "comparison.json")),
        "optima": _optima(runs.json(step, "rates.json")), "missing": missing,
    }  # fmt: skip
    if (runs.folder(step) / "fit.json").is_file() or predictions or choice:
        _fitted(runs.folder(step) / "fit.json", out, rows)
    return out


def _mine(
    runs: Runs, tests: list[dict[str, Any]], step: RunRecord, spec: dict[str, Any],
    predictions: list[dict[str, Any]], alone: bool,
) -> list[dict[str, Any]]:  # fmt: skip
    """Tests of this step's predictions, each with where the predicted run lies and when it was predicted.

    `before_start_s`: seconds from the prediction to the start of the first piece of the run it is about.
    """
    names = {step.id, step.name, spec.get("name")} - {None}
    out = []
    for t in tests:
        if t.get("name") is not None and not alone and t["name"] not in names:
            continue  # another law's, though it may have predicted the very same
        made = next((p for p in predictions if _same(p["value"], t.get("predicted"))), None)
        if made is None and not alone and t.get("name") not in names:
            continue
        where: dict[str, Any] = {}
        if made is not None:
            made["tested"] = True
            kept = ("N", "D", "C", "width", "variant", "C_ratio", "level")
            where = {k: made.get(k) for k in kept}
            if t["record"] is not None:
                where["before_start_s"] = seconds_before(runs, t["record"], number(made.get("made_at")))
                loss = runs.done[t["record"]].metrics.get("loss")
                where["loss"] = number(loss.value) if loss else None
        out.append(where | {k: v for k, v in t.items() if v is not None})
    return out


def _same(a: Any, b: Any) -> bool:
    x, y = number(a), number(b)
    return x is not None and y is not None and abs(x - y) <= 1e-9 * abs(x)


def _renamed(row: dict[str, Any], names: dict[str, Any]) -> dict[str, Any]:
    """A row in which a law's variables have the values of the columns that serve as them."""
    return row | {str(variable): row.get(str(column)) for variable, column in names.items()}


def _point(row: dict[str, Any], target: str) -> dict[str, Any]:
    """A row of the fit's table as figures need it; `y` is the target's value."""
    y = number(row.get(target))
    numbers = {k: number(v) for k, v in row.items() if k not in _ALONG and not isinstance(v, bool | str)}
    return numbers | {
        "id": str(row.get("id") or ""), "variant": str(row.get("variant") or "base"),
        "run": str(row.get("run") or ""), "seed": row.get("seed"), "y": y,
        "se": number(row.get(f"{target}_se")), "fitted": row.get("fitted") is not False,
        "predicted": None, "residual": None,
    }  # fmt: skip


def _predictions(content: Any, variants: list[str]) -> list[dict[str, Any]]:
    """Predictions as written, those that are whole: the first, with further ones in its `others`."""
    rows: list[Any] = content if isinstance(content, list) else [content]
    if isinstance(content, dict) and isinstance(content.get("others"), list):
        rows = [{k: v for k, v in content.items() if k != "others"}, *content["others"]]
    whole = [
        dict(row)
        for row in rows
        if isinstance(row, dict) and all(number(row.get(key)) is not None for key in ("value", "low", "high"))
    ]
    for row in whole:
        row["variant"] = str(row.get("variant") or (variants[0] if len(variants) == 1 else ""))
    return whole


def _sentences(content: Any) -> list[str]:
    content = content if isinstance(content, list) else [content] if content else []
    return [str(line) for line in content if isinstance(line, str | int | float)]


def _comparison(content: Any) -> list[dict[str, Any]]:
    """Rows of comparison.json: how many times the FLOPs of `against` a variant saves, with its interval."""
    rows = content.items() if isinstance(content, dict) else []
    return [
        {"variant": str(name), "against": str(row.get("against") or "")}
        | {
            key: number(row.get(key))
            for key in ("factor", "low", "high", "matched", "matched_mean", "matched_se")
        }
        for name, row in rows
        if isinstance(row, dict) and number(row.get("factor")) is not None
    ]


def _optima(content: Any) -> list[dict[str, float | None]]:
    """Rows of rates.json: the best rate, and batch, of each size and budget, with errors of their logs."""
    rows = content.get("optima") if isinstance(content, dict) else None
    keys = ("N", "D", "lr", "lr_se", "batch", "batch_se", "loss", "runs")
    return [{k: number(row.get(k)) for k in keys} for row in rows or [] if isinstance(row, dict)]


def _fitted(path: Any, out: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """The fit, what it says of each point, and its curves along each size's token budgets."""
    from flopwise.laws import Fit

    try:
        fit = Fit.from_json(path)
    except FlopwiseError as e:
        out["missing"].append(f"The fit cannot be read: {e}.")
        return
    content = fit.to_dict()
    for bulky in ("covariance", "samples", "profiles"):
        content.pop(bulky, None)
    out |= {"fit": content, "law": fit.law, "formula": content.get("formula"), "status": fit.status}
    variables = fit.form.variables
    known = [p for p in out["points"] if all(p.get(v) is not None for v in variables)]
    if not known:
        if rows:
            lacking = [v for v in variables if not any(v in row for row in rows)]
            out["missing"].append(
                f"No curve: the points have no column {', '.join(lacking) or 'for the law'}."
            )
        return
    try:
        at = fit.predict(**{v: np.array([p[v] for p in known]) for v in variables})
    except FlopwiseError as e:
        out["missing"].append(f"The law has no curves here: {e}.")
        return
    for p, value in zip(known, np.atleast_1d(at.value), strict=True):
        p["predicted"], p["residual"] = float(value), float(p["y"] / value - 1) if value else None
    out["variables"] = list(variables)
    out["curves"] = _curves(fit, known, out)
    out["line"] = _line(fit, known, out) if len(variables) == 1 else None


def _curves(fit: Any, points: list[dict[str, Any]], out: dict[str, Any]) -> list[dict[str, Any]]:
    """One curve per variant, size and number of unique tokens, over tokens D and compute C."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for p in points:
        if p.get("D"):
            groups.setdefault((p["variant"], p.get("width"), p.get("N")), []).append(p)
    curves = []
    lows, highs = ([f(p["D"] for p in g) for g in groups.values()] for f in (min, max))
    for (variant, width, N), group in groups.items():
        # No farther than its own runs: a fit that must not be extrapolated still shows what it fitted.
        D = np.geomspace(min(p["D"] for p in group), max(p["D"] for p in group), CURVE_POINTS)
        label = {"variant": variant, "width": width, "N": N, "unique": _limit(group), "held_out": False}
        curves.append(_curve(fit, label, _path(group, fit.form.variables, D), D, out))
    for p in out["predictions"]:
        if number(p.get("D")) and number(p.get("N")) and lows:
            row = _asked(p, points, fit.form.variables)
            D = np.geomspace(min([*lows, p["D"]]) * 0.86, max([*highs, p["D"]]) * 1.16, CURVE_POINTS)
            label = {"variant": p["variant"], "width": p.get("width"), "N": p["N"], "unique": None}
            path = _path([row], fit.form.variables, D)
            curves.append(_curve(fit, label | {"held_out": True}, path, D, out))
    return [c for c in curves if c is not None]


def _asked(p: dict[str, Any], points: list[dict[str, Any]], variables: tuple[str, ...]) -> dict[str, Any]:
    """The law's variables of a predicted run: as written, else what all runs of its variant have alike."""
    like = [q for q in points if q["variant"] == p["variant"]] or points
    row = {v: number(p.get(v)) for v in (*variables, "D", "C")}
    for v in variables:
        seen = {q[v] for q in like}
        if row[v] is None and len(seen) == 1:
            row[v] = seen.pop()
    return row


def _limit(group: list[dict[str, Any]]) -> float | None:
    """Unique tokens where a size's runs saw some more than once; None for fresh data."""
    return max((q["U"] for q in group if q.get("U") and q["U"] < 0.999 * q["D"]), default=None)


def _path(group: list[dict[str, Any]], variables: tuple[str, ...], D: np.ndarray) -> dict[str, np.ndarray]:
    """The law's variables and C along D, by straight lines in logarithms through one size's own runs.

    What is constant stays so and what grows in proportion to tokens goes on doing so.
    """
    by_tokens = {float(p["D"]): p for p in reversed(group)}
    at = sorted(by_tokens)
    path = {}
    for v in dict.fromkeys((*variables, "C")):
        values = [by_tokens[d].get(v) for d in at]
        if v == "D" or any(y is None for y in values):
            continue
        ys = np.array(values, dtype=float)
        if len(ys) == 1:
            grows = v == "C" or (v == "U" and abs(ys[0] / at[0] - 1) < 1e-3)
            path[v] = ys[0] * (D / at[0] if grows else np.ones_like(D))
        elif ys.min() <= 0:
            path[v] = np.interp(np.log(D), np.log(at), ys)
        else:
            path[v] = np.exp(_through(np.log(D), np.log(at), np.log(ys)))
    return path | {"D": D}


def _through(x: np.ndarray, xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
    """Piecewise lines through points, the end ones going on."""
    slopes = np.diff(ys) / np.diff(xs)
    i = np.clip(np.searchsorted(xs, x) - 1, 0, len(slopes) - 1)
    return np.asarray(ys[i] + slopes[i] * (x - xs[i]))


def _curve(
    fit: Any, label: dict[str, Any], path: dict[str, np.ndarray], D: np.ndarray, out: dict[str, Any]
) -> dict[str, Any] | None:
    """The law along a path; None where it has no value there."""
    if not set(fit.form.variables) <= set(path):
        return None
    try:
        p = fit.predict(**{v: path[v] for v in fit.form.variables})
    except FlopwiseError as e:
        sentence = f"A curve of the law is not drawn: {e}."
        if sentence not in out["missing"]:
            out["missing"].append(sentence)
        return None
    names = ("value", "low", "high", "mean_low", "mean_high")
    return label | {"D": D, "C": path.get("C"), **{n: getattr(p, n) for n in names}}


def _line(fit: Any, points: list[dict[str, Any]], out: dict[str, Any]) -> dict[str, Any] | None:
    """A law of one variable over that variable, as far as the runs go and to the predicted run."""
    (x,) = fit.form.variables
    asked = [number(p.get(x)) for p in [*out["predictions"], *out["verification"]]]
    reach = [q[x] for q in points] + [v for v in asked if v is not None]
    if min(reach) <= 0 or min(reach) == max(reach):
        return None
    at = np.geomspace(min(reach), max(reach), CURVE_POINTS)
    try:
        p = fit.predict(**{x: at})
    except FlopwiseError:
        return None
    return {"variable": x, "x": at, "value": p.value, "low": p.mean_low, "high": p.mean_high}
