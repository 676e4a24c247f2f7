"""From a strategy's curve over n to a law of it: which form holds beyond the samples, and what it forecasts.

Coverage has its own machinery (`laws.coverage`). Accuracy of votes and of best-of-n is measured for every k
up to the samples drawn, exactly; beyond, the forms of the catalogue are fitted to that curve and go on from
its last point. Each is tried by forecasting the curve from its first quarter. The form that errs least is the
one named; the forecast weighs all by one over their squared errors (those four times as far off have no say),
which did better than any single one in simulations (`docs/scoring.md`).

Of votes, `majority_vote_power` is taken with its exponent held: what remains of the limit falls as k^-1 where
the margins between the right answer and its best rival are spread smoothly around zero, as k^-1/2 where they
are piled up on one side of it (our derivation; a vote among k tells margins above 1 / sqrt(k)). Left free,
the exponent follows the first few votes and promises too much.

Intervals come from curves of resampled problems, each form refitted to each, and from the form's own error at
held-out k, which grows with the distance that accuracy is forecast to go, and no faster than log k.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from flopwise.errors import FlopwiseError
from flopwise.infer.estimators import intervals, percentiles, resampled_means
from flopwise.infer.turnover import sizes, turn_over

if TYPE_CHECKING:
    from flopwise.laws.counts import Counts
    from flopwise.laws.result import Fit

FEWEST_PROBLEMS, FEWEST_SAMPLES = 10, 12
POINTS = 18
"""Of the curve that forms are fitted to, at most."""
TRIAL = 4
"""Forms are tried by forecasting from the first n / 4 samples."""
TAIL = 8
DRAWS = 300
FAR = 100
LEAST = 1e-3
"""An error at held-out k below this tells nothing: weights end there."""
REJECTED = 4.0
"""Times the least error at which a form has no say."""
UNSEEN = 0.25
"""Share of a judge's interval for a fall, whatever held-out k says: few samples hardly hold what fools it."""
STEPS = 60
"""Of a refit to resampled problems."""
Z = 2.0


@dataclass(frozen=True)
class Candidate:
    """A law of the catalogue, with parameters held."""

    law: str
    fixed: dict[str, float] = field(default_factory=dict)
    tail: bool = False
    """Fitted from n / 8 on, where the approach to the limit has its form."""

    def rows(self, k: np.ndarray) -> np.ndarray:
        """Which sizes it is fitted to."""
        return k >= k[-1] / TAIL if self.tail else k > 0

    @property
    def name(self) -> str:
        """As reports call it."""
        held = ", ".join(f"{k} = {v:g}" for k, v in self.fixed.items())
        return f"{self.law} ({held})" if held else self.law


VOTES = (
    *(Candidate("majority_vote_power", {"b": b}, tail=True) for b in (1.0, 0.75, 0.5)),
    Candidate("majority_vote"),
)  # fmt: skip
JUDGES = (
    Candidate("verifier_resampling"), Candidate("verifier_mixture"),
    Candidate("overoptimisation_best_of_n"),
)  # fmt: skip
CAN_FALL = ("overoptimisation_best_of_n",)


@dataclass(frozen=True)
class Point:
    """Accuracy at k samples with its interval for new problems like these; `costs` per problem, by unit."""

    k: int
    value: float
    low: float
    high: float
    measured: bool
    costs: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Outlook:
    """What a strategy's curve says of more samples than were drawn.

    `form`, `formula`, `params`: the form that erred least at held-out k; `held_out`: each form's error there,
    root mean square; `weights`: each form's share of the forecast; `forms`: each form's own forecast of the
    last point; `why`: how it was chosen, in words; `costs`: of one sample, by unit.
    """

    strategy: str
    form: str
    formula: str
    params: dict[str, float]
    n: int
    problems: int
    points: list[Point]
    held_out: dict[str, float]
    weights: dict[str, float]
    forms: dict[str, float]
    why: list[str]
    warnings: list[str]
    costs: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return asdict(self)

    def samples_for(self, budget: float, unit: str) -> int:
        """How many samples of a problem a budget buys: the law against FLOPs, seconds or tokens is the law
        against k through this.

        Raises:
            FlopwiseError: what a sample costs in this unit is not known, or the budget buys none.
        """
        if unit not in self.costs:
            raise FlopwiseError(
                f"{self.strategy}: nobody told what a sample costs in {unit:.40}; "
                "give a column flops, tokens or seconds"
            )
        bought = int(budget / self.costs[unit])
        if bought < 1:
            raise FlopwiseError(
                f"{self.strategy}: {budget:g} {unit} buy no sample, one costs {self.costs[unit]:.3g}"
            )
        return bought


