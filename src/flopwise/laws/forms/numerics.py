"""Vocabulary, precision and sparsity of weights."""

from __future__ import annotations

from flopwise.laws.forms.dense import EXPONENTS, FLOOR
from flopwise.laws.law import Law, Parameter, Published, register

_KUMAR = "Kumar et al. 2024, arXiv 2411.04330"

PRECISION = register(
    Law(
        name="precision", regime="pretraining",
        formula="loss = E + A / Ne^alpha + B / D^beta "
        "where Ne = N * (1 - exp(-Pw / gamma_w)) * (1 - exp(-Pa / gamma_a)) * (1 - exp(-Pkv / gamma_kv))",
        parameters=(
            FLOOR, Parameter("A", (1.0, 1e5)), Parameter("B", (1.0, 1e5)), *EXPONENTS,
            *(Parameter(name, (0.5, 6.0)) for name in ("gamma_w", "gamma_a", "gamma_kv")),
        ),
        source=f"{_KUMAR}: bits in training take away parameters", status="summary",
        needs="three sizes and three token budgets or more, varied apart, and several numbers of bits of "
        "each kind, the others high",
        units={
            "Pw": "bits of weights", "Pa": "bits of activations", "Pkv": "bits of keys and values",
        },
        published=(
            Published(
                {
                    "E": 2.7648, "A": 4299.0, "B": 18060.0, "alpha": 0.4965, "beta": 0.4965,
                    "gamma_w": 2.6745, "gamma_a": 2.2102, "gamma_kv": 0.9578,
                },
                _KUMAR, "summary", "Dolma; exponents set equal",
            ),
        ),
    )
)  # fmt: skip

PRECISION_POST = register(
    Law(
        name="precision_post", regime="pretraining", formula="gap = CT * D^gD / N^gN * exp(-P / gP)",
        parameters=(
            Parameter("CT", (1e-4, 10.0)), Parameter("gD", (0.1, 1.5)), Parameter("gN", (0.1, 1.5)),
            Parameter("gP", (0.2, 3.0)),
        ),
        source=f"{_KUMAR}: what quantising weights after training costs", status="summary",
        needs="several sizes, budgets and bits; gaps well above the noise of the loss",
        units={"P": "bits of weights after training", "gap": "loss after minus before, nats per token"},
        published=(
            Published({"CT": 0.0598, "gD": 0.5068, "gN": 0.3439, "gP": 0.5907}, _KUMAR, "summary", "Dolma"),
        ),
    )
)  # fmt: skip

VOCABULARY = register(
    Law(
        name="vocabulary", regime="pretraining", formula="loss = A1 / Nnv^a1 + A2 / Nv^a2 + B / H^beta - E",
        parameters=(
            Parameter("A1", (0.1, 100.0)), Parameter("A2", (0.01, 100.0)), Parameter("B", (0.1, 100.0)),
            Parameter("E", (1.0, 10.0)), Parameter("a1", (0.1, 1.5)), Parameter("a2", (0.1, 1.5)),
            Parameter("beta", (0.1, 1.5)),
        ),
        scale="plain",
        source="Tao et al. 2024, arXiv 2407.13623: loss minus a unigram model's, to compare vocabularies",
        status="summary",
        needs="several vocabularies at several sizes and numbers of characters",
        units={
            "Nnv": "parameters but embeddings", "Nv": "parameters of embeddings", "H": "characters seen",
            "loss": "nats per token minus the unigram model's, below 0",
        },
        published=(
            Published(
                {"A1": 1.831, "A2": 0.196, "B": 2.124, "E": 5.533, "a1": 0.447, "a2": 0.671, "beta": 0.447},
                "Tao et al. 2024", "summary",
                "the summaries give no units; with parameters and characters one by one all terms vanish",
            ),
        ),
    )
)  # fmt: skip

SPARSE_WEIGHTS = register(
    Law(
        name="sparse_weights", regime="pretraining",
        formula="loss = (aS * (1 - sparsity)^bS + cS) / N^bN + (aD / D)^bD + E",
        parameters=(
            Parameter("aS", (0.1, 1e4)), Parameter("bS", (0.1, 2.0)), Parameter("cS", (0.1, 1e4)),
            Parameter("bN", (0.05, 1.0)), Parameter("aD", (1e-6, 1e3), unit="D"),
            Parameter("bD", (0.05, 1.2)), FLOOR,
        ),
        from_zero=("sparsity",),
        source="Frantar et al. 2023, arXiv 2309.08520", status="summary",
        needs="several sizes and budgets at sparsities over half the range",
        units={"N": "parameters that are not 0", "sparsity": "share of weights that are 0"},
    )
)  # fmt: skip
