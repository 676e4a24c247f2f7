"""A linear probe: from the model's own state after an answer's last token to the log-odds that it is right.

The cheapest learned judge there is: no second model, and one product of the width (Kadavath et al., arXiv
2207.05221, train a head on their model's states to say whether it knows; Zhang et al., arXiv 2504.05419,
find right answers in the states of reasoning models). It is fitted by logistic regression with an L2 penalty
chosen by cross-validation over problems, on samples of problems that are then refused to it: a probe that
knows a problem says nothing of others.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from flopwise.errors import FlopwiseError, one_line
from flopwise.infer.scorers import Scores, Written, chance, read_flops

if TYPE_CHECKING:
    from flopwise.infer.local import LocalEngine
    from flopwise.infer.room import Room

WEIGHTS_FILE, ABOUT_FILE = "probe.safetensors", "probe.json"
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Half of one over the variance of the weights' prior, per sample, on standardised states."""
FOLDS = 5


@dataclass
class Probe:
    """Scores answers by the states of `engine`'s model.

    `weights` [d_model] and `bias` apply to the state as it is; `known` are marks of the problems it was
    fitted to; `about` says how good it is, and on what it was fitted.
    """

    weights: np.ndarray
    bias: float
    known: frozenset[int] = frozenset()
    about: dict[str, Any] = field(default_factory=dict)
    engine: LocalEngine | None = None
    kind: ClassVar[str] = "probe"

    def score(self, written: Sequence[Written]) -> Scores:
        """As score `probe`. The text is read once more, and that is what it costs.

        Raises:
            FlopwiseError: a problem is one of those that it was fitted to.
        """
        assert self.engine is not None
        seen = {mark(w.problem) for w in written} & self.known
        if seen:
            raise FlopwiseError(
                f"probe: {len(seen)} of the problems were used to fit it, so it says nothing of others; "
                "fit it on other problems (another --seed or --data)"
            )
        states = self.engine.states([[*w.prompt, *w.tokens] for w in written])
        return Scores({"probe": states @ self.weights + self.bias}, read_flops(self.engine.cfg, written))

    def values(self, written: Sequence[Written]) -> tuple[np.ndarray, np.ndarray]:
        """What it says of a part, though it has only learned whole answers."""
        found = self.score(written)
        return chance(found.by["probe"]), found.flops

    def save(self, folder: Path) -> None:
        """probe.safetensors and probe.json."""
        from safetensors.numpy import save

        from flopwise.records.folder import atomic_write

        folder.mkdir(parents=True, exist_ok=True)
        bias = np.array([self.bias], dtype=np.float32)
        weights = np.ascontiguousarray(self.weights, dtype=np.float32)
        atomic_write(folder / WEIGHTS_FILE, save({"weights": weights, "bias": bias}))
        atomic_write(folder / ABOUT_FILE, json.dumps(self.about | {"known": sorted(self.known)}, indent=1))

    @classmethod
    def load(cls, folder: Path, model: Path, engine: LocalEngine) -> Probe:
        """A probe for the model in a folder.

        Raises:
            FlopwiseError: there is none, it is damaged, or was fitted to another model.
        """
        from safetensors.numpy import load

        from flopwise.infer.store import model_hash

        try:
            arrays = load((folder / WEIGHTS_FILE).read_bytes())
            about = json.loads((folder / ABOUT_FILE).read_bytes())
            known, weights, bias = about.pop("known"), arrays["weights"], float(arrays["bias"][0])
        except Exception as e:  # safetensors raises a class of its own for each kind of damage
            raise FlopwiseError(
                f"{folder} holds no probe ({one_line(e, 80)}); make one with `flopwise probe MODEL -o FOLDER`"
            ) from e
        if about.get("model") != model_hash(model):
            raise FlopwiseError(f"probe {folder} was fitted to another model than {model}; fit one to this")
        return cls(weights, bias, frozenset(known), about, engine)


def mark(problem: Any) -> int:
    """A number below 2**63 that tells a problem."""
    return int.from_bytes(hashlib.sha256(problem.prompt.encode()).digest()[:8], "little") >> 1


