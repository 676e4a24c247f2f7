"""Laws 1 and 3 joined: pass@k of a model nobody has trained, from the loss that law 1 predicts for it.

The models got the same fine-tuning from pretrained models of several sizes, so that what differs is law 1's.

The step that runs this is finished before the held-out model is sampled; what it wrote down is compared
afterwards.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from flopwise.plan.systems import Measured

if TYPE_CHECKING:
    from flopwise.laws import Fit
    from flopwise.records.folder import RunFolder
    from flopwise.records.record import RunRecord

JOINT_FILE, FIT_FILE = "joint.json", "fit.json"
DRAWS = 400


def observations(models: list[Measured], pretrained: list[RunRecord], up_to: int) -> dict[str, np.ndarray]:
    """Columns loss, k, coverage, run: pass@k for k = 1, 2, 4, ..., `up_to`, by the loss before fine-tuning.

    The `models` got the same fine-tuning, each from the one of `pretrained` whose loss is taken. All k of a
    model come from the same samples, and branches of one trunk share its weights: `run`, the trunk, is the
    cluster.
    """
    rows = [
        (start.metrics["loss"].value, point["n"], point["value"], f"w{m.record.extra['width']}-s{start.seed}")
        for m, start in zip(models, pretrained, strict=True)
        for point in m.curves["verifier"]
        if point["n"] <= up_to
    ]
    loss, k, coverage, run = zip(*rows, strict=True)
    return {
        "loss": np.array(loss, dtype=float), "k": np.array(k, dtype=float),
        "coverage": np.array(coverage, dtype=float), "run": np.array(run),
    }  # fmt: skip


def coverage_draws(fit: Fit, losses: np.ndarray, k: float, seed: int) -> np.ndarray:
    """Draws of pass@k for a single model whose loss is known only through draws of it.

    They join the uncertainty of the loss, that of the fit, and the scatter of single models around the law.
    """
    sets = fit.draws(len(losses), seed)
    params = {name: np.array([s[name] for s in sets]) for name in fit.params}
    values = fit.form(params, {"loss": losses, "k": np.full(len(losses), float(k))})
    scatter = np.random.default_rng((seed, 1)).standard_t(fit.dof, len(losses)) * fit.scatter
    return np.clip(values + scatter, 0.0, 1.0)


def loss_draws(value: float, low: float, high: float, seed: int, n: int = DRAWS) -> np.ndarray:
    """Draws of a loss from its predicted value and 95% interval, on the log scale."""
    spread = (np.log(high) - np.log(low)) / (2 * 1.96)
    return value * np.exp(np.random.default_rng(seed).normal(0.0, spread, n))


def run_step(folder: RunFolder, parents: dict[str, RunFolder], progress: Callable[[float], None]) -> None:
    """Fit Train-to-Test to sampled models of several sizes, predict the held-out one from its predicted loss.

    Parents: `law` (the pretraining law's step), `sampled0`, `sampled1`, ... (sample steps).
    """
    from flopwise.flops.spend import Stopwatch
    from flopwise.laws import fit
    from flopwise.records.folder import RunFolder, atomic_write
    from flopwise.records.record import Metric

    watch = Stopwatch()
    spec = folder.spec
    root = folder.path.parent
    models = [
        Measured.read(f, RunFolder(root / f.roles["model"]))
        for role, f in parents.items()
        if role.startswith("sampled")
    ]
    pretrained = [RunFolder(root / m.record.roles["init"]).record() for m in models]
    table = observations(models, pretrained, spec["up_to"])
    fitted = fit("train_to_test", table, loss="squared", cluster="run", seed=folder.seed)
    progress(0.7)
    prediction = json.loads((parents["law"].path / "prediction.json").read_bytes())
    losses = loss_draws(prediction["value"], prediction["low"], prediction["high"], folder.seed)
    points = []
    for k in sorted(set(table["k"].tolist())):
        low, high = np.quantile(coverage_draws(fitted, losses, k, folder.seed), [0.025, 0.975])
        value = fitted.predict(loss=prediction["value"], k=k).value
        points.append({"k": int(k), "predicted": float(value), "low": float(low), "high": float(high)})
    fitted.to_json(folder.path / FIT_FILE)
    content = {
        "N": prediction["N"], "D": prediction["D"], "loss": prediction,
        "points": points, "made_at": time.time(),
        "observations": {name: values.tolist() for name, values in table.items()},
    }  # fmt: skip
    atomic_write(folder.path / JOINT_FILE, json.dumps(content, indent=1))
    folder.finish(
        metrics={f"predicted_pass_at_{p['k']}": Metric(value=p["predicted"], n=len(models)) for p in points},
        spend=watch.spend(),
    )
