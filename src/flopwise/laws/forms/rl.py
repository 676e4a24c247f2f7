"""Law 2: what compute in reinforcement learning buys, for language models and in games."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from flopwise.laws.law import Law, Parameter, Published, register

ANY = (-np.inf, np.inf)


def _before_the_middle(p: Mapping[str, float], ranges: Mapping[str, tuple[float, float]]) -> str:
    end = ranges["C"][1]
    if end >= p["Cmid"]:
        return ""
    middle = p["Cmid"]
    return f"the curve ends at C = {end:.3g}, before its middle Cmid = {middle:.3g}: the ceiling is unknown"


RL_SIGMOID = register(
    Law(
        name="rl_sigmoid", regime="post-training", formula="reward = R0 + (A - R0) / (1 + (Cmid / C)^B)",
        parameters=(
            Parameter("A", (0.1, 1.0), bounds=(1e-6, 1.0)), Parameter("R0", (0.001, 0.8), bounds=(1e-6, 1.0)),
            Parameter("Cmid", (0.03, 30.0), unit="C"), Parameter("B", (0.3, 6.0), bounds=(1e-6, 20.0)),
        ),
        from_zero=("C",), span=(0.0, 1.0), unready=_before_the_middle,
        source="Khatri et al. 2025 (ScaleRL), arXiv 2510.13786", status="summary", scale="plain",
        needs="a curve that has passed Cmid: a short one does not tell the ceiling A",
        published=(
            Published(
                {"A": 0.645, "B": 1.70}, "Khatri et al. 2025", "summary",
                "8B model, pass rate, 1.5k to 50k GPU-hours",
            ),
            Published(
                {"A": 0.655, "B": 1.56}, "Khatri et al. 2025", "summary", "the same, 0 to 100k GPU-hours"
            ),
        ),
    )
)  # fmt: skip

RL_POWER = register(
    Law(
        name="rl_power", regime="post-training", formula="error = (C0 / C)^k",
        parameters=(Parameter("C0", (1e-6, 10.0), unit="C"), Parameter("k", (0.01, 1.0))),
        units={"C": "RL compute, steps or samples", "error": "1 - pass@1"}, span=(0.0, 1.0),
        source="Tan et al. 2025, arXiv 2509.25300, one model: log error = -k log C + E, E = k log C0",
        status="checked",
        needs="one model's curve after its first steps; it has no floor, so it cannot foresee a plateau",
    )
)  # fmt: skip

RL_POWER_SIZE = register(
    Law(
        name="rl_power_size", regime="post-training",
        formula="error = (C0 * (N / 10^9)^r / C)^(kmax / (1 + N0 / N))",
        parameters=(
            Parameter("C0", (1e-7, 1.0), unit="C"), Parameter("r", (0.3, 2.0)),
            Parameter("kmax", (0.01, 1.0)), Parameter("N0", (0.03, 30.0), unit="N"),
        ),
        units={"C": "RL compute or samples", "error": "1 - pass@1"}, span=(0.0, 1.0),
        source="Tan et al. 2025, arXiv 2509.25300; E(N) = k(N) log(C0 N^r) as in the authors' code, here "
        "with N in 1e9", status="checked",
        needs="curves of three models or more",
    )
)  # fmt: skip

RL_ROLLOUTS = register(
    Law(
        name="rl_rollouts", regime="post-training",
        formula="rollouts = n0 * (nmax / n0)^(1 / (1 + (Cmid / C)^B))",
        parameters=(
            Parameter("n0", (1.0, 16.0)), Parameter("nmax", (16.0, 4096.0)),
            Parameter("Cmid", (0.03, 30.0), unit="C"), Parameter("B", (0.3, 6.0), bounds=(1e-6, 20.0)),
        ),
        units={"C": "sampled answers in all", "rollouts": "best number of answers per problem"},
        source="Cheng et al. 2026 (IsoCompute), arXiv 2603.12151: log rollouts a sigmoid in log C",
        status="summary", needs="the best number of answers per problem at five budgets or more",
        unready=_before_the_middle,
        published=(
            Published(
                {"nmax": 512.0}, "Cheng et al. 2026", "summary",
                "easy problems, Qwen2.5-7B; 128 to 256 for hard ones",
            ),
        ),
    )
)  # fmt: skip

RL_INTRINSIC = register(
    Law(
        name="rl_intrinsic", regime="post-training",
        formula="intrinsic = ((Nc / N)^aN + (Xc / interactions)^aX)^-(1 / aN + 1 / aX)",
        parameters=(
            Parameter("Nc", (1e-3, 1e3), unit="N"), Parameter("Xc", (1e-3, 1e3), unit="interactions"),
            Parameter("aN", (0.1, 1.5)), Parameter("aX", (0.1, 1.5)),
        ),
        units={
            "interactions": "steps in the environment",
            "intrinsic": "least compute that reaches the same return, in any one unit",
        },
        source="Hilton et al. 2023, arXiv 2301.13442, eq. 1; 1/beta = 1/alpha_N + 1/alpha_E follows from the "
        "definition of intrinsic performance", status="summary",
        needs="learning curves of several sizes, with returns turned into intrinsic performance",
    )
)  # fmt: skip

GAME_ELO = register(
    Law(
        name="game_elo", regime="post-training",
        formula="elo = min(0, max(p0 + p1 * board, i0 + i1 * (log10(C) - 15) + i2 * (board - 6)))",
        parameters=(
            Parameter("p0", (200.0, 1000.0), log=False, bounds=ANY),
            Parameter("p1", (-500.0, -50.0), log=False, bounds=ANY),
            Parameter("i0", (-3000.0, 1000.0), log=False, bounds=ANY), Parameter("i1", (100.0, 1000.0)),
            Parameter("i2", (-1000.0, -50.0), log=False, bounds=ANY),
        ),
        units={"C": "training FLOP", "board": "width of the board", "elo": "Elo, perfect play is 0"},
        scale="plain", span=(-np.inf, 0.0),
        source="Jones 2021 (Scaling scaling laws with board games), arXiv 2104.03113; plateau, incline and "
        "clamp as in the author's code, centred at board 6 and 1e15 FLOP", status="checked",
        needs="the best Elo at each compute, on two boards or more, both before and during the climb",
        published=(
            Published(
                {"p0": 570.0, "p1": -270.0, "i0": 670.0, "i1": 510.0, "i2": -430.0}, "Jones 2021",
                "unverified", "Hex; of these only the 510 Elo per decade are checked (summary)",
            ),
        ),
    )
)  # fmt: skip

GAME_TEST_COMPUTE = register(
    Law(
        name="game_test_compute", regime="test-time", formula="test = A * exp(b * elo) / C^g",
        parameters=(
            Parameter("A", (1e10, 1e40)), Parameter("b", (-0.02, 0.03), log=False, bounds=ANY),
            Parameter("g", (0.3, 3.0)),
        ),
        signed=("elo",), units={"C": "training FLOP", "test": "FLOP per move at test time", "elo": "Elo"},
        source="Jones 2021, arXiv 2104.03113: log test compute linear in Elo and log training compute; the "
        "same regression is in the author's code", status="checked",
        needs="the least compute at test time that reaches each Elo, for several training computes",
        published=(
            Published(
                {"A": 1e29, "b": 0.004 * math.log(10), "g": 1.2}, "Jones 2021", "summary",
                "Hex, 9 x 9: ten times the training compute saves 15 times the test compute",
            ),
        ),
    )
)  # fmt: skip
