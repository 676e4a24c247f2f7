"""Noise between seeds, measured on repeated small rungs, and carried into what a law predicts.

Repeats of a width differ by a part that a trunk's branches share and by one of each branch's own. Both come
from the analysis of variance of log loss by seed within each width, budgets having their own means, pooled
over widths.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from flopwise.laws.law import Array
from flopwise.laws.quantiles import ndtri

if TYPE_CHECKING:
    from flopwise.laws.result import Fit


@dataclass(frozen=True)
class Noise:
    """How much runs of one size and budget differ by seed, relative to the loss.

    `sd_relative` of a single run with standard error `se`; `df`: effective degrees of freedom (Satterthwaite
    1946). `between`: part shared by a trunk's branches, `within`: a branch's own. `by_width`, `by_tokens`:
    (standard deviation, degrees of freedom). `trend`: exponent of the standard deviation in width with its
    95% interval, None where one width is repeated.
    """

    sd_relative: float
    se: float
    df: float
    between: float
    within: float
    by_width: dict[int, tuple[float, float]]
    by_tokens: dict[int, tuple[float, float]]
    trend: tuple[float, float, float] | None = None

    @property
    def words(self) -> str:
        """One sentence."""
        said = (
            f"seeds: runs of one size and budget differ by {self.sd_relative:.2%} of the loss "
            f"(±{self.se:.2%}, {self.df:.0f} degrees of freedom; {self.between:.2%} between trunks, "
            f"{self.within:.2%} between branches)"
        )
        if self.trend is None:
            return f"{said}; only one width is repeated, so that larger ones are taken to be as noisy"
        e, low, high = self.trend
        how = (
            "no change with width is seen"
            if low <= 0 <= high
            else f"it {'grows' if e > 0 else 'falls'} with width"
        )
        return f"{said}; {how} (width^{e:.1f}, {low:.1f} to {high:.1f})"

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return asdict(self) | {"words": self.words}


def seed_noise(
    table: Mapping[str, Any], target: str = "loss", rung: str = "width", tokens: str = "D",
    seed: str = "seed",
) -> Noise | None:  # fmt: skip
    """Noise between seeds of a ladder's table; None where no size and budget is repeated.

    With a column `variant`, sizes of different variants are different rungs.
    """
    if not {target, rung, tokens, seed} <= set(table):
        return None
    y = np.log(np.asarray(table[target], dtype=float))
    if not np.isfinite(y).all():
        return None
    names = [rung, *(["variant"] if "variant" in table else [])]
    of = np.unique(np.stack([np.unique(np.asarray(table[n]), return_inverse=True)[1] for n in names]), axis=1,
                   return_inverse=True)[1].ravel()  # fmt: skip
    budgets, seeds = np.asarray(table[tokens]), np.asarray(table[seed])
    parts = []
    by_tokens: dict[int, list[tuple[float, float, float]]] = {}
    for i in range(of.max() + 1):
        m = np.flatnonzero(of == i)
        made = _of_rung(y[m], budgets[m], seeds[m], by_tokens)
        if made is not None:
            parts.append(replace(made, width=int(np.asarray(table[rung])[m[0]])))
    if not parts:
        return None
    total, df = _pooled([(p.total, p.df, p.repeats) for p in parts])
    repeats = np.array([p.repeats for p in parts])
    between, within = (
        float(np.average(v, weights=repeats))
        for v in zip(*((p.between, p.within) for p in parts), strict=True)
    )
    widths = {
        w: _pooled([(p.total, p.df, p.repeats) for p in parts if p.width == w])
        for w in sorted({p.width for p in parts})
    }
    return Noise(
        math.sqrt(total), math.sqrt(total / (2 * df)), df, math.sqrt(max(between, 0.0)), math.sqrt(within),
        {w: (math.sqrt(v), d) for w, (v, d) in widths.items()},
        {d: (math.sqrt(v), n) for d, (v, n) in ((d, _pooled(p)) for d, p in sorted(by_tokens.items()))},
        _trend(parts),
    )  # fmt: skip


@dataclass(frozen=True)
class _Part:
    """Variances of one width (of a run: with its degrees of freedom), and its repeats less one."""

    between: float
    within: float
    total: float
    df: float
    repeats: int
    width: int = 0


def _of_rung(
    y: Array, budgets: Array, seeds: Array, by_tokens: dict[int, list[tuple[float, float, float]]]
) -> _Part | None:
    """Variances of one width.

    Only budgets that every seed has count, so that the table of seeds and budgets is whole.
    """
    S = np.unique(seeds)
    B = [b for b in np.unique(budgets) if set(seeds[budgets == b]) == set(S)]
    if len(S) < 2 or not B:
        return None
    cells = np.array([[y[(budgets == b) & (seeds == s)].mean() for b in B] for s in S])
    centred = cells - cells.mean(axis=0)
    for b, column in zip(B, centred.T, strict=True):
        by_tokens.setdefault(int(b), []).append(
            (float(column @ column) / (len(S) - 1), len(S) - 1.0, len(S) - 1.0)
        )
    k, f = len(B), len(S) - 1
    ms_seed = k * float(np.square(centred.mean(axis=1)).sum()) / f
    if k == 1:
        return _Part(0.0, ms_seed, ms_seed, float(f), f)
    rest = centred - centred.mean(axis=1, keepdims=True)
    ms_rest = float(np.square(rest).sum()) / (f * (k - 1))
    total = (ms_seed + (k - 1) * ms_rest) / k
    if total == 0:
        return None
    df = total**2 / ((ms_seed / k) ** 2 / f + ((k - 1) * ms_rest / k) ** 2 / (f * (k - 1)))
    return _Part((ms_seed - ms_rest) / k, ms_rest, total, float(df), f)


def _pooled(parts: list[tuple[float, float, float]]) -> tuple[float, float]:
    """Mean of variances (value, degrees of freedom, repeats less one) by their repeats, and its own degrees.

    Weights that come from the variances themselves would favour those that are small by chance.
    """
    v, d, f = np.array(parts).T
    mean = float(f @ v / f.sum())
    spread = float(((f / f.sum() * v) ** 2 / d).sum())
    return mean, mean**2 / spread if spread > 0 else float(d.sum())


def _trend(parts: list[_Part]) -> tuple[float, float, float] | None:
    """Exponent of the standard deviation in width, with its 95% interval: a line through log variances.

    The variance of the logarithm of chi square over its f degrees of freedom is trigamma(f / 2), its mean
    digamma(f / 2) - log(f / 2). f counts repeats alone: trunks make most of the noise, and degrees that lean
    on the variances themselves promise too much here.
    """
    from scipy.special import digamma, polygamma

    usable = [p for p in parts if p.total > 0]
    x, v, f = np.array([[math.log(p.width), p.total, p.repeats] for p in usable]).T
    if np.ptp(x) == 0:
        return None
    log_sd = 0.5 * (np.log(v) - digamma(f / 2) + np.log(f / 2))
    weights = 4 / polygamma(1, f / 2)
    x = x - weights @ x / weights.sum()
    slope = float(weights @ (x * log_sd) / (weights @ x**2))
    half = ndtri(0.975) / math.sqrt(float(weights @ x**2))
    return slope, slope - half, slope + half


def carry(fit: Fit, noise: Noise) -> Fit:
    """The fit with the scatter of single runs no smaller than seeds show, in the fit's own terms.

    Where the fit's estimate is the larger (its form is off, or it knows of larger rungs) that stays: the two
    are estimates of one thing, of which the law has seen more rungs and repeats no form.
    """
    if fit.scale != "log" or not math.isfinite(noise.sd_relative) or noise.sd_relative <= fit.scatter:
        return fit
    return replace(fit, scatter=noise.sd_relative)
