"""Law 2: what compute after pretraining buys."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from flopwise.laws.law import Array, Columns, Law, Parameter, register


def _sigmoid(p: Mapping[str, float], x: Columns) -> Array:
    with np.errstate(divide="ignore"):  # C = 0 is the model before training: R0
        return p["R0"] + (p["A"] - p["R0"]) / (1 + (p["Cmid"] / x["C"]) ** p["B"])


def _before_the_middle(p: Mapping[str, float], ranges: Mapping[str, tuple[float, float]]) -> str:
    end = ranges["C"][1]
    if end >= p["Cmid"]:
        return ""
    middle = p["Cmid"]
    return f"the curve ends at C = {end:.3g}, before its middle Cmid = {middle:.3g}: the ceiling A is unknown"


RL_SIGMOID = register(
    Law(
        name="rl_sigmoid", regime="post-training", formula="R = R0 + (A - R0) / (1 + (Cmid / C)^B)",
        variables=("C",), target="reward",
        parameters=(
            Parameter("A", (0.1, 1.0), bounds=(1e-6, 1.0)), Parameter("R0", (0.001, 0.8), bounds=(1e-6, 1.0)),
            Parameter("Cmid", (0.03, 30.0), unit="C"), Parameter("B", (0.3, 6.0), bounds=(1e-6, 20.0)),
        ),
        function=_sigmoid, from_zero=("C",), span=(0.0, 1.0), unready=_before_the_middle,
        source="Khatri et al. 2025 (ScaleRL), arXiv 2510.13786", status="summary", scale="plain",
        needs="a curve that has passed Cmid: a short one does not tell the ceiling A",
    )
)  # fmt: skip
