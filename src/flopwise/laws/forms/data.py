"""Laws of data that are repeated, filtered, or added to a model that was trained before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from flopwise.laws.forms.dense import C4_ONE_EPOCH, EXPONENTS, FACTORS, FLOOR
from flopwise.laws.law import Array, Columns, Law, Parameter, Published, register

MOST_PASSES = 10_000
"""Over the same data; beyond, a pass adds nothing to the filtering law."""

DATA_CONSTRAINED = register(
    Law(
        name="data_constrained", regime="pretraining",
        formula="loss = E + A / Ne^alpha + B / De^beta "
        "where UD = min(U, D) and G = (alpha * A / (beta * B))^(1 / (alpha + beta)) "
        "and UN = min(N, (UD * G)^(beta / alpha) * G) "
        "and rN = max(N / UN - 1, 0) and rD = max(D / U - 1, 0) "
        "and Ne = UN * (1 + RN * (1 - exp(-rN / RN))) and De = UD * (1 + RD * (1 - exp(-rD / RD)))",
        parameters=(
            FLOOR, *FACTORS, *EXPONENTS, Parameter("RD", (3.0, 300.0)), Parameter("RN", (1.0, 100.0)),
        ),
        source="Muennighoff et al. 2023, arXiv 2305.16264, and the authors' notebook", status="checked",
        needs="runs of one pass, of many passes, and models larger than U supports; the paper fixes all but "
        "RD and RN first, and its 182 runs leave RD open: 10 to 10 000 are within 0.7 % of the objective",
        published=(
            Published(
                C4_ONE_EPOCH | {"RD": 15.387756, "RN": 5.309743},
                "Muennighoff et al. 2023, the authors' notebook", "checked",
                "C4; not the optimum of its own objective, which is RD 95.4, RN 1.71",
            ),
        ),
    )
)  # fmt: skip

REPETITION_PENALTY = register(
    Law(
        name="repetition_penalty", regime="pretraining",
        formula="loss = E + A / N^alpha + B / D^beta + P * max(D / U - 1, 0)^delta * (N / U)^kappa",
        parameters=(
            FLOOR, *FACTORS, *EXPONENTS,
            Parameter("P", (1e-3, 1.0)), Parameter("delta", (0.3, 2.0)), Parameter("kappa", (0.2, 2.0)),
        ),
        source="Lovelace et al. 2026, arXiv 2605.01640; their one-parameter form fixes delta and kappa",
        status="summary",
        needs="runs of one pass, and of many passes at several N / U",
    )
)  # fmt: skip


def filtering_function(p: Mapping[str, Any], x: Columns) -> Array:
    """E + a times D^-b over a first pass of U, then with half the exponent every tau passes."""
    D, U = x["D"], x["U"]
    passes = np.minimum(D / U, MOST_PASSES)
    log_factor = -p["b"] * np.log(np.minimum(D, U))
    for j in range(1, int(np.ceil(passes.max()))):
        in_pass = np.clip(passes, j, j + 1) / j
        log_factor = log_factor - p["b"] * 0.5 ** (j / p["tau"]) * np.log(in_pass)
    return np.asarray(p["E"] + p["a"] * np.exp(log_factor))


FILTERING = register(
    Law(
        name="filtering", regime="pretraining",
        formula="loss = E + a * U^-b * product over passes j = 1, 2, ... of (1 + 1 / j)^(-b / 2^(j / tau))",
        parameters=(
            Parameter("E", (0.01, 3.0)), Parameter("a", (0.1, 1e4)), Parameter("b", (0.03, 1.0)),
            Parameter("tau", (0.3, 30.0)),
        ),
        variables=("D", "U"), target="loss", function=filtering_function,
        source="Goyal et al. 2024, arXiv 2404.07177: utility b halves every tau passes, from b on the first",
        status="summary",
        needs="several pools U, each seen once and several times; no pool beyond 10 000 passes",
        units={"D": "examples or tokens seen", "U": "of them different", "loss": "loss or error rate"},
    )
)  # fmt: skip

DCPT = register(
    Law(
        name="dcpt", regime="pretraining",
        formula="loss = E + A / N^alpha + B * r^eta / D^beta + F / (r + eps)^gamma",
        parameters=(
            FLOOR, *FACTORS, *EXPONENTS, Parameter("eta", (0.05, 1.5)), Parameter("F", (0.01, 3.0)),
            Parameter("eps", (0.01, 0.5)), Parameter("gamma", (0.1, 2.0)),
        ),
        source="Que et al. 2024 (D-CPT law), arXiv 2406.01375, whose C is F here", status="summary",
        needs="several sizes, budgets and shares of the domain: nine parameters",
        units={"r": "share of the domain in the mixture", "D": "tokens of continual pretraining"},
    )
)  # fmt: skip

MIXED_MODAL = register(
    Law(
        name="mixed_modal", regime="pretraining",
        formula="loss = unimodal - K + A / N^alpha + B / (D1 + D2)^beta",
        parameters=(
            Parameter("K", (-0.5, 1.0), log=False, bounds=(-10.0, 10.0)), *FACTORS, *EXPONENTS,
        ),
        scale="plain",
        source="Aghajanyan et al. 2023, arXiv 2301.03728: synergy K against competition for size and data",
        status="summary",
        needs="runs on both modalities together at several sizes and budgets, and a law fitted to each alone",
        units={
            "unimodal": "mean of what the laws of the two modalities alone predict at N, D1 and N, D2",
            "D1": "tokens of one modality", "D2": "tokens of the other",
        },
    )
)  # fmt: skip
