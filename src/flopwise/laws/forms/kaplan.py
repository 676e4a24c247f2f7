"""Power laws without a floor, as in Kaplan et al. 2020, and the one-variable law in compute with a floor.

Their N leaves out embeddings; their compute is in PF-days (8.64e19 FLOP), here in FLOP.
"""

from __future__ import annotations

from flopwise.laws.law import Law, Parameter, Published, register

PAPER = "Kaplan et al. 2020, arXiv 2001.08361"
PF_DAY = 8.64e19
"""FLOP."""
EXPONENT = (0.02, 0.5)


def _scale(name: str, unit: str) -> Parameter:
    """A critical size: many times what was tried, as the loss there would be 1."""
    return Parameter(name, (1.0, 1e12), unit=unit)


KAPLAN = register(
    Law(
        name="kaplan", regime="pretraining", formula="loss = ((Nc / N)^(aN / aD) + Dc / D)^aD",
        parameters=(
            _scale("Nc", "N"), _scale("Dc", "D"), Parameter("aN", EXPONENT), Parameter("aD", EXPONENT),
        ),
        source=f"{PAPER}, eq. 1.5", status="summary",
        needs="several sizes and budgets; it has no floor, so it fails near one",
        published=(
            Published(
                {"Nc": 6.4e13, "Dc": 1.8e13, "aN": 0.076, "aD": 0.103}, f"{PAPER}, table 2", "summary",
                "N without embeddings",
            ),
        ),
    )
)  # fmt: skip

KAPLAN_SIZE = register(
    Law(
        name="kaplan_size", regime="pretraining", formula="loss = (Nc / N)^aN",
        parameters=(_scale("Nc", "N"), Parameter("aN", EXPONENT)),
        source=f"{PAPER}, eq. 1.1", status="summary",
        needs="sizes over a decade or more, each trained to convergence on data without end",
        published=(
            Published(
                {"Nc": 8.8e13, "aN": 0.076}, f"{PAPER}, eq. 1.1", "summary", "N without embeddings"
            ),
        ),
    )
)  # fmt: skip

KAPLAN_DATA = register(
    Law(
        name="kaplan_data", regime="pretraining", formula="loss = (Dc / D)^aD",
        parameters=(_scale("Dc", "D"), Parameter("aD", EXPONENT)),
        source=f"{PAPER}, eq. 1.2", status="summary",
        needs="amounts of data over a decade or more, with early stopping and a large model",
        published=(Published({"Dc": 5.4e13, "aD": 0.095}, f"{PAPER}, eq. 1.2", "summary"),),
    )
)  # fmt: skip

KAPLAN_COMPUTE = register(
    Law(
        name="kaplan_compute", regime="pretraining", formula="loss = (Cc / C)^aC",
        parameters=(_scale("Cc", "C"), Parameter("aC", EXPONENT)),
        source=f"{PAPER}, eq. 1.3", status="summary",
        needs="the lowest loss at each budget, over two decades or more",
        published=(
            Published(
                {"Cc": 3.1e8 * PF_DAY, "aC": 0.050}, f"{PAPER}, eq. 1.3", "summary",
                "3.1e8 PF-days, at batches far below the critical size",
            ),
        ),
    )
)  # fmt: skip

KAPLAN_STEPS = register(
    Law(
        name="kaplan_steps", regime="pretraining", formula="loss = (Nc / N)^aN + (Sc / S)^aS",
        parameters=(
            _scale("Nc", "N"), Parameter("aN", EXPONENT),
            Parameter("Sc", (1e-4, 1e2), unit="S"), Parameter("aS", (0.2, 1.5)),
        ),
        source=f"{PAPER}, eq. 1.6", status="summary",
        needs="curves of several sizes; S in steps at large batches, S / (1 + batch* / batch)",
        units={"S": "steps at a batch far above the critical size"},
        published=(
            Published(
                {"Nc": 6.5e13, "aN": 0.077, "Sc": 2.1e3, "aS": 0.76}, f"{PAPER}, table 3", "summary",
                "N without embeddings",
            ),
        ),
    )
)  # fmt: skip

CRITICAL_BATCH = register(
    Law(
        name="critical_batch", regime="pretraining", formula="batch = Bc / loss^(1 / aB)",
        parameters=(Parameter("Bc", (1e4, 1e12)), Parameter("aB", (0.05, 1.0))),
        source=f"{PAPER}, eq. 1.4", status="summary",
        needs="the critical batch (twice the least steps) at three or more losses",
        units={"batch": "tokens"},
        published=(Published({"Bc": 2e8, "aB": 0.21}, f"{PAPER}, eq. 1.4", "summary"),),
    )
)  # fmt: skip

POWER = register(
    Law(
        name="power", regime="pretraining", formula="loss = E + (C0 / C)^a",
        parameters=(
            Parameter("E", (0.1, 3.0)), Parameter("C0", (1e-6, 1e9), unit="C"), Parameter("a", (0.02, 1.0)),
        ),
        source="Henighan et al. 2020, arXiv 2010.14701, eq. 1.1", status="summary",
        needs="runs on the compute frontier over at least two decades",
    )
)  # fmt: skip
