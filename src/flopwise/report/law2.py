"""What the report says of law 2: each method, what it gained, what it cost, and its equal-compute control."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from flopwise.errors import FlopwiseError
from flopwise.flops.spend import Spend
from flopwise.infer.estimators import mean_interval, paired, pass_at_k
from flopwise.records.record import RunRecord
from flopwise.report.format import points as in_points
from flopwise.report.runs import Runs, number

TITLES = {
    ("sft", "demonstrations"): "Fine-tuning",
    ("rl", "grpo"): "GRPO",
    ("distill", "verified_sequences"): "Distillation",
    ("rejection", "verified_samples"): "Rejection sampling",
    ("reward", "outcome"): "Reward model",
}
KINDS = ("sft", "rejection", "rl", "distill", "preference")
"""Kinds that make a model of a model. A reward model is no policy: it has no accuracy of its own."""

Z = 1.96


WINDOWS = 40
"""Points of a reward curve, each the mean of neighbouring steps."""


def collect_posttraining(runs: Runs) -> dict[str, Any]:
    """The `posttraining` part of the results (keys: see `collect`)."""
    tuned = [r for kind in KINDS for r in runs.find(kind) if r.roles.get("init")]
    methods = [r for r in tuned if r.method != "control"]
    # A round that another round of the same method starts from is a part of it, not a method of its own.
    steps = {r.roles["init"] for r in methods if _same(runs.done.get(r.roles["init"]), r)}
    rows = [_method(runs, r, tuned) for r in methods if r.id not in steps]
    missing = [] if rows else [runs.why("sft", "Every method")]
    for kind, what in (
        ("rejection", "Rejection sampling"),
        ("rl", "Reinforcement learning"),
        ("distill", "Distillation"),
    ):
        if rows and not runs.find(kind):
            missing.append(runs.why(kind, what))
    for row in rows:
        if row["accuracy"] is None:
            missing.append(
                f"No test accuracy for {row['name'] or row['id']}: no finished sample run of this model."
            )
    rows.sort(
        key=lambda row: (row["control"] is None, row["start"]["name"] or "", row["spend"]["total_flops"])
    )
    return {
        "missing": missing,
        "methods": rows,
        "rl": [_sigmoid(runs, r) for r in runs.find("rl")],
        "reward_models": [_reward(r) for r in runs.find("reward")],
    }


def title(record: RunRecord) -> str:
    """What a method is called."""
    return TITLES.get((record.kind, record.method), f"{record.kind}: {record.method}")


def _same(a: RunRecord | None, b: RunRecord) -> bool:
    return a is not None and (a.kind, a.method) == (b.kind, b.method) and a.kind != "sft"


def _chain(runs: Runs, record: RunRecord) -> list[RunRecord]:
    """The runs that make up a method: its rounds, each with the samples made for it, in order."""
    rounds = [record]
    while _same(parent := runs.done.get(rounds[0].roles["init"]), record) and parent is not None:
        rounds.insert(0, parent)
    out: list[RunRecord] = []
    for r in rounds:
        made = runs.done.get(r.roles.get("samples", ""))
        out += [*([made] if made else []), r]
    return out


def _method(runs: Runs, record: RunRecord, tuned: list[RunRecord]) -> dict[str, Any]:
    """One row: from its start to its end, what that cost, and what the same FLOPs buy otherwise."""
    chain = _chain(runs, record)
    first = next(r for r in chain if r.kind == record.kind)
    start = first.roles["init"]
    control = next((c for c in tuned if c.method == "control" and record.id in c.references.values()), None)
    row = _row(runs, record, start, chain, title(record))
    if control is not None:
        matched = {i for role, i in control.references.items() if role.startswith("match")}
        row["control"] = _side(runs, control) | {
            "title": "More fine-tuning",
            "spend": _spend([control]),
            "matched_exactly": matched == {r.id for r in chain},
            "curve": _curve(runs, [control], start),
        }
        row |= _versus(runs, record.id, control.id)
    row["verdict_text"] = _verdict(row)
    return row


def _row(runs: Runs, record: RunRecord, start: str, chain: list[RunRecord], name: str) -> dict[str, Any]:
    begin, end = _judged(runs, start), _judged(runs, record.id)
    gain = paired(begin.get("greedy"), end.get("greedy"), _comparable(runs, start, record.id))
    row = _side(runs, record) | {
        "title": name,
        "kind": record.kind,
        "method": record.method,
        "width": record.extra.get("width"),
        "start": _side(runs, start),
        "runs": [r.name or r.id for r in chain],
        "spend": _spend(chain),
        "lineage_flops": record.lineage_spend.total_flops,
        "gain": gain["value"],
        "gain_se": gain["se"],
        "gain_in_se": gain["value"] / gain["se"] if gain["value"] is not None and gain["se"] else None,
        "control": None,
        "versus": None,
        "versus_se": None,
        "verdict": "no control",
        "curve": _curve(runs, chain, start),
    }
    for k in (1, 16):
        change = paired(_pass(begin, k), _pass(end, k), _comparable(runs, start, record.id))
        row[f"pass_at_{k}_change"] = {"value": change["value"], "se": change["se"]}
    return row


def _judged(runs: Runs, model: str) -> dict[str, np.ndarray]:
    """The judged samples of a model on the test problems."""
    record = runs.samples.get(model)
    return {} if record is None else runs.arrays(record)


def _pass(arrays: dict[str, np.ndarray], k: int) -> np.ndarray | None:
    correct = arrays.get("correct")
    return None if correct is None or correct.ndim != 2 or correct.shape[1] < k else pass_at_k(correct, k)


def _comparable(runs: Runs, a: str, b: str) -> bool:
    """Whether two models were judged on the same problems of the same data."""
    first, second = runs.samples.get(a), runs.samples.get(b)
    if first is None or second is None:
        return False
    one, other = runs.spec(first), runs.spec(second)
    same_spec = all(one.get(key) == other.get(key) for key in ("problems", "split"))
    return same_spec and first.roles.get("data") == second.roles.get("data")


def _side(runs: Runs, model: RunRecord | str) -> dict[str, Any]:
    """A model with its test accuracy, greedy and sampled."""
    run = model if isinstance(model, str) else model.id
    record = runs.done.get(run)
    arrays = _judged(runs, run)
    out: dict[str, Any] = {"id": run, "name": record.name if record else None}
    greedy = mean_interval(arrays["greedy"].astype(float)) if "greedy" in arrays else {}
    out |= {
        "accuracy": greedy.get("value"),
        "se": greedy.get("se"),
        "n": len(arrays.get("greedy", ())) or None,
    }
    for k in (1, 16):
        values = _pass(arrays, k)
        m = mean_interval(values) if values is not None else {}
        out[f"pass_at_{k}"] = {"value": m.get("value"), "se": m.get("se")}
    return out


def _spend(chain: Iterable[RunRecord]) -> dict[str, Any]:
    total = sum((r.spend for r in chain), Spend())
    return total.to_dict() | {"total_flops": total.total_flops}


def _curve(runs: Runs, chain: list[RunRecord], start: str) -> list[dict[str, Any]]:
    """Validation accuracy against the FLOPs the method had spent by then, its start where measured."""
    rows: list[dict[str, Any]] = []
    begin = runs.done.get(start)
    metric = begin.metrics.get("val_accuracy") if begin else None
    if metric is not None and metric.value is not None:
        rows.append({"flops": 0.0, "accuracy": metric.value, "se": metric.se})
    spent = 0.0
    for r in chain:
        for point in runs.curve(r, "val_accuracy"):
            flops = sum(number(point.get(f"{part}_flops")) or 0.0 for part in ("train", "generate", "score"))
            rows.append(
                {
                    "flops": spent + flops,
                    "accuracy": number(point["val_accuracy"]),
                    "se": number(point.get("val_se")),
                }
            )
        spent += r.spend.total_flops
    return [row for row in rows if row["accuracy"] is not None]


def _versus(runs: Runs, method: str, control: str) -> dict[str, Any]:
    """The method against its control on the same test problems."""
    same = _comparable(runs, method, control)
    d = paired(_judged(runs, control).get("greedy"), _judged(runs, method).get("greedy"), same)
    if d["value"] is None:
        return {"verdict": "unknown"}
    verdict = "beats" if d["value"] > Z * d["se"] else "loses" if d["value"] < -Z * d["se"] else "even"
    return {
        "versus": d["value"],
        "versus_se": d["se"],
        "versus_n": d["n"],
        "paired": d["paired"],
        "verdict": verdict,
    }


def _verdict(row: dict[str, Any]) -> str:
    """The row's outcome in plain words."""
    if row["verdict"] == "beats":
        return f"beats its control by {in_points(row['versus'], row['versus_se'], sign='')} points"
    if row["verdict"] == "loses":
        return f"its control wins by {in_points(-row['versus'], row['versus_se'], sign='')} points"
    if row["verdict"] == "even":
        return f"no difference from its control that {row['versus_n']} problems can show"
    if row["verdict"] == "unknown":
        return "no verdict: it or its control was not sampled"
    if row["gain"] is None:
        return "not measured on test problems"
    strength = abs(row["gain_in_se"] or 0.0)
    word = "gains" if row["gain"] > 0 else "loses"
    return (
        f"no control of its own; {word} {strength:.1f} standard errors"
        if strength > Z
        else "no gain to be seen; no control"
    )


