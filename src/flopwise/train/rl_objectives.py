"""What reinforcement learning minimises: clipped policy gradients with their variants, KL, entropy, a critic.

The losses are functions of log-probabilities alone (`policy_loss`, `value_loss`), so that they can be set
beside another implementation's; the objectives run the model and call them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from flopwise.models.transformer import Transformer
from flopwise.train.objectives import Batch, Objective, token_logprobs

Estimator = Literal["k1", "k2", "k3"]

REFERENCE = "reference"
"""Key in `Batch.extra` of the reference's log-probabilities [B, T]."""
VALUES, RETURNS = "values", "returns"
"""Keys of what a critic said when the roll-out was made, and of what it should have said [B, T]."""


@dataclass(frozen=True)
class PolicyLoss:
    """How advantages become a loss.

    Attributes:
        surrogate: "clip", the pessimistic minimum of plain and clipped gain (PPO, arXiv 1707.06347, eq. 7);
            "sequence", the same with one ratio for a whole sequence, the geometric mean of its tokens' (GSPO,
            arXiv 2507.18071, eq. 5 to 7); "cispo", REINFORCE weighted by the clipped ratio, which is taken
            for a constant, so that no token loses its gradient (arXiv 2506.13585, eq. 4 and 5).
        clip_low: ratios are clipped to [1 - clip_low, 1 + clip_high]; a wider upper side is DAPO's
            "clip-higher" (arXiv 2503.14476, section 3.1).
        normalise: "token", mean over all tokens (DAPO, section 3.3); "sequence", mean over the sequences of
            each one's mean (GRPO, arXiv 2402.03300, eq. 3); "constant", sum over `constant` tokens (Dr. GRPO,
            arXiv 2503.20783, section 3), which weighs a token alike whatever was sampled.
        kl: weight of the KL divergence to the reference, by `estimator` (see `kl_terms`).
        entropy: weight of the entropy, in nats per token, that is added to what is maximised.
    """

    surrogate: Literal["clip", "sequence", "cispo"] = "clip"
    clip_low: float = 0.2
    clip_high: float = 0.28
    normalise: Literal["token", "sequence", "constant"] = "token"
    constant: float = 1.0
    kl: float = 0.0
    estimator: Estimator = "k3"
    entropy: float = 0.0


def kl_terms(logprobs: Tensor, reference: Tensor, estimator: Estimator) -> Tensor:
    """Estimates of KL(policy || reference) at tokens drawn from the policy, in nats; any shape.

    k1 = log p/q: unbiased, of either sign; as a loss its expected gradient is zero, so it is for rewards.
    k2 = (log p/q)^2 / 2: biased, but its gradient is that of the divergence. k3 = q/p - 1 - log q/p:
    unbiased and never negative, GRPO's choice (arXiv 2402.03300, eq. 4). All three: Schulman 2020,
    joschu.net/blog/kl-approx.html.

    >>> p, q = torch.tensor([-1.0]), torch.tensor([-1.0])
    >>> [kl_terms(p, q, k).item() for k in ("k1", "k2", "k3")]
    [0.0, 0.0, 0.0]
    """
    log_ratio = logprobs - reference
    if estimator == "k1":
        return log_ratio
    if estimator == "k2":
        return log_ratio.square() / 2
    return torch.expm1(-log_ratio) + log_ratio


