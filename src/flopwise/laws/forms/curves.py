"""Learning curves: loss or error as a function of one size x, and of a model and a data size together.

x is whatever grew: examples, tokens, parameters, steps or FLOP. Rename a table's column to x to use them.
"""

from __future__ import annotations

import numpy as np

from flopwise.errors import FlopwiseError
from flopwise.laws.law import Law, Parameter, Published, register

UNITS = {"x": "examples, tokens, parameters, steps or FLOP", "loss": "loss or error rate"}
BENCHMARK = "Alabdulmohsin et al. 2022, arXiv 2209.06640"
FLOOR = Parameter("E", (0.01, 3.0))
FACTOR = Parameter("b", (0.1, 1e3))
EXPONENT = Parameter("c", (0.03, 1.5))

M1 = register(
    Law(
        name="m1", regime="pretraining", formula="loss = b * x^-c", parameters=(FACTOR, EXPONENT),
        source=f"Hestness et al. 2017, arXiv 1712.00409; M1 of {BENCHMARK}", status="summary", units=UNITS,
        needs="three sizes or more, none of them near the floor",
        published=(
            Published({"c": 0.066}, "Hestness et al. 2017", "summary", "word language model, exponent alone"),
            Published({"c": 0.309}, "Hestness et al. 2017", "summary", "ImageNet top-1, exponent alone"),
            Published({"c": 0.30}, "Hestness et al. 2017", "summary", "speech, exponent alone"),
        ),
    )
)  # fmt: skip

M2 = register(
    Law(
        name="m2", regime="pretraining", formula="loss = E + b * x^-c", parameters=(FLOOR, FACTOR, EXPONENT),
        source=f"Hestness et al. 2017, arXiv 1712.00409, with a floor; M2 of {BENCHMARK}", status="summary",
        units=UNITS, needs="four sizes or more over two decades",
    )
)  # fmt: skip

M3 = register(
    Law(
        name="m3", regime="pretraining", formula="loss = b * (1 / x + 1 / g)^c",
        parameters=(FACTOR, EXPONENT, Parameter("g", (0.3, 300.0), unit="x")),
        source=f"M3 of {BENCHMARK}, whose gamma is 1 / g here", status="summary", units=UNITS,
        needs="sizes on both sides of g, where the curve turns flat",
    )
)  # fmt: skip


M4 = register(
    Law(
        # (loss - E) / (e0 - loss)^a = b x^-c, solved for the loss.
        name="m4", regime="pretraining",
        formula="loss = E + (e0 - E) * sigmoid(unbend(log(b) - c * log(x) - (1 - a) * log(e0 - E), a))",
        parameters=(
            FLOOR, Parameter("e0", (0.5, 10.0)), Parameter("a", (0.2, 2.0)), FACTOR, EXPONENT,
        ),
        units=UNITS, status="summary",
        source=f"M4 of {BENCHMARK}: (loss - E) / (e0 - loss)^a = b x^-c, from the level e0 of guessing to E",
        needs="sizes from where the model hardly beats guessing to where the curve straightens",
    )
)  # fmt: skip

HENIGHAN = register(
    Law(
        name="henighan", regime="pretraining", formula="loss = E + (x0 / x)^a",
        parameters=(FLOOR, Parameter("x0", (1e-6, 1e9), unit="x"), Parameter("a", (0.02, 1.0))),
        source="Henighan et al. 2020, arXiv 2010.14701, eq. 1.1", status="summary", units=UNITS,
        needs="four sizes or more over two decades; M2 with its factor written as a size",
    )
)  # fmt: skip

SHIFTED = register(
    Law(
        name="shifted", regime="pretraining", formula="loss = E + b * (x + x0)^-c",
        parameters=(FLOOR, FACTOR, EXPONENT, Parameter("x0", (1e-3, 1.0), unit="x")),
        source="Zhai et al. 2022, arXiv 2106.04560: flat at both ends; x is compute there", status="summary",
        units=UNITS, needs="sizes below x0, where the curve is still flat, and two decades above it",
    )
)  # fmt: skip

