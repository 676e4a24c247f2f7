"""PPO's critic: a value for every token, from one more output of the policy or from a model of its own."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from flopwise.flops.count import head_flops, score_flops, train_flops
from flopwise.flops.ledger import Ledger
from flopwise.models import lora
from flopwise.models.transformer import Transformer
from flopwise.train.objectives import Batch
from flopwise.train.optim import REFERENCE_WIDTH, Optimiser, Rates
from flopwise.train.parallel import Steps
from flopwise.train.rl_objectives import learned_hidden, spread


class Critic:
    """Values start at 0. Its weights and the state of its optimiser travel with the policy's optimiser
    (`WithCritic`), so checkpoints hold them.

    Args:
        kind: "head", a linear output of the policy's last hidden state, whose gradient the policy feels too;
            "model", a scorer with a trunk of its own, copied from the policy's.
        run: id that its passes are posted under.
    """

    def __init__(self, kind: Literal["head", "model"], policy: Transformer, rates: Rates, run: str):
        self.cfg, self.run = policy.cfg, run
        self.model: Transformer | None = None
        self.optimiser: Optimiser | torch.optim.AdamW
        if kind == "model":
            from flopwise.posttrain.reward import scorer_from

            self.model = scorer_from(lora.merged(policy))
            self.head: nn.Linear = self.model.head
            self.optimiser = Optimiser(self.model, rates)
            self.model.train()
        else:
            self.head = nn.Linear(policy.cfg.d_model, 1, bias=False)
            nn.init.zeros_(self.head.weight)
            self.rate = rates.head * REFERENCE_WIDTH / policy.cfg.d_model
            self.optimiser = torch.optim.AdamW(
                self.head.parameters(), self.rate, betas=rates.betas, eps=1e-10, weight_decay=0.0
            )

    def values(self, hidden: Tensor, batch: Batch, learned: Tensor) -> Tensor:
        """Values [n] at the learned positions, of the policy's hidden states there [n, d] or of its own."""
        if self.model is not None:
            hidden, _ = learned_hidden(self.model, batch)
        return self.head(hidden).squeeze(-1)

    @torch.no_grad()
    def judge(self, policy: Transformer, batch: Batch, ledger: Ledger) -> Tensor:
        """Values [B, T] of a roll-out's states before each sampled token; a pass that is counted."""
        hidden, learned = learned_hidden(self.model or policy, batch)
        B, T = batch.ids.shape
        flops = score_flops(self.cfg, T, B, len(learned) / B, head=1).total
        ledger.post("value", self.run, batch.ids.numel(), flops)
        return spread(self.head(hidden).squeeze(-1), learned, batch)

    def training(self, policy: Transformer, batch: Batch) -> Ledger:
        """What its own part of an update costs, beside the policy's."""
        assert batch.weights is not None
        B, T = batch.ids.shape
        n = int(torch.count_nonzero(batch.weights))
        ledger = Ledger()
        if self.model is None:
            ledger.post("train", self.run, 0, head_flops(self.cfg, n).total)
        else:
            ledger.post("train", self.run, B * T, train_flops(self.cfg, T, B, n / B, head=1).total)
        return ledger

    def parameters(self) -> list[nn.Parameter]:
        """All that are its own."""
        return list((self.model or self.head).parameters())

    def step(self, factor: float) -> None:
        """One update at `factor` times its rates."""
        if isinstance(self.optimiser, Optimiser):
            self.optimiser.step(factor)
            return
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate * factor
        self.optimiser.step()

    def state(self) -> dict[str, Tensor]:
        """Weights and the optimiser's state, flat."""
        module = self.model or self.head
        out = {f"weights.{name}": t for name, t in module.state_dict().items()}
        if isinstance(self.optimiser, Optimiser):
            return out | {f"optim.{name}": t for name, t in self.optimiser.state().items()}
        kept = self.optimiser.state.get(self.head.weight, {})
        return out | {f"optim.{key}": value for key, value in kept.items()}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Take back what `state` gave."""
        weights, optim = (
            {n.removeprefix(p): t for n, t in tensors.items() if n.startswith(p)}
            for p in ("weights.", "optim.")
        )
        (self.model or self.head).load_state_dict(weights)
        if isinstance(self.optimiser, Optimiser):
            self.optimiser.load_state(optim)
        elif optim:
            self.optimiser.state[self.head.weight] = {key: t.clone() for key, t in optim.items()}


class WithCritic:
    """The policy's optimiser and the critic's, as one to the loop."""

    def __init__(self, policy: Steps, critic: Critic):
        self.policy, self.critic = policy, critic

    def step(self, factor: float) -> None:
        """Both."""
        self.policy.step(factor)
        self.critic.step(factor)

    def zero_grad(self) -> None:
        """Both."""
        self.policy.zero_grad()
        self.critic.optimiser.zero_grad()

    def clip(self, limit: float) -> Tensor:
        """Each on its own: the critic's errors must not shrink the policy's step. Returns the policy's."""
        nn.utils.clip_grad_norm_(self.critic.parameters(), limit)
        return self.policy.clip(limit)

    def state(self) -> dict[str, Tensor]:
        """Of both, the critic's by a prefix."""
        return self.policy.state() | {f"critic.{name}": t for name, t in self.critic.state().items()}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Of both."""
        own = {n.removeprefix("critic."): t for n, t in tensors.items() if n.startswith("critic.")}
        self.policy.load_state({n: t for n, t in tensors.items() if not n.startswith("critic.")})
        self.critic.load_state(own)
