"""Law 3 from counts: n samples of each problem, c of them right; fitted by maximum likelihood."""

from __future__ import annotations

from flopwise.laws.law import Law, Parameter, register

COUNTS = {"n": "samples drawn of the problem", "c": "samples right"}
BETA_BINOMIAL_ROW = "nll = betaln(a, b) - betaln(a + c, b + n - c) + log(n + 1) + betaln(c + 1, n - c + 1)"
"""Minus the logarithm of the beta-binomial chance of c right among n."""
T2_ROW = (
    "L = (N0 / N)^alpha + (D0 / D)^beta and m = sigmoid(t1 - L) and v = exp(t3 - t4 * L) and a = m * v and b "
    "= (1 - m) * v"
)

BINOMIAL = register(
    Law(
        name="binomial_rate", regime="test-time", formula="coverage = 1 - (1 - p)^k",
        likelihood="nll = log(n + 1) + betaln(c + 1, n - c + 1) - c * log(p) - (n - c) * log(1 - p)",
        parameters=(Parameter("p", (1e-3, 0.9), bounds=(1e-12, 1 - 1e-12)),),
        from_zero=("c",), units=COUNTS, span=(0.0, 1.0), scale="plain",
        source="exact for problems alike; the null that beta_binomial is judged against", status="checked",
        needs="n and c of one problem or more",
    )
)  # fmt: skip

BETA_BINOMIAL = register(
    Law(
        name="beta_binomial", regime="test-time",
        formula="coverage = 1 - exp(betaln(a, b + k) - betaln(a, b))", likelihood=BETA_BINOMIAL_ROW,
        parameters=(Parameter("a", (0.05, 5.0)), Parameter("b", (0.05, 100.0))),
        from_zero=("c",), units=COUNTS, span=(0.0, 1.0), scale="plain",
        source="Schaeffer et al. 2025, arXiv 2502.17578: p ~ beta(a, b) over problems, coverage in closed "
        "form",
        status="checked",
        needs="n and c of 30 problems or more; the exponent a of the tail needs problems seldom solved",
    )
)  # fmt: skip

T2_COUNTS = register(
    Law(
        name="train_to_test_counts", regime="test-time",
        formula=f"coverage = 1 - exp(betaln(a, b + k) - betaln(a, b)) where {T2_ROW}",
        likelihood=f"{BETA_BINOMIAL_ROW} where {T2_ROW}",
        parameters=(
            Parameter("t1", (-6.0, 4.0), log=False, bounds=(-60.0, 60.0)),
            Parameter("t3", (-3.0, 6.0), log=False, bounds=(-60.0, 60.0)),
            Parameter("t4", (-1.0, 1.0), log=False, bounds=(-30.0, 30.0)),
            Parameter("N0", (0.1, 1e3), unit="N"), Parameter("D0", (0.1, 1e3), unit="D"),
            Parameter("alpha", (0.05, 1.0)), Parameter("beta", (0.05, 1.0)),
        ),
        from_zero=("c",), units=COUNTS, span=(0.0, 1.0), scale="plain",
        source="Roberts et al. 2026 (Train-to-Test), arXiv 2604.01411, accuracy form, fitted to counts by "
        "likelihood", status="summary",
        needs="n and c of each problem for models over three sizes and three token budgets or more",
    )
)  # fmt: skip