def policy_loss(
    how: PolicyLoss,
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    weights: Tensor,
    reference: Tensor | None = None,
    entropy: Tensor | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """The loss and what is worth logging; all tensors [B, T], `weights` 1 on sampled tokens, 0 elsewhere.

    Raises:
        ValueError: the loss needs a reference or an entropy that is not given.
    """
    log_ratio = (logprobs - old_logprobs) * weights
    n_tokens = weights.sum().clamp_min(1.0)
    logs = {"approx_kl": float(-log_ratio.detach().sum() / n_tokens)}
    if how.surrogate == "sequence":
        lengths = weights.sum(1, keepdim=True).clamp_min(1.0)
        log_ratio = (log_ratio.sum(1, keepdim=True) / lengths).expand_as(log_ratio)
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - how.clip_low, 1 + how.clip_high)
    if how.surrogate == "cispo":
        gain = clipped.detach() * advantages * logprobs * weights
    else:
        gain = torch.minimum(ratio * advantages, clipped * advantages) * weights
    with torch.no_grad():
        logs["clipped"] = float(((ratio != clipped) * weights).sum() / n_tokens)
    if how.kl:
        if reference is None:
            raise ValueError("a KL term needs the reference's log-probabilities")
        divergence = kl_terms(logprobs, reference, how.estimator) * weights
        logs["kl_loss"] = float(divergence.detach().sum() / n_tokens)
        gain = gain - how.kl * divergence
    if how.entropy:
        if entropy is None:
            raise ValueError("an entropy bonus needs the entropy")
        logs["entropy"] = float((entropy.detach() * weights).sum() / n_tokens)
        gain = gain + how.entropy * entropy * weights
    if how.normalise == "sequence":
        of_each = gain.sum(1) / weights.sum(1).clamp_min(1.0)
        return -of_each.mean(), logs
    return -gain.sum() / (n_tokens if how.normalise == "token" else how.constant), logs


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, weights: Tensor, clip: float | None = None
) -> Tensor:
    """Half the squared error of a critic, over tokens; all [B, T].

    With `clip` the worse of the plain error and that of values kept within `clip` of the old ones, as in
    OpenAI's baselines (Engstrom et al., arXiv 2005.12729, section 3, say that it matters little).
    """
    error = (values - returns).square()
    if clip is not None:
        near = old_values + (values - old_values).clamp(-clip, clip)
        error = torch.maximum(error, (near - returns).square())
    return 0.5 * (error * weights).sum() / weights.sum().clamp_min(1.0)


def policy_gradient(how: PolicyLoss = PolicyLoss()) -> Objective:
    """`policy_loss` on a batch of roll-outs; the reference's log-probabilities are in `extra`."""

    def objective(model: Transformer, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        if not how.entropy:
            return _policy_loss(how, token_logprobs(model, batch), None, batch)
        hidden, learned = learned_hidden(model, batch)
        logprobs, entropy = _with_entropy(model, hidden, learned, batch)
        return _policy_loss(how, logprobs, entropy, batch)

    return objective


def actor_critic(
    how: PolicyLoss,
    values_of: Callable[[Tensor, Batch, Tensor], Tensor],
    value_weight: float,
    value_clip: float | None,
) -> Objective:
    """Policy and critic at once (PPO, arXiv 1707.06347, eq. 9).

    `values_of(hidden, batch, learned)` are the critic's values [n] at the n learned positions, from the
    policy's hidden states there [n, d] or from a model of its own.
    """

    def objective(model: Transformer, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        assert batch.weights is not None
        hidden, learned = learned_hidden(model, batch)
        logprobs, entropy = _with_entropy(model, hidden, learned, batch)
        loss, logs = _policy_loss(how, logprobs, entropy if how.entropy else None, batch)
        values = spread(values_of(hidden, batch, learned), learned, batch)
        error = value_loss(values, batch.extra[VALUES], batch.extra[RETURNS], batch.weights, value_clip)
        logs |= {"value_loss": error.item(), "policy_loss": loss.item()}
        return loss + value_weight * error, logs

    return objective


def _policy_loss(
    how: PolicyLoss, logprobs: Tensor, entropy: Tensor | None, batch: Batch
) -> tuple[Tensor, dict[str, float]]:
    assert batch.weights is not None
    assert batch.advantages is not None and batch.old_logprobs is not None
    return policy_loss(
        how, logprobs, batch.old_logprobs, batch.advantages, batch.weights,
        batch.extra.get(REFERENCE), entropy,
    )  # fmt: skip


def learned_hidden(model: Transformer, batch: Batch) -> tuple[Tensor, Tensor]:
    """Hidden states [n, d] where the batch has weight, and these places in the flattened batch [n]."""
    assert batch.weights is not None
    learned = batch.weights.flatten().nonzero()[:, 0]
    return model.hidden(batch.ids).flatten(0, 1)[learned], learned


def spread(values: Tensor, learned: Tensor, batch: Batch) -> Tensor:
    """Values [n] at their places in [B, T], 0 elsewhere."""
    return values.new_zeros(batch.ids.numel()).index_copy(0, learned, values).view(batch.ids.shape)


def _with_entropy(model: Transformer, hidden: Tensor, learned: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """log p(target) and the entropy of the distribution it was drawn from [B, T], in nats."""
    assert batch.targets is not None
    log_p = model.head(hidden).log_softmax(-1)
    chosen = log_p.gather(1, batch.targets.flatten()[learned][:, None])[:, 0]
    entropy = -(log_p.exp() * log_p).sum(-1)
    return spread(chosen, learned, batch), spread(entropy, learned, batch)
