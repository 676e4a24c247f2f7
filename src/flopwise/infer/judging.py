"""What a model makes of given text: log-probabilities, and a scorer's values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from flopwise.errors import FlopwiseError
from flopwise.flops.count import score_flops
from flopwise.models.transformer import Transformer

SCORED_TOKENS = 1 << 14
"""Tokens scored at once."""
SCORED_LOGITS = 1 << 27
"""Logits at once, of a large vocabulary: half a gigabyte."""


class Judge:
    """Judges text by a model's own forward pass, whatever it samples with."""

    def __init__(self, model: Transformer):
        self.model, self.cfg = model, model.cfg

    @torch.inference_mode()
    def score(self, sequences: Sequence[Sequence[int]], prompt_lengths: Sequence[int]) -> list[np.ndarray]:
        """Log-probabilities, in nats, of each sequence's tokens after its prompt."""
        out: list[np.ndarray] = [np.zeros(0, dtype=np.float32)] * len(sequences)
        for ids, rows in self._padded(sequences):
            logits = self.model(ids[:, :-1]).float()
            chosen = logits.gather(-1, ids[:, 1:, None]).squeeze(-1) - logits.logsumexp(-1)
            for row, i in enumerate(rows):
                out[i] = chosen[row, prompt_lengths[i] - 1 : len(sequences[i]) - 1].numpy().copy()
        return out

    @torch.inference_mode()
    def reward(self, sequences: Sequence[Sequence[int]]) -> tuple[np.ndarray, float]:
        """A scorer's value at each sequence's last token [N], and the FLOPs it took."""
        if not self.model.n_scores:
            raise FlopwiseError("reward: this model has no score head; train one with the reward method")
        out = np.zeros(len(sequences), dtype=np.float32)
        for ids, rows in self._padded(sequences):
            last = torch.tensor([len(sequences[i]) - 1 for i in rows])
            hidden = self.model.hidden(ids)[torch.arange(len(rows)), last]
            out[rows] = self.model.head(hidden).squeeze(-1).float().numpy()
        lengths, counts = np.unique([len(s) for s in sequences], return_counts=True)
        flops = sum(
            score_flops(self.cfg, int(length), int(count), n_logits=0).total
            for length, count in zip(lengths, counts, strict=True)
        )
        return out, flops

    @torch.inference_mode()
    def states(self, sequences: Sequence[Sequence[int]]) -> np.ndarray:
        """The model's last hidden state, normalised, at each sequence's last token [N, d_model] float32."""
        out = np.zeros((len(sequences), self.cfg.d_model), dtype=np.float32)
        for ids, rows in self._padded(sequences):
            last = torch.tensor([len(sequences[i]) - 1 for i in rows])
            out[rows] = self.model.hidden(ids)[torch.arange(len(rows)), last].float().numpy()
        return out

    @torch.inference_mode()
    def rewards_at(
        self, sequences: Sequence[Sequence[int]], places: Sequence[Sequence[int]]
    ) -> tuple[list[np.ndarray], float]:
        """A scorer's values at some places of each sequence, from one pass over it, and the FLOPs it took."""
        out: list[np.ndarray] = [np.zeros(0, dtype=np.float32)] * len(sequences)
        for ids, rows in self._padded(sequences):
            scores = self.model.head(self.model.hidden(ids)).squeeze(-1).float()
            for row, i in enumerate(rows):
                out[i] = scores[row, list(places[i])].numpy().copy()
        sizes, counts = np.unique([len(s) for s in sequences], return_counts=True)
        flops = (
            score_flops(self.cfg, int(n), int(c), head=1).total for n, c in zip(sizes, counts, strict=True)
        )
        return out, sum(flops)

    def _padded(self, sequences: Sequence[Sequence[int]]) -> Iterator[tuple[Tensor, np.ndarray]]:
        """Right-padded batches of sequences of like length, with their places in `sequences`."""
        lengths = self._check_texts(sequences)
        order = np.argsort(-lengths, kind="stable")
        most = min(SCORED_TOKENS, SCORED_LOGITS // self.cfg.vocab_size)
        first = 0
        while first < len(order):
            longest = int(lengths[order[first]])
            rows = order[first : first + max(1, most // longest)]
            ids = np.zeros((len(rows), longest), dtype=np.int64)
            for row, i in enumerate(rows):
                ids[row, : lengths[i]] = sequences[i]
            yield torch.from_numpy(ids), rows
            first += len(rows)

    def _check_texts(self, sequences: Sequence[Sequence[int]]) -> np.ndarray:
        """Their lengths [N].

        Raises:
            FlopwiseError: a sequence is empty, too long for the model, or outside its vocabulary.
        """
        lengths = np.array([len(s) for s in sequences], dtype=np.int64)
        if len(lengths) and not 1 <= lengths.min() <= lengths.max() <= self.cfg.max_seq_len:
            bad = lengths.min() if lengths.min() < 1 else lengths.max()
            raise FlopwiseError(
                f"a sequence of {bad} tokens cannot be scored; the limit is {self.cfg.max_seq_len}"
            )
        if len(lengths):
            self._check_ids(sequences)
        return lengths

    def _check_ids(self, sequences: Sequence[Sequence[int]]) -> None:
        ids = [t for s in sequences for t in (min(s), max(s))]
        if min(ids) < 0 or max(ids) >= self.cfg.vocab_size:
            bad = min(ids) if min(ids) < 0 else max(ids)
            raise FlopwiseError(
                f"token {bad} is beyond the vocabulary of {self.cfg.vocab_size}; use its own tokenizer"
            )
