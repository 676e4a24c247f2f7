"""Law 1, downstream: what a benchmark's score is, given the loss, the compute or the size of the model."""

from __future__ import annotations

import numpy as np

from flopwise.laws.law import Law, Parameter, Published, register

ANY = (-np.inf, np.inf)
SCORE = {"score": "share right, as the benchmark reports it"}
BOTTOM = Parameter("g", (0.01, 0.5), bounds=(1e-9, 1.0))
ENDS = (
    Parameter("low", (0.05, 0.6), bounds=(1e-9, 1.0)), Parameter("top", (0.4, 1.0), bounds=(1e-9, 1.0)),
)  # fmt: skip

ERROR_EXPONENTIAL = register(
    Law(
        name="error_exponential", regime="pretraining", formula="error = eps - k * exp(-gamma * loss)",
        parameters=(
            Parameter("eps", (0.3, 1.0), bounds=(1e-6, 1.5)), Parameter("k", (0.1, 10.0)),
            Parameter("gamma", (0.1, 3.0)),
        ),
        variables=("loss",), scale="plain", span=(0.0, 1.0),
        source="Gadre et al. 2024, arXiv 2403.08540: average top-1 error", status="checked",
        needs="average error of four models or more; single tasks are too noisy",
        published=tuple(
            Published({"eps": eps, "k": k, "gamma": gamma}, "Gadre et al. 2024", "checked", note)
            for eps, k, gamma, note in (
                (0.850, 2.08, 0.756, "C4, 17 tasks"), (0.857, 2.21, 0.715, "RedPajama, 17 tasks"),
                (0.865, 2.21, 0.707, "RefinedWeb, 17 tasks"), (0.759, 1.29, 0.972, "C4, 46 tasks"),
                (0.761, 1.32, 0.891, "RedPajama, 46 tasks"), (0.768, 1.13, 0.822, "RefinedWeb, 46 tasks"),
            )
        ),
    )
)  # fmt: skip

TASK_SIGMOID = register(
    Law(
        name="task_sigmoid", regime="pretraining",
        formula="accuracy = low + (top - low) / (1 + exp(k * (loss - L0)))",
        parameters=(
            *ENDS, Parameter("k", (0.5, 20.0)), Parameter("L0", (0.2, 5.0), unit="loss"),
        ),
        variables=("loss",), scale="plain", span=(0.0, 1.0),
        units={"loss": "loss of the task's right answers: bits per byte, or normalised nats"},
        source="second step of Bhagia et al. 2024 (OLMo ladder), arXiv 2412.04403, a = low - top and b = "
        "top; the sigmoid of the Llama 3 paper, arXiv 2407.21783", status="checked",
        needs="accuracy and task loss of models or checkpoints on both sides of L0, and above chance",
    )
)  # fmt: skip

TASK_ONE_STEP = register(
    Law(
        name="task_one_step", regime="pretraining",
        formula="accuracy = low + (top - low) * sigmoid(t - (N0 / N)^alpha - (D0 / D)^beta)",
        parameters=(
            *ENDS, Parameter("t", (-2.0, 6.0), log=False, bounds=(-50.0, 50.0)),
            Parameter("N0", (0.1, 100.0), unit="N"), Parameter("D0", (0.1, 100.0), unit="D"),
            Parameter("alpha", (0.05, 1.2)), Parameter("beta", (0.05, 1.2)),
        ),
        scale="plain", span=(0.0, 1.0),
        source="Bhagia et al. 2024, arXiv 2412.04403: both steps as one formula, which the authors' code has "
        "as an alternative; its A is (N0)^alpha", status="checked",
        needs="accuracies of four sizes and four budgets or more that leave chance and do not saturate",
    )
)  # fmt: skip

