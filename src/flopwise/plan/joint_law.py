"""Joint laws over pretraining, post-training and samples: their table from records, the form that predicts
best.

A row is one model asked k times: N parameters, D pretraining tokens, `post` tokens of post-training, k
samples, the share of problems that k samples solve (`coverage`), minus its logarithm (`nlp`), and `run`, the
model, as all k come from the same samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from flopwise.errors import FlopwiseError

if TYPE_CHECKING:
    from pathlib import Path

    from flopwise.laws import Fit
    from flopwise.records.record import RunRecord

FORMS = ("joint_logit", "joint_loss", "joint_accuracy", "joint_saturating")
"""Candidates where some models were post-trained."""
FORMS_WITHOUT = ("train_to_test_loss", "train_to_test_accuracy")
"""Candidates where none was."""
SIMPLER = 0.9
"""A form with more parameters must bring the error below this share of a simpler one's to displace it."""
LEAST = 1e-6
"""Coverage below which its logarithm says nothing."""


@dataclass(frozen=True)
class Trial:
    """One form fitted to all but the largest models, its errors on those."""

    law: str
    rms: float
    """Root mean square error of pass@k on the held-out rows, in shares."""
    inside: float
    """Share of held-out rows inside their 95% interval."""
    fit: Fit


@dataclass(frozen=True)
class Chosen:
    """The form that predicts held-out scale best, fitted to everything; the others stand by for the
    regret."""

    fit: Fit
    others: list[Fit]
    trials: list[Trial]
    reasons: list[str]


def observations(folder: str | Path, methods: Iterable[str] | None = None) -> dict[str, np.ndarray]:
    """The table of a folder of runs (as `flopwise demo` leaves them): one row per sampled model and k.

    Args:
        methods: keep models whose every post-training step is of one of these (`record.kind` or
            `record.method`), pretrained ones always; all, without. What one method buys per FLOP says little
            of another's: a law of several is a law of what was tried.

    N is the parameters without embeddings, D what the pretrained ancestor saw. `post` is the FLOPs of all
    steps after it, sampling and scoring for them included, over those of the pretraining per token: the
    tokens of pretraining that cost as much.

    Raises:
        FlopwiseError: no such folder, or no sampled model in it.
    """
    import json
    from pathlib import Path

    from flopwise.records.store import RunStore

    root, rows = Path(folder), []
    done = {r.id: r for r in RunStore(root).records() if r.status == "done"}
    kept = None if methods is None else set(methods)
    for sample in done.values():
        model = done.get(sample.roles.get("model", "")) if sample.kind == "sample" else None
        path = root / sample.id / "curves.json"
        if model is None or not path.is_file():
            continue
        base, steps = _descent(model, done)
        if base is None or (kept is not None and any(not {s.kind, s.method} & kept for s in steps)):
            continue
        N, D = (base.model or {}).get("n_params_non_embedding"), (base.data or {}).get("tokens_seen")
        if not N or not D:
            continue
        spent = base.lineage_spend.total_flops
        post = max(model.lineage_spend.total_flops - spent, 0.0) / spent * D if steps and spent else 0.0
        for point in json.loads(path.read_bytes()).get("verifier", []):
            rows.append((N, D, post, point["n"], point["value"], model.name or model.id))
    if not rows:
        raise FlopwiseError(
            f"plan: no sampled model in {root}; a joint law needs pass@k of several models "
            "(as an experiment with a section testtime makes them)"
        )
    columns = dict(zip(("N", "D", "post", "k", "coverage", "run"), zip(*rows, strict=True), strict=True))
    table = {name: np.array(v, dtype=str if name == "run" else float) for name, v in columns.items()}
    return with_nlp(table)


def _descent(model: RunRecord, done: dict[str, RunRecord]) -> tuple[RunRecord | None, list[RunRecord]]:
    """The pretrained run a model comes from, and the steps after it, last first."""
    steps: list[RunRecord] = []
    at: RunRecord | None = model
    while at is not None and at.kind != "pretrain":
        steps.append(at)
        at = done.get(at.roles.get("init", ""))
    return at, steps


