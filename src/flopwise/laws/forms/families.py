"""Laws of N and D that bend, couple or tie the terms of Chinchilla's and Kaplan's."""

from __future__ import annotations

from flopwise.errors import FlopwiseError
from flopwise.laws.forms.dense import EXPONENTS, FACTORS, FLOOR
from flopwise.laws.law import Law, Parameter, Published, register

COUPLED = register(
    Law(
        name="coupled", regime="pretraining", formula="loss = E + A * (N^-alpha + R * D^-beta)^k",
        parameters=(
            FLOOR, Parameter("A", (1.0, 1e3)), Parameter("R", (0.1, 1e3)), *EXPONENTS,
            Parameter("k", (0.3, 1.5)),
        ),
        variables=("N", "D"),
        source="Videau et al. 2026 (Skaling), arXiv 2608.07222; k = 1 is Chinchilla, beta = 1 Kaplan "
        "with a floor",
        status="summary",
        needs="four sizes or more, each at several token budgets",
    )
)  # fmt: skip

NESTED = register(
    Law(
        name="nested", regime="pretraining",
        formula="loss = E + A * (N^(-alpha / q) + (R * D^-beta)^(1 / q))^q",
        parameters=(
            FLOOR, Parameter("A", (1.0, 1e3)), Parameter("R", (0.03, 300.0)), *EXPONENTS,
            Parameter("q", (0.1, 2.0)),
        ),
        variables=("N", "D"),
        source="coupled with exponents that stay those of each term alone: q = 1 is Chinchilla with B = A R; "
        "E = 0 and q = beta is Kaplan's joint law",
        status="own",
        needs="four sizes or more, each at several token budgets",
    )
)  # fmt: skip

BROKEN = register(
    Law(
        name="broken", regime="pretraining",
        formula="loss = E + A / N^alpha + B / D^beta * (1 + (D / D0)^2)^(-gamma / 2)",
        parameters=(
            FLOOR, *FACTORS, *EXPONENTS,
            Parameter("D0", (0.2, 5.0), unit="D"), Parameter("gamma", (0.01, 1.0)),
        ),
        source="break of Caballero et al. 2022, arXiv 2210.14891, eq. 1, put into the data term",
        status="checked",
        needs="budgets on both sides of the break; four or more per size",
    )
)  # fmt: skip

OVERTRAINING = register(
    Law(
        name="overtraining", regime="pretraining",
        formula="loss = E + (a * M^eta + b * M^-eta) * C^-eta where M = D / N and C = 6 * N * D",
        parameters=(
            FLOOR, Parameter("a", (1.0, 1e4)), Parameter("b", (1.0, 1e4)), Parameter("eta", (0.025, 0.6)),
        ),
        source="Gadre et al. 2024, arXiv 2403.08540: Chinchilla with equal exponents", status="checked",
        needs="three sizes, or two and another ratio of tokens to parameters; five points or more",
        published=(
            Published({"E": 1.51, "a": 141, "b": 190, "eta": 0.121}, "Gadre et al. 2024", "checked", "C4"),
            Published(
                {"E": 1.84, "a": 212, "b": 367, "eta": 0.136}, "Gadre et al. 2024", "checked", "RedPajama"
            ),
            Published(
                {"E": 1.73, "a": 157, "b": 246, "eta": 0.127}, "Gadre et al. 2024", "checked", "RefinedWeb"
            ),
        ),
    )
)  # fmt: skip

FARSEER = register(
    Law(
        name="farseer", regime="pretraining",
        formula="loss = exp(a3 * N^g3 + b3) + exp(a2 * N^-g2 + b2) * D^-exp(b1 - a1 * N^g1)",
        parameters=(
            Parameter("a1", (0.03, 0.3)), Parameter("g1", (0.06, 0.25)),
            Parameter("b1", (-0.5, 1.5), log=False, bounds=(-20.0, 20.0)),
            Parameter("a2", (20.0, 200.0)), Parameter("g2", (0.05, 0.2)),
            Parameter("b2", (-12.0, 0.0), log=False, bounds=(-100.0, 100.0)),
            Parameter("a3", (-0.1, -0.005), log=False, bounds=(-5.0, 5.0)), Parameter("g3", (0.08, 0.3)),
            Parameter("b3", (-0.5, 0.5), log=False, bounds=(-20.0, 20.0)),
        ),
        source="Li et al. 2025 (Farseer), arXiv 2506.10972", status="summary",
        needs="a full grid of many sizes and budgets: nine parameters, each exponent g trades with its "
        "factor and shift; its authors fit it in pieces",
        published=(
            Published(
                {
                    "a1": 0.124, "g1": 0.123, "b1": 0.424, "a2": 88.01, "g2": 0.1, "b2": -6.287,
                    "a3": -0.021, "g3": 0.169, "b3": -0.091,
                },
                "Li et al. 2025", "summary", "N without embeddings; loss in bits per character",
            ),
        ),
    )
)  # fmt: skip

