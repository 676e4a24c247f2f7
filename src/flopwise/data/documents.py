"""Sources of text: shipped corpora, a person's own files, Hugging Face datasets, as one kind of stream."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flopwise.data import files
from flopwise.data.files import Skipped
from flopwise.data.sources import Document
from flopwise.errors import FlopwiseError, one_line


@dataclass
class TextStream:
    """Documents of one source, read once and in order. `skipped` fills while it is read."""

    name: str
    documents: Iterator[Document]
    license: str = "not known"
    source: str = ""
    skipped: Skipped = field(default_factory=Skipped)


def label(source: Mapping[str, Any]) -> str:
    """A source's name in mixtures, metrics and files: as given, else of its corpus, file, dataset or folder.

    >>> label({"path": "texts/my notes.jsonl.gz"}), label({"path": "texts/*.md"}), label({"corpus": "kjv"})
    ('my-notes', 'texts', 'kjv')
    """
    if given := source.get("name") or source.get("corpus"):
        return str(given)
    stems = (part.split(".")[0] for part in reversed(re.split(r"[/\\:]", str(source.get("path") or ""))))
    stem = next((s for s in stems if s and not re.search(r"[*?\[]", s)), "data")
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", stem).strip("-.")[:40] or "data"


def open_text(
    source: Mapping[str, Any], cache: Path | None = None, progress: Callable[[float], None] = lambda _: None
) -> TextStream:
    """The stream of a source (`launch.ladder_sections.SourceSection` as a mapping): about `max_bytes` bytes
    of it, in whole documents. `progress` is told the share read, where that is known.

    Raises:
        FlopwiseError: unknown corpus, no such file, nothing to read (the last once documents are drawn).
    """
    name, limit = label(source), source.get("max_bytes")
    if source.get("corpus"):
        from flopwise.data import corpora

        corpus = corpora.load(str(source["corpus"]), cache, limit)
        stream = TextStream(name, iter(corpus.documents), corpus.license, corpus.source)
    else:
        path, text_field = str(source["path"]), str(source.get("field") or "text")
        stream = TextStream(name, iter(()), source=one_line(path, 200))
        from flopwise.data import hub

        if hub.is_saved(path) or hub.is_id(path):
            stream.documents = hub.read(path, text_field, source.get("options") or {}, stream.skipped)
        else:
            found = files.find(path)
            total = sum(f.stat().st_size for f in found) or 1
            stream.documents = files.read(
                found, text_field, stream.skipped, lambda done: progress(done / total)
            )
    if limit is not None:
        stream.documents = limited(stream.documents, int(limit))
    return stream


def limited(documents: Iterator[Document], max_bytes: int) -> Iterator[Document]:
    """Whole documents until there are `max_bytes` bytes of them."""
    total = 0
    for document in documents:
        yield document
        total += len(document.text.encode())
        if total >= max_bytes:
            return


def check_names(names: list[str]) -> None:
    """Names become files: each once, of plain letters.

    Raises:
        FlopwiseError: one is not fit, or comes twice.
    """
    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9_.-]{1,40}", name) or name.startswith("."):
            raise FlopwiseError(
                f"data: source name {name!r:.60} must be 1 to 40 letters, digits, . _ and -; set its name"
            )
        if names.count(name) > 1:
            raise FlopwiseError(f"data: two sources are named {name}; give one a name of its own")
