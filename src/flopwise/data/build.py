"""The data step of a ladder: sources of any kind to shards in one vocabulary."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flopwise.data import shards, text
from flopwise.data.documents import check_names, label, open_text
from flopwise.data.vocabulary import Vocabulary, modality_of, vocabulary
from flopwise.errors import FlopwiseError

if TYPE_CHECKING:
    from flopwise.records.folder import RunFolder
    from flopwise.records.record import Metric

ABOUT_FILE = "about.json"


def vocab_size(section: Mapping[str, Any]) -> int:
    """Rows of the embedding table for a recipe's `data` section; reads no data and needs no torch.

    Raises:
        FlopwiseError: unknown corpus, modality or tokenizer, or options out of their limits.
    """
    return vocabulary(section).size


def run_step(folder: RunFolder, parents: dict[str, RunFolder], progress: Callable[[float], None]) -> None:
    """Prepare all that the spec (`launch.ladder_sections.CorpusSection`) asks for.

    Deterministic given spec, seed and the files it names; interrupted, it starts over.

    Raises:
        FlopwiseError: a source, a tokenizer or an option is not fit, or there are too few documents.
    """
    from flopwise.flops.spend import Stopwatch

    watch = Stopwatch()
    folder.sweep()
    about = build(folder.spec, folder.path, folder.seed, progress)
    entries = about["corpora"]
    folder.finish(
        metrics=metrics(entries),
        spend=watch.spend(),
        data={
            "corpus": "+".join(e["name"] for e in entries), "tokens_seen": None,
            "tokens_unique": sum(e["tokens"] for e in entries),
            "modality": "+".join(sorted({e["modality"] for e in entries})),
        },
        extra={"corpora": entries},
    )  # fmt: skip


def build(
    section: Mapping[str, Any],
    folder: Path,
    seed: int = 0,
    progress: Callable[[float], None] = lambda _: None,
) -> dict[str, Any]:
    """Write shards, tokenizer and, last, about.json into `folder`; returns what about.json says.

    Raises:
        FlopwiseError: see `run_step`.
    """
    sources = list(section["sources"])
    check_names([label(source) for source in sources])
    ids = vocabulary(section)
    fraction, n = float(section.get("heldout_fraction") or 0.04), len(sources)
    parts: dict[str, text.TextPart] = {}
    entries: dict[str, dict[str, Any]] = {}
    try:
        for i, source in enumerate(sources):
            name = label(source)
            if modality_of(source) == "text":
                stream = open_text(source, progress=lambda share, i=i: progress(0.5 * (i + share) / n))  # type: ignore[misc]
                parts[name] = text.read(
                    stream, folder, seed=seed, heldout_fraction=fraction,
                    deduplicate=bool(section.get("deduplicate", True)),
                )  # fmt: skip
            else:
                entries[name] = _write_tokens(source, ids, folder, seed, fraction)
            progress(0.5 * (i + 1) / n)
        text_ids = 0
        if parts:
            tokenizer = text.make_tokenizer(dict(section.get("tokenizer") or {}), list(parts.values()))
            text_ids = tokenizer.vocab_size
            tokenizer.save(folder)
            overlaps = text.overlaps(list(parts.values()))
            progress(0.7)
            for i, (name, part) in enumerate(parts.items(), 1):
                entries[name] = text.write(part, tokenizer, folder, ids, overlaps[name])
                progress(0.7 + 0.29 * i / len(parts))
    finally:
        for part in parts.values():
            part.close()
    return write_about(
        folder,
        {
            "corpora": [entries[label(source)] for source in sources], "vocab_size": ids.size,
            "vocabulary": ids.about(), "eos_id": ids.eos_id, "pad_id": ids.pad_id,
            "tokenizer_vocab_size": text_ids,
        },
    )  # fmt: skip


def write_about(folder: Path, about: dict[str, Any]) -> dict[str, Any]:
    """Write about.json, last of the data files: a folder with it is whole."""
    from flopwise.records.folder import atomic_write

    atomic_write(folder / ABOUT_FILE, json.dumps(about, indent=1) + "\n")
    return about


def metrics(entries: list[dict[str, Any]]) -> dict[str, Metric]:
    """Metrics of the record from the corpora's entries."""
    from flopwise.records.record import Metric

    out = {
        "train_tokens": Metric(value=sum(e["tokens"] for e in entries)),
        "duplicates_removed": Metric(value=sum(e["duplicates_removed"] for e in entries)),
        "documents_skipped": Metric(
            value=sum(kind["documents"] for e in entries for kind in e["skipped"].values())
        ),
    }
    counts = {
        "tokens": "documents", "heldout_tokens": "heldout_documents", "bytes_per_token": "documents",
        "heldout_bytes_per_token": "heldout_documents", "heldout_ngram_overlap": "heldout_documents",
    }  # fmt: skip
    for e in entries:
        out |= {f"{key}_{e['name']}": Metric(value=e[key], n=e[n]) for key, n in counts.items() if key in e}
    return out


def _write_tokens(
    source: Mapping[str, Any], ids: Vocabulary, folder: Path, seed: int, fraction: float
) -> dict[str, Any]:
    """Shards of a source that is no text, its ids moved to its range; returns its entry in about.json."""
    from flopwise.data.modalities import modality

    name, kind = label(source), modality_of(source)
    mine = ids.of(name)
    options = {k: v for k, v in (source.get("options") or {}).items() if v is not None}
    stream = modality(kind).open({**source, "options": options, "heldout_fraction": fraction, "seed": seed})
    writers = {
        held: shards.Writer(folder / f"{side}-{name}", ids.eos_id, ids.size)
        for held, side in ((False, "train"), (True, "heldout"))
    }
    n_bytes = {False: 0, True: 0}
    seen: dict[bool, list[bytes]] = {False: [], True: []}
    try:
        for document in stream.documents:
            if len(document.ids) and not 0 <= document.ids.min() <= document.ids.max() < mine.size:
                raise FlopwiseError(
                    f"source {name}: document {document.id} has ids outside of 0 to {mine.size - 1}, all "
                    f"that {kind} has with these options"
                )
            writers[document.heldout].add(document.ids + mine.offset)
            n_bytes[document.heldout] += document.n_bytes
            seen[document.heldout].append(hashlib.blake2b(document.ids.tobytes(), digest_size=8).digest())
        tokens = {held: writer.finish() for held, writer in writers.items()}
    except BaseException:
        for writer in writers.values():
            writer.discard()
        raise
    known = set(seen[False])
    return {
        "name": name, "modality": kind, "license": stream.license, "source": stream.source,
        "documents": writers[False].documents, "heldout_documents": writers[True].documents,
        "duplicates_removed": 0, "skipped": {}, "bytes": n_bytes[False],
        "tokens": tokens[False], "heldout_tokens": tokens[True],
        "bytes_per_token": n_bytes[False] / tokens[False],
        "heldout_bytes_per_token": n_bytes[True] / tokens[True],
        "heldout_documents_copied": sum(digest in known for digest in seen[True]),
        "options": stream.options, **stream.extra,
    }  # fmt: skip
