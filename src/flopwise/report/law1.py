"""What the report says of law 1: the ladder's points, the competing forms, the prediction and its test."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import numpy as np

from flopwise.errors import FlopwiseError
from flopwise.records.record import RunRecord
from flopwise.report.runs import Runs, number


def collect_pretraining(runs: Runs) -> dict[str, Any]:
    """The `pretraining` part of the results (keys: see `collect`)."""
    missing: list[str] = []
    law = next(reversed(runs.find("fit", "pretraining_law")), None)
    if law is None:
        missing.append(runs.why("fit", "The fitted law", "pretraining_law"))
    fitted_ids = set(law.references.values()) if law else set()
    points = [_point(r, r.id in fitted_ids) for r in runs.find("pretrain") if _loss(r) is not None]
    ladder = sorted((p for p in points if not p["held_out"]), key=lambda p: (p["N"], p["seed"], p["D"]))
    held = [p for p in points if p["held_out"]]
    if not points:
        missing.append(runs.why("pretrain", "Every point of the ladder"))
    elif not held:
        waiting = [r.name or r.id for r in runs.failed.values() if r.kind == "pretrain"]
        why = f"; failed: {', '.join(waiting)}" if waiting else ""
        missing.append(
            f"The held-out run is missing: no finished pretraining run is marked as held out{why}."
        )
    out: dict[str, Any] = {
        "missing": missing,
        "points": ladder,
        "held_out": None,
        "prediction": None,
        "candidates": [],
        "chosen": None,
        "reasons": [],
        "fit": None,
        "curves": [],
        "seed_noise": _seed_noise(ladder),
        "n_heldout_documents": max((p["n_documents"] or 0 for p in points), default=0) or None,
    }
    if law is not None:
        prediction = runs.json(law, "prediction.json")
        choice = runs.json(law, "choice.json")
        choice = choice if isinstance(choice, dict) else {}
        whole = isinstance(prediction, dict) and all(
            number(prediction.get(key)) is not None for key in ("N", "D", "value", "low", "high")
        )
        out["prediction"] = prediction if whole else None
        if not whole:
            missing.append("The prediction of the held-out run is missing: the law's step left no whole one.")
        out["candidates"] = candidates(choice)
        out["chosen"], out["reasons"] = choice.get("chosen"), choice.get("reasons") or []
        out["fit"], out["curves"] = _fitted(runs, law, ladder, out["prediction"], missing)
    out["held_out"] = _test(held, out["prediction"], runs)
    return out


def _loss(record: RunRecord) -> float | None:
    metric = record.metrics.get("loss")
    return number(metric.value) if metric else None


def _point(record: RunRecord, fitted: bool) -> dict[str, Any]:
    """One run of the ladder; C is the measured training FLOPs of its lineage."""
    model, data, loss = record.model or {}, record.data or {}, record.metrics["loss"]
    corpora = {
        k[5:]: {"loss": m.value, "se": m.se} for k, m in record.metrics.items() if k.startswith("loss_")
    }
    return {
        "id": record.id,
        "name": record.name,
        "seed": record.seed,
        "width": record.extra.get("width"),
        "N": number(model.get("n_params_non_embedding")) or 0.0,
        "N_total": number(model.get("n_params_total")),
        "D": number(data.get("tokens_seen")) or 0.0,
        "C": record.lineage_spend.train_flops,
        "loss": loss.value,
        "se": loss.se,
        "n_documents": loss.n,
        "corpora": corpora,
        "held_out": bool(record.extra.get("held_out")),
        "fitted": fitted,
    }


def _seed_noise(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Relative spread of the loss between seeds, wherever a rung was repeated."""
    groups: dict[tuple[float, float], list[float]] = {}
    for p in points:
        groups.setdefault((p["N"], p["D"]), []).append(p["loss"])
    return [
        {"N": N, "D": D, "seeds": len(v), "relative_spread": (max(v) - min(v)) / float(np.mean(v))}
        for (N, D), v in sorted(groups.items())
        if len(v) > 1
    ]


