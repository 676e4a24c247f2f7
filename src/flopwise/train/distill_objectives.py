"""Learning from another model's distributions: forward KL, reverse KL and what lies between.

All of them compare two distributions over the teacher's k likeliest tokens and one bucket for all others.
With k the whole vocabulary that is the divergence itself; with fewer it is a lower bound of it (the log-sum
inequality), so a student that matches the k and the rest's total mass has nothing left to learn from it.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from flopwise.errors import FlopwiseError
from flopwise.models.transformer import Transformer
from flopwise.train.objectives import Batch, Objective

IDS, LOGPROBS, REST = "teacher_ids", "teacher_logprobs", "teacher_rest"
"""Names in `Batch.extra`: the teacher's likeliest tokens [B, T, k] int64, their log-probabilities [B, T, k],
and the log of all other tokens' mass [B, T], at the temperature of the objective."""

LEAST = -30.0
"""Log-probabilities are held above this (1e-13): a mass of exactly 0 would make a divergence infinite."""


def buckets(logprobs: Tensor, ids: Tensor) -> Tensor:
    """Log-probabilities [N, V] over the whole vocabulary as those of tokens `ids` [N, k] and of all others
    together: [N, k + 1], or [N, k] where there are no others.

    >>> p = torch.tensor([[0.5, 0.3, 0.2]]).log()
    >>> [round(v, 3) for v in buckets(p, torch.tensor([[1]])).exp()[0].tolist()]
    [0.3, 0.7]
    """
    chosen = logprobs.gather(1, ids)
    if ids.shape[1] == logprobs.shape[1]:
        return chosen.clamp_min(LEAST)
    # Summed over the others themselves: 1 minus the chosen ones' mass would lose all digits near 1.
    rest = logprobs.scatter(1, ids, -math.inf).logsumexp(1, keepdim=True)
    return torch.cat([chosen, rest], 1).clamp_min(LEAST)


def divergence(student: Tensor, teacher: Tensor, beta: float = 0.0) -> Tensor:
    """Divergence [N], in nats, between distributions given as log-probabilities [N, m].

    `beta` 0 is the forward KL(teacher || student), which makes the student cover all that the teacher does
    (Hinton et al., arXiv 1503.02531); 1 the reverse KL(student || teacher), which lets it keep to what it can
    do (Gu et al., MiniLLM, arXiv 2306.08543); between them lies the generalised Jensen-Shannon divergence
    beta KL(teacher || m) + (1 - beta) KL(student || m), m = beta teacher + (1 - beta) student (Agarwal et
    al., GKD, arXiv 2306.13649, section 2).
    """
    if beta == 0:
        return (teacher.exp() * (teacher - student)).sum(-1)
    if beta == 1:
        return (student.exp() * (student - teacher)).sum(-1)
    mixed = torch.logaddexp(teacher + math.log(beta), student + math.log1p(-beta))
    from_teacher = (teacher.exp() * (teacher - mixed)).sum(-1)
    from_student = (student.exp() * (student - mixed)).sum(-1)
    return beta * from_teacher + (1 - beta) * from_student


def distillation(beta: float = 0.0, temperature: float = 1.0, hard_weight: float = 0.0) -> Objective:
    """Mean divergence per learned token, and `hard_weight` of the cross-entropy of the tokens themselves.

    loss = (1 - hard_weight) temperature^2 divergence + hard_weight cross-entropy. The student's distribution
    is taken at the temperature of the teacher's; its square keeps gradients as large as at 1 (Hinton et al.,
    arXiv 1503.02531, section 2). Cross-entropy is at temperature 1.

    Logs `divergence` and, where labels count, `cross_entropy`, both in nats per token.

    Raises:
        FlopwiseError: the batch has no teacher, or one with another vocabulary.
    """

    def objective(model: Transformer, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        if IDS not in batch.extra:
            raise FlopwiseError("distillation: the batch has no teacher's log-probabilities; make them first")
        assert batch.targets is not None and batch.weights is not None
        weights = batch.weights.flatten()
        learned = weights.nonzero()[:, 0]
        weights = weights[learned]
        hidden = model.hidden(batch.ids, batch.extra.get("segments")).flatten(0, 1)[learned]
        logits = F.linear(hidden, model.head.weight)
        teacher = teacher_buckets(batch, learned, logits.shape[1])
        ids = batch.extra[IDS].flatten(0, 1)[learned]
        apart = divergence(buckets(F.log_softmax(logits / temperature, -1), ids), teacher, beta)
        total = weights.sum().clamp_min(1.0)
        loss = (apart * weights).sum() / total
        logs = {"divergence": loss.item()}
        loss = (1 - hard_weight) * temperature**2 * loss
        if hard_weight:
            hard = F.cross_entropy(logits, batch.targets.flatten()[learned], reduction="none")
            hard = (hard * weights).sum() / total
            logs["cross_entropy"] = hard.item()
            loss = loss + hard_weight * hard
        auxiliary = model.auxiliary_loss()
        if auxiliary is not None:
            logs["auxiliary_loss"] = auxiliary.item()
            loss = loss + auxiliary
        return loss, logs

    return objective


def teacher_buckets(batch: Batch, learned: Tensor, vocab_size: int) -> Tensor:
    """The teacher's log-probabilities as `buckets` has them, at the places `learned` [N] of the batch.

    Raises:
        FlopwiseError: a token that a vocabulary of `vocab_size` has not.
    """
    ids = batch.extra[IDS].flatten(0, 1)[learned]
    logprobs = batch.extra[LOGPROBS].flatten(0, 1)[learned].float()
    if len(ids) and int(ids.max()) >= vocab_size:
        raise FlopwiseError(
            f"distillation: the teacher gives token {int(ids.max())}, the student has {vocab_size}; distil "
            "sequences where vocabularies differ"
        )
    if ids.shape[1] < vocab_size:
        logprobs = torch.cat([logprobs, batch.extra[REST].flatten()[learned].float()[:, None]], 1)
    return logprobs.clamp_min(LEAST)
