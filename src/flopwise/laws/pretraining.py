"""Law 1: loss as a function of parameters N, tokens D, compute C."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from flopwise.laws.law import Array, Columns, Law, Parameter, register

P = Mapping[str, float]


def _chinchilla_terms(p: P, x: Columns) -> Array:
    return np.stack([np.ones_like(x["N"]), x["N"] ** -p["alpha"], x["D"] ** -p["beta"]], axis=1)


CHINCHILLA = register(
    Law(
        name="chinchilla", regime="pretraining", formula="L = E + A / N^alpha + B / D^beta",
        variables=("N", "D"), target="loss",
        parameters=(
            Parameter("E", (0.1, 3.0)), Parameter("A", (1.0, 1e4)), Parameter("B", (1.0, 1e4)),
            Parameter("alpha", (0.05, 1.2)), Parameter("beta", (0.05, 1.2)),
        ),
        function=lambda p, x: p["E"] + p["A"] * x["N"] ** -p["alpha"] + p["B"] * x["D"] ** -p["beta"],
        linear=("E", "A", "B"), terms=_chinchilla_terms,
        source="Hoffmann et al. 2022, arXiv 2203.15556, eq. 2", status="checked",
        needs="at least three sizes and three token budgets, not all on one line of N against D",
    )
)  # fmt: skip


def _coupled(p: P, x: Columns) -> Array:
    return p["E"] + p["A"] * (x["N"] ** -p["alpha"] + p["R"] * x["D"] ** -p["beta"]) ** p["k"]


COUPLED = register(
    Law(
        name="coupled", regime="pretraining", formula="L = E + A (N^-alpha + R D^-beta)^k",
        variables=("N", "D"), target="loss",
        parameters=(
            Parameter("E", (0.1, 3.0)), Parameter("A", (1.0, 1e3)), Parameter("R", (0.1, 1e3)),
            Parameter("alpha", (0.1, 1.2)), Parameter("beta", (0.1, 1.2)), Parameter("k", (0.3, 1.5)),
        ),
        function=_coupled, linear=("E", "A"),
        terms=lambda p, x: np.stack(
            [np.ones_like(x["N"]), (x["N"] ** -p["alpha"] + p["R"] * x["D"] ** -p["beta"]) ** p["k"]], axis=1
        ),
        source="Videau 2026 as described by a package; k = 1 is Chinchilla, beta = 1 Kaplan with a floor",
        status="summary",
        needs="what chinchilla needs, and several budgets at each size",
    )
)  # fmt: skip


def _broken(p: P, x: Columns) -> Array:
    # One smooth break in the data term: slope beta before D0, beta + gamma after it, sharpness fixed at 1/2.
    bend = (1 + (x["D"] / p["D0"]) ** 2.0) ** (-p["gamma"] / 2.0)
    return p["E"] + p["A"] * x["N"] ** -p["alpha"] + p["B"] * x["D"] ** -p["beta"] * bend


BROKEN = register(
    Law(
        name="broken", regime="pretraining",
        formula="L = E + A / N^alpha + B / D^beta (1 + (D / D0)^2)^(-gamma / 2)",
        variables=("N", "D"), target="loss",
        parameters=(
            Parameter("E", (0.1, 3.0)), Parameter("A", (1.0, 1e4)), Parameter("B", (1.0, 1e4)),
            Parameter("alpha", (0.05, 1.2)), Parameter("beta", (0.05, 1.0)),
            Parameter("D0", (0.2, 5.0), unit="D"),
            Parameter("gamma", (0.01, 1.0)),
        ),
        function=_broken, linear=("E", "A", "B"),
        terms=lambda p, x: np.stack(
            [
                np.ones_like(x["N"]), x["N"] ** -p["alpha"],
                x["D"] ** -p["beta"] * (1 + (x["D"] / p["D0"]) ** 2.0) ** (-p["gamma"] / 2.0),
            ],
            axis=1,
        ),
        source="break of Caballero et al. 2022, arXiv 2210.14891, eq. 1, put into the data term",
        status="checked",
        needs="budgets on both sides of the break; four or more per size",
    )
)  # fmt: skip


def _overtraining_terms(p: P, x: Columns) -> Array:
    # M^eta C^-eta = 6^-eta N^-2eta, and M^-eta C^-eta = 6^-eta D^-2eta.
    ones, eta = np.ones_like(x["N"]), p["eta"]
    return np.stack([ones, 6**-eta * x["N"] ** (-2 * eta), 6**-eta * x["D"] ** (-2 * eta)], axis=1)


def _overtraining(p: P, x: Columns) -> Array:
    power = -2 * p["eta"]
    return p["E"] + 6 ** -p["eta"] * (p["a"] * x["N"] ** power + p["b"] * x["D"] ** power)


OVERTRAINING = register(
    Law(
        name="overtraining", regime="pretraining",
        formula="L = E + (a M^eta + b M^-eta) C^-eta, M = D / N, C = 6 N D",
        variables=("N", "D"), target="loss",
        parameters=(
            Parameter("E", (0.1, 3.0)), Parameter("a", (1.0, 1e4)), Parameter("b", (1.0, 1e4)),
            Parameter("eta", (0.025, 0.6)),
        ),
        function=_overtraining, linear=("E", "a", "b"), terms=_overtraining_terms,
        source="Gadre et al. 2024, arXiv 2403.08540: Chinchilla with equal exponents", status="checked",
        needs="three sizes, or two and another ratio of tokens to parameters; five points or more",
    )
)  # fmt: skip

KAPLAN = register(
    Law(
        name="kaplan", regime="pretraining", formula="L = ((Nc / N)^(aN / aD) + Dc / D)^aD",
        variables=("N", "D"), target="loss",
        parameters=(
            Parameter("Nc", (1.0, 1e12), unit="N"), Parameter("Dc", (1.0, 1e12), unit="D"),
            Parameter("aN", (0.02, 0.5)), Parameter("aD", (0.02, 0.5)),
        ),
        function=lambda p, x: ((p["Nc"] / x["N"]) ** (p["aN"] / p["aD"]) + p["Dc"] / x["D"]) ** p["aD"],
        source="Kaplan et al. 2020, arXiv 2001.08361, eq. 1.5", status="summary",
        needs="several sizes and budgets; it has no floor, so it fails near one",
    )
)  # fmt: skip

POWER = register(
    Law(
        name="power", regime="pretraining", formula="L = E + (C0 / C)^a",
        variables=("C",), target="loss",
        parameters=(
            Parameter("E", (0.1, 3.0)), Parameter("C0", (1e-6, 1e9), unit="C"), Parameter("a", (0.02, 1.0)),
        ),
        function=lambda p, x: p["E"] + (p["C0"] / x["C"]) ** p["a"],
        source="Henighan et al. 2020, arXiv 2010.14701, eq. 1.1", status="summary",
        needs="runs on the compute frontier over at least two decades",
    )
)  # fmt: skip