def candidates(choice: dict[str, Any]) -> list[dict[str, Any]]:
    """Every form that was tried: its back-test, its fit, its warnings word for word."""
    fits = {f.get("law"): f for f in choice.get("fits") or [] if isinstance(f, dict)}
    trials = {t.get("law"): t for t in choice.get("trials") or [] if isinstance(t, dict)}
    out = []
    for law in dict.fromkeys([*trials, *fits]):
        f, t = fits.get(law, {}), trials.get(law, {})
        inside = t.get("inside") or []
        out.append(
            {
                "law": law,
                "formula": f.get("formula"),
                "parameters": len(f.get("params") or {}),
                "backtest_rms": number(t.get("rms")),
                "backtest_inside": sum(map(bool, inside)),
                "backtest_points": len(inside),
                "held_out_N": number(t.get("held_out")),
                "scatter": number(f.get("scatter")),
                "status": f.get("status"),
                "warnings": f.get("warnings") or [],
                "chosen": law == choice.get("chosen"),
            }
        )
    return out


def _fitted(
    runs: Runs,
    law: RunRecord,
    ladder: list[dict[str, Any]],
    prediction: dict[str, Any] | None,
    missing: list[str],
) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """The chosen fit and its curves over tokens, one per size, with the bands of mean and single runs."""
    from flopwise.laws import Fit

    try:
        fit = Fit.from_json(runs.folder(law) / "fit.json")
    except FlopwiseError as e:
        missing.append(f"The fit cannot be read: {e}.")
        return None, []
    sizes = {(p["N"], p["width"]): False for p in ladder if p["N"]}
    tokens = [p["D"] for p in ladder]
    if prediction and number(prediction.get("N")) and number(prediction.get("D")):
        sizes[(prediction["N"], prediction.get("width"))] = True
        tokens.append(prediction["D"])
    curves = []
    if tokens:
        D = np.geomspace(min(tokens) * 0.86, max(tokens) * 1.16, 40)
        for (N, width), held in sorted(sizes.items(), key=lambda item: item[0][0]):
            try:
                p = fit.predict(N=np.full(len(D), N), D=D)
            except FlopwiseError as e:
                missing.append(f"The law has no curve over N and D: {e}.")
                break
            names = ("value", "low", "high", "mean_low", "mean_high")
            curves.append(
                {"N": N, "width": width, "held_out": held, "D": D, **{n: getattr(p, n) for n in names}}
            )
    content = fit.to_dict()
    for bulky in ("covariance", "samples"):
        content.pop(bulky, None)
    return content, curves


def _test(held: list[dict[str, Any]], prediction: dict[str, Any] | None, runs: Runs) -> dict[str, Any] | None:
    """The held-out run beside what was predicted of it, and whether the prediction came first."""
    if not held:
        return None
    point = max(held, key=lambda p: p["C"])
    out = {**point, "predicted": None, "inside": None, "relative_error": None, "written_before": None}
    if prediction and number(prediction.get("value")) is not None:
        low, high = number(prediction.get("low")), number(prediction.get("high"))
        out["predicted"] = prediction["value"]
        out["relative_error"] = prediction["value"] / point["loss"] - 1
        out["inside"] = None if low is None or high is None else low <= point["loss"] <= high
        out["written_before"] = seconds_before(runs, point["id"], number(prediction.get("made_at")))
    return out


def seconds_before(runs: Runs, run: str, made_at: float | None) -> float | None:
    """Seconds from the prediction to the start of the run's own first piece; negative: it came after."""
    if made_at is None:
        return None
    record = runs.done[run]
    starts = []
    for r in (record, *(a for a in runs.ancestors(record) if a.kind == "pretrain")):
        try:
            ended = datetime.fromisoformat(r.created or "").timestamp()
        except ValueError:
            return None
        if r.spend.wall_s is None:
            return None
        starts.append(ended - r.spend.wall_s)
    return min(starts) - made_at
