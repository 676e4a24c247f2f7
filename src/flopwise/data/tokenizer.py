"""A byte-level BPE trained on the run's own text; digits and the task's signs are tokens of their own."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from flopwise.errors import FlopwiseError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as HFTokenizer

EOS, PAD = "<eos>", "<pad>"
SMALLEST, LARGEST = 258, 65_535
"""Limits of a vocabulary: all bytes and two special tokens; what a 16-bit shard holds."""

_ALONE = r"[0-9+\-*/=>,;:?!]"


class Tokenizer:
    """Text to ids and back. `eos_id` ends a document or a solution, `pad_id` fills rows and is never learned.

    A text that spells `<eos>` is text: special tokens come from this program, never from what it reads.
    """

    def __init__(self, inner: HFTokenizer):
        eos, pad = inner.token_to_id(EOS), inner.token_to_id(PAD)
        if eos is None or pad is None:
            raise FlopwiseError(
                f"tokenizer has no {EOS} or no {PAD} token; only flopwise's own are supported here"
            )
        self._inner = inner
        self._inner.encode_special_tokens = True
        self.eos_id: int = eos
        self.pad_id: int = pad
        self.vocab_size: int = inner.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Ids of a text; nothing is added."""
        return self._inner.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        """Ids of many texts at once."""
        return [e.ids for e in self._inner.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids; special tokens are left out."""
        return self._inner.decode(list(ids), skip_special_tokens=True)

    def decode_batch(self, ids: Iterable[Iterable[int]]) -> list[str]:
        """Texts of many rows at once."""
        return self._inner.decode_batch([list(row) for row in ids], skip_special_tokens=True)

    def save(self, folder: Path) -> None:
        """Write the files that `transformers.AutoTokenizer` reads: tokenizer.json, tokenizer_config.json."""
        from flopwise.records.folder import atomic_write

        config = {
            "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": EOS, "pad_token": PAD,
            "clean_up_tokenization_spaces": False, "model_max_length": 1_000_000,
        }  # fmt: skip
        atomic_write(folder / "tokenizer.json", self._inner.to_str())
        atomic_write(folder / "tokenizer_config.json", json.dumps(config, indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Read `tokenizer.json`.

        Raises:
            FlopwiseError: it is absent, damaged, or lacks the special tokens.
        """
        from tokenizers import Tokenizer as HFTokenizer

        path = folder / "tokenizer.json"
        try:
            inner = HFTokenizer.from_file(str(path))
        except Exception as e:  # the library raises plain Exception
            reason = (str(e).splitlines() or [type(e).__name__])[0]
            raise FlopwiseError(f"tokenizer {path} cannot be read ({reason}); prepare the data again") from e
        return cls(inner)


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train on `texts` (Sennrich et al., arXiv 1508.07909, on bytes); ids 0 and 1 end a text and pad.

    Digits stay single, which keeps arithmetic readable to small models (as in Llama, arXiv 2302.13971,
    section 2.1). The vocabulary comes out smaller than asked for if the text has too few distinct pairs.

    Raises:
        FlopwiseError: `vocab_size` is out of range.
    """
    from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as HFTokenizer

    if not SMALLEST <= vocab_size <= LARGEST:
        raise FlopwiseError(
            f"vocab_size is {vocab_size:,}, must be {SMALLEST} to {LARGEST:,}; set data.vocab_size"
        )
    inner = HFTokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(_ALONE), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[EOS, PAD], show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    inner.train_from_iterator(texts, trainer)
    return Tokenizer(inner)
