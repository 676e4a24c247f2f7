"""What approach 2 gets wrong by itself: the same curves on losses of a known law, without any noise.

A parabola in log N is symmetric about its minimum, and the loss at fixed C is not unless alpha = beta. So the
minimum of the parabola lies beside that of the law, the more the wider the sizes reach, and where the sizes
are not centred on the optimum. If they are off by an amount that changes with C, the exponent is wrong too;
if it is the same at each C, the coefficient only (for a parabola of the loss itself; that of log loss also
feels how much of the loss is the floor E, which changes with C). The truth is known in closed form (Hoffmann
et al. 2022, arXiv 2203.15556, eq. 4): N* = G (C / 6)^(beta / (alpha + beta)), with G = (alpha A / (beta B))^
(1 / (alpha + beta)).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from flopwise.errors import FlopwiseError
from flopwise.laws.isoflop_lines import PowerLaw, power_law
from flopwise.laws.isoflop_minimum import Budget, Curve, lowest
from flopwise.laws.law import get
from flopwise.laws.optimum import optimum
from flopwise.laws.result import Fit

NAMES = ("E", "A", "B", "alpha", "beta")


@dataclass(frozen=True)
class Bias:
    """What the method returns for a known law on the table's own grid, against the law's own optimum.

    `params`: of L = E + A / N^alpha + B / D^beta; `fitted`: by approach 3 to the same table, so that it is an
    estimate itself. `true`, `found` and `off`: exponents of N*(C), and found less true; `corrected`: what the
    data gave less `off`, to be read beside the other and never put in its place. `minima`: found N* over true
    N* at each budget [budgets] (None where the law has no minimum on that grid); `centres`: middle of the
    sizes over the true N* [budgets].
    """

    params: dict[str, float]
    fitted: bool
    true: float
    found: dict[str, float]
    off: dict[str, float]
    corrected: dict[str, float]
    minima: list[float | None]
    centres: list[float]
    warnings: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return asdict(self)


def bias_of(
    curves: list[Curve], budgets: list[Budget], laws: Mapping[str, Mapping[str, PowerLaw]],
    law: Fit | Mapping[str, Any], method: str, scale: str, fitted: bool = False,
) -> Bias:  # fmt: skip
    """Run the method on losses of `law` at the curves' own sizes and tokens.

    Args:
        curves, budgets: of the same length, each with a minimum in the data.
        laws: those through the budgets, "plain" and perhaps "weighted": the same weights are used here.
        law: a fit of chinchilla, parameters E, A, B, alpha, beta, or (`fitted`) columns N, D, loss to fit.

    Raises:
        FlopwiseError: not a Chinchilla law, a fit that did not settle, or fewer than three minima.
    """
    params = _params(law, fitted)
    alpha, beta = params["alpha"], params["beta"]
    scores: list[float | None] = []
    centres, at = [], []
    for curve in curves:
        N = np.exp(curve.x)
        loss = get("chinchilla")(params, {"N": N, "D": curve.C / (np.exp(curve.k) * N)})
        made = lowest(curve.x, np.log(loss) if scale == "log" else loss, method)
        true = optimal_size(params, curve.C, float(np.exp(curve.k.mean())))
        scores.append(None if made.why else float(np.exp(made.x) / true))
        centres.append(float(np.exp((curve.x[0] + curve.x[-1]) / 2) / true))
        at.append(np.nan if made.why else float(np.exp(made.x)))
    kept = np.isfinite(at)
    if kept.sum() < 3:
        raise FlopwiseError(
            f"on losses of the fitted law only {int(kept.sum())} budgets have a minimum, needs 3"
        )
    C = np.array([c.C for c in curves])[kept]
    se = np.array([b.se for b in budgets], dtype=float)[kept]
    a = beta / (alpha + beta)
    found = {
        kind: power_law("N", np.array(at)[kept], {"C": C}, se if kind == "weighted" else None).exponents["C"]
        for kind in laws
    }
    off = {kind: value - a for kind, value in found.items()}
    corrected = {kind: laws[kind]["N"].exponents["C"] - value for kind, value in off.items()}
    out = Bias(params, fitted, a, found, off, corrected, scores, centres)
    _say(out, laws, int(kept.sum()))
    return out


def optimal_size(params: Mapping[str, float], C: float, per: float = 6.0) -> float:
    """N*(C) of a Chinchilla law, for C = `per` N D.

    >>> p = {"E": 1.7, "A": 400.0, "B": 400.0, "alpha": 0.3, "beta": 0.3}
    >>> round(optimal_size(p, 6e20) / 1e10, 6)
    1.0
    """
    return float(optimum(get("chinchilla"), params, C * 6 / per, 0.0)[0][0])


def _say(out: Bias, laws: Mapping[str, Mapping[str, PowerLaw]], kept: int) -> None:
    """Warn where the bias counts beside the interval."""
    kind = "weighted" if "weighted" in laws else "plain"
    low, high = laws[kind]["N"].interval("C")
    if abs(out.off[kind]) > (high - low) / 4:
        source = "the law fitted to this table" if out.fitted else "the given law"
        out.warnings.append(
            f"the method itself is off: on noise-free losses of {source} it finds the exponent "
            f"{out.found[kind]:.3f} where {out.true:.3f} is true (interval in the data {low:.3f} to "
            f"{high:.3f}); less that, {out.corrected[kind]:.3f}"
        )
    if out.fitted and not low <= out.true <= high:
        out.warnings.append(
            f"approach 3 on the same table says exponent {out.true:.3f}, outside the interval {low:.3f} to "
            f"{high:.3f} of the minima: the two disagree, by the form, runs far from the optimum or noise"
        )
    if kept < len(out.minima):
        out.warnings.append(
            f"on losses of the law {len(out.minima) - kept} budgets have no minimum among their sizes; the "
            f"bias is of the others"
        )


def _params(law: Fit | Mapping[str, Any], fitted: bool) -> dict[str, float]:
    if fitted:
        from flopwise.laws.fitting import fit

        law = fit("chinchilla", law)
    if isinstance(law, Fit):
        if law.law != "chinchilla":
            raise FlopwiseError(f"the closed form is of the law chinchilla, not of {law.law}")
        if law.status != "converged":
            raise FlopwiseError(f"the fit of chinchilla is not to be relied on ({law.status})")
        law = law.params
    if missing := [name for name in NAMES if not float(law.get(name, -1.0)) >= (0 if name == "E" else 1e-12)]:
        raise FlopwiseError(
            f"bias: {missing[0]} is missing or not above 0; a Chinchilla law has {', '.join(NAMES)}"
        )
    return {name: float(law[name]) for name in NAMES}
