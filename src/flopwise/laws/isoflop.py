"""Compute-optimal sizes from isoFLOP curves: Chinchilla's approach 2 and its relative with interpolation.

Runs are grouped by training compute C. In each group a curve of the loss in log N has its minimum at the size
N*(C), and lines through the minima give N* = G C^a, D* = H C^b, loss* = K C^-c. The curve is a parabola
(Hoffmann et al. 2022, arXiv 2203.15556, section 3.2) or an Akima interpolation of log loss (Porian et al.
2024, arXiv 2406.19146, section 3). What a parabola gets wrong by itself is in `flopwise.laws.isoflop_bias`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from flopwise.errors import FlopwiseError
from flopwise.laws.isoflop_bias import Bias, bias_of
from flopwise.laws.isoflop_lines import PowerLaw, positive, power_law
from flopwise.laws.isoflop_minimum import METHODS, SCALES, Budget, Curve, noises, optimum, windowed
from flopwise.laws.law import Array
from flopwise.laws.result import Fit

FEWEST = 4
"""Sizes that a budget needs: a parabola goes through any three."""
REPEATS = ("mean", "min")
_SWEEP = 0.01
"""Spread of log loss at one size and budget above which runs do not look like seeds of one another."""
_APART = 0.03
"""Distance in C within a budget beyond which losses differ by C as they do by size near the minimum."""


@dataclass
class Isoflop:
    """What isoFLOP curves say. `laws`: "weighted" and "plain", each with power laws of N, D and loss in C.

    `grouping` and `method` tell in words how runs were grouped and minima found. There are no laws where
    fewer than three budgets have a minimum.
    """

    grouping: str
    method: str
    budgets: list[Budget]
    laws: dict[str, dict[str, PowerLaw]]
    bias: Bias | None = None
    warnings: list[str] = field(default_factory=list)

    @property
    def a(self) -> float:
        """Exponent of N*(C), minima weighted by their errors.

        Raises:
            FlopwiseError: there are no laws.
        """
        return self.law("N").exponents["C"]

    def law(self, target: str, weighted: bool = True) -> PowerLaw:
        """The power law of "N", "D" or "loss" in C.

        Raises:
            FlopwiseError: there is none, or no such target.
        """
        kind = self.laws.get("weighted" if weighted else "plain") or self.laws.get("plain", {})
        if target not in kind:
            raise FlopwiseError(
                f"isoflop: there is no law of {target!r}; there are "
                f"{', '.join(kind) or 'none, as fewer than 3 budgets have a minimum'}"
            )
        return kind[target]

    def to_dict(self, level: float = 0.95) -> dict[str, Any]:
        """All of it, as JSON takes it."""
        return {
            "grouping": self.grouping, "method": self.method, "budgets": [asdict(b) for b in self.budgets],
            "laws": {
                kind: {name: law.to_dict(level) for name, law in found.items()}
                for kind, found in self.laws.items()
            },
            "bias": self.bias.to_dict() if self.bias else None, "warnings": self.warnings,
        }  # fmt: skip


def isoflop(
    table: Any, method: str = "parabola", scale: str = "log", window: float | None = None,
    tolerance: float = 0.1, noise: float | None = None, repeats: str = "mean",
    bias: bool | Fit | Mapping[str, float] = True, seed: int = 0,
) -> Isoflop:  # fmt: skip
    """Optimal size, tokens and loss of each compute budget, and their power laws in C.

    Args:
        table: columns N (parameters), loss, and D (tokens) or C (FLOPs) or both: a mapping, a dataframe, or
            the path of a file. Without C, C = 6 N D.
        method: "parabola" (quadratic in log N) or "akima" (interpolation).
        scale: the curve is of the "log" of the loss, or of the loss itself ("plain").
        window: only sizes within this factor of the one with the lowest loss, as 8; all by default.
        tolerance: budgets within this share of each other are one.
        noise: standard deviation of a run's loss by seed, on `scale` (with "log" relative, as 0.003); by
            default from runs of one size and budget, or from what is left over by the curve.
        repeats: runs of one size and budget count with their "mean" (seeds) or their "min" (a sweep).
        bias: what the method returns for a Chinchilla law that is known, on the same grid without noise: the
            law is fitted to the table (True), given as a fit or as parameters E, A, B, alpha, beta, or the
            question is left (False).

    Raises:
        FlopwiseError: a column is missing, a value is not above 0, an option is unknown, or no budget has a
            minimum (the reason of the one with most runs is told).
    """
    _options(method, scale, window, tolerance, noise, repeats)
    N, D, C, y, counted = _columns(table)
    groups = group(C, tolerance)
    curves = [_curve(N[g], D[g], C[g], y[g], scale, repeats) for g in groups]
    warnings = _doubts(curves, [C[g] for g in groups], repeats)
    cut = [windowed(c, window) for c in curves]
    enough = [c for c in cut if len(c.x) >= FEWEST]
    sigmas = dict(zip((c.C for c in enough), noises(enough, method, noise), strict=True)) if enough else {}
    budgets = [
        optimum(c, method, scale, sigmas[c.C], seed) if c.C in sigmas else _too_few(c, method, window)
        for c in cut
    ]
    usable = [b for b in budgets if b.usable]
    if not usable:
        most = max(budgets, key=lambda b: b.n)
        raise FlopwiseError(
            f"isoflop: none of {len(budgets)} budgets has a minimum; at C = {most.C:.3g} ({most.n} runs): "
            f"{most.warning}"
        )
    out = Isoflop(
        _told(C, groups, counted, tolerance), _method(method, scale, window), budgets, {}, None, warnings
    )
    out.laws = lines(usable)
    if not out.laws:
        warnings.append(f"{len(usable)} budgets with a minimum: a power law with an interval needs 3")
    elif len(usable) < 5:
        warnings.append(f"{len(usable)} budgets with a minimum: intervals are wide, and lean on the form")
    if left := len(budgets) - len(usable):
        warnings.append(f"{left} of {len(budgets)} budgets have no minimum to use; see their own warnings")
    if bias is not False and out.laws:
        law = bias if isinstance(bias, Fit | Mapping) else {"N": N, "D": D, "loss": y}
        try:
            kept = [c for c, b in zip(cut, budgets, strict=True) if b.usable]
            out.bias = bias_of(kept, usable, out.laws, law, method, scale, fitted=bias is True)
            warnings.extend(out.bias.warnings)
        except FlopwiseError as e:
            warnings.append(f"what the method is off by is not known: {e}")
    return out


def lines(budgets: list[Budget]) -> dict[str, dict[str, PowerLaw]]:
    """Power laws of N, D and loss through usable budgets, plain and weighted; none for fewer than three."""
    if len(budgets) < 3:
        return {}
    C = np.array([b.C for b in budgets])
    values: dict[str, Array] = {}
    for name in ("N", "D", "loss"):
        values[name] = np.array([getattr(b, name) for b in budgets], dtype=float)
    out = {"plain": {name: power_law(name, v, {"C": C}, who="isoflop") for name, v in values.items()}}
    if all(b.se is not None for b in budgets):
        se, se_loss = (np.array([getattr(b, n) for b in budgets], dtype=float) for n in ("se", "se_loss"))
        se_of = {"N": se, "D": se, "loss": se_loss}
        out["weighted"] = {
            name: power_law(name, v, {"C": C}, se_of[name], who="isoflop") for name, v in values.items()
        }
    return out


def group(C: Array, tolerance: float) -> list[Array]:
    """Rows of each budget, ascending: sorted by C, a new one starts beyond `tolerance` above a group's first.

    >>> [g.tolist() for g in group(np.array([1e18, 3e18, 1.04e18]), 0.1)]
    [[0, 2], [1]]
    """
    order = np.argsort(C, kind="stable")
    starts = [0]
    for i, value in enumerate(C[order]):
        if value > C[order[starts[-1]]] * (1 + tolerance):
            starts.append(i)
    return [np.sort(g) for g in np.split(order, starts[1:])]


def _curve(N: Array, D: Array, C: Array, loss: Array, scale: str, repeats: str) -> Curve:
    """One budget's runs by size; those of one size as their mean or their best."""
    # Sizes that differ by rounding are one.
    log_n, of = np.unique(np.round(np.log(N), 9), return_inverse=True)
    y = np.log(loss) if scale == "log" else loss
    budget = float(np.exp(np.log(C).mean()))
    k = np.log(budget / (N * D))
    count = np.bincount(of)
    mean = np.bincount(of, y) / count
    if repeats == "min":
        best = np.full(len(log_n), np.inf)
        np.minimum.at(best, of, y)
        return Curve(budget, log_n, best, np.bincount(of, k) / count, 0.0, 0, len(log_n))
    around = float(np.square(y - mean[of]).sum())
    spare = int((count - 1).sum())
    return Curve(budget, log_n, mean, np.bincount(of, k) / count, around, spare, len(N))


