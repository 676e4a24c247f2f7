"""From logits to tokens: temperature, top-k, top-p, and one uniform number per row.

A draw inverts the cumulative distribution. Taken over a whole vocabulary that is a running sum of all its
probabilities, several times slower than the exponentials it sums; here it goes in two steps of about
sqrt(V) each: first a class of ids (all with the same remainder), then an id within the class.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

BELOW_ONE = 1 - 2.0**-23
"""Largest factor that, in float32, keeps a product with any total strictly below that total."""


@dataclass(frozen=True)
class Draw:
    """How tokens are chosen.

    `temperature` 0 takes the most likely; `top_k` keeps the k most likely; `top_p` keeps the smallest set
    whose mass reaches p (nucleus sampling: Holtzman et al., arXiv 1904.09751, section 3.1), after top-k and
    temperature, as `transformers` orders them.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __call__(self, logits: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [R] int64 for logits [R, V] and numbers u [R] in [0, 1], and their log-probabilities [R].

        The log-probabilities, in nats, are the model's own: temperature 1, nothing cut off.
        """
        top = logits.amax(-1, keepdim=True)
        p = (logits - top).exp_()
        mass = p.sum(-1)
        if self.temperature == 0:
            token = logits.argmax(-1)
        elif self.top_k is None and self.top_p is None and self.temperature == 1:
            token = invert(p, u)
        else:
            token = self._restricted(logits - top, u)
        return token, logits.gather(1, token[:, None]).squeeze(1) - top.squeeze(1) - mass.log_()

    def probabilities(self, logits: Tensor) -> Tensor:
        """What tokens are drawn from: probabilities [R, V] for logits [R, V], 0 where a token is cut off."""
        if self.temperature == 0:
            return F.one_hot(logits.argmax(-1), logits.shape[-1]).to(logits.dtype)
        p, ids = self._kept(logits - logits.amax(-1, keepdim=True))
        if ids is not None:
            p = torch.zeros_like(logits).scatter_(1, ids, p)
        return p / p.sum(-1, keepdim=True)

    def _restricted(self, logits: Tensor, u: Tensor) -> Tensor:
        """A draw at another temperature or from the likeliest tokens only; the largest logit is 0."""
        p, ids = self._kept(logits)
        place = invert(p, u)
        return place if ids is None else ids.gather(1, place[:, None]).squeeze(1)

    def _kept(self, logits: Tensor) -> tuple[Tensor, Tensor | None]:
        """Masses of the tokens that may be drawn, and which they are (None: all, in their order); the largest
        logit is 0."""
        ids = None
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            # Before top-p: a sort of k values instead of the vocabulary.
            logits, ids = logits.topk(self.top_k, dim=-1)
        p = (logits / self.temperature).exp_()
        if self.top_p is not None and self.top_p < 1:
            p, order = p.sort(-1, descending=True)
            ids = order if ids is None else ids.gather(1, order)
            # A token stays if the mass before it falls short of top_p, so the first always does.
            before = p.cumsum(-1) - p
            p = p.masked_fill_((before >= self.top_p * p.sum(-1, keepdim=True)) & (before > 0), 0.0)
        return p, ids


def invert(p: Tensor, u: Tensor) -> Tensor:
    """Places [R] drawn in proportion to p [R, V] (at least 0, any total) by u [R] in [0, 1].

    A place with p = 0 is never drawn, whatever the rounding.

    >>> invert(torch.tensor([[0.0, 2.0, 0.0, 2.0]] * 3), torch.tensor([0.0, 0.499, 1.0])).tolist()
    [1, 1, 3]
    """
    n_classes = 1 << (p.shape[1].bit_length() + 1) // 2
    if p.shape[1] % n_classes:
        p = F.pad(p, (0, -p.shape[1] % n_classes))
    members = p.view(len(p), -1, n_classes)
    sums = members.sum(1)
    cumulative = sums.cumsum(-1)
    target = u.clamp(max=BELOW_ONE) * cumulative[:, -1]
    chosen = torch.searchsorted(cumulative, target[:, None], right=True)
    target = target[:, None] - (cumulative.gather(1, chosen) - sums.gather(1, chosen))
    inside = members.gather(2, chosen[:, :, None].expand(-1, members.shape[1], 1)).squeeze(2).cumsum(-1)
    target = torch.minimum(target.clamp_min_(0), inside[:, -1:] * BELOW_ONE)
    return (torch.searchsorted(inside, target, right=True) * n_classes + chosen).squeeze(1)
