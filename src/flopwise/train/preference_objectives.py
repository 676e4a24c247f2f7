"""What learning from preferences minimises: DPO, IPO, KTO, ORPO, SimPO, each with an anchor on good answers.

A batch holds whole completions, weighted where the answer is. `extra` says what each row is:

- `sign` [B]: 1 preferred, -1 not, 0 a row of the anchor alone (a demonstration). Without it rows alternate
  chosen, rejected.
- `reference` [B]: log p(completion) under the reference, in nats (DPO, IPO, KTO).
- `mismatched` [B]: log(policy / reference) of the same prompt with another prompt's completion, without
  gradient (KTO).
- `anchor` [B, T]: weights of the tokens that the anchor learns. Without it: those of the preferred rows.

The anchor is the mean of -log p per token there, times its weight: the "NLL term" of Pang et al., arXiv
2404.19733, eq. 1. Without it a small model lowers both answers of a pair, the worse one faster, and forgets
how to answer at all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from flopwise.models.transformer import Transformer
from flopwise.train.objectives import Batch, Objective, token_logprobs

Loss = Literal["sigmoid", "ipo"]


@dataclass(frozen=True)
class Scored:
    """A batch under the policy.

    Attributes:
        total: [B] log p(completion), in nats, with gradient.
        tokens: [B] weight of its tokens, at least 1.
        sign: [B] what each row is.
        batch: where it came from.
    """

    total: Tensor
    tokens: Tensor
    sign: Tensor
    batch: Batch

    @property
    def mean(self) -> Tensor:
        """[B] log p per token."""
        return self.total / self.tokens

    @property
    def ratio(self) -> Tensor:
        """[B] log(policy / reference) of the completion."""
        return self.total - self.batch.extra["reference"]

    def pairs(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Values [B] of the chosen and of the rejected, [P] each, in the order of the pairs."""
        return values[self.sign > 0], values[self.sign < 0]


def dpo_losses(
    chosen: Tensor, rejected: Tensor, beta: float, label_smoothing: float = 0.0, loss: Loss = "sigmoid"
) -> Tensor:
    """Loss of each pair [P] from the log-ratios [P] of policy to reference.

    `sigmoid`: -log sigmoid(beta (chosen - rejected)), Rafailov et al., arXiv 2305.18290, eq. 7; with label
    smoothing e, the mean over a label that is wrong with probability e (their "conservative DPO" note,
    ericmitchell.ai/cdpo.pdf, eq. 3). `ipo`: (chosen - rejected - 1/(2 beta))^2, Azar et al., arXiv
    2310.12036, eq. 17.
    """
    margin = chosen - rejected
    if loss == "ipo":
        return (margin - 1 / (2 * beta)).square()
    right = F.logsigmoid(beta * margin)
    return -(1 - label_smoothing) * right - label_smoothing * F.logsigmoid(-beta * margin)


def kto_losses(
    ratio: Tensor, sign: Tensor, kl: Tensor, beta: float, up_weight: float, down_weight: float
) -> Tensor:
    """Loss of each judged completion [N] from its log-ratio [N] and the batch's reference point (a scalar).

    Ethayarajh et al., arXiv 2402.01306, eq. 8, up to its constant: weight (1 - sigmoid(beta (ratio - kl)))
    for what is wanted, weight (1 - sigmoid(beta (kl - ratio))) for what is not.
    """
    weight = torch.where(sign > 0, up_weight, down_weight)
    return weight * (1 - torch.sigmoid(beta * sign * (ratio - kl)))


def orpo_losses(chosen: Tensor, rejected: Tensor) -> Tensor:
    """-log sigmoid of the log odds ratio [P], from mean log p per token [P] (Hong et al., arXiv 2403.07691,
    eq. 7): odds(p) = p / (1 - p)."""
    return -F.logsigmoid(_log_odds(chosen) - _log_odds(rejected))


def _log_odds(logp: Tensor) -> Tensor:
    """log(p / (1 - p)), also where p is nearly 1."""
    return logp - torch.log(-torch.expm1(logp.clamp_max(-1e-7)))


def simpo_losses(chosen: Tensor, rejected: Tensor, beta: float, margin: float) -> Tensor:
    """-log sigmoid(beta (chosen - rejected) - margin) [P], from mean log p per token [P]: no reference
    (Meng et al., arXiv 2405.14734, eq. 6)."""
    return -F.logsigmoid(beta * (chosen - rejected) - margin)


