"""Loss as a function of parameters N and tokens D, and the sizes that a budget of compute C makes best."""

from __future__ import annotations

from math import exp

from flopwise.laws.law import Law, Parameter, Published, register

FLOOR = Parameter("E", (0.1, 3.0))
FACTORS = (Parameter("A", (1.0, 1e4)), Parameter("B", (1.0, 1e4)))
EXPONENTS = (Parameter("alpha", (0.05, 1.2)), Parameter("beta", (0.05, 1.2)))

C4_ONE_EPOCH = {
    "E": exp(0.6254804), "A": exp(6.255414), "B": exp(7.3049974), "alpha": 0.3526596, "beta": 0.3526596,
}  # fmt: skip
"""Muennighoff et al. 2023: their notebook prints logarithms."""

CHINCHILLA = register(
    Law(
        name="chinchilla", regime="pretraining", formula="loss = E + A / N^alpha + B / D^beta",
        parameters=(FLOOR, *FACTORS, *EXPONENTS),
        source="Hoffmann et al. 2022, arXiv 2203.15556, eq. 2", status="checked",
        needs="at least three sizes and three token budgets, not all on one line of N against D",
        published=(
            Published(
                {"E": 1.6934, "A": 406.4, "B": 410.7, "alpha": 0.33917, "beta": 0.28491},
                "Hoffmann et al. 2022, unrounded in the TeX source", "checked",
                "not the optimum of its own objective",
            ),
            Published(
                {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658},
                "Besiroglu et al. 2024, arXiv 2404.10102, table 1", "checked", "refit to 240 recovered runs",
            ),
            Published(
                C4_ONE_EPOCH,
                "Muennighoff et al. 2023, arXiv 2305.16264, from the authors' notebook", "checked",
                "C4, one epoch, exponents set equal",
            ),
            Published(
                {"E": 0.47, "A": 16.3, "B": 26.7, "alpha": 0.126, "beta": 0.127},
                "Krajewski et al. 2024, arXiv 2402.07871, dense models", "summary", "C4",
            ),
            Published(
                {"alpha": 0.29, "beta": 0.23}, "Hu et al. 2024 (MiniCPM), arXiv 2404.06395", "summary",
                "exponents alone; annealed runs; best near 192 tokens a parameter",
            ),
            Published(
                {"alpha": 0.18, "beta": 0.24}, "Sardana et al. 2024, arXiv 2401.00448", "summary",
                "exponents alone; .08 and .13 where only runs up to 100 tokens a parameter are fitted",
            ),
        ),
    )
)  # fmt: skip

OPTIMAL_SIZE = register(
    Law(
        name="optimal_size", regime="pretraining", formula="N = G * C^a",
        parameters=(Parameter("G", (1e-6, 1e3)), Parameter("a", (0.2, 0.9))),
        source="Hoffmann et al. 2022, arXiv 2203.15556, approaches 1 and 2: minima of isoFLOP curves",
        status="checked",
        needs="the best size at three or more budgets, each inside the sizes tried at it",
        published=(
            Published({"a": 0.50}, "Hoffmann et al. 2022, approach 1", "summary", "80 %: .488, .502"),
            Published({"a": 0.49}, "Hoffmann et al. 2022, approach 2", "summary", "80 %: .462, .534"),
            Published({"a": 0.73}, "Kaplan et al. 2020, arXiv 2001.08361", "summary", "N without embeddings"),
            Published({"a": 0.70}, "Henighan et al. 2020, arXiv 2010.14701", "summary", "in all domains"),
            Published(
                {"G": 0.1715, "a": 0.5243}, "DeepSeek-AI 2024, arXiv 2401.02954", "summary",
                "size in non-embedding FLOP per token, M = 72 l d^2 + 12 l d s, not in parameters",
            ),
            Published(
                {"a": 0.497}, "Porian et al. 2024, arXiv 2406.19146", "checked",
                "RefinedWeb, tuned; .835 in Kaplan's setting, and .706, .602, .571 on the way",
            ),
            Published(
                {"a": 0.526}, "Shukor et al. 2025, arXiv 2504.07951", "summary",
                "native multimodal, early fusion; .636 late fusion, .361 sparse",
            ),
            Published({"a": 0.547}, "Beck et al. 2025, arXiv 2510.02228", "summary", "xLSTM"),
            Published({"a": 0.589}, "arXiv 2512.10858", "summary", "diffusion language models"),
        ),
    )
)  # fmt: skip

OPTIMAL_TOKENS = register(
    Law(
        name="optimal_tokens", regime="pretraining", formula="D = G * C^b",
        parameters=(Parameter("G", (1e-6, 1e6)), Parameter("b", (0.2, 0.9))),
        source="Hoffmann et al. 2022, arXiv 2203.15556, approaches 1 and 2: minima of isoFLOP curves",
        status="checked",
        needs="the best number of tokens at three or more budgets, each inside those tried at it",
        published=(
            Published({"b": 0.50}, "Hoffmann et al. 2022, approach 1", "summary"),
            Published({"b": 0.51}, "Hoffmann et al. 2022, approach 2", "summary"),
            Published({"b": 0.27}, "Kaplan et al. 2020, arXiv 2001.08361", "summary"),
            Published({"G": 0.29, "b": 0.53}, "Llama team 2024, arXiv 2407.21783", "summary", "C in FLOP"),
            Published({"G": 5.8316, "b": 0.4757}, "DeepSeek-AI 2024, arXiv 2401.02954", "summary", "C = M D"),
            Published(
                {"b": 0.473}, "Shukor et al. 2025, arXiv 2504.07951", "summary",
                "native multimodal, early fusion; .462 late fusion, .656 sparse",
            ),
            Published({"b": 0.417}, "Beck et al. 2025, arXiv 2510.02228", "summary", "xLSTM"),
            Published({"b": 0.411}, "arXiv 2512.10858", "summary", "diffusion language models"),
        ),
    )
)  # fmt: skip
