"""Hugging Face datasets: a folder that `save_to_disk` wrote, or a hub id, through the `datasets` package."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flopwise.data.files import PATIENCE, READERS, Skipped, accept, kind, of_row
from flopwise.data.sources import Document
from flopwise.data.tokenizer import HUB_ID
from flopwise.errors import FlopwiseError, MissingExtra, one_line

PREFIX = "hub:"
_SAVED = ("dataset_dict.json", "state.json")


def is_saved(path: str) -> bool:
    """Whether a folder holds a saved dataset, or several splits of one."""
    return any((Path(path) / name).is_file() for name in _SAVED)


def is_id(path: str) -> bool:
    """Whether a path means a dataset on the hub: as hub:org/name, or org/name where no such file is here."""
    if path.startswith(PREFIX):
        return True
    shaped = HUB_ID.fullmatch(path) is not None and path.count("/") == 1
    return shaped and not os.path.lexists(path) and kind(Path(path)) not in READERS


def reached() -> bool:
    """Whether the hub answers within a few seconds: its own client would retry for half a minute."""
    import socket
    from urllib.parse import urlsplit
    from urllib.request import getproxies

    if getproxies():
        return True  # only the client knows the way
    url = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    try:
        with socket.create_connection((url.hostname or "", url.port or 443), timeout=5):
            return True
    except OSError:
        return False


def read(path: str, field: str, options: Mapping[str, Any], skipped: Skipped) -> Iterator[Document]:
    """Documents of a dataset; nothing is held in memory but a row at a time. `options` as in `rows`.

    Raises:
        FlopwiseError: see `rows`; or no row holds a text.
    """
    name = path.removeprefix(PREFIX)
    n_texts = row = 0
    for row, values in rows(path, options):
        text = accept(of_row(values, field), f"{name}:{row}", skipped)
        if text is not None:
            n_texts += 1
            yield Document(f"{name}:{row}", text)
        elif row == PATIENCE and not n_texts:
            break
    if not n_texts:
        reason = skipped.counts.most_common(1)[0][0] if row else "no rows"
        first = f", first {skipped.first[reason]}" if row else ""
        raise FlopwiseError(f"data: no text in {row:,} rows of {name}: {reason}{first}; check the field")


def rows(path: str, options: Mapping[str, Any]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Number and fields of each row of a dataset.

    `options`: `split` (default train, else the only one) and `config` (the hub's name of a part).

    Raises:
        FlopwiseError: `datasets` is not installed (the message is the command), the hub does not answer, or
            there is no such split.
    """
    name = path.removeprefix(PREFIX)
    unknown = sorted(set(options) - {"split", "config"})
    if unknown:
        raise FlopwiseError(f"data: option {unknown[0]!r:.40} of {name} is unknown; there are split, config")
    try:
        import datasets
    except ModuleNotFoundError:
        raise MissingExtra("datasets", "hub", f"dataset {one_line(name, 100)}") from None
    if not is_saved(path) and not reached():
        raise FlopwiseError(
            f"data: dataset {one_line(name, 100)} is on the hub, which does not answer; check the network, "
            "or give a saved folder or files"
        )
    split = options.get("split")
    try:
        if is_saved(path):
            found = datasets.load_from_disk(path)
        else:
            found = datasets.load_dataset(name, options.get("config"), streaming=True)
    except Exception as e:  # many kinds: no network, no such name, a damaged folder
        hint = "fetch it again" if is_saved(path) else "check the name and the network, or give files"
        raise FlopwiseError(
            f"data: dataset {one_line(name, 100)} cannot be opened ({type(e).__name__}: {one_line(e, 99)}); "
            f"{hint}"
        ) from e
    if isinstance(found, dict):
        split = split or ("train" if "train" in found or len(found) > 1 else next(iter(found), "train"))
        if split not in found:
            there = one_line(", ".join(map(str, found)), 120)
            raise FlopwiseError(
                f"data: dataset {one_line(name, 100)} has no split {split!r:.40}; it has {there}"
            )
        found = found[split]
    yield from enumerate(found, 1)
