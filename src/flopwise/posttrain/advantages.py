"""From rewards to advantages: baselines over a group or a batch, a critic, penalties."""

from __future__ import annotations

import numpy as np


def group_advantages(rewards: np.ndarray, by_std: bool = True) -> np.ndarray:
    """Advantages [problems, n] of rewards [problems, n]: centred per group, scaled by its deviation.

    GRPO (Shao et al., arXiv 2402.03300, section 4.1.2). `by_std` False leaves the scale alone (Dr. GRPO, Liu
    et al., arXiv 2503.20783): hard and easy problems then weigh less than those in between.

    >>> group_advantages(np.array([[1.0, 0.0], [1.0, 1.0]])).tolist()
    [[1.0, -1.0], [0.0, 0.0]]
    """
    centred = rewards - rewards.mean(axis=1, keepdims=True)
    if not by_std:
        return centred
    spread = rewards.std(axis=1, keepdims=True)
    return np.divide(centred, spread, out=np.zeros_like(centred), where=spread > 0)


def leave_one_out(rewards: np.ndarray) -> np.ndarray:
    """Each reward [problems, n] less the mean of its group's others (RLOO, Ahmadian et al., arXiv 2402.14740,
    eq. 8): a baseline that does not depend on the sample, so the gradient stays unbiased.

    >>> leave_one_out(np.array([[1.0, 0.0, 0.0]])).tolist()
    [[1.0, -0.5, -0.5]]
    """
    n = rewards.shape[1]
    return (rewards - rewards.mean(axis=1, keepdims=True)) * (n / (n - 1))


def to_go(rewards: np.ndarray) -> np.ndarray:
    """Sum of a token's reward and all later ones of its row, [N, L] -> [N, L]."""
    return rewards[:, ::-1].cumsum(axis=1)[:, ::-1]


def normalised(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Values [N, L] to mean 0 and deviation 1 over the batch's tokens in `mask` (REINFORCE++, Hu et al.,
    arXiv 2501.03262, eq. 3; PPO's whitening); 0 where all are equal and outside of the mask."""
    chosen = values[mask]
    spread = chosen.std() if len(chosen) else 0.0
    if not spread > 0:
        return np.zeros_like(values)
    return (values - chosen.mean()) / spread * mask


def gae(
    rewards: np.ndarray, values: np.ndarray, lengths: np.ndarray, gamma: float = 1.0, lam: float = 0.95
) -> np.ndarray:
    """Generalised advantage estimates [N, L] (Schulman et al., arXiv 1506.02438, eq. 16).

    rewards and values [N, L] of each sampled token, rows `lengths` long; a sequence ends with its last token,
    also where the limit cut it.

    >>> gae(np.array([[0.0, 1.0]]), np.array([[0.5, 0.5]]), np.array([2]), 1.0, 1.0).tolist()
    [[0.5, 0.5]]
    """
    N, L = rewards.shape
    out = np.zeros((N, L))
    ahead, later = np.zeros(N), np.zeros(N)
    for t in range(L - 1, -1, -1):
        inside = t < lengths
        delta = rewards[:, t] + gamma * later - values[:, t]
        ahead = np.where(inside, delta + gamma * lam * ahead, 0.0)
        later = np.where(inside, values[:, t], 0.0)
        out[:, t] = ahead
    return out


def overlong_penalty(lengths: np.ndarray, limit: int, cushion: int) -> np.ndarray:
    """0 up to `cushion` tokens below the limit, from there down to -1 (DAPO, arXiv 2503.14476, eq. 13).

    >>> overlong_penalty(np.array([10, 15, 20]), limit=20, cushion=10).tolist()
    [0.0, -0.5, -1.0]
    """
    return np.clip((limit - cushion - lengths) / cushion, -1.0, 0.0)
