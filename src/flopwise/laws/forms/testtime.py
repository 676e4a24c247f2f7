"""Law 3: what samples, votes and thinking at test time buy."""

from __future__ import annotations

import numpy as np

from flopwise.laws.law import Law, Parameter, register

SHARE = (1e-9, 1.0)
T2_ROW = (
    "L = (N0 / N)^alpha + (D0 / D)^beta and m = sigmoid(t1 - L) and v = exp(t3 - t4 * L) "
    "and a = max(m * v, 1e-12) and b = max((1 - m) * v, 1e-12)"
)
"""A model's beta distribution over problems, by its size and tokens."""
T2_PARAMETERS = (
    Parameter("t1", (-6.0, 4.0), log=False, bounds=(-60.0, 60.0)),
    Parameter("t3", (-3.0, 6.0), log=False, bounds=(-60.0, 60.0)),
    Parameter("t4", (-1.0, 1.0), log=False, bounds=(-30.0, 30.0)),
    Parameter("N0", (0.1, 1e3), unit="N"), Parameter("D0", (0.1, 1e3), unit="D"),
    Parameter("alpha", (0.05, 1.0)), Parameter("beta", (0.05, 1.0)),
)  # fmt: skip
NEVER = {"nlp": "mean over problems of -log pass@k, nats"}

COVERAGE_POWER = register(
    Law(
        name="coverage_power", regime="test-time", formula="coverage = exp(-a * k^-b)",
        parameters=(Parameter("a", (0.01, 10.0)), Parameter("b", (0.05, 2.0))),
        source="Brown et al. 2024 (Large Language Monkeys), arXiv 2407.21787, section 3", status="checked",
        scale="plain", span=(0.0, 1.0), needs="pass@k at four or more k",
    )
)  # fmt: skip

TRAIN_TO_TEST = register(
    Law(
        name="train_to_test", regime="test-time",
        formula="coverage = 1 - exp(betaln(a, b + k) - betaln(a, b)) where m = sigmoid(t1 - t2 * loss) "
        "and v = exp(t3 - t4 * loss) and a = max(m * v, 1e-12) and b = max((1 - m) * v, 1e-12)",
        parameters=(
            Parameter("t1", (-5.0, 15.0), log=False, bounds=(-60.0, 60.0)),
            Parameter("t2", (0.0, 6.0), log=False, bounds=(-30.0, 30.0)),
            Parameter("t3", (-3.0, 6.0), log=False, bounds=(-60.0, 60.0)),
            Parameter("t4", (-2.0, 2.0), log=False, bounds=(-30.0, 30.0)),
        ),
        source="Roberts et al. 2026 (Train-to-Test), arXiv 2604.01411, accuracy form", status="summary",
        scale="plain", span=(0.0, 1.0),
        needs="pass@k at several k of several pretrained models, and the loss of each, measured or predicted",
    )
)  # fmt: skip

T2_LOSS = register(
    Law(
        name="train_to_test_loss", regime="test-time",
        formula="nlp = E + A / N^alpha + B / D^beta + G / k^gamma",
        parameters=(
            Parameter("E", (0.001, 1.0)), Parameter("A", (1.0, 1e4)), Parameter("B", (1.0, 1e4)),
            Parameter("G", (0.1, 10.0)), Parameter("alpha", (0.05, 1.2)), Parameter("beta", (0.05, 1.2)),
            Parameter("gamma", (0.05, 1.2)),
        ),
        units=NEVER, span=(0.0, np.inf),
        source="Roberts et al. 2026 (Train-to-Test), arXiv 2604.01411, loss form", status="summary",
        needs="mean -log pass@k at several k of models over three sizes and three token budgets or more",
    )
)  # fmt: skip

T2_ACCURACY = register(
    Law(
        name="train_to_test_accuracy", regime="test-time",
        formula=f"coverage = 1 - exp(betaln(a, b + k) - betaln(a, b)) where {T2_ROW}",
        parameters=T2_PARAMETERS,
        source="Roberts et al. 2026 (Train-to-Test), arXiv 2604.01411, accuracy form with Chinchilla's L(N, "
        "D) inside; L here is in units of the logit and without its floor, which accuracies cannot tell",
        status="summary", scale="plain", span=(0.0, 1.0),
        needs="pass@k at several k of models over three sizes and three token budgets or more",
    )
)  # fmt: skip

GOLD_LIKELIHOOD = register(
    Law(
        name="gold_likelihood", regime="test-time", formula="nlp = E + K * gold^kappa",
        parameters=(
            Parameter("E", (0.001, 1.0)), Parameter("K", (0.001, 10.0)), Parameter("kappa", (0.1, 5.0)),
        ),
        units={
            "nlp": "-log pass@k at one k, nats", "gold": "-log probability of the reference solution, nats",
        },
        span=(0.0, np.inf), source="Schaeffer et al. 2025 (Generative evaluations), arXiv 2509.24012",
        status="summary",
        needs="pass@k at one k, and the likelihood of reference solutions, of several models",
    )
)  # fmt: skip