def fit_probe(room: Room, n: int = 8, seed: int = 0) -> Probe:
    """Sample n answers to each of a room's problems and fit a probe to them.

    What it says of itself (`about`) is measured on a fifth of the problems, which are no part of the fit.

    Raises:
        FlopwiseError: too few problems, or answers that are all right or all wrong.
    """
    from flopwise.infer import calibration

    if len(room.problems) < 2 * FOLDS:
        raise FlopwiseError(f"probe: {len(room.problems)} problems, at least {2 * FOLDS} are needed")
    engine: Any = room.engine
    rows = [r for r in room.sample([(p, ()) for p in range(len(room.problems))], n, seed=seed) if r.tokens]
    right = np.array([bool(c.correct) for c in room.candidates([(r.problem, r.tokens) for r in rows])])
    groups = np.array([r.problem for r in rows])
    order = np.random.default_rng((abs(seed), 17)).permutation(len(room.problems))
    held = np.isin(groups, order[: len(order) // FOLDS])
    if right[~held].all() or not right[~held].any() or not 0 < right[held].sum() < held.sum():
        raise FlopwiseError(
            f"probe: of {len(right)} answers {int(right.sum())} are right; it takes some right and some "
            "wrong ones in each part: take more problems, or such as are solved sometimes"
        )
    states = engine.states([[*room.asked.ids[r.problem], *r.tokens] for r in rows]).astype(float)
    weights, bias, penalty = logistic(states[~held], right[~held], groups[~held])
    scores = states[held] @ weights + bias
    within = calibration.auc_within(scores, right[held], groups[held])
    metrics, _ = calibration.describe(scores, right[held], groups[held])
    about = {
        "task": room.task.name, "style": room.asked.style, "problems": len(room.problems), "n": n,
        "seed": seed, "penalty": penalty, "right": float(right.mean()),
        "held_out_problems": len(order) // FOLDS,
        "auc_within": float(within.mean()) if len(within) else None,
        "auc_within_se": float(within.std(ddof=1) / len(within) ** 0.5) if len(within) > 1 else None,
        "auc_problems": len(within), "auc_pooled": calibration.auc(scores, right[held]),
        "metrics": {name: m.value for name, m in metrics.items()},
    }  # fmt: skip
    known = frozenset(mark(problem) for problem in room.problems)
    return Probe(weights.astype(np.float32), bias, known, about, engine)


def logistic(x: np.ndarray, right: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Weights [d], bias and the penalty chosen, of the log-odds of `right` [N] given x [N, d].

    The penalty is that of `PENALTIES` with the least loss on problems (`groups` [N]) left out of the fit.
    """
    mean, scale = x.mean(axis=0), x.std(axis=0)
    scale[scale == 0] = 1.0
    z, y = (x - mean) / scale, right.astype(float)
    fold = np.unique(groups, return_inverse=True)[1] % FOLDS
    losses = []
    for penalty in PENALTIES:
        total = 0.0
        for k in range(FOLDS):
            w, b = _fit(z[fold != k], y[fold != k], penalty)
            total += _loss(z[fold == k] @ w + b, y[fold == k]).sum()
        losses.append(total)
    penalty = PENALTIES[int(np.argmin(losses))]
    w, b = _fit(z, y, penalty)
    return w / scale, float(b - (w / scale) @ mean), penalty


def _loss(logits: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.logaddexp(0.0, logits) - y * logits


def _fit(z: np.ndarray, y: np.ndarray, penalty: float) -> tuple[np.ndarray, float]:
    from scipy.optimize import minimize

    def objective(v: np.ndarray) -> tuple[float, np.ndarray]:
        w, b = v[:-1], v[-1]
        logits = z @ w + b
        error = (chance(logits) - y) / len(y)
        gradient = np.append(z.T @ error + 2 * penalty * w, error.sum())
        return float(_loss(logits, y).mean() + penalty * (w @ w)), gradient

    found = minimize(
        objective, np.zeros(z.shape[1] + 1), jac=True, method="L-BFGS-B", options={"maxiter": 300}
    )
    return found.x[:-1], float(found.x[-1])