_ROSENFELD = (
    Parameter("E", (1e-3, 1.0)), Parameter("a", (0.1, 1e4)), Parameter("b", (0.1, 1e4)),
    Parameter("alpha", (0.05, 1.2)), Parameter("beta", (0.05, 1.2)),
)  # fmt: skip
_ROSENFELD_SOURCE = "Rosenfeld et al. 2020, arXiv 1909.12673"

ROSENFELD = register(
    Law(
        name="rosenfeld", regime="pretraining", formula="error = E + a * D^-alpha + b * N^-beta",
        parameters=_ROSENFELD, source=f"{_ROSENFELD_SOURCE}, without the envelope", status="summary",
        needs="a grid of model and data sizes, all far from guessing",
        units={"D": "examples or tokens", "error": "error rate or loss"},
    )
)  # fmt: skip

ROSENFELD_ENVELOPE = register(
    Law(
        name="rosenfeld_envelope", regime="pretraining",
        formula="error = e0 * e / sqrt(e^2 + e0^2) where e = E + a * D^-alpha + b * N^-beta",
        parameters=(*_ROSENFELD, Parameter("e0", (0.5, 1.0))),
        source=f"{_ROSENFELD_SOURCE}: e0 |e / (e - i eta)|, e0 the error of guessing; eta only rescales E, a "
        "and b, and is e0 here", status="summary",
        needs="a grid of model and data sizes that reaches the error of guessing; else fix e0",
        units={"D": "examples or tokens", "error": "error rate or loss"},
        published=(
            Published({"alpha": 0.75, "beta": 0.61}, _ROSENFELD_SOURCE, "summary", "ImageNet; exponents"),
            Published({"alpha": 0.81, "beta": 0.34}, _ROSENFELD_SOURCE, "summary", "PTB; exponents"),
        ),
    )
)  # fmt: skip


def bnsl(breaks: int) -> Law:
    """The broken law with this many breaks, not registered: parameters E, b, c0 and c, f and d of each break.

    The place d of a later break is that of the one before times s.

    Raises:
        FlopwiseError: no break: that is `m2`.
    """
    if breaks < 1:
        raise FlopwiseError(f"breaks is {breaks}, at least 1 is needed; without one the law is m2")
    factors, places, own = [], [], []
    for i in range(1, breaks + 1):
        factors.append(f"(1 + (x / d{i})^(1 / f{i}))^(-c{i} * f{i})")
        if i > 1:
            places.append(f"d{i} = d{i - 1} * s{i}")
        own += [
            Parameter(f"c{i}", (-0.3, 0.7), log=False, bounds=(-8.0, 8.0)),
            # Later breaks as multiples of the one before: else they could change places.
            Parameter(f"s{i}", (3.0, 1e4), bounds=(1.0, np.inf)) if i > 1
            else Parameter("d1", (0.02 / 20.0 ** (breaks - 1), 50.0 / 20.0 ** (breaks - 1)), unit="x"),
            # A sharper break than this is a corner, and its powers leave what a number can hold.
            Parameter(f"f{i}", (0.1, 0.8), bounds=(0.03, 30.0)),
        ]  # fmt: skip
    return Law(
        name="bnsl" if breaks == 1 else f"bnsl_{breaks}", regime="pretraining",
        formula="loss = E + b * x^-c0 * " + " * ".join(factors)
        + (" where " + " and ".join(places) if places else ""),
        parameters=(
            Parameter("E", (1e-4, 1.0)), FACTOR,
            Parameter("c0", (-0.05, 0.4), log=False, bounds=(-8.0, 8.0)), *own,
        ),
        source="Caballero et al. 2022 (BNSL), arXiv 2210.14891, eq. 1, whose a is E here",
        status="checked", units=UNITS,
        needs=f"sizes on both sides of each break, {3 + 3 * breaks} points at the very least",
    )  # fmt: skip


BNSL, BNSL_2, BNSL_3 = (register(bnsl(breaks)) for breaks in (1, 2, 3))