MAJORITY_VOTE = register(
    Law(
        name="majority_vote", regime="test-time", formula="accuracy = A + (p1 - A) * exp(-r * (k - 1))",
        parameters=(
            Parameter("A", (0.05, 1.0), bounds=SHARE), Parameter("p1", (0.02, 0.9), bounds=SHARE),
            Parameter("r", (0.001, 2.0)),
        ),
        units={"k": "votes"}, scale="plain", span=(0.0, 1.0),
        source="limit and exponential approach of Wu et al. 2024, arXiv 2408.00724; as one curve, our "
        "reading: A is the share of problems whose right answer is the most likely one", status="summary",
        needs="accuracy at four numbers of votes or more, on problems of similar difficulty",
    )
)  # fmt: skip

MAJORITY_VOTE_POWER = register(
    Law(
        name="majority_vote_power", regime="test-time", formula="accuracy = A - B / k^b",
        parameters=(
            Parameter("A", (0.05, 1.0), bounds=SHARE), Parameter("B", (0.001, 1.0)),
            Parameter("b", (0.1, 3.0)),
        ),
        units={"k": "votes"}, scale="plain", span=(0.0, 1.0),
        source="Feng et al. 2025 (Optimal self-consistency), arXiv 2511.12309: over a data set whose "
        "problems differ in margin the approach is a power", status="summary",
        needs="accuracy at four numbers of votes or more, beyond the first few",
    )
)  # fmt: skip

VERIFIER = register(
    Law(
        name="verifier_resampling", regime="test-time",
        formula="accuracy = precision - (precision - p1) * (1 - q)^(k - 1)",
        parameters=(
            Parameter("precision", (0.05, 1.0), bounds=SHARE), Parameter("p1", (0.02, 0.9), bounds=SHARE),
            Parameter("q", (0.01, 0.9), bounds=(1e-9, 1 - 1e-9)),
        ),
        scale="plain", span=(0.0, 1.0),
        source="derived: of k answers one that the verifier accepts is given (q: share accepted, precision: "
        "share of those right), else any; the ceiling is that of Stroebl et al. 2024, arXiv 2411.17501",
        status="own", needs="accuracy at four k or more, on problems of similar difficulty; k = 1 gives p1",
    )
)  # fmt: skip

VERIFIER_MIXTURE = register(
    Law(
        name="verifier_mixture", regime="test-time",
        formula="accuracy = precision - (precision - p1) * exp(betaln(a, b + k - 1) - betaln(a, b))",
        parameters=(
            Parameter("precision", (0.05, 1.0), bounds=SHARE), Parameter("p1", (0.02, 0.9), bounds=SHARE),
            Parameter("a", (0.1, 5.0)), Parameter("b", (0.1, 20.0)),
        ),
        scale="plain", span=(0.0, 1.0),
        source="derived: verifier_resampling with q ~ beta(a, b) over problems, precision and p1 independent "
        "of it; approaches the ceiling as k^-a", status="own", needs="accuracy at six k or more",
    )
)  # fmt: skip

THINKING = register(
    Law(
        name="thinking_length", regime="test-time", formula="accuracy = top - b * log(1 + T / tokens)",
        parameters=(
            Parameter("top", (0.1, 1.0), bounds=SHARE), Parameter("b", (0.01, 0.5)),
            Parameter("T", (0.05, 20.0), unit="tokens"),
        ),
        units={"tokens": "thinking tokens per problem"}, scale="plain", span=(0.0, 1.0),
        source="linear in log tokens, as many report (o1, s1: arXiv 2501.19393), then flat; the bend at T is "
        "our form", status="own",
        needs="accuracies at six lengths or more, on both sides of the bend",
    )
)  # fmt: skip

THINKING_OVERLONG = register(
    Law(
        name="thinking_overlong", regime="test-time",
        formula="accuracy = top - b * log(1 + T / tokens) - fall * log(1 + tokens / T)",
        parameters=(
            Parameter("top", (0.1, 1.0), bounds=SHARE), Parameter("b", (0.01, 0.5)),
            Parameter("fall", (0.001, 0.2)), Parameter("T", (0.05, 20.0), unit="tokens"),
        ),
        units={"tokens": "thinking tokens per problem"}, scale="plain", span=(0.0, 1.0),
        source="thinking_length with another slope, -fall, after the bend, for models that lose when they "
        "think too long: our form", status="own",
        needs="accuracies at eight lengths or more, on both sides of the bend",
    )
)  # fmt: skip

INFERENCE_SIZE = register(
    Law(
        name="inference_size", regime="test-time", formula="error = E + A / N^alpha + G / k^gamma",
        parameters=(
            Parameter("E", (0.001, 0.5)), Parameter("A", (0.1, 100.0)), Parameter("G", (0.01, 1.0)),
            Parameter("alpha", (0.05, 1.2)), Parameter("gamma", (0.05, 1.5)),
        ),
        units={"k": "samples per problem, under one strategy"}, scale="plain", span=(0.0, 1.0),
        source="our additive form of the curves of Wu et al. 2024 (Inference scaling laws), arXiv "
        "2408.00724: a small model with many samples first, a larger one once it saturates", status="own",
        needs="error of three sizes or more at four numbers of samples or more, one strategy and family",
    )
)  # fmt: skip
