"""What a training step minimises. The loop is blind to the method: a method is data plus one of these."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from flopwise.flops.ledger import Ledger
from flopwise.models import kernels
from flopwise.models.transformer import Transformer


@dataclass
class Batch:
    """One step's data. B sequences of T tokens; everything but `ids` is optional to some objective.

    `ledger` has what making the batch cost, by purpose and model (roll-outs, reference and teacher passes);
    `generate_flops` and `score_flops` say it in short of what is not entered there, and `info` what was seen.
    """

    ids: Tensor
    """[B, T] int64 input tokens."""
    targets: Tensor | None = None
    """[B, T] int64 next tokens."""
    weights: Tensor | None = None
    """[B, T] float32, 0 where nothing is learned (prompt, padding); None means 1 everywhere."""
    advantages: Tensor | None = None
    """[B, T] float32, of the token in `targets`."""
    old_logprobs: Tensor | None = None
    """[B, T] float32 under the policy that sampled."""
    labels: Tensor | None = None
    """[B] float32 in {0, 1}: whether the sequence is right (outcome reward models)."""
    last: Tensor | None = None
    """[B] int64 index of each sequence's last token."""
    extra: dict[str, Tensor] = field(default_factory=dict)
    """More tensors by row [B, ...], by the name that an objective knows: reference log-probabilities, ..."""
    ledger: Ledger = field(default_factory=Ledger)
    generate_flops: float = 0.0
    score_flops: float = 0.0
    info: dict[str, float] = field(default_factory=dict)


Objective = Callable[[Transformer, Batch], tuple[Tensor, dict[str, float]]]


def language_model(z_loss: float = 0.0) -> Objective:
    """Weighted mean of -log p(target), in nats per token: pretraining, fine-tuning, sequence distillation.

    Added to what is minimised, but not to the `loss` that is logged: the auxiliary losses of a mixture of
    experts, and `z_loss` times the mean squared log of the softmax's denominator, which keeps logits from
    drifting (PaLM, arXiv 2204.02311, section 5, with 1e-4).
    """

    def objective(model: Transformer, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        logprobs, log_z = _token_logprobs(model, batch)
        loss, logs = -_mean(logprobs, batch), {}
        auxiliary = model.auxiliary_loss()
        if auxiliary is not None or z_loss:
            logs["loss"] = loss.item()
        if auxiliary is not None:
            logs["auxiliary_loss"] = auxiliary.item()
            loss = loss + auxiliary
        if z_loss:
            loss = loss + z_loss * _mean(log_z.square(), batch)
        return loss, logs

    return objective


cross_entropy = language_model()
"""The same without z-loss."""


def _mean(values: Tensor, batch: Batch) -> Tensor:
    """Over tokens, by their weights."""
    if batch.weights is None:
        return values.mean()
    return (values * batch.weights).sum() / batch.weights.sum().clamp_min(1.0)


def token_logprobs(model: Transformer, batch: Batch) -> Tensor:
    """log p(target) [B, T] under the model, in nats; 0 where the weight is 0: no head is applied there."""
    return _token_logprobs(model, batch)[0]


def _token_logprobs(model: Transformer, batch: Batch) -> tuple[Tensor, Tensor]:
    """Also the log of the softmax's denominator."""
    assert batch.targets is not None
    segments = batch.extra.get("segments")  # of packed rows: posttrain.examples.pack
    hidden, targets = model.hidden(batch.ids, segments).flatten(0, 1), batch.targets.flatten()
    if batch.weights is None:
        logprobs, log_z = kernels.token_logprobs(hidden, model.head.weight, targets)
    else:
        learned = batch.weights.flatten().nonzero()[:, 0]
        found = kernels.token_logprobs(hidden[learned], model.head.weight, targets[learned])
        logprobs, log_z = (t.new_zeros(len(targets)).index_copy(0, learned, t) for t in found)
    return logprobs.view(batch.ids.shape), log_z.view(batch.ids.shape)


def outcome_reward(model: Transformer, batch: Batch) -> tuple[Tensor, dict[str, float]]:
    """Binary cross-entropy of a scorer's value at the last token against right or wrong.

    An outcome reward model (Cobbe et al., arXiv 2110.14168, section 4): its score is the log-odds that
    the finished solution is right.
    """
    assert batch.labels is not None and batch.last is not None
    hidden = model.hidden(batch.ids)
    at_last = hidden[torch.arange(len(hidden)), batch.last]
    scores = model.head(at_last).squeeze(-1)
    return F.binary_cross_entropy_with_logits(scores, batch.labels), {}