def _sigmoid(runs: Runs, record: RunRecord) -> dict[str, Any]:
    """The sigmoid law of a reinforcement run: reward against FLOPs, or why the curve does not identify it."""
    from flopwise.laws import fit, get

    rows = [r for r in runs.curve(record, "reward") if number(r["reward"]) is not None]
    spent = [
        sum(number(r.get(f"{part}_flops")) or 0.0 for part in ("train", "generate", "score")) for r in rows
    ]
    # A step's few samples are mostly noise: neighbours are averaged, with their mean cost.
    windows = np.array_split(np.arange(len(rows)), max(1, min(WINDOWS, len(rows))))
    C = [float(np.mean([spent[i] for i in w])) for w in windows if len(w)]
    means = [float(np.mean([rows[i]["reward"] for i in w])) for w in windows if len(w)]
    table = {"C": np.array(C), "reward": np.array(means)}
    out: dict[str, Any] = {
        "id": record.id,
        "name": record.name,
        "points": [{"flops": c, "reward": y} for c, y in zip(C, means, strict=True)],
        "steps_per_point": math.ceil(len(rows) / max(1, len(C))),
        "formula": get("rl_sigmoid").formula,
        "identified": False,
        "reasons": [],
        "params": None,
        "intervals": None,
        "line": [],
    }
    try:
        f = fit("rl_sigmoid", table, loss="squared")
    except FlopwiseError as e:
        return out | {"reasons": [str(e)]}
    grid = np.geomspace(min((c for c in C if c > 0), default=1.0), max(1.0, *C), 60)
    value = np.atleast_1d(f.predict(C=grid).value)
    low, high = f.interval("A")
    # Warnings of a fit that settled are remarks; those of one that did not are why it is refused.
    reasons = [] if f.status == "converged" else list(f.warnings) or [f"the fit ended with {f.status}"]
    k = max(3, len(C) // 5)
    first, last = table["reward"][:k], table["reward"][-k:]
    rise, noise = last.mean() - first.mean(), math.sqrt((first.var(ddof=1) + last.var(ddof=1)) / k)
    if rise < 3 * noise:
        reasons.append(
            f"the reward rose by {100 * rise:.1f} ± {100 * noise:.1f} points, too little to shape a curve"
        )
    if min(high, 1.0) - low > 0.2:
        reasons.append(f"the ceiling A may lie anywhere from {100 * low:.0f} to {100 * min(high, 1.0):.0f}%")
    line = [{"flops": c, "reward": v} for c, v in zip(grid, value, strict=True)]
    return out | {
        "identified": not reasons,
        "reasons": reasons,
        "status": f.status,
        "params": f.params,
        "intervals": {p: f.interval(p) for p in f.params},
        "line": line,
        "rise": rise,
        "rise_se": noise,
    }


def _reward(record: RunRecord) -> dict[str, Any]:
    within, pooled = record.metrics.get("auc_within"), record.metrics.get("auc_pooled")
    return {
        "id": record.id,
        "name": record.name,
        "spend": _spend([record]),
        "auc_within": within.model_dump() if within else None,
        "auc_pooled": pooled.model_dump() if pooled else None,
    }
