"""Which rungs of a ladder lie above the law that the others follow, and what their learning rate explains.

Each rung in turn gets a shift of its own beside the law (the mean-shift outlier model, Cook and Weisberg
1982): with it the rung no longer pulls the law, and the shift's error holds noise between trunks. The largest
that is no chance is kept and the search goes on, so that one bad rung does not make its neighbours look bad.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from flopwise.errors import FlopwiseError
from flopwise.laws.law import Array
from flopwise.laws.objective import Objective
from flopwise.laws.quantiles import stdtrit
from flopwise.laws.starts import minimise
from flopwise.laws.uncertainty import spread

if TYPE_CHECKING:
    from flopwise.laws.result import Fit
    from flopwise.pretrain.tuning import Tuning

STARTS = 20
FINALISTS, SCREEN = 2, 0.5
"""The law of the others is fitted anew for so many rungs, if their shift is half of what would be named."""
FURTHER = 0.2
"""Chance of error allowed for a second rung, of that for the first: few trunks are left to judge it by."""
RANK = 1e-6
"""Smallest singular value over the largest of columns scaled alike, below which a shift is not determined."""


def mistuned(
    table: Mapping[str, Any], fit: Fit, tuning: Tuning | None = None, *,
    factors: Mapping[int, float] | None = None, rung: str = "width", cluster: str = "run",
    level: float = 0.95, target: str | None = None,
) -> list[str]:  # fmt: skip
    """Sentences on rungs that a wrong rate may have spoilt; none where there is nothing to say.

    Args:
        table: the columns that the law was fitted to, with those of rungs and clusters.
        tuning: the search before the ladder: how much loss a rate off the best costs, and where the best is.
        factors: rate factor that each rung ran at; by default the table's column `rate`, else 1.
        target: the column that was fitted, where it is not the law's own.

    Raises:
        FlopwiseError: a column is missing.
    """
    for name in (rung, cluster, target or fit.form.target, *fit.form.variables):
        if name not in table:
            raise FlopwiseError(f"mistuned: no column {name!r}; there are {', '.join(table)}")
    widths = np.asarray(table[rung])
    ran = dict(factors or {})
    for w in np.unique(widths).tolist():
        ran.setdefault(w, float(np.mean(np.asarray(table["rate"])[widths == w])) if "rate" in table else 1.0)
    found = shifts(table, fit, rung, cluster, level, target)
    words = []
    for w, (shift, half) in found.items():
        said = f"{rung} {w}: loss {shift:.1%} above what the other rungs say (±{half:.1%})"
        value, low, high = tuning.penalty(int(w), ran[w]) if tuning else (0.0, 0.0, 0.0)
        if tuning is None or not np.isfinite(high):
            words.append(f"{said}; was its learning rate wrong? A tuning search would tell")
        elif shift - half <= high:
            words.append(
                f"{said}; its rate, {ran[w]:.3g} of the rule's, explains {value:.1%} "
                f"({low:.1%} to {high:.1%})"
            )
        else:
            words.append(
                f"{said}, more than its rate explains ({low:.1%} to {high:.1%}): the law bends there, or the "
                f"run went wrong"
            )
    for w in np.unique(widths).tolist():
        value, low, high = tuning.penalty(int(w), ran[w]) if tuning else (0.0, 0.0, 0.0)
        if low > 0 and w not in found:
            words.append(
                f"{rung} {w}: its rate, {ran[w]:.3g} of the rule's, gives away {value:.1%} of the loss "
                f"({low:.1%} to {high:.1%}), which the law takes for the size's own"
            )
    return words


def shifts(
    table: Mapping[str, Any],
    fit: Fit,
    rung: str = "width",
    cluster: str = "run",
    level: float = 0.95,
    target: str | None = None,
) -> dict[Any, tuple[float, float]]:
    """Rungs above the law of the others: relative shift and half-width of its interval, largest first.

    The chance of naming any rung of a ladder that has none is 1 - `level` (Bonferroni over the rungs).
    """
    labels, of = np.unique(np.asarray(table[rung]), return_inverse=True)
    clusters = np.unique(np.asarray(table[cluster]).astype(str), return_inverse=True)[1]
    x = {name: np.asarray(table[name], dtype=float) for name in fit.form.variables}
    y = np.asarray(table[target or fit.form.target], dtype=float)
    whole = Objective(fit.form, x, y, np.inf, fit.scale)
    theta = fit.theta[None]
    kept: list[int] = []
    out: dict[Any, tuple[float, float]] = {}
    while len(kept) < len(labels) - 2:
        chance = (1 - level) / len(labels) * (FURTHER if kept else 1.0)

        def shift(i: int, theta: Array, chance: float = chance) -> tuple[float, float, float, float]:
            """Of rung i around a law: in units of what is no chance, itself, its error and degrees."""
            above, slopes = _around(whole, theta)
            found = _last(
                np.column_stack([slopes, *((of == j).astype(float) for j in (*kept, i))]), above, clusters
            )
            return (-np.inf, 0.0, 0.0, 1.0) if found is None else (
                found[0] / found[1] / stdtrit(found[2], 1 - chance), *found
            )  # fmt: skip

        first = {i: shift(i, theta)[0] for i in set(range(len(labels))) - set(kept)}
        tried = []
        for i in sorted(first, key=lambda i: -first[i])[:FINALISTS]:
            others = whole.only(np.flatnonzero(~np.isin(of, [*kept, i])))
            if first[i] > SCREEN and len(others.y) > len(fit.form.names):
                # Around the law of the others a rung has a shift, however far it had pulled the whole.
                left = minimise(others, STARTS, 0).theta[:1]
                tried.append((shift(i, left), i, left))
        if not tried:
            break
        (sure, value, se, dof), i, left = max(tried, key=lambda entry: entry[0][0])
        if sure <= 1:
            break
        kept.append(i)
        theta = left
        out[labels[i].item()] = (value, stdtrit(dof, 0.5 + level / 2) * se)
    return out


def _around(problem: Objective, theta: Array) -> tuple[Array, Array]:
    """How far all rows lie above the law, relative [n], and the law's slopes [n, k]."""
    r, J = problem.jacobian(theta)
    unit = 1.0 if problem.scale == "log" else problem.y
    slopes = (J[0] / unit).T
    return -r[0] / unit, slopes[:, np.abs(slopes).max(axis=0) > 1e-9]  # without terms that have vanished


def _last(X: Array, y: Array, clusters: Array) -> tuple[float, float, float] | None:
    """The last coefficient of least squares, its standard error and degrees of freedom, if determined."""
    norms = np.linalg.norm(X, axis=0)
    s = np.linalg.svd(X / norms, compute_uv=False)
    if len(y) <= X.shape[1] or s[-1] < RANK * s[0]:
        return None
    beta, *_ = np.linalg.lstsq(X / norms, y, rcond=None)
    noise = spread(X, y - X @ (beta / norms), clusters, np.inf)
    se = float(np.sqrt(noise.covariance[-1, -1]))
    if not noise.seen or not se > 0:
        return None
    return float(beta[-1] / norms[-1]), se, float(noise.dofs[-1])
