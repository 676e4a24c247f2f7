"""E small models of one shape as one: every weight has a leading member dimension.

At widths of 16 to 64 a third to most of a training step is the cost of calling kernels, not of what they
compute. An ensemble makes each call once for all members: linear layers are batched products, what has no
weights (attention, rotary turns, SwiGLU) sees the members as a longer batch. Members never mix, so each ends
where it would have ended alone; the kernels compute a member's numbers in the same order, and on the machine
where this was measured they are the same bits. `docs/results/ensemble.md` says where it pays.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from flopwise.errors import FlopwiseError
from flopwise.models import kernels
from flopwise.models.kernels import Positions
from flopwise.models.transformer import Transformer


class Ensemble:
    """The weights of E dense `Transformer`s of one shape, stacked: `weights[name]` is [E, *shape].

    It starts with copies of the models' weights and gives them back with `give_back`; in between the models
    are not touched.
    """

    def __init__(self, models: Sequence[Transformer]):
        """Raises FlopwiseError where shapes differ or a model has a part that is not stacked."""
        self.cfg = models[0].cfg
        if any(m.cfg != self.cfg for m in models):
            raise FlopwiseError("ensemble: its models differ in shape; group those of one shape")
        if self.cfg.n_experts or any(m.n_scores for m in models):
            raise FlopwiseError(
                "ensemble: scorers and mixtures of experts are not stacked; train them one by one"
            )
        self.models = list(models)
        self.weights: dict[str, Tensor] = {}
        for name, first in models[0].named_parameters():
            stack = torch.empty(len(models), *first.shape, dtype=first.dtype, device=first.device)
            for row, model in zip(stack, models, strict=True):
                row.copy_(model.get_parameter(name).detach())
            self.weights[name] = stack.requires_grad_()
        rows = torch.arange(len(models), device=first.device)
        self._first_row = (rows * self.cfg.vocab_size)[:, None]

    def __len__(self) -> int:
        return len(self.models)

    @torch.no_grad()
    def give_back(self, member: int) -> Transformer:
        """The member's own model, with the weights it has here."""
        model = self.models[member]
        for name, parameter in model.named_parameters():
            parameter.copy_(self.weights[name][member])
        return model

    def _norm(self, x: Tensor, name: str) -> Tensor:
        """x [E, N, d] normalised, each member with its own weight."""
        rows = zip(x.unbind(), self.weights[name].unbind(), strict=True)
        return torch.stack([kernels.rms_norm(x_e, w_e, self.cfg.norm_eps) for x_e, w_e in rows])

    def hidden(self, ids: Tensor) -> Tensor:
        """ids [E, B, T], a batch for each member -> normalised last hidden states [E, B * T, d_model]."""
        E, B, T = ids.shape
        cfg, w = self.cfg, self.weights
        limit = cfg.max_seq_len
        if limit < T:
            raise FlopwiseError(f"model: {T} tokens do not fit its context of {limit}; cut the sequence")
        first = self.models[0]
        at = Positions.of(first.cos[:T], first.sin[:T], cfg.n_heads, cfg.n_kv_heads, cfg.sliding_window)
        x = F.embedding(ids.reshape(E, -1) + self._first_row, w["embed.weight"].flatten(0, 1))
        for i in range(cfg.n_layers):
            block = f"blocks.{i}."
            h = self._norm(x, f"{block}attn_norm.weight")
            qkv = torch.bmm(h, w[f"{block}attn.qkv.weight"].mT)
            if cfg.qk_norm:
                norms = zip(
                    qkv, w[f"{block}attn.q_norm.weight"], w[f"{block}attn.k_norm.weight"], strict=True
                )
                qkv = torch.stack(
                    [kernels.qk_norm(*x_q_k, cfg.n_heads, cfg.n_kv_heads, cfg.norm_eps) for x_q_k in norms]
                )
            mixed = kernels.attention(qkv.view(E * B, T, -1), at, cfg.n_heads, cfg.n_kv_heads)
            x = x + torch.bmm(mixed.view(E, B * T, -1), w[f"{block}attn.out.weight"].mT)
            h = self._norm(x, f"{block}mlp_norm.weight")
            gated = kernels.swiglu(torch.bmm(h, w[f"{block}mlp.gate_up.weight"].mT).flatten(0, 1))
            x = x + torch.bmm(gated.view(E, B * T, -1), w[f"{block}mlp.down.weight"].mT)
        return self._norm(x, "norm.weight")

    def backward(self, ids: Tensor, targets: Tensor, z_loss: float = 0.0) -> Tensor:
        """Mean cross-entropy of each member on its own ids and targets [E, B, T], in nats per token: [E].

        Leaves in `weights[...].grad` the gradient of each member's `train.objectives.language_model(z_loss)`.
        The head is done one member after the other, forth and back: one member's logits are held at a time.
        """
        hidden = self.hidden(ids)
        head = self.weights["embed.weight" if self.cfg.tie_embeddings else "head.weight"]
        to_hidden, to_head, losses = torch.empty_like(hidden), torch.empty_like(head), []
        for e in range(len(self)):
            h, w = (t[e].detach().requires_grad_() for t in (hidden, head))
            logprobs, log_z = kernels.token_logprobs(h, w, targets[e].flatten())
            loss = -logprobs.mean()
            losses.append(loss.detach())
            if z_loss:
                loss = loss + z_loss * log_z.square().mean()
            to_hidden[e], to_head[e] = torch.autograd.grad(loss, (h, w))
        head.grad = to_head
        hidden.backward(to_hidden)
        return torch.stack(losses)
