"""Law 3: what samples at test time buy."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from flopwise.laws.law import Columns, Law, Parameter, register

COVERAGE_POWER = register(
    Law(
        name="coverage_power", regime="test-time", formula="pass@k = exp(-a k^-b)",
        variables=("k",), target="coverage",
        parameters=(Parameter("a", (0.01, 10.0)), Parameter("b", (0.05, 2.0))),
        function=lambda p, x: np.exp(-p["a"] * x["k"] ** -p["b"]),
        source="Brown et al. 2024 (Large Language Monkeys), arXiv 2407.21787, section 3", status="summary",
        scale="plain",
        span=(0.0, 1.0), needs="pass@k at four or more k",
    )
)  # fmt: skip


def _beta_binomial(p: Mapping[str, float], x: Columns) -> np.ndarray:
    from scipy.special import betaln, expit

    mean = expit(p["t1"] - p["t2"] * x["loss"])
    spread = np.exp(np.clip(p["t3"] - p["t4"] * x["loss"], -30.0, 30.0))
    a, b = np.maximum(mean * spread, 1e-12), np.maximum((1 - mean) * spread, 1e-12)
    return -np.expm1(betaln(a, b + x["k"]) - betaln(a, b))


TRAIN_TO_TEST = register(
    Law(
        name="train_to_test", regime="test-time",
        formula="pass@k = 1 - B(a, b + k) / B(a, b), a = m v, b = (1 - m) v, "
        "m = sigmoid(t1 - t2 L), v = exp(t3 - t4 L)",
        variables=("loss", "k"), target="coverage",
        parameters=(
            Parameter("t1", (-5.0, 15.0), log=False, bounds=(-60.0, 60.0)),
            Parameter("t2", (0.0, 6.0), log=False, bounds=(-30.0, 30.0)),
            Parameter("t3", (-3.0, 6.0), log=False, bounds=(-60.0, 60.0)),
            Parameter("t4", (-2.0, 2.0), log=False, bounds=(-30.0, 30.0)),
        ),
        function=_beta_binomial,
        source="Roberts et al. 2026 (Train-to-Test), arXiv 2604.01411, accuracy form", status="summary",
        scale="plain",
        span=(0.0, 1.0),
        needs="pass@k at several k of several pretrained models, and the loss of each, measured or predicted",
    )
)  # fmt: skip
