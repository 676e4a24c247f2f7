"""Mixture-of-experts models. `experts` is their number; a dense model has 1."""

from __future__ import annotations

from flopwise.laws.forms.dense import EXPONENTS, FLOOR
from flopwise.laws.law import Law, Parameter, Published, register

_CLARK = "Clark et al. 2022, arXiv 2202.01169"
_SATURATION = "Eh = 1 / (1 / (experts - 1 + 1 / (1 / Es - 1 / Em)) + 1 / Em)"
_EDGES = (Parameter("Es", (1.1, 6.0)), Parameter("Em", (60.0, 1500.0)))
_BILINEAR = (
    Parameter("a", (-0.15, -0.03), log=False, bounds=(-3.0, 3.0)),
    Parameter("b", (-0.3, 0.0), log=False, bounds=(-5.0, 5.0)),
    Parameter("c", (-0.01, 0.03), log=False, bounds=(-1.0, 1.0)),
    Parameter("d", (0.5, 2.0), log=False, bounds=(-20.0, 20.0)),
)
_EXPERTS = {"N": "parameters that a token sees", "experts": "experts per layer"}
_DATA = "130B tokens; logarithms to base 10"


def _routed(*values: float) -> dict[str, float]:
    return dict(zip(("a", "b", "c", "d", "Es", "Em"), values, strict=True))


MOE_CLARK = register(
    Law(
        name="moe_clark", regime="pretraining",
        formula="loss = 10^(a * log10(N) + b * log10(Eh) + c * log10(N) * log10(Eh) + d) "
        f"where {_SATURATION}",
        parameters=(*_BILINEAR, *_EDGES),
        source=f"{_CLARK}, with saturation", status="checked", units=_EXPERTS,
        needs="several sizes, each with several numbers of experts from dense to hundreds; Es and Em are "
        "weakly determined",
        published=(
            Published(
                _routed(-0.082, -0.108, 0.009, 1.104, 1.847, 314.478), f"{_CLARK}, table 3", "checked",
                f"S-Base; {_DATA}",
            ),
            Published(
                _routed(-0.083, -0.126, 0.012, 1.111, 1.880, 469.982), f"{_CLARK}, table 3", "checked",
                f"RL-R; {_DATA}",
            ),
            Published(
                _routed(-0.087, -0.136, 0.012, 1.157, 4.175, 477.741), f"{_CLARK}, table 3", "checked",
                f"Hash; {_DATA}",
            ),
        ),
    )
)  # fmt: skip

MOE_BILINEAR = register(
    Law(
        name="moe_bilinear", regime="pretraining",
        formula="loss = 10^(a * log10(N) + b * log10(experts) + c * log10(N) * log10(experts) + d)",
        parameters=_BILINEAR, source=f"{_CLARK}, without saturation", status="checked", units=_EXPERTS,
        needs="several sizes, each with several numbers of experts",
    )
)  # fmt: skip

MOE_GRANULARITY = register(
    Law(
        name="moe_granularity", regime="pretraining",
        formula="loss = E + (g / G^gamma + a) / N^alpha + b / D^beta",
        parameters=(
            FLOOR, Parameter("g", (0.1, 1e3)), Parameter("gamma", (0.1, 2.0)), Parameter("a", (1.0, 1e4)),
            Parameter("b", (1.0, 1e4)), *EXPONENTS,
        ),
        source="Krajewski et al. 2024, arXiv 2402.07871", status="summary",
        needs="three sizes and three token budgets or more, varied apart, at several granularities",
        units={"N": "parameters without embeddings, all experts", "G": "experts per expert of ordinary size"},
        published=(
            Published(
                {"E": 0.47, "g": 2.1, "gamma": 0.58, "a": 18.1, "b": 30.8, "alpha": 0.115, "beta": 0.147},
                "Krajewski et al. 2024", "summary", "C4, expansion rate 64",
            ),
        ),
    )
)  # fmt: skip

MOE_SPARSITY = register(
    Law(
        name="moe_sparsity", regime="pretraining",
        formula="loss = E + a / N^alpha + b / D^beta + c / (1 - sparsity)^lam "
        "+ d / ((1 - sparsity)^delta * N^gamma)",
        parameters=(
            FLOOR, Parameter("a", (1.0, 1e5)), Parameter("b", (1.0, 1e5)), *EXPONENTS,
            Parameter("c", (0.05, 5.0)), Parameter("lam", (-0.5, 0.0), log=False, bounds=(-3.0, 3.0)),
            Parameter("d", (0.5, 200.0)), Parameter("delta", (0.0, 0.5), log=False, bounds=(-3.0, 3.0)),
            Parameter("gamma", (0.05, 0.4)),
        ),
        from_zero=("sparsity",),
        source="Abnar et al. 2025, arXiv 2501.12370", status="summary",
        needs="several sizes and budgets over the range of sparsity; held-out R2 of theirs 68 %",
        units={"N": "parameters, all experts", "sparsity": "share of experts that a token does not see"},
        published=(
            Published(
                {
                    "E": 0.94, "a": 16612.5, "alpha": 0.5962, "b": 5455.67, "beta": 0.3954, "c": 0.4598,
                    "lam": -0.1666, "d": 17.26, "delta": 0.1603, "gamma": 0.1595,
                },
                "Abnar et al. 2025", "summary", "RedPajama",
            ),
        ),
    )
)  # fmt: skip

MOE_JOINT = register(
    Law(
        name="moe_joint", regime="pretraining",
        formula="loss = E + a * Eh^-delta * N^(gamma * log(Eh) - alpha) "
        f"+ b * Eh^omega * D^(-beta - zeta * log(Eh)) where {_SATURATION}",
        parameters=(
            FLOOR, Parameter("a", (1.0, 1e4)), Parameter("b", (1.0, 1e4)), *EXPONENTS,
            Parameter("delta", (0.0, 0.5), log=False, bounds=(-3.0, 3.0)),
            Parameter("gamma", (0.0, 0.03), log=False, bounds=(-1.0, 1.0)),
            Parameter("omega", (0.0, 1.0), log=False, bounds=(-3.0, 3.0)),
            Parameter("zeta", (0.0, 0.05), log=False, bounds=(-1.0, 1.0)),
            *_EDGES,
        ),
        source="Ludziejewski et al. 2025, arXiv 2502.05172, eq. 6; signs of alpha, beta, delta, zeta turned",
        status="checked",
        needs="a grid of sizes, budgets and experts; eleven parameters, Es and Em weakly determined",
        units={"N": "parameters that a token sees, with embeddings", "experts": "experts per layer"},
        published=(
            Published(
                {
                    "E": 1.3637, "a": 35.91, "b": 35.98, "alpha": 0.1889, "beta": 0.1775, "delta": 0.2285,
                    "gamma": 0.0098, "omega": 0.5529, "zeta": 0.0259, "Es": 2.0732, "Em": 290.4521,
                },
                "Ludziejewski et al. 2025, table 3", "checked", "agrees with their table 4 to its rounding",
            ),
        ),
    )
)  # fmt: skip
