"""Law 2: what fine-tuning, transfer, distillation and optimising a reward buy."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from flopwise.laws.forms.dense import FLOOR
from flopwise.laws.law import Array, Columns, Law, Parameter, Published, register

ANY = (-np.inf, np.inf)
EXAMPLES = {"D": "fine-tuning examples or tokens"}
DISTANCE = {
    "d": "square root of KL(policy, initial policy), nats^1/2",
    "reward": "gain over the initial policy",
}

TRANSFER_DATA = register(
    Law(
        name="transfer_data", regime="post-training", formula="transferred = k * D^alpha * N^beta",
        parameters=(
            Parameter("k", (1e-3, 1e8)), Parameter("alpha", (0.05, 1.0)), Parameter("beta", (0.05, 1.0)),
        ),
        variables=("N", "D"), units={"D": "fine-tuning characters", "transferred": "characters"},
        source="Hernandez et al. 2021 (Scaling laws for transfer), arXiv 2102.01293", status="summary",
        needs="for each model and fine-tuning set, the data that training from scratch needs for the same "
        "loss",
        published=(
            Published(
                {"k": 1.9e4, "alpha": 0.18, "beta": 0.38}, "Hernandez et al. 2021", "summary",
                "text to Python; N without embeddings, data in characters (this unit unverified)",
            ),
            Published(
                {"k": 2.1e5, "alpha": 0.096, "beta": 0.38}, "Hernandez et al. 2021", "summary",
                "half text, half other code, to Python",
            ),
        ),
    )
)  # fmt: skip

TRANSFER = register(
    Law(
        name="transfer", regime="post-training",
        formula="loss = ((Nc / N)^r + Q / ((D / 10^7)^alpha * (N / 10^8)^beta))^aD",
        parameters=(
            Parameter("Nc", (1.0, 1e5), unit="N"), Parameter("r", (0.3, 3.0)), Parameter("Q", (0.1, 1e3)),
            Parameter("aD", (0.03, 0.3)), Parameter("alpha", (0.05, 0.5)), Parameter("beta", (0.1, 0.8)),
        ),
        units=EXAMPLES,
        source="Hernandez et al. 2021, arXiv 2102.01293: Kaplan's law, r = aN / aD, for the transferred data "
        "k D^alpha N^beta alone; Q is Dc / k at D = 1e7 and N = 1e8", status="summary",
        needs="several sizes and fine-tuning sets, so small that pretraining matters, and large models too",
    )
)  # fmt: skip

FINETUNE_JOINT = register(
    Law(
        name="finetune_joint", regime="post-training", formula="loss = E + A / (N^alpha * D^beta)",
        parameters=(
            FLOOR, Parameter("A", (1.0, 1e4)), Parameter("alpha", (0.01, 1.0)),
            Parameter("beta", (0.01, 1.0)),
        ),
        units=EXAMPLES,
        source="Zhang et al. 2024 (When scaling meets LLM finetuning), arXiv 2402.17193; N may as well be "
        "pretraining tokens or the size of an adapter", status="summary",
        needs="three values of N and of D; constants hold for one task and one method",
    )
)  # fmt: skip

RECTIFIED = register(
    Law(
        name="rectified", regime="post-training", formula="loss = E + B / (Dl + D^beta)",
        parameters=(
            FLOOR, Parameter("B", (1.0, 1e4)), Parameter("Dl", (0.1, 1e5)), Parameter("beta", (0.1, 1.5)),
        ),
        from_zero=("D",), units=EXAMPLES,
        source="Lin et al. 2024 (Rectified scaling law), arXiv 2402.02314", status="checked",
        needs="five or more data sizes of one model, on both sides of the bend; D = 0 (no tuning) counts",
    )
)  # fmt: skip

SYNTHETIC = register(
    Law(
        name="synthetic_rectified", regime="post-training", formula="error = E + B / (Dl + D^beta)",
        parameters=(
            Parameter("E", (0.01, 0.8)), Parameter("B", (1.0, 1e3)), Parameter("Dl", (0.1, 1e5)),
            Parameter("beta", (0.1, 1.5)),
        ),
        from_zero=("D",), units={"D": "synthetic tokens"}, span=(0.0, 1.0), scale="plain",
        source="Qin et al. 2025 (SynthLLM), arXiv 2503.19551: the rectified form", status="summary",
        needs="one model's error after five or more amounts of synthetic data",
    )
)  # fmt: skip

DISTILLATION = register(
    Law(
        name="distillation", regime="post-training",
        formula="loss = teacher + teacher^-c0 * (1 + (teacher / (supervised * d1))^(1 / f1))^(-c1 * f1) "
        "* (A / N^alpha + B / D^beta)^gamma",
        parameters=(
            Parameter("c0", (1.0, 5.0)), Parameter("c1", (50.0, 1000.0)), Parameter("d1", (0.9, 1.6)),
            Parameter("f1", (0.04, 0.3)), Parameter("A", (100.0, 2e4)), Parameter("B", (1e3, 3e5)),
            Parameter("alpha", (0.15, 0.7)), Parameter("beta", (0.2, 0.8)), Parameter("gamma", (0.4, 1.2)),
        ),
        variables=("N", "D", "teacher", "supervised"),
        units={
            "N": "the student's parameters", "D": "distillation tokens",
            "teacher": "the teacher's loss, nats",
            "supervised": "loss of the same student trained on as many tokens without a teacher, nats",
        },
        source="Busbridge et al. 2025 (Distillation scaling laws), arXiv 2502.08606", status="summary",
        needs="several students, token budgets and teachers, weak ones and strong ones: nine parameters",
        published=(
            Published(
                {
                    "c0": 2.549, "c1": 522.6, "d1": 1.315, "f1": 0.0906, "A": 2243.0, "B": 24181.0,
                    "alpha": 0.321, "beta": 0.637, "gamma": 0.764,
                },
                "Busbridge et al. 2025", "unverified",
                "N without embeddings; supervised = 1.220 + (3355 / N^.408 + 18186 / D^.431)^.452 (summary)",
            ),
        ),
    )
)  # fmt: skip

BEST_OF_N_KL = register(
    Law(
        name="best_of_n_kl", regime="post-training",
        formula="divergence = s * (log(n) - (n - 1) / n)",
        parameters=(Parameter("s", (0.05, 1.0), bounds=(1e-9, 1.0)),),
        units={"n": "samples to choose from", "divergence": "KL(best of n, policy), nats"}, scale="plain",
        span=(0.0, np.inf), source="exact bound, reached (s = 1) where no two answers tie: Beirami et al. "
        "2024, arXiv 2401.01879", status="checked",
        needs="KL at one n or more; s below 1 says that answers repeat or scores tie",
    )
)  # fmt: skip


@lru_cache(maxsize=1)
def _nodes() -> tuple[Array, Array]:
    """Nodes and weights from 0 to 14: a normal draw beyond that has a chance of 1e-44."""
    x, weights = np.polynomial.legendre.leggauss(300)
    return 7.0 * (x + 1), 7.0 * weights


@lru_cache(maxsize=4096)
def normal_maximum(n: float) -> float:
    """E max of n standard normals, n real and at least 1: the integral of 1 - F(x)^n - F(-x)^n over x > 0."""
    from scipy.special import log_ndtr

    x, weights = _nodes()
    return float(weights @ (-np.expm1(n * log_ndtr(x)) - np.exp(n * log_ndtr(-x))))


def _best_of_n_gain(p: Mapping[str, Any], x: Columns) -> Array:
    n = np.asarray(x["n"], dtype=float)
    return np.asarray(p["R0"] + p["sigma"] * np.array([normal_maximum(float(each)) for each in n.ravel()]))


BEST_OF_N_GAIN = register(
    Law(
        name="best_of_n_gain", regime="post-training",
        formula="reward = R0 + sigma * (mean of the largest of n standard normals)", function=_best_of_n_gain,
        variables=("n",), target="reward",
        parameters=(
            Parameter("R0", (-3.0, 3.0), log=False, bounds=ANY), Parameter("sigma", (0.01, 10.0)),
        ),
        units={"n": "samples to choose from", "reward": "mean score of the chosen"}, scale="plain",
        source="exact for normal scores; sigma is their spread within a prompt, times the correlation with "
        "the chooser's score where another score is reported; about sigma sqrt(2 ln n)", status="checked",
        needs="mean score at two n or more",
    )
)  # fmt: skip

OVEROPT_BON = register(
    Law(
        name="overoptimisation_best_of_n", regime="post-training",
        formula="reward = R0 + d * (alpha - beta * d) where d = sqrt(log(n) - (n - 1) / n)",
        parameters=(
            Parameter("R0", (-3.0, 3.0), log=False, bounds=ANY),
            Parameter("alpha", (-3.0, 3.0), log=False, bounds=ANY),
            Parameter("beta", (-1.0, 1.0), log=False, bounds=ANY),
        ),
        units={"n": "samples to choose from", "reward": "true (gold) reward of what the proxy chose"},
        scale="plain", source="Gao et al. 2022 (Reward model overoptimization), arXiv 2210.10760",
        status="summary", needs="true reward at four n or more, past the peak for beta",
    )
)  # fmt: skip

OVEROPT_KL = register(
    Law(
        name="overoptimisation_kl", regime="post-training", formula="reward = d * (alpha - beta * d)",
        parameters=(
            Parameter("alpha", (-3.0, 3.0), log=False, bounds=ANY),
            Parameter("beta", (-1.0, 1.0), log=False, bounds=ANY),
        ),
        from_zero=("d",), units=DISTANCE, scale="plain",
        source="Gao et al. 2022, arXiv 2210.10760: best of n", status="summary",
        needs="true reward at several distances, past the peak for beta",
    )
)  # fmt: skip

OVEROPT_RL = register(
    Law(
        name="overoptimisation_rl", regime="post-training", formula="reward = d * (alpha - beta * log(d))",
        parameters=(
            Parameter("alpha", (-3.0, 3.0), log=False, bounds=ANY),
            Parameter("beta", (-1.0, 1.0), log=False, bounds=ANY),
        ),
        units=DISTANCE, scale="plain",
        source="Gao et al. 2022, arXiv 2210.10760: RL; its slope at d = 0 is infinite, so not for tiny d",
        status="summary", needs="true reward at several distances, past the peak for beta",
    )
)  # fmt: skip

OVEROPT_SIZE = register(
    Law(
        name="overoptimisation_size", regime="post-training",
        formula="reward = d * (a0 + a1 * size - (b0 + b1 * size) * d) where size = log(N / 10^9)",
        parameters=tuple(
            Parameter(name, (-1.0, 1.0), log=False, bounds=ANY) for name in ("a0", "a1", "b0", "b1")
        ),
        from_zero=("d",), units=DISTANCE | {"N": "the reward model's parameters"}, scale="plain",
        source="Gao et al. 2022, arXiv 2210.10760: best of n, coefficients logarithmic in size; a line is "
        "our reading of it", status="summary", needs="two reward models or more, several distances each",
    )
)  # fmt: skip