def _doubts(curves: list[Curve], budgets: list[Array], repeats: str) -> list[str]:
    """What is wrong with runs that are taken for one budget, or for one size of it."""
    found = []
    if repeats == "mean" and (wide := _spread(curves)) > _SWEEP:
        found.append(
            f"runs of one size and budget differ by {wide:.1%}: if that is by learning rate or another "
            f"setting, take the best of them first (best_of, --best-over), their mean is no optimum"
        )
    if (apart := max(float(C.max() / C.min()) for C in budgets) - 1) > _APART:
        found.append(
            f"budgets hold runs up to {apart:.0%} apart in C, whose losses differ by that alone: noise on "
            f"every minimum; runs at equal C are better"
        )
    return found


def _spread(curves: list[Curve]) -> float:
    """Standard deviation of runs of one size and budget."""
    dof = sum(c.repeats_dof for c in curves)
    return float(np.sqrt(sum(c.repeats for c in curves) / dof)) if dof else 0.0


def _too_few(c: Curve, method: str, window: float | None) -> Budget:
    inside = f" within a factor {window:g} of the best" if window else ""
    why = f"{len(c.x)} size{'s' * (len(c.x) != 1)}{inside}: a minimum needs {FEWEST}"
    return Budget(c.C, None, None, None, None, None, c.rows, method, why)


