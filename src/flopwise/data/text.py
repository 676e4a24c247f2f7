"""Text from a stream to shards: near-duplicates out, documents split, then encoded. Memory stays bounded."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flopwise.data import contamination, dedup, shards
from flopwise.data.documents import TextStream
from flopwise.data.files import Skipped
from flopwise.data.spool import Spool
from flopwise.data.tokenizer import ByteTokenizer, Tokenizer, hub_tokenizer, train_bpe
from flopwise.data.vocabulary import Vocabulary
from flopwise.errors import FlopwiseError

SAMPLE_BYTES = 32_000_000
"""A BPE learns from so much text at most, spread over all of it."""
SAMPLE_SHARE = 3
"""... and from every third document at most: enough for a few hundred merges, at a third of the time."""
OVERLAP_BYTES = 8_000_000
"""Held-out text that is looked for in training text, at most."""
FEWEST = 4
"""Documents: at least two to train on and two to hold out, so that a standard error exists."""


@dataclass
class TextPart:
    """One source, read: which documents stay, which are held out. `close` removes its scratch file."""

    name: str
    license: str
    source: str
    spool: Spool
    kept: np.ndarray
    held: np.ndarray
    skipped: Skipped

    @property
    def n_duplicates(self) -> int:
        """Near-duplicates that were removed."""
        return int((~self.kept).sum())

    def texts(self, held: bool = False) -> Iterator[str]:
        """Training or held-out texts, in the order of the source."""
        return self.spool.texts(self._which(held))

    def n_documents(self, held: bool = False) -> int:
        """How many."""
        return int(self._which(held).sum())

    def n_bytes(self, held: bool = False) -> int:
        """Their UTF-8 bytes."""
        return int(self.spool.lengths()[self._which(held)].sum())

    def close(self) -> None:
        """Remove the scratch file."""
        self.spool.close()

    def _which(self, held: bool) -> np.ndarray:
        return self.kept & (self.held if held else ~self.held)


def read(
    stream: TextStream, folder: Path, *, seed: int, heldout_fraction: float, deduplicate: bool = True
) -> TextPart:
    """Read a stream to its end. `folder` takes scratch files, whose names begin with a dot.

    Whether a document is held out depends on its text and the seed alone, not on what else is there: more
    data later leave it on its side. Only where fewer than two would be held out (or trained on), those whose
    hashes come nearest are.

    Raises:
        FlopwiseError: fewer than four documents, or what reading raises.
    """
    spool = Spool(folder / f".text-{stream.name}.tmp")
    key_file = folder / f".keys-{stream.name}.tmp"
    hashes = array("Q")
    salt = str(seed).encode()
    try:
        with open(key_file, "wb") as keys:
            for text in _each_text(stream):
                content = text.encode()
                spool.append(content)
                digest = hashlib.blake2b(content, digest_size=8, key=salt).digest()
                hashes.append(int.from_bytes(digest, "little"))
                if deduplicate:
                    keys.write(
                        dedup.band_keys(dedup.shingle_hashes(text, dedup.SHINGLE)).astype("<u8").tobytes()
                    )
        n = len(spool)
        kept = np.ones(n, dtype=bool)
        if deduplicate and n:
            table = np.memmap(key_file, dtype="<u8", mode="r", shape=(n, dedup.BANDS))
            kept = dedup.first_of_alike(table, lambda i: _shingles(spool[i].decode()))
            del table
        held = split(np.frombuffer(hashes, dtype=np.uint64), kept, heldout_fraction, stream.name)
    except BaseException:
        spool.close()
        raise
    finally:
        key_file.unlink(missing_ok=True)
    return TextPart(stream.name, stream.license, stream.source, spool, kept, held, stream.skipped)


def split(hashes: np.ndarray, kept: np.ndarray, fraction: float, name: str = "data") -> np.ndarray:
    """Which documents are held out [n] bool: those whose hash [n] uint64 lies in the lowest `fraction`.

    Raises:
        FlopwiseError: fewer than four are kept.
    """
    n = int(kept.sum())
    if n < FEWEST:
        raise FlopwiseError(
            f"data: {n} documents of {name} are too few to hold some out, must be at least {FEWEST}; "
            "give more, or shorter ones"
        )
    held = kept & (hashes < np.uint64(int(fraction * 2**64)))
    n_held = min(max(int(held.sum()), 2), n - 2)
    if n_held != held.sum():
        order = np.argsort(np.where(kept, hashes, np.iinfo(np.uint64).max), kind="stable")
        held = np.zeros_like(kept)
        held[order[:n_held]] = True
    return held & kept


def make_tokenizer(spec: dict[str, Any], parts: list[TextPart]) -> Tokenizer:
    """The tokenizer of a recipe's `tokenizer` section; a BPE is trained on training text of all parts alike.

    Raises:
        FlopwiseError: its size is out of range, or it cannot be had.
    """
    kind = spec.get("kind") or "bpe"
    if kind == "byte":
        return ByteTokenizer()
    if kind == "hub":
        return hub_tokenizer(str(spec["path"]))
    total = sum(part.n_bytes() for part in parts)
    every = max(SAMPLE_SHARE, -(-total // SAMPLE_BYTES))
    if total < SAMPLE_BYTES // 100:
        every = 1  # of little text, all
    sample = (text for part in parts for i, text in enumerate(part.texts()) if i % every == 0)
    return train_bpe(sample, int(spec.get("vocab_size") or 512))


def overlaps(parts: list[TextPart]) -> dict[str, contamination.Overlap]:
    """How much of each part's held-out text stands in the training text of any; one pass over all of it."""
    heldout = {part.name: list(_some(part.texts(held=True), OVERLAP_BYTES)) for part in parts}
    found = contamination.ngram_overlap(
        (text for part in parts for text in part.texts()), (t for texts in heldout.values() for t in texts)
    )
    out, first = {}, 0
    for name, texts in heldout.items():
        out[name] = found.part(first, len(texts))
        first += len(texts)
    return out


