"""The laws of law 2, fitted to an experiment's own runs: a question becomes a table, a fit, and words.

Points of one run (its checkpoints) are one cluster. Where several forms compete, the one that predicts the
largest rows best from the smaller ones wins, as everywhere. What a curve does not pin down is refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from flopwise.errors import FlopwiseError, one_line

if TYPE_CHECKING:
    from flopwise.laws.result import Fit
    from flopwise.records.folder import RunFolder

LAW_FILE, POINTS_FILE = "law.json", "points.json"
WINDOWS = 40
"""Points of a curve of rewards, each the mean of neighbours: a step's few samples are mostly noise."""
KINDS = ("final", "curve", "reward")
_SHARED = ("candidates", "target", "hold_out", "by")
OPTIONS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(KINDS, _SHARED),
    "thinking": ("candidates", "strategies", "hold_out"), "crossover": ("strategy",),
}  # fmt: skip
"""What may be said to a law, by its method; the last two are `posttrain.testtime_laws`."""
Rows = list[dict[str, Any]]


def run_step(folder: RunFolder, parents: dict[str, RunFolder], progress: Callable[[float], None]) -> None:
    """Answer the question of `spec` (`launch.posttrain_recipe.PosttrainLaw`): points.json and law.json.

    `method` says what the rows are: `final`, each run's end judged on the test problems; `curve`, validations
    along the runs; `reward`, the rewards of reinforcement. Options: `candidates` (laws by name), `target`
    (greedy, pass_at_1, error, val_loss, reward), `hold_out` (share of the largest rows, by column `by`, that
    the fit does not see and is judged on).
    """
    from flopwise.flops.spend import Stopwatch
    from flopwise.records.folder import atomic_write

    watch = Stopwatch()
    spec, options = folder.spec, folder.spec["options"]
    rows = gather(spec["method"], parents, options.get("target", "greedy"))
    progress(0.2)
    try:
        found = answer(rows, options, folder.seed)
    except FlopwiseError as e:
        found = {"status": "refused", "text": f"no law: {one_line(str(e), 300)}"}
    found = {"name": spec["name"], "method": spec["method"], "n": len(rows), **found}
    atomic_write(folder.path / POINTS_FILE, json.dumps(rows, indent=1))
    atomic_write(folder.path / LAW_FILE, json.dumps(found, indent=1, default=float))
    folder.finish(metrics={}, spend=watch.spend(), extra={"text": found["text"], "status": found["status"]})


def gather(method: str, parents: dict[str, RunFolder], target: str) -> Rows:
    """The rows of a question: N parameters, D examples learned from, C FLOPs of the run itself, y the target.

    Raises:
        FlopwiseError: an unknown method, or nothing to fit.
    """
    if method not in KINDS:
        raise FlopwiseError(f"laws: method is {method!r:.40}, must be one of {', '.join(KINDS)}")
    rows: Rows = []
    for role, run in parents.items():
        if not role.startswith("run"):
            continue
        record = run.record()
        known = {
            "run": record.id, "seed": record.seed, "name": record.name,
            "N": (record.model or {}).get("n_params_non_embedding"), "D": record.extra.get("examples"),
        }  # fmt: skip
        if method == "final":
            judged = parents.get(role.replace("run", "eval"))
            metrics = (judged.record().metrics if judged else {}) | record.metrics
            name = "pass_at_1" if target == "error" else target
            if name in metrics and metrics[name].value is not None:
                value = float(metrics[name].value or 0.0)
                y = 1 - value if target == "error" else value
                rows.append(known | {"C": record.spend.total_flops, "y": y, "se": metrics[name].se})
        elif method == "curve":
            name = "val_accuracy" if target in ("greedy", "accuracy", "error") else target
            for r in run.curve(name):
                y = 1 - r[name] if target == "error" else r[name]
                rows.append(known | {"C": _spent(r), "y": float(y), "step": r["step"]})
        else:
            curve = run.curve("reward")
            for part in np.array_split(np.arange(len(curve)), max(1, min(WINDOWS, len(curve)))):
                if len(part):
                    C = float(np.mean([_spent(curve[i]) for i in part]))
                    y = float(np.mean([curve[i]["reward"] for i in part]))
                    rows.append(known | {"C": C, "y": y})
    if not rows:
        raise FlopwiseError(f"laws: none of the runs has {target}; name others, or another target")
    return rows


def _spent(row: dict[str, Any]) -> float:
    return sum(float(row.get(f"{part}_flops") or 0.0) for part in ("train", "generate", "score"))


