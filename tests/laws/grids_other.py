"""Tables of variables that identify the laws of downstream scores, post-training and test time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Columns = dict[str, np.ndarray]


def mesh(**axes) -> Columns:
    """All combinations of values on axes."""
    grid = np.meshgrid(*(np.asarray(a, dtype=float) for a in axes.values()), indexing="ij")
    return {name: values.ravel() for name, values in zip(axes, grid, strict=True)}


SIZES = np.geomspace(1e7, 1e11, 6)
TOKENS = np.geomspace(1e9, 1e13, 6)
SAMPLES = 2.0 ** np.arange(0, 14)
POST = np.array([0.0, 1e8, 1e9, 1e10])
FINE_TUNING = np.concatenate([[0.0], 200.0 * 2.0 ** np.arange(14)])


def _distillation() -> Columns:
    x = mesh(N=np.geomspace(1e8, 1e10, 6), D=np.geomspace(4e9, 5e11, 6), teacher=np.linspace(1.7, 3.2, 8))
    return x | {"supervised": 1.22 + (3355 / x["N"] ** 0.408 + 18186 / x["D"] ** 0.431) ** 0.452}


def _measures() -> Columns:
    rng = np.random.default_rng(0)
    return {name: rng.normal(0, 1.5, 80) for name in ("S1", "S2", "S3")}


GRIDS: dict[str, Callable[[], Columns]] = {
    "error_exponential": lambda: {"loss": np.linspace(1.5, 6.0, 12)},
    "task_sigmoid": lambda: {"loss": np.linspace(0.3, 3.0, 20)},
    "task_one_step": lambda: mesh(N=np.geomspace(1e7, 1e12, 9), D=np.geomspace(1e9, 1e14, 9)),
    "task_compute": lambda: {"C": np.geomspace(1e17, 1e27, 25)},
    "observational_1": lambda: {"S1": np.linspace(-5, 5, 30)},
    "observational_3": _measures,
    "sloth": lambda: mesh(N=np.geomspace(1e8, 1e12, 7), D=np.geomspace(1e11, 2e13, 6)),
    "transfer_data": lambda: mesh(N=SIZES, D=np.geomspace(1e5, 1e9, 6)),
    "transfer": lambda: mesh(N=np.geomspace(1e6, 1e10, 8), D=np.geomspace(1e5, 1e9, 8)),
    "finetune_joint": lambda: mesh(N=SIZES, D=np.geomspace(1e4, 1e8, 6)),
    "rectified": lambda: {"D": FINE_TUNING},
    "synthetic_rectified": lambda: {"D": FINE_TUNING},
    "distillation": _distillation,
    "best_of_n_kl": lambda: {"n": SAMPLES},
    "best_of_n_gain": lambda: {"n": SAMPLES},
    "overoptimisation_best_of_n": lambda: {"n": SAMPLES},
    "overoptimisation_kl": lambda: {"d": np.linspace(0.0, 8.0, 12)},
    "overoptimisation_rl": lambda: {"d": np.linspace(0.2, 12.0, 12)},
    "overoptimisation_size": lambda: mesh(N=np.geomspace(3e6, 3e9, 5), d=np.linspace(0.0, 8.0, 8)),
    "rl_sigmoid": lambda: {"C": np.geomspace(1e2, 1e6, 25)},
    "rl_power": lambda: {"C": np.geomspace(1e18, 1e21, 12)},
    "rl_power_size": lambda: mesh(N=np.geomspace(5e8, 7e10, 6), C=np.geomspace(1e18, 1e21, 8)),
    "rl_rollouts": lambda: {"C": np.geomspace(1e4, 1e9, 25)},
    "rl_intrinsic": lambda: mesh(N=np.geomspace(1e4, 1e8, 6), interactions=np.geomspace(1e6, 1e10, 6)),
    "game_elo": lambda: mesh(C=np.geomspace(1e9, 1e18, 37), board=np.arange(3.0, 10.0)),
    "game_test_compute": lambda: mesh(C=np.geomspace(1e12, 1e18, 6), elo=np.linspace(-1500.0, -250.0, 6)),
    "coverage_power": lambda: {"k": SAMPLES},
    "train_to_test": lambda: mesh(loss=np.linspace(1.5, 4.0, 6), k=SAMPLES[:8]),
    "train_to_test_loss": lambda: mesh(N=SIZES, D=TOKENS, k=SAMPLES[::2]),
    "train_to_test_accuracy": lambda: mesh(N=SIZES, D=TOKENS, k=SAMPLES[:9:2]),
    "joint_loss": lambda: mesh(N=SIZES[:5], D=TOKENS[:5], post=POST, k=SAMPLES[::3]),
    "joint_accuracy": lambda: mesh(N=SIZES[:4], D=TOKENS[:4], post=POST, k=SAMPLES[:9:4]),
    "joint_saturating": lambda: mesh(N=SIZES[:4], D=TOKENS[:4], post=POST, k=SAMPLES[:9:4]),
    "joint_logit": lambda: mesh(N=SIZES[:4], D=TOKENS[:4], post=POST, k=SAMPLES[:9:4]),
    "gold_likelihood": lambda: {"gold": np.geomspace(1.0, 100.0, 12)},
    "majority_vote": lambda: {"k": np.arange(1.0, 65.0, 3.0)},
    "majority_vote_power": lambda: {"k": SAMPLES},
    "verifier_resampling": lambda: {"k": np.arange(1.0, 65.0, 3.0)},
    "verifier_mixture": lambda: {"k": SAMPLES},
    "thinking_length": lambda: {"tokens": np.geomspace(50.0, 1e5, 22)},
    "thinking_overlong": lambda: {"tokens": np.geomspace(50.0, 1e5, 22)},
    "inference_size": lambda: mesh(N=SIZES, k=SAMPLES[:8]),
    "task_nats": lambda: {"C": np.geomspace(1e17, 1e25, 10)},
}
"""By name of the law: columns of its variables."""
