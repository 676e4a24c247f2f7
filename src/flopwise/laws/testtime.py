"""Law 3: what samples at test time buy."""

from __future__ import annotations

import numpy as np

from flopwise.laws.law import Law, Parameter, register

COVERAGE_POWER = register(
    Law(
        name="coverage_power", regime="test-time", formula="pass@k = exp(-a k^-b)",
        variables=("k",), target="coverage",
        parameters=(Parameter("a", (0.01, 10.0)), Parameter("b", (0.05, 2.0))),
        function=lambda p, x: np.exp(-p["a"] * x["k"] ** -p["b"]),
        source="Brown et al. 2024 (Large Language Monkeys), arXiv 2407.21787, section 3", status="summary", scale="plain",
        needs="pass@k at four or more k",
    )
)  # fmt: skip