def answer(rows: Rows, options: dict[str, Any], seed: int) -> dict[str, Any]:
    """The fit of the candidates' best, judged on the rows it did not see where some are held out.

    Raises:
        FlopwiseError: no candidate fits the columns there are.
    """
    from flopwise.laws import get
    from flopwise.laws.fitting import fit

    candidates = [get(name) for name in options.get("candidates", ["rl_sigmoid"])]
    by = options.get("by", "C")
    order = sorted(range(len(rows)), key=lambda i: rows[i].get(by) or 0.0)
    n_out = round(float(options.get("hold_out", 0.0)) * len(rows))
    seen = [rows[i] for i in order[: len(rows) - n_out]] if n_out else rows
    unseen = [rows[i] for i in order[len(rows) - n_out :]] if n_out else []
    fitted: list[tuple[float, Fit]] = []
    reasons: list[str] = []
    for law in candidates:
        try:
            found = fit(law, _table(seen, law), cluster="run", loss="squared", seed=seed)
        except FlopwiseError as e:
            reasons.append(f"{law.name}: {one_line(str(e), 160)}")
            continue
        fitted.append((_error(found, unseen or seen, law), found))
    if not fitted:
        raise FlopwiseError("; ".join(reasons))
    error, best = min(fitted, key=lambda pair: pair[0])
    doubts = refusals(best, seen)
    others: dict[str, Any] = {f.law: e for e, f in fitted if f is not best}
    return {
        "law": best.law, "formula": get(best.law).formula, "params": best.params,
        "status": "refused" if doubts else "fitted",
        "intervals": {name: list(best.interval(name, 0.95)) for name in best.params},
        "warnings": list(best.warnings), "error": error, "held_out": len(unseen), "fitted_rows": len(seen),
        "others": others | ({"failed": reasons} if reasons else {}),
        "text": words(best, error, seen, unseen, doubts),
    }  # fmt: skip


def _table(rows: Rows, law: Any) -> dict[str, Any]:
    """Columns of a law.

    Raises:
        FlopwiseError: a run lacks a variable.
    """
    out: dict[str, Any] = {"run": [str(r["run"]) for r in rows]}
    for name in law.variables:
        values = [r.get(name) for r in rows]
        if any(v is None for v in values):
            raise FlopwiseError(f"the runs have no column {name}")
        out[name] = np.array(values, dtype=float)
    out[law.target] = np.array([r["y"] for r in rows])
    return out


def _error(found: Fit, rows: Rows, law: Any) -> float:
    """Root mean square of predicted minus measured."""
    table = _table(rows, law)
    predicted = np.atleast_1d(found.predict(**{v: table[v] for v in law.variables}).value)
    return float(np.sqrt(np.mean((predicted - table[law.target]) ** 2)))


def refusals(found: Fit, rows: Rows) -> list[str]:
    """Why a sigmoid in compute may not be extrapolated: its rise is too small, or compute has not passed its
    midpoint (the ceiling A is then a guess; `rl_sigmoid` of ScaleRL, arXiv 2510.13786)."""
    if "Cmid" not in found.params or "A" not in found.params:
        return []
    out = []
    C = np.array([r["C"] for r in rows])
    y = np.array([r["y"] for r in rows])[np.argsort(C)]
    low, high = found.interval("A", 0.95)
    middle = found.interval("Cmid", 0.95)[1]
    k = max(3, len(y) // 5)
    rise = y[-k:].mean() - y[:k].mean()
    noise = math.sqrt((y[:k].var(ddof=1) + y[-k:].var(ddof=1)) / k)
    if rise < 3 * noise:
        out.append(f"it rose by {rise:.3g} ± {noise:.2g}, too little to shape a curve")
    if not middle < C.max():
        out.append("compute may not have passed the curve's midpoint, so its ceiling is not known")
    elif min(high, 1.0) - low > 0.2:
        out.append(f"the ceiling may lie anywhere from {low:.2f} to {min(high, 1.0):.2f}")
    return out


def words(found: Fit, error: float, seen: Rows, unseen: Rows, doubts: list[str]) -> str:
    """One sentence or two: the law with its intervals, how far it was off where it had not looked, doubts."""
    numbers = []
    for name, value in found.params.items():
        low, high = found.interval(name, 0.95)
        numbers.append(f"{name} = {value:.4g} (95%: {low:.3g} to {high:.3g})")
    from flopwise.laws import get

    runs = len({r["run"] for r in seen})
    text = f"{found.law}: {get(found.law).formula}; {', '.join(numbers)}; {len(seen)} points of {runs} runs"
    if unseen:
        text += f"; off by {error:.3g} (root mean square) on the {len(unseen)} largest, which it had not seen"
    if doubts:
        text += ". Not to be extrapolated: " + "; ".join(doubts)
    return text + "."
