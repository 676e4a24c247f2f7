"""Law 3 from counts: n samples of each problem, c of them right; fitted by maximum likelihood.

Sampling that was stopped by its outcomes (at the first right sample, say) changes a row's likelihood by a
constant only, so the fit is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from flopwise.laws.counts import Counts
from flopwise.laws.coverage_forms import Kumaraswamy, Quadrature, ScaledBeta
from flopwise.laws.forms.testtime import T2_PARAMETERS, T2_ROW
from flopwise.laws.law import Array, Columns, Law, Parameter, register

COUNTS = {"n": "samples drawn of the problem", "c": "samples right"}
WAYS = "log(n + 1) + betaln(c + 1, n - c + 1)"
"""Minus the logarithm of the number of ways to have c right among n."""
BETA_BINOMIAL_ROW = f"betaln(a, b) - betaln(a + c, b + n - c) + {WAYS}"
"""Minus the logarithm of the beta-binomial chance of c right among n."""
BETA = (Parameter("a", (0.05, 5.0)), Parameter("b", (0.05, 100.0)))
TAIL = "n and c of 30 problems or more; the exponent a of the tail needs problems seldom solved"

BINOMIAL = register(
    Law(
        name="binomial_rate", regime="test-time", formula="coverage = 1 - (1 - p)^k",
        likelihood=f"nll = {WAYS} - c * log(p) - (n - c) * log(1 - p)",
        parameters=(Parameter("p", (1e-3, 0.9), bounds=(1e-12, 1 - 1e-12)),),
        from_zero=("c",), units=COUNTS, span=(0.0, 1.0), scale="plain",
        source="exact for problems alike; the null that beta_binomial is judged against", status="checked",
        needs="n and c of one problem or more",
    )
)  # fmt: skip

BETA_BINOMIAL = register(
    Law(
        name="beta_binomial", regime="test-time",
        formula="coverage = 1 - exp(betaln(a, b + k) - betaln(a, b))",
        likelihood=f"nll = {BETA_BINOMIAL_ROW}", parameters=BETA,
        from_zero=("c",), units=COUNTS, span=(0.0, 1.0), scale="plain",
        source="Schaeffer et al. 2025, arXiv 2502.17578: p ~ beta(a, b) over problems, coverage in closed "
        "form", status="checked", needs=TAIL,
    )
)  # fmt: skip

UNSOLVABLE = register(
    Law(
        name="beta_binomial_unsolvable", regime="test-time",
        formula="coverage = (1 - u) * (1 - exp(betaln(a, b + k) - betaln(a, b)))",
        likelihood=f"nll = -log((1 - u) * exp(-({BETA_BINOMIAL_ROW})) + u * max(0, 1 - c))",
        parameters=(*BETA, Parameter("u", (0.01, 0.8), bounds=(1e-9, 1 - 1e-9))),
        from_zero=("c",), units=COUNTS, span=(0.0, 1.0), scale="plain",
        source="beta_binomial with a share u of problems that are never solved, a ceiling of coverage",
        status="own",
        needs="n and c of 30 problems or more, 100 samples or more of each: with few, hard problems look "
        "like unsolvable ones",
    )
)  # fmt: skip

T2_COUNTS = register(
    Law(
        name="train_to_test_counts", regime="test-time",
        formula=f"coverage = 1 - exp(betaln(a, b + k) - betaln(a, b)) where {T2_ROW}",
        likelihood=f"nll = {BETA_BINOMIAL_ROW} where {T2_ROW}",
        parameters=T2_PARAMETERS,
        from_zero=("c",), units=COUNTS, span=(0.0, 1.0), scale="plain",
        source="Roberts et al. 2026 (Train-to-Test), arXiv 2604.01411, accuracy form, fitted to counts by "
        "likelihood", status="summary",
        needs="n and c of each problem for models over three sizes and three token budgets or more",
    )
)  # fmt: skip


def _points(form: Quadrature, p: Mapping[str, Any]) -> Array:
    """Parameters as the form has them [b, d], inside its bounds."""
    a, b = (np.log(np.atleast_1d(p[name]).ravel()) for name in ("a", "b"))
    z = [a, b]
    if "largest" in p:
        largest = np.atleast_1d(p["largest"]).ravel()
        z.append(np.log(largest) - np.log1p(-largest))
    low, high = np.array(form.bounds).T
    return np.clip(np.stack(z, axis=1), low, high)


def _shaped(values: Array, p: Mapping[str, Any]) -> Array:
    """[b, n] for parameters [b, 1], [n] for numbers."""
    return values if np.ndim(p["a"]) else values[0]


def _mixture_coverage(form: Quadrature) -> Callable[[Mapping[str, Any], Columns], Array]:
    def coverage(p: Mapping[str, Any], x: Columns) -> Array:
        k, where = np.unique(np.asarray(x["k"], dtype=float), return_inverse=True)
        return _shaped(-np.expm1(form.log_missed(_points(form, p), k))[:, where.ravel()], p)

    return coverage


def _mixture_nll(form: Quadrature) -> Callable[[Mapping[str, Any], Columns], Array]:
    def nll(p: Mapping[str, Any], x: Columns) -> Array:
        from scipy.special import betaln

        rows, where = np.unique(np.stack([x["n"], x["c"]], axis=1), axis=0, return_inverse=True)
        n, c = rows.T
        prepared = form.prepare(Counts.of(n, c))
        out = -np.stack([form.loglik(z, prepared)[0] for z in _points(form, p)])
        out += np.log(n + 1) + betaln(c + 1, n - c + 1)
        return _shaped(out[:, where.ravel()], p)

    return nll


SCALED_BETA = register(
    Law(
        name="scaled_beta", regime="test-time",
        formula="coverage = 1 - mean of (1 - largest q)^k over q ~ beta(a, b)",
        function=_mixture_coverage(ScaledBeta()), variables=("k",), target="coverage",
        nll_function=_mixture_nll(ScaledBeta()), count_columns=("n", "c"),
        parameters=(
            Parameter("a", (0.05, 3.0)), Parameter("b", (0.1, 30.0)),
            Parameter("largest", (0.02, 0.98), bounds=(1e-6, 1 - 1e-6)),
        ),
        units=COUNTS, span=(0.0, 1.0), scale="plain",
        source="Schaeffer et al. 2025, arXiv 2502.17578: no problem's chance is above `largest`",
        status="checked", needs=TAIL,
    )
)  # fmt: skip

KUMARASWAMY = register(
    Law(
        name="kumaraswamy", regime="test-time",
        formula="coverage = 1 - mean of (1 - p)^k over p, P(p < x) = 1 - (1 - x^a)^b",
        function=_mixture_coverage(Kumaraswamy()), variables=("k",), target="coverage",
        nll_function=_mixture_nll(Kumaraswamy()), count_columns=("n", "c"),
        parameters=(Parameter("a", (0.05, 3.0)), Parameter("b", (0.1, 30.0))),
        units=COUNTS, span=(0.0, 1.0), scale="plain",
        source="Schaeffer et al. 2025, arXiv 2502.17578: p by Kumaraswamy's distribution", status="checked",
        needs=TAIL,
    )
)  # fmt: skip
