"""Text to tokens: bytes, a byte-level BPE trained on the run's own text, or a tokenizer from elsewhere."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flopwise.errors import FlopwiseError, MissingExtra

if TYPE_CHECKING:
    from tokenizers import Tokenizer as HFTokenizer

EOS, PAD = "<eos>", "<pad>"
SMALLEST, LARGEST = 258, 1_000_000
"""Limits of a vocabulary: all bytes and two special tokens; a size beyond which nobody trains one."""
ENDS = ("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>", "<|im_end|>", "[SEP]")
PADS = ("<pad>", "[PAD]", "<|pad|>", "<|padding|>", "<|finetune_right_pad_id|>")
"""What end-of-text and padding are called by tokenizers that do not say."""
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")

_ALONE = r"[0-9+\-*/=>,;:?!]"
"""Digits and signs of arithmetic are tokens of their own."""


class Tokenizer:
    """Text to ids and back. `eos_id` ends a document or a solution, `pad_id` fills rows and is never learned.

    A text that spells `<eos>` is text: special tokens come from this program, never from what it reads.
    """

    chat_template: str | None = None
    """How a conversation becomes text, if the tokenizer came with it: what is tuned is saved with it too."""

    def __init__(self, inner: HFTokenizer, eos: str = EOS, pad: str = PAD):
        eos_id, pad_id = inner.token_to_id(eos), inner.token_to_id(pad)
        if eos_id is None or pad_id is None:
            raise FlopwiseError(
                f"tokenizer has no {eos} or no {pad} token; give one whose special tokens exist"
            )
        self._inner = inner
        self._inner.encode_special_tokens = True
        self.eos, self.pad = eos, pad
        self.eos_id: int = eos_id
        self.pad_id: int = pad_id
        self.vocab_size: int = 1 + max(inner.get_vocab().values())

    def encode(self, text: str) -> list[int]:
        """Ids of a text; nothing is added."""
        return self._inner.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        """Ids of many texts at once."""
        return [e.ids for e in self._inner.encode_batch_fast(list(texts), add_special_tokens=False)]

    def encode_arrays(self, texts: Iterable[str]) -> list[np.ndarray]:
        """Ids of many texts, each [n] int64."""
        return [np.array(ids, dtype=np.int64) for ids in self.encode_batch(texts)]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids; special tokens are left out."""
        return self._inner.decode(list(ids), skip_special_tokens=True)

    def decode_batch(self, ids: Iterable[Iterable[int]]) -> list[str]:
        """Texts of many rows at once."""
        return self._inner.decode_batch([list(row) for row in ids], skip_special_tokens=True)

    def to_str(self) -> str:
        """Content of `tokenizer.json`."""
        return self._inner.to_str()

    def save(self, folder: Path) -> None:
        """Write the files that `transformers.AutoTokenizer` reads: tokenizer.json, tokenizer_config.json."""
        from flopwise.records.folder import atomic_write

        config = {
            "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": self.eos, "pad_token": self.pad,
            "clean_up_tokenization_spaces": False, "model_max_length": 1_000_000,
            **({"chat_template": self.chat_template} if self.chat_template else {}),
        }  # fmt: skip
        atomic_write(folder / "tokenizer.json", self.to_str())
        atomic_write(folder / "tokenizer_config.json", json.dumps(config, indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Read `tokenizer.json`, as `save` wrote it.

        Raises:
            FlopwiseError: it is absent, damaged, or lacks the special tokens.
        """
        path = folder / "tokenizer.json"
        content = _content(path)
        if content == byte_tokenizer_json():
            return ByteTokenizer()
        inner = _parsed(content, path)
        eos, pad = _special(folder, inner)
        tokenizer = cls(inner, eos or EOS, pad or PAD)
        tokenizer.chat_template = _template(folder)
        return tokenizer


class ByteTokenizer(Tokenizer):
    """Bytes of UTF-8 as tokens: no training, no unknown text. Id of byte b is b + 2; 0 ends, 1 pads."""

    def __init__(self) -> None:
        self.eos, self.pad, self.eos_id, self.pad_id, self.vocab_size = EOS, PAD, 0, 1, SMALLEST

    def encode(self, text: str) -> list[int]:
        """Ids of a text; nothing is added."""
        return [b + 2 for b in text.encode()]

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        """Ids of many texts at once."""
        return [self.encode(text) for text in texts]

    def encode_arrays(self, texts: Iterable[str]) -> list[np.ndarray]:
        """Ids of many texts, each [n] int64."""
        return [np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int64) + 2 for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids; special tokens are left out, bytes that are no UTF-8 become the replacement sign."""
        return bytes(i - 2 for i in ids if i >= 2).decode(errors="replace")

    def decode_batch(self, ids: Iterable[Iterable[int]]) -> list[str]:
        """Texts of many rows at once."""
        return [self.decode(row) for row in ids]

    def to_str(self) -> str:
        """Content of `tokenizer.json`: a byte-level BPE without merges is the same tokenizer."""
        return byte_tokenizer_json()


def byte_tokenizer_json() -> str:
    """`tokenizer.json` of the byte tokenizer, as the `tokenizers` library reads it."""
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    special = [
        {"id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": True}
        for i, token in enumerate((EOS, PAD))
    ]  # fmt: skip
    vocab = {EOS: 0, PAD: 1} | {letter: b + 2 for b, letter in enumerate(_byte_letters())}
    return json.dumps(
        {
            "version": "1.0", "truncation": None, "padding": None, "added_tokens": special,
            "normalizer": None, "pre_tokenizer": level, "post_processor": None, "decoder": level,
            "model": {
                "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
                "ignore_merges": False, "vocab": vocab, "merges": [],
            },
        }
    )  # fmt: skip


def _byte_letters() -> list[str]:
    """The letter that stands for each byte in byte-level vocabularies (Radford et al., 2019, GPT-2): itself
    where it prints, else the next free one from U+0100 on."""
    prints = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    free = iter(range(0x100, 0x200))
    return [chr(b if b in prints else next(free)) for b in range(256)]


def hub_tokenizer(path: str) -> Tokenizer:
    """A tokenizer of somebody else's: a folder with `tokenizer.json`, that file, or a hub id.

    Its end-of-text and padding tokens are those of `tokenizer_config.json` or `special_tokens_map.json`, else
    what such tokens are usually called; without one for padding, the end-of-text token pads.

    Raises:
        FlopwiseError: no such folder and no hub that answers, a damaged file, no end-of-text token.
    """
    found = Path(path)
    if found.is_file():
        found = found.parent
    if not found.is_dir():
        found = _fetched(path)
    inner = _parsed(_content(found / "tokenizer.json"), found / "tokenizer.json")
    eos, pad = _special(found, inner)
    if eos is None:
        raise FlopwiseError(
            f"tokenizer {path}: no end-of-text token is known, neither from its tokenizer_config.json nor by "
            f"its usual names ({', '.join(ENDS[:4])}); add eos_token to that file"
        )
    return Tokenizer(inner, eos, pad or eos)


def _fetched(name: str) -> Path:
    """Folder in the hub's cache with the tokenizer's files."""
    missing = f"tokenizer {name!r:.80} is no folder here"
    if not HUB_ID.fullmatch(name):
        raise FlopwiseError(
            f"{missing} and no hub id; give a folder with tokenizer.json, or an id as org/name"
        )
    try:
        from huggingface_hub import hf_hub_download
    except ModuleNotFoundError:
        raise MissingExtra("huggingface_hub", "train", f"{missing}; fetching it from the hub") from None
    from flopwise.data.hub import reached

    try:
        return Path(hf_hub_download(name, "tokenizer.json", local_files_only=True)).parent
    except Exception:  # not in the cache
        if not reached():
            raise FlopwiseError(
                f"{missing}, and the hub does not answer; check the network, or give a folder with "
                "tokenizer.json"
            ) from None
    try:
        for extra in ("tokenizer_config.json", "special_tokens_map.json"):
            with suppress(Exception):  # both are optional
                hf_hub_download(name, extra)
        return Path(hf_hub_download(name, "tokenizer.json")).parent
    except Exception as e:  # many kinds: no such name, no right to it
        raise FlopwiseError(
            f"{missing}, and the hub did not give it ({type(e).__name__}); check the name, or give a "
            "folder with tokenizer.json"
        ) from e


def _special(folder: Path, inner: HFTokenizer) -> tuple[str | None, str | None]:
    """End-of-text and padding tokens: as the files beside say, else by their usual names."""
    said: dict[str, Any] = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        with suppress(OSError, ValueError):
            content = json.loads((folder / file).read_bytes())
            said |= {k: v for k, v in content.items() if v} if isinstance(content, dict) else {}
    out: list[str | None] = []
    for key, usual in (("eos_token", ENDS), ("pad_token", PADS)):
        value = said.get(key)
        value = value.get("content") if isinstance(value, dict) else value
        known = [t for t in (value, *usual) if isinstance(t, str) and inner.token_to_id(t) is not None]
        out.append(known[0] if known else None)
    return out[0], out[1]


def _template(folder: Path) -> str | None:
    """The chat template beside a tokenizer, if any: a file of its own goes before the configuration."""
    with suppress(OSError, UnicodeDecodeError):
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    with suppress(OSError, ValueError, AttributeError):
        found = json.loads((folder / "tokenizer_config.json").read_bytes()).get("chat_template")
        return found if isinstance(found, str) else None
    return None


def _content(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        reason = e.strerror if isinstance(e, OSError) else "not UTF-8"
        raise FlopwiseError(f"tokenizer {path} cannot be read ({reason}); prepare the data again") from e


def _parsed(content: str, path: Path) -> HFTokenizer:
    from tokenizers import Tokenizer as HFTokenizer

    try:
        return HFTokenizer.from_str(content)
    except Exception as e:  # the library raises plain Exception
        reason = (str(e).splitlines() or [type(e).__name__])[0]
        raise FlopwiseError(f"tokenizer {path} cannot be read ({reason}); prepare the data again") from e


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
            f"vocab_size is {vocab_size:,}, must be {SMALLEST} to {LARGEST:,}; change the tokenizer"
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
