"""What reward models minimise: pairs, and values of steps. (Outcomes: `train.objectives.outcome_reward`.)"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from flopwise.models.transformer import Transformer
from flopwise.train.objectives import Batch, Objective


def last_scores(model: Transformer, batch: Batch) -> Tensor:
    """A scorer's value [B] at each sequence's last token."""
    assert batch.last is not None
    hidden = model.hidden(batch.ids)
    scores: Tensor = model.head(hidden[torch.arange(len(hidden)), batch.last]).squeeze(-1)
    return scores


def pair_loss(chosen: Tensor, rejected: Tensor, centre: float = 0.0) -> Tensor:
    """Mean of -log sigmoid(chosen - rejected) over pairs [P], plus `centre` times the mean squared sum.

    The chance that one answer beats the other is the sigmoid of the difference of their scores (Bradley and
    Terry 1952; Ouyang et al., arXiv 2203.02155, eq. 1). The sum is not determined by pairs; pulling it to 0
    makes scores of different problems comparable (Eisenstein et al., arXiv 2312.09244, section 3).
    """
    loss = -F.logsigmoid(chosen - rejected).mean()
    if centre:
        loss = loss + centre * (chosen + rejected).square().mean()
    return loss


def bradley_terry(centre: float = 0.0) -> Objective:
    """`pair_loss` of batches whose rows alternate chosen and rejected."""

    def objective(model: Transformer, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        chosen, rejected = last_scores(model, batch).view(-1, 2).unbind(1)
        margin = (chosen - rejected).detach()
        logs = {"pair_accuracy": float((margin > 0).float().mean()), "margin": float(margin.mean())}
        return pair_loss(chosen, rejected, centre), logs

    return objective


def step_loss(scores: Tensor, values: Tensor) -> Tensor:
    """Mean cross-entropy of scores [S], log-odds, against values [S] in [0, 1] of all steps of a batch.

    With values in {0, 1} the hard estimation of Math-Shepherd (arXiv 2312.08935, eq. 3 to 5), with shares of
    roll-outs the soft one.
    """
    return F.binary_cross_entropy_with_logits(scores, values)


def step_reward(model: Transformer, batch: Batch) -> tuple[Tensor, dict[str, float]]:
    """`step_loss` at the tokens with weight, of the values in `extra["values"]` [B, T]."""
    assert batch.weights is not None
    hidden = model.hidden(batch.ids).flatten(0, 1)
    at = batch.weights.flatten().nonzero()[:, 0]
    scores = model.head(hidden[at]).squeeze(-1)
    return step_loss(scores, batch.extra["values"].flatten()[at]), {}