def _told(C: Array, groups: list[Array], counted: str, tolerance: float) -> str:
    distinct = len(np.unique(C))
    how = "as they are" if distinct == len(groups) else f"{distinct} values clustered within {tolerance:.0%}"
    return f"{counted}, {how}: {len(groups)} budgets of {len(C)} runs"


def _method(method: str, scale: str, window: float | None) -> str:
    near = f" within a factor {window:g} of the best" if window else ""
    of = "log loss" if scale == "log" else "loss"
    return f"{'parabola' if method == 'parabola' else 'Akima interpolation'} of {of} in log N{near}"


def _columns(table: Any) -> tuple[Array, Array, Array, Array, str]:
    """N, D, C and loss [n], and how C came about."""
    from flopwise.records.table import read_table

    table = read_table(table)
    given = [n for n in ("D", "C") if n in table or (n == "D" and "C" not in table)]
    columns = positive(table, ("N", "loss", *given), "isoflop")
    N = columns["N"]
    C = columns["C"] if "C" in columns else 6 * N * columns["D"]
    D = columns["D"] if "D" in columns else C / (6 * N)
    return N, D, C, columns["loss"], "column C" if "C" in columns else "C = 6 N D"


def _options(
    method: str, scale: str, window: float | None, tolerance: float, noise: float | None, repeats: str
) -> None:
    for name, value, known in (
        ("method", method, METHODS), ("scale", scale, SCALES), ("repeats", repeats, REPEATS),
    ):  # fmt: skip
        if value not in known:
            raise FlopwiseError(f"isoflop: {name} {value!r} is unknown; there are {', '.join(known)}")
    if window is not None and not 1 < window < np.inf:
        raise FlopwiseError(f"isoflop: window is {window}, must be a factor above 1, as 8")
    if not 0 <= tolerance < 1:
        raise FlopwiseError(f"isoflop: tolerance is {tolerance}, must be from 0 to below 1, as 0.1")
    if noise is not None and not 0 < noise < np.inf:
        raise FlopwiseError(f"isoflop: noise is {noise}, must be above 0, as 0.003")
