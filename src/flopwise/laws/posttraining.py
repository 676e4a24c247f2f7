"""Law 2: what compute after pretraining buys."""

from __future__ import annotations

from flopwise.laws.law import Law, Parameter, register

RL_SIGMOID = register(
    Law(
        name="rl_sigmoid", regime="post-training", formula="R = R0 + (A - R0) / (1 + (Cmid / C)^B)",
        variables=("C",), target="reward",
        parameters=(
            Parameter("A", (0.1, 1.0), bounds=(1e-6, 1.0)), Parameter("R0", (0.001, 0.8), bounds=(1e-6, 1.0)),
            Parameter("Cmid", (1e8, 1e26)), Parameter("B", (0.3, 6.0), bounds=(1e-6, 20.0)),
        ),
        function=lambda p, x: p["R0"] + (p["A"] - p["R0"]) / (1 + (p["Cmid"] / x["C"]) ** p["B"]),
        source="Khatri et al. 2025 (ScaleRL), arXiv 2510.13786", status="summary", scale="plain",
        needs="a curve that has passed Cmid: a short one does not tell the ceiling A",
    )
)  # fmt: skip