def dpo(
    beta: float = 0.1, label_smoothing: float = 0.0, loss: Loss = "sigmoid", per_token: bool = False,
    anchor: float = 0.0,
) -> Objective:  # fmt: skip
    """Mean loss over pairs, see `dpo_losses`; `per_token` divides each log-ratio by its number of tokens,
    which takes away the pull towards long answers (length-normalised DPO of Tulu 3, arXiv 2411.15124)."""

    def losses(scored: Scored) -> tuple[Tensor, Tensor]:
        ratio = scored.ratio / scored.tokens if per_token else scored.ratio
        chosen, rejected = scored.pairs(ratio)
        margins = beta * (chosen - rejected)
        return dpo_losses(chosen, rejected, beta, label_smoothing, loss), margins

    return _objective(losses, anchor)


def orpo(weight: float = 0.1, anchor: float = 1.0) -> Objective:
    """Fine-tuning on the chosen and `weight` times the odds-ratio loss; with `anchor` 1 that of the paper."""

    def losses(scored: Scored) -> tuple[Tensor, Tensor]:
        chosen, rejected = scored.pairs(scored.mean)
        return weight * orpo_losses(chosen, rejected), chosen - rejected

    return _objective(losses, anchor)


def simpo(beta: float = 2.0, margin: float = 1.0, anchor: float = 0.0) -> Objective:
    """Mean of `simpo_losses` over pairs."""

    def losses(scored: Scored) -> tuple[Tensor, Tensor]:
        chosen, rejected = scored.pairs(scored.mean)
        return simpo_losses(chosen, rejected, beta, margin), beta * (chosen - rejected)

    return _objective(losses, anchor)


def kto(
    beta: float = 0.1, up_weight: float = 1.0, down_weight: float = 1.0, anchor: float = 0.0
) -> Objective:
    """Mean of `kto_losses` over the judged rows; the reference point is the batch's mean `mismatched`, not
    below 0. The margin of a row is how far its reward lies on the right side of that point."""

    def losses(scored: Scored) -> tuple[Tensor, Tensor]:
        judged = scored.sign != 0
        ratio, sign = scored.ratio[judged], scored.sign[judged]
        kl = scored.batch.extra["mismatched"][judged].mean().clamp_min(0.0)
        return kto_losses(ratio, sign, kl, beta, up_weight, down_weight), beta * sign * (ratio - kl)

    return _objective(losses, anchor)


def score(model: Transformer, batch: Batch) -> tuple[Scored, Tensor]:
    """A batch under the model, and log p of each token [B, T]."""
    assert batch.weights is not None
    logprobs = token_logprobs(model, batch)
    sign = batch.extra.get("sign")
    if sign is None:
        sign = logprobs.new_tensor([1.0, -1.0]).repeat(len(logprobs) // 2)
    tokens = batch.weights.sum(1).clamp_min(1.0)
    return Scored((logprobs * batch.weights).sum(1), tokens, sign, batch), logprobs


def _objective(losses: Callable[[Scored], tuple[Tensor, Tensor]], anchor: float) -> Objective:
    """The mean of the losses, with the anchor; `losses` also gives the margins that are logged."""

    def objective(model: Transformer, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        scored, logprobs = score(model, batch)
        each, margins = losses(scored)
        loss = each.mean()
        logs = {
            "preference_loss": loss.item(),
            "margin": margins.mean().item(),
            "pair_accuracy": (margins > 0).float().mean().item(),
        } | _levels(scored)
        weights = batch.extra.get("anchor")
        if weights is None:
            assert batch.weights is not None
            weights = batch.weights * (scored.sign > 0)[:, None]
        nll = -(logprobs * weights).sum() / weights.sum().clamp_min(1.0)
        logs["anchor_nll"] = nll.item()
        auxiliary = model.auxiliary_loss()
        if anchor:
            loss = loss + anchor * nll
        return (loss if auxiliary is None else loss + auxiliary), logs

    return objective


def _levels(scored: Scored) -> dict[str, float]:
    """How likely the two kinds of answers are by now (nats per token), which shows a collapse, and how far
    the policy went: mean log(reference / policy) over the judged completions estimates
    KL(reference || policy) where they are the reference's own samples."""
    mean = scored.mean.detach()
    up, down = scored.pairs(mean)
    logs = {}
    if len(up):
        logs["chosen_logp"] = up.mean().item()
    if len(down):
        logs["rejected_logp"] = down.mean().item()
    if "reference" in scored.batch.extra:
        logs["kl"] = -scored.ratio.detach()[scored.sign != 0].mean().item()
    return logs
