"""Tables of variables on which each pretraining law can be told from its neighbours."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

SIZES = np.geomspace(1e7, 1e10, 6)
TOKENS = np.geomspace(1e9, 1e12, 6)


def cross(**axes: np.ndarray) -> dict[str, np.ndarray]:
    """All combinations of the axes' values."""
    mesh = np.meshgrid(*axes.values(), indexing="ij")
    return {name: values.ravel() for name, values in zip(axes, mesh, strict=True)}


def curve(points: int, last: float = 1e9) -> dict[str, np.ndarray]:
    """Sizes x from 1e3 on."""
    return {"x": np.geomspace(1e3, last, points)}


def shares(domains: int) -> np.ndarray:
    """Mixtures [m, domains], every domain from a few percent to most of it."""
    rng = np.random.default_rng(0)
    return 0.98 * rng.dirichlet(np.full(domains, 0.7), 8 * domains) + 0.02 / domains


def mixtures(domains: int, listed: int, **axes: np.ndarray) -> dict[str, np.ndarray]:
    """Mixtures, the first `listed` shares of each, combined with other axes."""
    r = shares(domains)
    x = cross(row=np.arange(len(r)), **axes)
    rows = x.pop("row").astype(int)
    return x | {f"r{i + 1}": r[rows, i] for i in range(listed)}


def repeated() -> dict[str, np.ndarray]:
    """Up to 60 passes over three pools, with models that they support and others."""
    x = cross(
        N=np.geomspace(1e6, 1e10, 6),
        U=np.array([1e8, 5e9, 2e11]),
        passes=np.array([1.0, 2.0, 4.0, 10.0, 25.0, 60.0]),
    )
    return x | {"D": x["U"] * x.pop("passes")}


def modalities() -> dict[str, np.ndarray]:
    x = cross(N=SIZES, D1=TOKENS[::2], D2=TOKENS[::2])
    return x | {"unimodal": 2 + 1e3 / x["N"] ** 0.4}


def pools() -> dict[str, np.ndarray]:
    x = cross(U=np.geomspace(1e5, 1e8, 4), passes=np.array([0.5, 1.0, 2.0, 3.5, 6.0, 10.0, 16.0]))
    return {"U": x["U"], "D": x["U"] * x["passes"]}


def annealed() -> dict[str, np.ndarray]:
    """Areas of a constant schedule, and of one that decays in its last fifth."""
    S1 = np.geomspace(0.1, 20.0, 20)
    return {"S1": np.tile(S1, 2), "S2": np.concatenate([np.zeros(20), np.clip((S1 - 12) / 8, 0, 1) * 0.5])}


BITS = np.array([2.0, 3.0, 4.0, 6.0, 12.0])
EXPERTS = np.array([1.0, 2.0, 4.0, 8.0, 16.0, 64.0, 256.0, 512.0])

GRIDS: dict[str, Callable[[], dict[str, np.ndarray]]] = {
    "kaplan_steps": lambda: cross(N=SIZES, S=np.geomspace(1e2, 1e6, 8)),
    "critical_batch": lambda: {"loss": np.linspace(1.5, 6.0, 8)},
    "broken": lambda: cross(N=SIZES, D=np.geomspace(1e8, 1e13, 16)),
    "farseer": lambda: cross(N=np.geomspace(1e7, 1e11, 12), D=np.geomspace(1e8, 1e13, 12)),
    "algorithmic_progress": lambda: cross(N=SIZES, D=TOKENS, year=np.array([2014.0, 2017.0, 2020.0, 2023.0])),
    "optimisers": lambda: cross(N=SIZES, D=TOKENS, o1=np.array([0.0, 1.0])),
    "parscale": lambda: cross(N=SIZES, P=np.array([1.0, 2.0, 4.0, 8.0])),
    "m1": lambda: curve(10),
    "m2": lambda: curve(20),
    "m3": lambda: curve(20),
    "m4": lambda: curve(30),
    "henighan": lambda: curve(20),
    "shifted": lambda: curve(20),
    "bnsl": lambda: curve(60, 1e9),
    "bnsl_2": lambda: curve(120, 1e10),
    "bnsl_3": lambda: curve(200, 1e13),
    "rosenfeld": lambda: cross(N=np.geomspace(1e4, 1e9, 7), D=np.geomspace(1e3, 1e8, 7)),
    "rosenfeld_envelope": lambda: cross(N=np.geomspace(1e3, 1e9, 9), D=np.geomspace(1e2, 1e8, 9)),
    "data_constrained": repeated,
    "repetition_penalty": repeated,
    "filtering": pools,
    "dcpt": lambda: cross(N=SIZES, D=TOKENS, r=np.array([0.01, 0.05, 0.2, 0.5, 1.0])),
    "mixed_modal": modalities,
    "mixture_exponential": lambda: mixtures(2, 1),
    "mixture_exponential_3": lambda: mixtures(3, 2),
    "mixture_exponential_5": lambda: mixtures(5, 4),
    "mixture_additive": lambda: mixtures(2, 2, N=SIZES[::2], D=TOKENS[::2]),
    "mixture_additive_3": lambda: mixtures(3, 3, N=SIZES[::2], D=TOKENS[::2]),
    "mixture_joint": lambda: mixtures(2, 2, N=SIZES[::2], D=TOKENS[::2]),
    "bimix": lambda: cross(S=np.geomspace(1e3, 1e5, 8), r=np.array([0.02, 0.1, 0.3, 0.7])),
    "precision": lambda: cross(N=SIZES[::2], D=TOKENS[::2], Pw=BITS, Pa=BITS[::2], Pkv=BITS[::2]),
    "precision_post": lambda: cross(N=SIZES, D=TOKENS, P=BITS),
    "vocabulary": lambda: cross(Nnv=np.geomspace(30, 3e3, 6), Nv=np.geomspace(1, 300, 5), H=TOKENS / 1e8),
    "sparse_weights": lambda: cross(N=SIZES, D=TOKENS, sparsity=np.array([0.0, 0.3, 0.6, 0.8, 0.95])),
    "moe_clark": lambda: cross(N=SIZES, experts=EXPERTS),
    "moe_bilinear": lambda: cross(N=SIZES, experts=EXPERTS),
    "moe_granularity": lambda: cross(N=SIZES, D=TOKENS, G=np.array([1.0, 2.0, 4.0, 8.0, 16.0])),
    "moe_sparsity": lambda: cross(N=SIZES, D=TOKENS, sparsity=np.array([0.0, 0.3, 0.6, 0.8, 0.9, 0.98])),
    "moe_joint": lambda: cross(N=SIZES, D=TOKENS, experts=EXPERTS),
    "batch": lambda: {"D": TOKENS},
    "annealing": annealed,
}
"""By law; others do on the generic grid of their variables."""