def with_nlp(table: dict[str, Any]) -> dict[str, Any]:
    """The table with `nlp`, minus the logarithm of coverage, where it has none of its own.

    The mean over problems of -log pass@k, which Train-to-Test's loss form was made for, is infinite as soon
    as one problem was never solved; the logarithm of the mean is not.
    """
    if "nlp" in table or "coverage" not in table:
        return table
    return table | {"nlp": -np.log(np.maximum(np.asarray(table["coverage"], dtype=float), LEAST))}


def coverage(law: str, values: Any) -> Any:
    """Predictions of a law of coverage or of its logarithm as coverage."""
    from flopwise.laws.law import get

    return np.exp(-np.asarray(values)) if get(law).target == "nlp" else np.asarray(values)


def choose(
    table: dict[str, Any], by: str = "C", forms: Sequence[str] | None = None, cluster: str | None = "run",
    seed: int = 0,
) -> Chosen:  # fmt: skip
    """Fit every form without the models that are largest in `by` and judge it on them; then fit to all.

    `by`: a column, or "C" for 6 N (D + post). Errors are of pass@k itself, whatever the form predicts, so
    that loss forms and accuracy forms compete.

    Raises:
        FlopwiseError: no form can be fitted, or `by` does not vary.
    """
    from flopwise.laws import fit
    from flopwise.laws.law import get
    from flopwise.records.table import numbers, read_table

    table = with_nlp(dict(read_table(table)))
    cluster = cluster if cluster in table else None
    N, D = numbers(table, "N", "plan"), numbers(table, "D", "plan")
    post = numbers(table, "post", "plan") if "post" in table else np.zeros(len(N))
    scale = 6 * N * (D + post) if by == "C" and "C" not in table else numbers(table, by, "plan")
    held = scale >= scale.max() * (1 - 1e-6)
    if held.all():
        raise FlopwiseError(f"plan: {by} is {scale.max():.4g} in every row; nothing larger can be held out")
    found, reasons = [], []
    for name in forms or (FORMS if np.ptp(post) > 0 else FORMS_WITHOUT):
        try:
            small = fit(name, _rows(table, ~held), _loss(name), cluster=cluster, seed=seed, intervals="delta")
            whole = fit(name, table, _loss(name), cluster=cluster, seed=seed, intervals="delta")
            found.append((_judged(small, _rows(table, held)), whole))
        except FlopwiseError as e:
            reasons.append(f"{name} was left out: {e}")
    if not found:
        raise FlopwiseError(
            f"plan: no joint law can be fitted; {reasons[0] if reasons else 'none was given'}"
        )
    found.sort(key=lambda pair: len(get(pair[0].law).parameters))
    best = found[0]
    for pair in found[1:]:
        if pair[0].rms < SIMPLER * best[0].rms:
            best = pair
    told = [f"{t.law}: {t.rms:.3f}" for t, _ in found]
    reasons.insert(0, f"{best[0].law} is chosen: root mean square error of pass@k on the largest {by}, "
                      f"{', '.join(told)}")  # fmt: skip
    return Chosen(_honest(*best), [f for t, f in found if f is not best[1]], [t for t, _ in found], reasons)


def _loss(name: str) -> str:
    from flopwise.laws.law import get

    return "log_squared" if get(name).target == "nlp" else "squared"


def _rows(table: dict[str, Any], keep: np.ndarray) -> dict[str, np.ndarray]:
    return {name: np.asarray(v)[keep] for name, v in table.items()}


def _judged(fitted: Fit, held: dict[str, np.ndarray]) -> Trial:
    """A fit's errors on rows it did not see."""
    made = fitted.predict(**{v: np.asarray(held[v], dtype=float) for v in fitted.form.variables})
    measured = np.asarray(held["coverage"], dtype=float)
    ends = np.sort(np.stack([coverage(fitted.law, made.low), coverage(fitted.law, made.high)]), axis=0)
    error = coverage(fitted.law, made.value) - measured
    inside = (ends[0] <= measured) & (measured <= ends[1])
    return Trial(fitted.law, float(np.sqrt(np.mean(error**2))), float(inside.mean()), fitted)


def _honest(trial: Trial, fitted: Fit) -> Fit:
    """The fit with the error that its form made on held-out scale, relative to what it predicts there."""
    seen = fitted.problem
    usual = float(np.sqrt(np.mean(np.square(seen.y)))) if seen is not None else 1.0
    misfit = trial.rms / usual if fitted.scale == "plain" else trial.rms
    return replace(fitted, misfit=misfit)