def write(
    part: TextPart, tokenizer: Tokenizer, folder: Path, vocabulary: Vocabulary, overlap: contamination.Overlap
) -> dict[str, Any]:
    """Shards `train-NAME` and `heldout-NAME`; returns the corpus's entry in about.json.

    Raises:
        FlopwiseError: the tokenizer gives ids beyond the vocabulary.
    """
    sizes = {}
    for held, side in ((False, "train"), (True, "heldout")):
        documents = encoded(part.texts(held), tokenizer)
        sizes[held] = shards.write(
            documents, folder / f"{side}-{part.name}", vocabulary.eos_id, vocabulary.size
        )
    return {
        "name": part.name, "modality": "text", "license": part.license, "source": part.source,
        "documents": part.n_documents(), "heldout_documents": part.n_documents(held=True),
        "duplicates_removed": part.n_duplicates, "skipped": part.skipped.about(),
        "bytes": part.n_bytes(), "tokens": sizes[False], "heldout_tokens": sizes[True],
        "bytes_per_token": part.n_bytes() / sizes[False],
        "heldout_bytes_per_token": part.n_bytes(held=True) / sizes[True],
        "heldout_ngram_overlap": overlap.share, "heldout_documents_copied": overlap.n_copied,
    }  # fmt: skip


def encoded(texts: Iterable[str], tokenizer: Tokenizer, block_bytes: int = 1 << 20) -> Iterator[np.ndarray]:
    """Ids of each text, in blocks: lists of Python integers for a whole corpus would take gigabytes."""
    waiting: list[str] = []
    size = 0
    for text in texts:
        waiting.append(text)
        size += len(text)
        if size >= block_bytes:
            yield from tokenizer.encode_arrays(waiting)
            waiting, size = [], 0
    yield from tokenizer.encode_arrays(waiting)


def _each_text(stream: TextStream) -> Iterator[str]:
    for document in stream.documents:
        yield document.text


def _shingles(text: str) -> np.ndarray:
    return next(dedup.shingles([text], dedup.SHINGLE))


def _some(texts: Iterator[str], n_bytes: int) -> Iterator[str]:
    total = 0
    for text in texts:
        yield text
        total += len(text)
        if total >= n_bytes:
            return
