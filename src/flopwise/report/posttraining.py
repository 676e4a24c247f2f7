"""What a post-training experiment showed: every run over its seeds, beside its start and its control.

Runs that differ in nothing but their seed, and in that of their ancestors, are one entry.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

import numpy as np

from flopwise.flops.spend import Spend
from flopwise.infer.estimators import pass_at_k
from flopwise.records.record import RunRecord
from flopwise.report.runs import Runs, number
from flopwise.report.testtime import LAWS

MEASURES = ("greedy", "pass_at_1", "pass_at_16")
CLEAR = 2.0
"""Standard errors from which on a change is called one."""
POLICIES = ("sft", "rejection", "rl", "distill", "preference")
OTHERS = ("reward", "synthesize", "evaluate")


def is_posttraining(runs: Runs) -> bool:
    """Whether the folder is an experiment of law 2: policies were made and there is no ladder's law."""
    made = any(runs.find(kind) for kind in POLICIES) or bool(runs.find("evaluate", "compare"))
    return made and not runs.find("fit", "pretraining_law") and not runs.find("plan")


def collect_experiment(runs: Runs) -> dict[str, Any]:
    """The `methods` part of the results: `entries` (policies), `others` (scorers and data), `laws`."""
    keys = _Keys(runs)
    groups: dict[str, list[RunRecord]] = {}
    for record in runs.done.values():
        if record.kind in (*POLICIES, *OTHERS) and record.method != "compare":
            groups.setdefault(keys.of(record.id), []).append(record)
    entries = [_entry(runs, keys, groups, g) for g in groups.values() if g[0].kind in POLICIES]
    others = [_other(g) for g in groups.values() if g[0].kind in OTHERS]
    laws = [
        found
        for r in runs.find("fit", "posttraining_law")
        if (found := runs.json(r, "law.json")) and found.get("method") not in LAWS
    ]
    overoptimised = [
        {"name": _label(r), **{key: r.extra[key] for key in ("best_of_n", "rl") if r.extra.get(key)}}
        for r in runs.find("evaluate", "overoptimise")
    ]
    missing = [
        f"{r.name or r.id} failed: {r.reason or 'no reason recorded'}." for r in runs.failed.values()
    ]  # fmt: skip
    return {
        "entries": entries, "others": others, "laws": laws, "overoptimised": overoptimised,
        "missing": missing,
    }  # fmt: skip


class _Keys:
    """What a run is, its seed and those of its ancestors apart."""

    def __init__(self, runs: Runs):
        self.runs, self.known = runs, dict[str, str]()

    def of(self, run: str) -> str:
        """Equal for runs that are repeats of each other."""
        if run not in self.known:
            record = self.runs.done.get(run)
            if record is None:
                return run
            inputs = {role: self.of(r) for role, r in (record.roles | record.references).items()}
            what = [record.kind, record.method, self.runs.spec(record), sorted(inputs.items())]
            self.known[run] = hashlib.sha256(
                json.dumps(what, sort_keys=True, default=str).encode()
            ).hexdigest()
        return self.known[run]


def _entry(
    runs: Runs, keys: _Keys, groups: dict[str, list[RunRecord]], group: list[RunRecord]
) -> dict[str, Any]:
    first = group[0]
    starts = {r.id: r.roles.get("init", "") for r in group}
    control = next(
        (
            g for g in groups.values()
            if g[0].kind == "sft" and any(role.startswith("match") for role in g[0].references)
            and first.id in {i for r in g for i in r.references.values()}
        ),
        None,
    )  # fmt: skip
    of_control = {} if control is None else {i: r.id for r in control for i in r.references.values()}
    values = {r.id: _values(runs, r.id) for r in group}
    return {
        "name": _label(first), "kind": first.kind, "method": first.method, "seeds": [r.seed for r in group],
        "start": _label(start) if (start := runs.done.get(starts[first.id])) else None,
        "control": _label(control[0]) if control else None,
        "is_control": any(role.startswith("match") for role in first.references),
        **{
            name: _over_seeds([v[name] for v in values.values() if name in v])
            for name in (*MEASURES, "majority_at_16")
        },
        "change": _changes(runs, {r.id: starts[r.id] for r in group}),
        "versus": _changes(runs, {r.id: of_control[r.id] for r in group if r.id in of_control}),
        "spend": _mean_spend([r.spend for r in group]),
        "beyond_flops": float(np.mean([_beyond(runs, r) for r in group])),
        "n_params": number((first.model or {}).get("n_params_non_embedding")),
        "alarm": _alarm(group),
        "curves": [_curve(runs, r) for r in group],
        "settings": runs.spec(first),
    }  # fmt: skip


def _label(record: RunRecord) -> str:
    """The name without its seed's mark."""
    return (record.name or record.id).removesuffix(f"-s{record.seed}")


