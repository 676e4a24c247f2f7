"""Compute-optimal sizes from the envelope of training curves: Chinchilla's approach 1.

Each run is a curve of loss against compute. At each C the run with the lowest loss gives N*(C), and D* = C /
(6 N*); lines through these in logarithms are the power laws (Hoffmann et al. 2022, arXiv 2203.15556, section
3.1: 1,500 values of C). Points of the envelope are not independent, a run holds it over a stretch of C, so
intervals come from a bootstrap over whole runs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from flopwise.errors import FlopwiseError
from flopwise.laws.isoflop_lines import PowerLaw, positive, power_law, resampled
from flopwise.laws.law import Array

POINTS = 400
"""Values of C, evenly spaced in logarithm."""
SCHEDULE = (
    "checkpoints are taken as if training had ended there: under a schedule that decays to the last step (a "
    "cosine) those before the end lie above what a run of that length would reach, which moves the exponent; "
    "use runs with a constant rate, or the ends of runs of several lengths by isoFLOP curves"
)


@dataclass
class Envelope:
    """The lowest loss at each compute: arrays [m] of C, N, D, loss and the run that has it.

    `laws`: power laws of N, D and loss in C, with intervals by a bootstrap over `runs` runs, of which
    `holders` are anywhere lowest.
    """

    C: Array
    N: Array
    D: Array
    loss: Array
    run: list[str]
    laws: dict[str, PowerLaw]
    runs: int
    holders: int
    draws: int
    warnings: list[str] = field(default_factory=list)

    @property
    def a(self) -> float:
        """Exponent of N*(C)."""
        return self.laws["N"].exponents["C"]

    def to_dict(self, level: float = 0.95) -> dict[str, Any]:
        """All of it, as JSON takes it."""
        return {
            "method": "envelope of training curves", "runs": self.runs, "holders": self.holders,
            "draws": self.draws,
            "points": {
                "C": self.C.tolist(), "N": self.N.tolist(), "D": self.D.tolist(), "loss": self.loss.tolist(),
                "run": self.run,
            },
            "laws": {name: law.to_dict(level) for name, law in self.laws.items()}, "warnings": self.warnings,
        }  # fmt: skip


@dataclass(frozen=True)
class _Curves:
    """Log loss of each run on one grid of log C, nan outside the run [runs, m]."""

    log_c: Array
    values: Array
    N: Array
    names: list[str]
    mixed: bool


def envelope(
    table: Any, run: str = "run", points: int = POINTS, smooth: float = 1.0, bootstrap: int = 200,
    seed: int = 0,
) -> Envelope:  # fmt: skip
    """The envelope of training curves and its power laws.

    Args:
        table: one row per checkpoint, columns N (parameters), D (tokens until then), loss and `run`: a
            mapping, a dataframe, or the path of a file. C = 6 N D.
        run: the column that tells runs apart.
        points: values of C, evenly spaced in logarithm over what the runs cover.
        smooth: each checkpoint's log loss is averaged with those of its run within this factor of C (half of
            it either side, in logarithm), 1 for none; noise lets a run look best that is not.
        bootstrap: resamples of whole runs behind the intervals.

    Raises:
        FlopwiseError: a column is missing, a value is not above 0, fewer than three sizes, or an envelope
            that no run inside the range of sizes ever holds.
    """
    for name, value, low, high in (("points", points, 20, 100_000), ("bootstrap", bootstrap, 20, 100_000)):
        if not low <= value <= high:
            raise FlopwiseError(f"envelope: {name} is {value}, must be from {low} to {high}")
    if not 1 <= smooth < 100:
        raise FlopwiseError(f"envelope: smooth is {smooth}, must be a factor from 1 to 100, as 1.2")
    curves = _curves(table, run, points, smooth)
    kept, at, loss = _lowest(curves, np.arange(len(curves.N)))
    if not _fits(curves, kept, at):
        raise FlopwiseError(
            f"envelope: {len(np.unique(curves.N[at[kept]]))} sizes are ever lowest with smaller and larger "
            f"ones beside them, needs 3; add sizes, or train the smallest for longer"
        )
    laws = _laws(curves, kept, at, loss)
    others = _resamples(curves, bootstrap, seed)
    warnings = [SCHEDULE]
    if len(others) < max(20, bootstrap // 2):
        warnings.append(
            f"{bootstrap - len(others)} of {bootstrap} resamples of runs leave too few sizes on the "
            f"envelope: intervals are not to be relied on"
        )
    if len(others) >= 20:
        laws = {name: resampled(law, [o[name] for o in others]) for name, law in laws.items()}
    holders = len(np.unique(at[kept]))
    warnings.append(
        f"neighbouring points of the envelope are of one run and not independent: {int(kept.sum())} points "
        f"come from {holders} runs; intervals resample runs"
    )
    if left := int((~kept).sum()):
        warnings.append(
            f"{left} of {len(kept)} values of C are left out: the lowest loss there is of the smallest or "
            f"the largest size that reaches it, so that the optimum may lie beyond"
        )
    if curves.mixed:
        warnings.append("a run holds several sizes N; its rows were taken at their geometric mean")
    C, N = np.exp(curves.log_c[kept]), curves.N[at[kept]]
    return Envelope(
        C, N, C / (6 * N), np.exp(loss[kept]), [curves.names[i] for i in at[kept]], laws, len(curves.N),
        holders, len(others), warnings,
    )  # fmt: skip


def at_budgets(table: Any, budgets: Any, run: str = "run", smooth: float = 1.0) -> dict[str, Array]:
    """Training curves read off at given compute, as rows for `isoflop`: columns N, D, C, loss, run.

    Log loss is interpolated in log C between checkpoints, never beyond a run's first or last one.

    Raises:
        FlopwiseError: as `envelope`, or no run reaches any of the budgets.
    """
    wanted = np.sort(np.asarray(budgets, dtype=float).ravel())
    if not (len(wanted) and np.isfinite(wanted).all() and (wanted > 0).all()):
        raise FlopwiseError("at_budgets: budgets must be numbers of FLOPs above 0")
    curves = _curves(table, run, 0, smooth, np.log(wanted))
    i, j = np.nonzero(np.isfinite(curves.values))
    if not len(i):
        raise FlopwiseError(
            f"at_budgets: no run has checkpoints around {wanted[0]:.3g} to {wanted[-1]:.3g} FLOP"
        )
    C = wanted[j]
    return {
        "N": curves.N[i], "D": C / (6 * curves.N[i]), "C": C, "loss": np.exp(curves.values[i, j]),
        "run": np.array(curves.names)[i],
    }  # fmt: skip


def _curves(table: Any, run: str, points: int, smooth: float, log_c: Array | None = None) -> _Curves:
    """Every run on one grid of log C."""
    from flopwise.records.table import read_table, require

    table = read_table(table)
    columns = positive(table, ("N", "D", "loss"), "envelope")
    require(table, run, "envelope: to tell runs apart")
    names, of = np.unique(np.asarray(table[run]).astype(str), return_inverse=True)
    N = np.array([np.exp(np.log(columns["N"][of == i]).mean()) for i in range(len(names))])
    mixed = any(np.ptp(columns["N"][of == i]) > 1e-3 * N[i] for i in range(len(names)))
    if len(np.unique(N)) < 3:
        raise FlopwiseError(f"envelope: {len(np.unique(N))} sizes in {len(names)} runs, needs at least 3")
    at = [np.log(6 * N[i] * columns["D"][of == i]) for i in range(len(names))]
    if log_c is None:
        log_c = np.linspace(min(a.min() for a in at), max(a.max() for a in at), points)
    rows = []
    for i, x in enumerate(at):
        y = np.log(columns["loss"][of == i])
        x, same = np.unique(x, return_inverse=True)
        y = np.bincount(same, y) / np.bincount(same)
        if smooth > 1:
            near = np.abs(x[:, None] - x) <= np.log(smooth) / 2
            y = near @ y / near.sum(axis=1)
        # A nominal budget is not met to the last digit: a run that ends a millionth before it counts.
        inside = (log_c >= x[0] - 1e-6) & (log_c <= x[-1] + 1e-6)
        rows.append(np.where(inside, np.interp(log_c, x, y), np.nan))
    return _Curves(log_c, np.array(rows), N, [str(n) for n in names], mixed)


def _lowest(curves: _Curves, chosen: Array) -> tuple[Array, Array, Array]:
    """At each C: whether the best has smaller and larger sizes beside it, which run is best, its log loss."""
    values = np.where(np.isfinite(v := curves.values[chosen]), v, np.inf)
    best = values.argmin(axis=0)
    loss = values[best, np.arange(values.shape[1])]
    present, N = np.isfinite(values), curves.N[chosen][:, None]
    smallest = np.where(present, N, np.inf).min(axis=0)
    largest = np.where(present, N, 0.0).max(axis=0)
    size = N[best, 0]
    return np.isfinite(loss) & (size > smallest) & (size < largest), chosen[best], loss


def _resamples(curves: _Curves, bootstrap: int, seed: int) -> list[dict[str, PowerLaw]]:
    """Power laws of resampled runs, of those resamples that leave enough sizes on the envelope."""
    rng, out = np.random.default_rng(seed), []
    for _ in range(bootstrap):
        kept, at, loss = _lowest(curves, np.unique(rng.integers(len(curves.N), size=len(curves.N))))
        if _fits(curves, kept, at):
            out.append(_laws(curves, kept, at, loss))
    return out


def _fits(curves: _Curves, kept: Array, at: Array) -> bool:
    """Whether the envelope has sizes enough for a line."""
    return len(np.unique(curves.N[at[kept]])) >= 3


def _laws(curves: _Curves, kept: Array, at: Array, loss: Array) -> dict[str, PowerLaw]:
    C, N = np.exp(curves.log_c[kept]), curves.N[at[kept]]
    values = {"N": N, "D": C / (6 * N), "loss": np.exp(loss[kept])}
    return {name: power_law(name, v, {"C": C}, who="envelope") for name, v in values.items()}
