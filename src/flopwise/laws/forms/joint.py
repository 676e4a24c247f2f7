"""All three laws in one: size, pretraining tokens, post-training and samples at test time.

Train-to-Test (Roberts et al. 2026, arXiv 2604.01411) knows pretraining and samples; post-training comes in as
a term that is whole without any (post = 0) and has gone where there is much of it. It is counted as
pretraining is, in tokens: compute over 6 N, sampling and scoring included, so that the same data cost a
larger model more. How post-training should enter nobody has measured at scale: there are several forms, to be
chosen between by held-out scale (`flopwise.plan.joint_law.choose`).
"""

from __future__ import annotations

import numpy as np

from flopwise.laws.forms.testtime import NEVER, T2_PARAMETERS
from flopwise.laws.law import Law, Parameter, register

POST = {"post": "tokens of post-training, or its FLOP / (6 N); 0 for a pretrained model"}
NEEDS = (
    "pass@k at several k of models over three sizes and three token budgets or more, as pretrained and after "
    "two amounts of post-training or more, by one method"
)
_ROBERTS = "Roberts et al. 2026 (Train-to-Test), arXiv 2604.01411"
_P0 = Parameter("P0", (0.01, 10.0), unit="post")
_BETA = "a = max(m * v, 1e-18) and b = max((1 - m) * v, 1e-9)"
"""A floor below the other: a model that learned nothing solves nothing."""
_COVERAGE = "coverage = 1 - exp(betaln(a, b + k) - betaln(a, b))"
_GAIN = (Parameter("g", (0.05, 3.0)), Parameter("s", (-1.0, 1.0), log=False, bounds=(-30.0, 30.0)), _P0)

JOINT_LOSS = register(
    Law(
        name="joint_loss", regime="test-time",
        formula="nlp = E + A / N^alpha + B / D^beta + G / k^gamma + H / (1 + post / P0)^delta",
        parameters=(
            Parameter("E", (0.001, 1.0)), Parameter("A", (1.0, 1e4)), Parameter("B", (1.0, 1e4)),
            Parameter("G", (0.1, 10.0)), Parameter("H", (0.01, 10.0)), Parameter("alpha", (0.05, 1.2)),
            Parameter("beta", (0.05, 1.2)), Parameter("gamma", (0.05, 1.2)), Parameter("delta", (0.05, 2.0)),
            _P0,
        ),
        units=NEVER | POST, span=(0.0, np.inf), from_zero=("post",),
        source=f"{_ROBERTS}, loss form, with a term for post-training that is ours", status="own",
        needs=NEEDS.replace("pass@k", "mean -log pass@k"),
    )
)  # fmt: skip

JOINT_ACCURACY = register(
    Law(
        name="joint_accuracy", regime="test-time",
        formula=f"{_COVERAGE} where L = (N0 / N)^alpha + (D0 / D)^beta and u = log(1 + post / P0) "
        f"and m = sigmoid(t1 - L + g * u) and v = exp(t3 - t4 * L - s * u) and {_BETA}",
        parameters=(*T2_PARAMETERS, *_GAIN),
        units=POST, scale="plain", span=(0.0, 1.0), from_zero=("post",),
        source=f"{_ROBERTS}, accuracy form; post-training raises the logit of the mean chance by g for every "
        "e-fold of it beyond P0, and sharpens (s above 0): ours", status="own", needs=NEEDS,
    )
)  # fmt: skip

JOINT_SATURATING = register(
    Law(
        name="joint_saturating", regime="test-time",
        formula=f"{_COVERAGE} where L = (N0 / N)^alpha + (D0 / D)^beta and u = post / (post + P0) "
        f"and m = sigmoid(t1 - L + g * u) and v = exp(t3 - t4 * L - s * u) and {_BETA}",
        parameters=(*T2_PARAMETERS, *_GAIN),
        units=POST, scale="plain", span=(0.0, 1.0), from_zero=("post",),
        source=f"{_ROBERTS}, accuracy form; post-training gains g at most, half of it at P0 (the sigmoid of "
        "Khatri et al. 2025, arXiv 2510.13786, with B = 1): ours", status="own", needs=NEEDS,
    )
)  # fmt: skip

JOINT_LOGIT = register(
    Law(
        name="joint_logit", regime="test-time",
        formula=f"{_COVERAGE} where L = -n * log(N / 10^9) - d * log(D / 10^10) - g * log(1 + post / P0) "
        f"and m = sigmoid(t1 - L) and v = exp(t3 - t4 * L) and {_BETA}",
        parameters=(
            *T2_PARAMETERS[:3], Parameter("n", (0.05, 3.0)), Parameter("d", (0.05, 3.0)), *_GAIN[::2],
        ),
        units=POST, scale="plain", span=(0.0, 1.0), from_zero=("post",),
        source="the logit of the mean chance a line in the logarithms of size, tokens and post-training (as "
        "skills in observational laws: arXiv 2405.10938, 2412.06540): ours, for few models", status="own",
        needs="pass@k at several k of six models or more that differ in size, tokens and post-training",
    )
)  # fmt: skip