def _values(runs: Runs, model: str) -> dict[str, np.ndarray]:
    """Of a judged model: each measure by problem [P]."""
    record = runs.samples.get(model)
    arrays = {} if record is None else runs.arrays(record)
    out: dict[str, np.ndarray] = {}
    if "greedy" in arrays:
        out["greedy"] = arrays["greedy"].astype(float)
    correct = arrays.get("correct")
    if correct is not None and correct.ndim == 2:
        for k in (1, 16):
            if correct.shape[1] >= k:
                out[f"pass_at_{k}"] = pass_at_k(correct, k)
    if "curve_majority" in arrays and (correct is not None and correct.shape[1] >= 16):
        out["majority_at_16"] = arrays["curve_majority"][4]
    return out


def _over_seeds(rows: list[np.ndarray]) -> dict[str, Any]:
    """Mean over seeds and problems, with a standard error that covers both: other problems, other seeds.

    The two parts are added, though the one over problems holds some of the seeds' noise too: to be safe.
    """
    if not rows:
        return {"value": None, "se": None, "seeds": 0}
    table = np.stack(rows)
    mean = table.mean(0)
    over_problems = mean.std(ddof=1) / math.sqrt(mean.size) if mean.size > 1 else math.nan
    over_seeds = table.mean(1).std(ddof=1) / math.sqrt(len(table)) if len(table) > 1 else 0.0
    return {
        "value": float(mean.mean()), "se": float(math.hypot(over_problems, over_seeds)), "seeds": len(table),
        "by_seed": table.mean(1).tolist(),
    }  # fmt: skip


def _changes(runs: Runs, before: dict[str, str]) -> dict[str, Any]:
    """Paired differences by measure, run minus the one it is compared with, seed by seed."""
    out: dict[str, Any] = {}
    pairs = [(_values(runs, a), _values(runs, b)) for a, b in before.items()]
    for name in MEASURES:
        rows = [
            a[name] - b[name] for a, b in pairs if name in a and name in b and len(a[name]) == len(b[name])
        ]
        if rows:
            found = _over_seeds(rows)
            ratio = found["value"] / found["se"] if found["se"] else None
            out[name] = found | {"in_se": ratio, "clear": ratio is not None and abs(ratio) >= CLEAR}
    return out


def _mean_spend(spends: list[Spend]) -> dict[str, Any]:
    names = ("train_flops", "generate_flops", "score_flops", "total_flops", "wall_s", "device_s")
    return {name: float(np.mean([getattr(s, name) or 0.0 for s in spends])) for name in names}


def _beyond(runs: Runs, record: RunRecord) -> float:
    """FLOPs of the run and all it was made from, but for its start and what that was made from."""
    start = runs.done.get(record.roles.get("init", ""))
    own = {r.id: r for r in [record, *runs.ancestors(record)]}
    if start is not None:
        for r in (start, *runs.ancestors(start)):
            own.pop(r.id, None)
    return sum(r.spend.total_flops for r in own.values())


def _alarm(group: list[RunRecord]) -> dict[str, Any] | None:
    """How many of the seeds rang the alarm that proxy and gold part, and when first."""
    if not any("alarm" in r.extra for r in group):
        return None
    rung = [r.extra["alarm"] for r in group if r.extra.get("alarm")]
    steps = [s for a in rung if (s := number(a.get("step") if isinstance(a, dict) else None)) is not None]
    return {"rung": len(rung), "of": len(group), "first_step": min(steps, default=None)}


def _curve(runs: Runs, record: RunRecord) -> dict[str, Any]:
    """Validation accuracy along a run, and of reinforcement the reward and the truth, in windows."""
    total = lambda r: sum(float(r.get(f"{p}_flops") or 0.0) for p in ("train", "generate", "score"))  # noqa: E731
    judged = runs.curve(record, "val_accuracy")
    return {
        "seed": record.seed,
        "accuracy": [{"step": r["step"], "flops": total(r), "value": r["val_accuracy"]} for r in judged],
        "reward": _windows(runs.curve(record, "reward"), total),
    }


def _windows(rows: list[dict[str, Any]], total: Any, most: int = 40) -> list[dict[str, Any]]:
    size = max(1, math.ceil(len(rows) / most))
    out = []
    for i in range(0, len(rows), size):
        part = rows[i : i + size]
        point = {"step": part[-1]["step"], "flops": total(part[-1])}
        for name in ("reward", "gold", "kl"):
            values = [v for r in part if (v := number(r.get(name))) is not None]
            point[name] = float(np.mean(values)) if values else None
        out.append(point)
    return out


def _other(group: list[RunRecord]) -> dict[str, Any]:
    first = group[0]
    names = list(dict.fromkeys(name for r in group for name in r.metrics))
    metrics = {}
    for name in names:
        values = [v for r in group if name in r.metrics and (v := number(r.metrics[name].value)) is not None]
        if values:
            spread = np.std(values, ddof=1) / math.sqrt(len(values)) if len(values) > 1 else None
            metrics[name] = {"value": float(np.mean(values)), "se": spread}
    return {
        "name": _label(first), "kind": first.kind, "method": first.method, "seeds": [r.seed for r in group],
        "metrics": metrics, "spend": _mean_spend([r.spend for r in group]),
    }  # fmt: skip