@dataclass(frozen=True)
class _Measured:
    """All that was measured: values [sizes, problems] at sizes `ks`."""

    ks: list[int]
    values: np.ndarray

    @property
    def n(self) -> int:
        """Samples drawn."""
        return int(self.ks[-1])


def grid(n: int, odd: bool) -> list[int]:
    """Sizes of the curve that forms are fitted to; odd ones for votes, which ties at even k set back.

    >>> grid(16, True)
    [1, 3, 5, 7, 9, 11, 13, 15]
    """
    ks = np.unique(np.round(np.geomspace(1, n, POINTS)).astype(int))
    return np.unique(2 * ((ks - 1) // 2) + 1 if odd else ks).tolist()


def outlook(
    strategy: str, values: np.ndarray, ks: Sequence[int], at: Sequence[int], kind: str = "votes",
    costs: Mapping[str, float] | None = None, seed: int = 0, level: float = 0.95,
) -> Outlook:  # fmt: skip
    """The law of a measured curve, and its forecast.

    Args:
        strategy: as reports call it.
        values: [sizes, problems] accuracy at each k of `ks`, as the estimators give it.
        ks: numbers of samples, growing, from 1 to those drawn; `grid` and whatever else is asked about.
        at: numbers of samples asked about; those beyond the samples drawn are forecast.
        kind: "votes" (majority, weighted votes) or "judge" (best-of-n by a score).
        costs: of one sample, by unit (FLOPs, tokens, seconds).

    Raises:
        FlopwiseError: fewer than 10 problems or 12 samples, or no form can be fitted.
    """
    measured, costs, P = _Measured(list(ks), values), dict(costs or {}), values.shape[1]
    _enough(strategy, P, int(ks[-1]))
    asked = np.array(sorted(set(at)), dtype=float)
    beyond = asked[asked > ks[-1]]
    kept = np.isin(ks, grid(int(ks[-1]), kind == "votes"))
    ks, values = np.asarray(ks)[kept].tolist(), values[kept]
    k_of, n, y = np.array(ks, dtype=float), int(ks[-1]), values.mean(axis=1)
    drawn = resampled_means(values, DRAWS, seed)
    candidates, why = (VOTES, []) if kind == "votes" else (JUDGES, [])
    if kind == "judge" and _falls(values, ks):
        candidates = tuple(c for c in JUDGES if c.law in CAN_FALL)
        why = [
            "accuracy falls within the samples already: only the law of over-optimisation can go on falling"
        ]
    tried = {c.name: (c, *found) for c in candidates if (found := _try(c, k_of, y, why))}
    rng = np.random.default_rng(seed)
    if not tried:
        if np.ptp(y) > 0:
            raise FlopwiseError(f"{strategy}: no form can be fitted; {why[0] if why else 'the curve is odd'}")
        flat = Candidate("constant")
        return Outlook(
            strategy, flat.name, "accuracy = constant", {"constant": float(y[-1])}, measured.n, P,
            _points(asked, measured, np.tile(y[-1], len(beyond)), np.tile(drawn[:, -1:], len(beyond)),
                    level, costs, seed),
            {}, {}, {}, [f"accuracy is the same at every k up to {n}"], [], costs,
        )  # fmt: skip
    held_out = {name: error for name, (_, _, error) in tried.items()}
    least = max(min(held_out.values()), LEAST)
    mass = {name: max(e, LEAST) ** -2 if e <= REJECTED * least else 0.0 for name, e in held_out.items()}
    weights = {name: m / sum(mass.values()) for name, m in mass.items()}
    best = min(held_out, key=lambda name: held_out[name])
    moved = max(abs(float(y[-1] - y[k_of <= max(n / TRIAL, k_of[3])][-1])), LEAST)
    own, pools = {}, []
    for name, (candidate, fitted, error) in tried.items():
        own[name], draws = _ahead(fitted, y[-1], drawn[:, candidate.rows(k_of)], drawn[:, -1], n, beyond)
        drift = error * np.clip(
            np.abs(own[name] - y[-1]) / moved, 1.0, np.log(beyond / n) / np.log(TRIAL) + 1
        )
        pools.append(np.clip(draws + rng.standard_normal((DRAWS, 1)) * drift, 0.0, 1.0))
    value = sum(weights[name] * own[name] for name in own)
    shares = dict(weights)
    if kind == "judge":
        falling = [name for name, (c, _, _) in tried.items() if c.law in CAN_FALL]
        shares = {
            name: (1 - UNSEEN) * w + (UNSEEN if name in falling else 0.0) if falling else w
            for name, w in weights.items()
        }
    pool = _mixed(pools, list(shares.values()), rng)
    why.append(
        f"{best} is named: from k up to about n / {TRIAL} it forecast the rest with an error of "
        f"{held_out[best]:.4f}"
    )
    why += [f"{name}: {error:.4f}" for name, error in held_out.items() if name != best]
    fitted = tried[best][1]
    return Outlook(
        strategy, best, fitted.form.formula, fitted.params, measured.n, P,
        _points(asked, measured, np.asarray(value), pool, level, costs, seed),
        held_out, weights, {name: float(v[-1]) for name, v in own.items()} if len(beyond) else {}, why,
        _warnings(beyond, measured.n, P), costs,
    )  # fmt: skip


def coverage(
    counts: Counts, at: Sequence[int], costs: Mapping[str, float] | None = None, seed: int = 0,
    level: float = 0.95,
) -> Outlook:  # fmt: skip
    """The same for pass@k, by `laws.coverage.forecast`; the interval is for new problems like these.

    Raises:
        FlopwiseError: too few problems, samples or right ones.
    """
    from flopwise.laws.coverage import forecast
    from flopwise.laws.coverage_forms import FORMS

    made = forecast(counts, sorted(set(at)), seed=seed, level=level, over="new")
    best = max(made.held_out, key=lambda name: made.held_out[name])
    why = [
        f"{made.form} is taken: the power form unless another beats it significantly at held-out k",
        f"best there is {best}; errors of pass@n from the first quarter: "
        + ", ".join(f"{name} {error:+.3f}" for name, error in made.trial.items()),
    ]
    unit_costs = dict(costs or {})
    points = [
        Point(p.k, p.value, p.low, p.high, p.measured, {u: c * p.k for u, c in unit_costs.items()})
        for p in made.points
    ]
    return Outlook(
        "pass_at_k", made.form, FORMS[made.form].formula, made.params, made.n, made.problems, points,
        made.trial, made.weights, made.forms, why, made.warnings, unit_costs,
    )  # fmt: skip


def _enough(strategy: str, P: int, n: int) -> None:
    if P < FEWEST_PROBLEMS or n < FEWEST_SAMPLES:
        raise FlopwiseError(
            f"{strategy}: {P} problems with {n} samples; a forecast needs {FEWEST_PROBLEMS} problems with "
            f"{FEWEST_SAMPLES} samples of each"
        )


def _falls(values: np.ndarray, ks: Sequence[int]) -> bool:
    """Whether accuracy is significantly below that at its best n, chosen on other problems."""
    rows = [i for i, k in enumerate(ks) if k in sizes(int(ks[-1])) or k == ks[-1]]
    return bool(turn_over(values[rows], [int(ks[i]) for i in rows])["fall"]["z"] > Z)


def _fit(candidate: Candidate, k: np.ndarray, y: np.ndarray) -> Fit:
    from flopwise.laws.fitting import fit
    from flopwise.laws.law import get

    law = get(candidate.law)
    table = {law.variables[0]: k, law.target: y}
    return fit(law, table, loss="squared", intervals="delta", fixed=candidate.fixed)


def _at(fitted: Fit, k: Any) -> np.ndarray:
    return fitted.at(fitted.theta[None], {fitted.form.variables[0]: np.atleast_1d(np.asarray(k, float))})[0]


def _try(candidate: Candidate, k: np.ndarray, y: np.ndarray, why: list[str]) -> tuple[Fit, float] | None:
    """The fit to all of the curve, and its error at held-out k; None where either cannot be had."""
    seen = k <= max(k[-1] / TRIAL, k[3])
    rows, early = candidate.rows(k), candidate.rows(k[seen])
    try:
        trial = _fit(candidate, k[seen][early], y[seen][early])
        ahead = np.clip(y[seen][-1] + _at(trial, k[~seen]) - _at(trial, k[seen][-1]), 0.0, 1.0)
        return _fit(candidate, k[rows], y[rows]), float(np.sqrt(np.mean((ahead - y[~seen]) ** 2)))
    except FlopwiseError as e:
        why.append(f"{candidate.name} was left out: {e}")
        return None


def _ahead(
    fitted: Fit, y: float, drawn: np.ndarray, last: np.ndarray, n: int, beyond: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The form's forecast [at], and draws of it [draws, at]: it goes on from what was measured at n.

    `drawn` [draws, sizes]: the curve that was fitted, of resampled problems; `last` [draws]: its end.
    """
    from flopwise.laws.search import descend
    from flopwise.laws.starts import bounds

    if not len(beyond):
        return np.zeros(0), np.zeros((len(drawn), 0))
    assert fitted.problem is not None
    problem = replace(fitted.problem, y=drawn)
    ends = descend(
        problem, np.tile(fitted.theta, (len(drawn), 1)), *bounds(fitted.problem), limit=STEPS, sure=True
    )
    x = {fitted.form.variables[0]: np.append(float(n), beyond)}
    curves = np.concatenate([fitted.at(fitted.theta[None], x), fitted.at(ends.theta, x)])
    ahead = np.append(y, last)[:, None] + curves[:, 1:] - curves[:, :1]
    ahead = np.clip(np.nan_to_num(ahead, nan=float(y)), 0.0, 1.0)
    return ahead[0], ahead[1:]


def _mixed(pools: list[np.ndarray], weights: list[float], rng: np.random.Generator) -> np.ndarray:
    """As many draws, each of one form, by weight."""
    pick = rng.choice(len(pools), size=DRAWS, p=weights)
    return np.stack(pools)[pick, np.arange(DRAWS)]


def _points(
    asked: np.ndarray, measured: _Measured, ahead: np.ndarray, pool: np.ndarray, level: float,
    costs: dict[str, float], seed: int,
) -> list[Point]:  # fmt: skip
    """Measured ones, between two sizes by interpolation in log k, then forecast ones."""
    n, ks, values = measured.n, measured.ks, measured.values
    P = values.shape[1]
    inside = asked[asked <= n]
    rows = np.array([np.interp(np.log(inside), np.log(ks), v) for v in values.T]).T if len(inside) else None
    known = [] if rows is None else intervals(rows, level, seed=seed)
    out = [
        Point(int(k), v["value"], v["low"], v["high"], True)  # type: ignore[arg-type]
        for k, v in zip(inside, known, strict=True)
    ]
    for i, k in enumerate(asked[asked > n]):
        low, high = percentiles(pool[:, i], P, level)
        out.append(
            Point(int(k), float(ahead[i]), min(low, float(ahead[i])), max(high, float(ahead[i])), False)
        )
    return [replace(p, costs={u: c * p.k for u, c in costs.items()}) for p in out]


def _warnings(beyond: np.ndarray, n: int, P: int) -> list[str]:
    found = []
    if len(beyond) and beyond[-1] > FAR * n:
        found.append(
            f"k = {beyond[-1]:.0f} is {beyond[-1] / n:.0f} times the samples drawn; {FAR} were tried"
        )
    if P < 50:
        found.append(f"{P} problems: a curve this noisy hardly tells forms apart")
    return found
