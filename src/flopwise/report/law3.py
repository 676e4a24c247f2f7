"""What the report says of law 3: accuracy against FLOPs per question, and the coverage law's own test."""

from __future__ import annotations

from typing import Any

import numpy as np

from flopwise.errors import FlopwiseError
from flopwise.infer.estimators import mean_interval, pass_at_k
from flopwise.infer.evaluate import COVERAGE_FILE, CURVES_FILE, EXAMPLES_FILE, powers_of_two
from flopwise.records.record import RunRecord
from flopwise.report.runs import Runs, number

FIT_UP_TO = 16
"""Samples of each problem the coverage law sees, where the recipe does not say; the others judge it."""
DEEP = 32
"""Models with this many samples per problem get a figure; the others a row."""


def collect_testtime(runs: Runs) -> dict[str, Any]:
    """The `testtime` part of the results (keys: see `collect`)."""
    models = [_model(runs, record) for record in runs.samples.values()]
    models = sorted(
        (m for m in models if m["curves"]),
        key=lambda m: (-m["n"], m["n_params"] or 0, m["lineage_flops"] or 0),
    )
    missing = [] if models else [runs.why("sample", "Every curve")]
    deep = [m for m in models if m["n"] >= DEEP] or models[:4]
    if models and not any(m["n"] >= DEEP for m in models):
        missing.append(f"No model was sampled {DEEP} times or more per problem: the curves are short.")
    if deep and not any("reward_model" in m["curves"] for m in deep):
        missing.append(runs.why("reward", "The learned reward model's curve"))
    ids = {m["id"] for m in deep}
    best = max(
        deep,
        key=lambda m: [m["curves"].get("verifier", [{}])[i].get("value") or 0.0 for i in (-1, 0)],
        default=None,
    )
    return {
        "missing": missing,
        "best": best["id"] if best else None,
        "models": [m for m in models if m["id"] in ids],
        "others": [m for m in models if m["id"] not in ids],
    }


def _model(runs: Runs, record: RunRecord) -> dict[str, Any]:
    """One model's curves, its coverage law, some of its answers."""
    made = runs.done.get(record.roles.get("model", ""))
    curves = runs.json(record, CURVES_FILE)
    correct = runs.arrays(record).get("correct")
    spec = runs.spec(record)
    examples = runs.json(record, EXAMPLES_FILE)
    return {
        "id": record.roles.get("model"),
        "name": made.name if made else record.name,
        "kind": made.kind if made else None,
        "sample_run": record.id,
        "width": record.extra.get("width"),
        "n": int(spec.get("n") or 0),
        "problems": spec.get("problems"),
        "n_params": number((record.model or {}).get("n_params_non_embedding")),
        "lineage_flops": made.lineage_spend.total_flops if made else None,
        "flops_per_sample": number(record.extra.get("flops_per_sample")),
        "prefill_flops": number(record.extra.get("prefill_flops")),
        "metrics": {k: m.model_dump() for k, m in record.metrics.items()},
        "curves": _curves(curves),
        "coverage": None
        if correct is None
        else coverage(runs, record, correct, int(spec.get("fit_up_to") or FIT_UP_TO)),
        "examples": [e for e in examples if isinstance(e, dict)] if isinstance(examples, list) else [],
    }


def _curves(content: Any) -> dict[str, list[dict[str, Any]]]:
    """Curves by strategy; points without a value or a cost are left out."""
    if not isinstance(content, dict):
        return {}
    out = {}
    for name, rows in content.items():
        rows = rows if isinstance(rows, list) else []
        kept = [r for r in rows if isinstance(r, dict) and all(number(r.get(k)) for k in ("n", "flops"))]
        kept = [r for r in kept if number(r.get("value")) is not None]
        if kept:
            out[str(name)] = kept
    return out


def coverage(runs: Runs, record: RunRecord, correct: np.ndarray, up_to: int) -> dict[str, Any] | None:
    """The forecast of pass@n from the first `up_to` of n samples, beside what all n measured.

    The sample step wrote it down where the recipe asked for one; else it is made here in the same way. None
    where there are too few samples to hold any back.

    Args:
        correct: [problems, n] judged samples.
    """
    from flopwise.laws.coverage import forecast
    from flopwise.laws.coverage_forms import FORMS

    if correct.ndim != 2 or len(correct) < 2 or correct.shape[1] <= up_to:
        return None
    n = correct.shape[1]
    content = runs.json(record, COVERAGE_FILE)
    if not isinstance(content, dict):
        try:
            content = forecast(correct[:, :up_to], n).to_dict()
        except FlopwiseError:
            return None
    form, params = content.get("form"), content.get("params")
    whole = all(number(content.get(key)) is not None for key in ("value", "low", "high"))
    if form not in FORMS or not whole or not isinstance(params, dict):
        return None
    law = FORMS[form]
    points = [
        {"k": k, "fitted": k <= up_to, **mean_interval(pass_at_k(correct, k))} for k in powers_of_two(n)
    ]
    measured = points[-1]["value"]
    return {
        "form": form,
        "formula": law.formula,
        "params": params,
        "trial": content.get("trial") or {},
        "fitted_up_to": up_to,
        "k": points[-1]["k"],
        "points": points,
        "line": [{"k": k, "value": law.at(params, k)} for k in np.geomspace(1, n, 40)],
        "predicted": content["value"],
        "low": content.get("low"),
        "high": content.get("high"),
        "measured": measured,
        "measured_se": points[-1]["se"],
        "difference": content["value"] - measured,
        "inside": content["low"] <= measured <= content["high"],
    }