TASK_COMPUTE = register(
    Law(
        name="task_compute", regime="pretraining",
        formula="accuracy = low + (top - low) / (1 + (C0 / C)^b)",
        parameters=(
            *ENDS, Parameter("C0", (1e-3, 1e3), unit="C"), Parameter("b", (0.05, 2.0)),
        ),
        scale="plain", span=(0.0, 1.0),
        source="Llama 3 2024, arXiv 2407.21783: the task's nats are linear in log C, accuracy is a sigmoid "
        "of them; for one family also Ruan et al. 2024, arXiv 2405.10938", status="summary",
        needs="compute-optimal models of one family, above chance and below saturation",
    )
)  # fmt: skip

TASK_NATS = register(
    Law(
        name="task_nats", regime="pretraining", formula="nats = a - b * log(C)",
        parameters=(Parameter("a", (0.1, 10.0), log=False, bounds=ANY), Parameter("b", (0.001, 1.0))),
        units={"nats": "loss of the task's right answers, normalised"}, scale="plain",
        source="Llama 3 2024, arXiv 2407.21783, first step; the second is task_sigmoid", status="summary",
        needs="compute-optimal models at three budgets or more; a line has no floor: keep to about 4 decades",
    )
)  # fmt: skip


def observational(measures: int) -> Law:
    """Ruan et al.'s law of a benchmark's score in `measures` capability measures S1, S2, ... (any numbers).

    The measures are principal components of the scores of many models on other benchmarks, or one of them.
    """
    sum_of = " + ".join(f"b{i} * S{i}" for i in range(1, measures + 1))
    return Law(
        name=f"observational_{measures}", regime="pretraining",
        formula=f"score = g + r * sigmoid(b0 + {sum_of})",
        parameters=(
            BOTTOM, Parameter("r", (0.2, 0.9), bounds=(1e-9, 1.0)),
            *(
                Parameter(f"b{i}", (-1.0, 2.0), log=False, bounds=(-100.0, 100.0))
                for i in range(measures + 1)
            ),
        ),
        signed=tuple(f"S{i}" for i in range(1, measures + 1)),
        units=SCORE | {f"S{i}": "a capability measure, standardised" for i in range(1, measures + 1)},
        scale="plain", span=(0.0, 1.0),
        source="Ruan et al. 2024 (Observational scaling laws), arXiv 2405.10938", status="summary",
        needs="scores of many public models, and their measures from other benchmarks",
    )  # fmt: skip


OBSERVATIONAL_1 = register(observational(1))
OBSERVATIONAL_3 = register(observational(3))


def sloth(families: int) -> Law:
    """Sloth with one skill for one benchmark: an intercept for each family, columns F1, F2, ... of 0 and 1.

    One family has one intercept and no such column.
    """
    if families == 1:
        intercept, columns = "a", ["a"]
    else:
        columns = [f"a{i}" for i in range(1, families + 1)]
        intercept = " + ".join(f"a{i} * F{i}" for i in range(1, families + 1))
    dummies = tuple(f"F{i}" for i in range(1, families + 1)) if families > 1 else ()
    return Law(
        name="sloth" if families == 1 else f"sloth_{families}", regime="pretraining",
        formula=f"score = g + (1 - g) * sigmoid({intercept} + b1 * x + b2 * y + b3 * x * y) "
        "where x = log(N / 10^9) and y = log(D / 10^12)",
        parameters=(
            BOTTOM, *(Parameter(c, (-3.0, 3.0), log=False, bounds=(-50.0, 50.0)) for c in columns),
            Parameter("b1", (-0.5, 1.5), log=False, bounds=(-20.0, 20.0)),
            Parameter("b2", (-0.5, 1.5), log=False, bounds=(-20.0, 20.0)),
            Parameter("b3", (-0.3, 0.3), log=False, bounds=(-20.0, 20.0)),
        ),
        signed=dummies, units=SCORE | {f: "1 for the models of this family, else 0" for f in dummies},
        scale="plain", span=(0.0, 1.0),
        source="Maia Polo et al. 2024 (Sloth), arXiv 2412.06540, one skill and one benchmark; N in 1e9, D in "
        "1e12", status="checked",
        needs="several sizes of each family; slopes are shared, which is what many families are for",
    )  # fmt: skip


SLOTH = register(sloth(1))
