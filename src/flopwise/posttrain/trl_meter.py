"""What `transformers` models execute, entered into the ledger by hooks on their forward passes.

TRL reports no FLOPs for reinforcement and leaves reference passes out; here every call of a model is counted
where it happens, by the shapes it was called with, as `flops.count` counts our own.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch

from flopwise.flops.count import Trained, decode_flops, forward_flops, train_flops
from flopwise.flops.ledger import Ledger
from flopwise.models.config import ModelConfig


class Meter:
    """Counts the calls of the models it watches.

    Attributes:
        ledger: rows by purpose and model.
        tokens: of training, padding included, as executed.
    """

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.tokens = 0
        self._handles: list[Any] = []
        self._undo: list[Callable[[], None]] = []

    def watch(
        self, model: Any, cfg: ModelConfig, name: str, idle: str = "reference",
        trained: Trained | None = None, head: int | None = None,
    ) -> None:  # fmt: skip
        """Count a model's calls under `name`: with gradients as training, inside of `generate` as sampling,
        else as `idle` (reference, reward, policy). `head`: outputs of its head, if not the vocabulary."""
        sampling = [False]

        def count(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
            ids = kwargs.get("input_ids", args[0] if args else None)
            if ids is None or ids.ndim != 2:
                return
            B, T = ids.shape
            keep = kwargs.get("logits_to_keep") or 0
            logits = keep if isinstance(keep, int) and 0 < keep < T else T
            past = 0
            with suppress(AttributeError, TypeError):
                past = int(kwargs["past_key_values"].get_seq_length()) if kwargs.get("past_key_values") else 0
            if sampling[0]:
                per_row = (
                    decode_flops(cfg, past + 1).total
                    if T == 1 and past
                    else forward_flops(cfg, T, 1, 1).total
                )
                self.ledger.post("sample", name, B * T, B * per_row)
            elif torch.is_grad_enabled() and module.training:
                n = 1 if head else logits
                self.ledger.post("train", name, B * T, train_flops(cfg, T, B, n, trained, head=head).total)
                self.tokens += B * T
            else:
                n = 1 if head else logits
                kind = "reference" if _adapters_off(module) else idle
                self.ledger.post(kind, name, B * T, forward_flops(cfg, T, B, n, head=head).total)

        self._handles.append(model.register_forward_pre_hook(count, with_kwargs=True))
        inner = getattr(model, "generate", None)
        if inner is None:
            return

        def generate(*args: Any, **kwargs: Any) -> Any:
            sampling[0] = True
            try:
                return inner(*args, **kwargs)
            finally:
                sampling[0] = False

        model.generate = generate
        self._undo.append(lambda: model.__dict__.pop("generate", None))

    def close(self) -> None:
        """Leave the models as they were."""
        for handle in self._handles:
            handle.remove()
        for undo in self._undo:
            undo()


def _adapters_off(module: Any) -> bool:
    """Whether a model with adapters runs without them: as its own reference."""
    for part in module.modules():
        if hasattr(part, "disable_adapters") and hasattr(part, "lora_A"):
            return bool(part.disable_adapters)
    return False