PROGRESS = register(
    Law(
        name="algorithmic_progress", regime="pretraining",
        formula="loss = E + A / (N * exp(gN * (year - 2012)))^alpha + B / (D * exp(gD * (year - 2012)))^beta",
        parameters=(
            FLOOR, *FACTORS, *EXPONENTS,
            Parameter("gN", (0.0, 1.0), log=False, bounds=(-5.0, 5.0)),
            Parameter("gD", (0.0, 1.0), log=False, bounds=(-5.0, 5.0)),
        ),
        source="Ho et al. 2024, arXiv 2403.05812, eq. 3, with growth of effective N and D as parameters; "
        "effective compute doubles in 8.4 months (4.5 to 14.3) there",
        status="summary",
        needs="models of one test set over several years, sizes and budgets; the paper sets E to 0",
        units={"year": "calendar year, fractions too"},
    )
)  # fmt: skip


def optimisers(others: int) -> Law:
    """Chinchilla's law for a first optimiser and this many others, not registered.

    Exponents are shared; optimiser i multiplies N by n_i and D by d_i. Columns o1, o2, ...: 1 in the runs of
    that optimiser, 0 in all else.

    Raises:
        FlopwiseError: no other optimiser.
    """
    if others < 1:
        raise FlopwiseError(f"others is {others}, at least 1 is needed; one optimiser is chinchilla")
    numbers = range(1, others + 1)
    size, data = (" * ".join([name, *(f"{name.lower()}{i}^o{i}" for i in numbers)]) for name in "ND")
    return Law(
        name="optimisers" if others == 1 else f"optimisers_{others}", regime="pretraining",
        formula=f"loss = E + A / ({size})^alpha + B / ({data})^beta",
        parameters=(
            FLOOR, *FACTORS, *EXPONENTS, *(Parameter(f"{of}{i}", (0.3, 5.0)) for i in numbers for of in "nd"),
        ),
        from_zero=tuple(f"o{i}" for i in numbers),
        units={f"o{i}": f"1 in runs of optimiser {i}, else 0" for i in numbers},
        source="Volkova et al. 2026, arXiv 2602.07712: fits to each optimiser alone are ill-conditioned",
        status="summary",
        needs="three sizes and three token budgets or more of the first optimiser, varied apart; several of "
        "each other",
        published=tuple(
            Published({"d1": value}, "Volkova et al. 2026", "summary", f"{name} to AdamW; n1 about 1")
            for name, value in (("Muon", 2.08), ("Scion", 1.99), ("SOAP", 2.57))
        )
        if others == 1
        else (),
    )  # fmt: skip


OPTIMISERS = register(optimisers(1))

PARALLEL = register(
    Law(
        name="parscale", regime="pretraining", formula="loss = E + (A / (N * (kappa * log(P) + 1)))^alpha",
        parameters=(
            FLOOR, Parameter("A", (1e-6, 1e3), unit="N"), Parameter("kappa", (0.05, 2.0)),
            Parameter("alpha", (0.05, 1.2)),
        ),
        source="Chen et al. 2025 (ParScale), arXiv 2505.10475, eq. 5", status="summary",
        needs="several sizes, each with several numbers of parallel streams; tokens alike throughout",
        units={"P": "parallel streams"},
        published=(
            Published({"kappa": 0.39}, "Chen et al. 2025", "summary", "Stack-V2 Python; kappa alone"),
            Published({"kappa": 0.33}, "Chen et al. 2025", "summary", "Pile; kappa alone"),
        ),
    )
)  # fmt: skip
