"""Somebody's own files as items: pictures, sound, clips and series, in folders, arrays or tables.

Nothing in a file is trusted: sizes are looked at before anything is decoded, arrays are read without pickles,
and every refusal is one line that names the file and the limit.
"""

from __future__ import annotations

import glob
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flopwise.data.modalities.base import Entry, Item
from flopwise.errors import FlopwiseError, MissingExtra, one_line

SIDE = 4096
"""Pixels of a side of a picture, at most."""
ITEM_BYTES = 2**30
"""Of one picture, clip or array, decoded."""
SUFFIXES = {
    "image": (".png", ".jpg", ".jpeg", ".npy", ".npz"),
    "audio": (".wav",),
    "video": (".gif", ".npy", ".npz"),
    "sensor": (".csv", ".csv.gz", ".tsv", ".parquet", ".npy", ".npz", ".ts"),
}


def entries(modality: str, path: str, options: Mapping[str, Any]) -> list[Entry]:
    """Entries of a file, a folder (with all below it) or a glob.

    Raises:
        FlopwiseError: nothing there that the modality can read.
    """
    root = Path(path).expanduser()
    out: list[Entry] = []
    for file in _found(root, SUFFIXES[modality]):
        name, label = _named(file, root)
        kind = next(
            s for s in sorted(SUFFIXES[modality], key=len, reverse=True) if file.name.lower().endswith(s)
        )
        if kind in (".npy", ".npz"):
            out += _arrays(modality, file, name, label)
        elif kind == ".ts":
            out += _archived(file, name)
        elif modality == "sensor":
            from flopwise.data.modalities.series import table_entries

            out += table_entries(file, name, label, options)
        elif modality == "audio":
            out.append(Entry(name, lambda f=file, n=name, c=label: [_sound(f, n, c)]))  # type: ignore[misc]
        else:
            read = _picture if modality == "image" else _clip
            out.append(Entry(name, lambda f=file, n=name, c=label, r=read: [r(f, n, c)]))  # type: ignore[misc]
    if len({entry.id for entry in out}) < len(out):
        raise FlopwiseError(
            f"{path}: two recordings have the same name; ids of tables must be unique per file"
        )
    return out


def _found(root: Path, suffixes: tuple[str, ...]) -> list[Path]:
    if root.is_file():
        files = [root]
    elif root.is_dir():
        files = [Path(folder) / name for folder, _, names in os.walk(root) for name in names]
    else:
        files = [Path(name) for name in glob.glob(str(root), recursive=True)]
        if not files:
            raise FlopwiseError(f"{one_line(root, 200)}: no such file or folder, and nothing that matches")
    usable = sorted(f for f in files if f.name.lower().endswith(suffixes) and not f.name.startswith("."))
    if not usable:
        what = f"{len(files)} files, none of them" if files else "no files; it needs"
        raise FlopwiseError(f"{one_line(root, 200)} has {what} {' '.join(suffixes)}")
    return usable


def _named(file: Path, root: Path) -> tuple[str, str | None]:
    """A stable name below the root, and the class: the folder that a file lies in, if not the root."""
    if root.is_dir():
        below = file.relative_to(root)
        return below.as_posix(), below.parts[-2] if len(below.parts) > 1 else None
    return file.name if root.is_file() else file.as_posix(), None


def _picture(file: Path, name: str, label: str | None) -> Item:
    """A PNG or JPEG as uint8 [height, width, 1 or 3]; transparent pixels lie on black."""
    with _opened(file) as picture:
        return Item(name, _pixels(picture, file), label)


def _clip(file: Path, name: str, label: str | None) -> Item:
    """A GIF as uint8 [frames, height, width, 3]."""
    from PIL import ImageSequence

    with _opened(file) as picture:
        n = _frames(picture, file)
        _fits(file, (n, picture.height, picture.width, 3), 1)
        try:
            frames = [_pixels(frame.convert("RGB"), file) for frame in ImageSequence.Iterator(picture)]
        except (OSError, ValueError, EOFError, SyntaxError) as e:
            raise FlopwiseError(f"{one_line(file, 200)} is cut or damaged ({type(e).__name__})") from e
    return Item(name, np.stack(frames), label)


def _frames(picture: Any, file: Path) -> int:
    try:
        return int(getattr(picture, "n_frames", 1))
    except Exception as e:
        raise FlopwiseError(f"{one_line(file, 200)} is cut or damaged ({type(e).__name__})") from e


def _opened(file: Path) -> Any:
    try:
        from PIL import Image
    except ImportError as e:
        raise MissingExtra("Pillow", "media", f"reading {one_line(file.name, 100)}") from e
    try:
        picture = Image.open(file)
    except Exception as e:
        raise FlopwiseError(f"{one_line(file, 200)} is no readable picture ({type(e).__name__})") from e
    if max(picture.size) > SIDE:
        raise FlopwiseError(
            f"{one_line(file, 200)} has {picture.width} x {picture.height} pixels, limit {SIDE} a side"
        )
    return picture


def _pixels(picture: Any, file: Path) -> np.ndarray:
    from PIL import Image

    try:
        if picture.mode.startswith("I"):  # 16 bits; Pillow would clip them at 255
            data = np.rint(np.asarray(picture, dtype=np.float64) / 257).clip(0, 255).astype(np.uint8)
        elif "A" in picture.mode or "transparency" in picture.info:
            above = picture.convert("RGBA")
            data = np.asarray(
                Image.alpha_composite(Image.new("RGBA", above.size, "black"), above).convert("RGB")
            )
        else:
            data = np.asarray(picture.convert("L" if picture.mode in ("1", "L") else "RGB"))
    except Exception as e:
        raise FlopwiseError(f"{one_line(file, 200)} is cut or damaged ({type(e).__name__})") from e
    return data[..., None] if data.ndim == 2 else data


def _sound(file: Path, name: str, label: str | None) -> Item:
    from flopwise.data.modalities.sound import wav

    _fits(file, (file.stat().st_size,), 1)
    try:
        sound, rate = wav(file.read_bytes(), one_line(file, 200))
    except ValueError as e:
        raise FlopwiseError(str(e)) from e
    return Item(name, sound, label, rate=rate)


def _archived(file: Path, name: str) -> list[Entry]:
    from flopwise.data.media import ts

    try:
        cases = list(ts(file.read_text(encoding="utf-8")))
    except (ValueError, OSError) as e:
        raise FlopwiseError(f"{one_line(file, 200)} is no readable .ts file ({one_line(e, 120)})") from e
    items = [Item(f"{name}#{i:06d}", series, label) for i, (series, label) in enumerate(cases)]
    return [Entry(item.id, lambda item=item: [item]) for item in items]  # type: ignore[misc]


def _arrays(modality: str, file: Path, name: str, label: str | None) -> list[Entry]:
    """One entry per picture, clip or series of an array, read when it is wanted."""
    data, labels = _array(file)
    shown = f"{one_line(file, 200)} holds {data.dtype} {list(data.shape)}"
    if data.dtype.kind not in "uifb" or data.ndim < 2:
        raise FlopwiseError(f"{shown}; {modality} needs numbers in {WANTED[modality]}")
    coloured = data.shape[-1] in (1, 3)
    # How many dimensions a single item has, and which channel axis is missing.
    if modality == "image":
        single = data.ndim == 2 or (data.ndim == 3 and coloured and data.shape[-1] != data.shape[-2])
        flat = data.ndim == 2 or (data.ndim == 3 and not single)
        possible = 2 <= data.ndim <= 4 and (flat or coloured)
    elif modality == "video":
        single = data.ndim == 3 or (data.ndim == 4 and coloured)
        flat = data.ndim == 3 or (data.ndim == 4 and not coloured)
        possible = 3 <= data.ndim <= 5 and (flat or coloured)
    else:
        single, flat, possible = data.ndim == 2, False, data.ndim <= 3
    if not possible:
        raise FlopwiseError(f"{shown}; {modality} needs {WANTED[modality]}")
    stack = data[None] if single else data
    if labels is not None and len(labels) != len(stack):
        raise FlopwiseError(f"{shown}, but {len(labels)} labels")
    if modality != "sensor" and max(stack.shape[-2:] if flat else stack.shape[-3:-1]) > SIDE:
        raise FlopwiseError(f"{shown}: limit {SIDE} pixels a side")
    _fits(file, stack.shape[1:], 8 if modality == "sensor" else 1)

    def one(i: int) -> Entry:
        entry = name if single else f"{name}#{i:06d}"

        def read() -> list[Item]:
            found = np.array(stack[i])
            found = found.astype(np.float64) if modality == "sensor" else _bytes(found, file)
            return [
                Item(entry, found[..., None] if flat else found, label if labels is None else str(labels[i]))
            ]

        return Entry(entry, read)

    return [one(i) for i in range(len(stack))]


WANTED = {
    "image": "[height, width], [n, height, width] or [n, height, width, 1 or 3]",
    "video": "[frames, height, width], [n, frames, height, width], or either with 1 or 3 channels last",
    "sensor": "[steps, channels] or [n, steps, channels]",
}


def _bytes(data: np.ndarray, file: Path) -> np.ndarray:
    """Pixels as uint8: whole numbers from 0 to 255, or fractions from 0 to 1."""
    if data.dtype == np.uint8:
        return data
    top = 1.0 if data.dtype.kind in "fb" else 255.0
    with np.errstate(invalid="ignore"):
        if not (data.size and float(data.min()) >= 0 and float(data.max()) <= top):
            raise FlopwiseError(
                f"{one_line(file, 200)} has pixels from {data.min()} to {data.max()}; {data.dtype} must lie "
                f"in 0 to {top:g}"
            )
    return np.rint(data.astype(np.float64) * (255 / top)).astype(np.uint8)


def _array(file: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """The array of a .npy file (not read yet), or the only one with two dimensions or more of a .npz file,
    with its labels: the array called y, label or labels."""
    try:
        if file.name.lower().endswith(".npy"):
            return np.load(file, mmap_mode="r", allow_pickle=False), None
        with zipfile.ZipFile(file) as z:
            for member in z.infolist():
                if member.file_size > 4 * ITEM_BYTES:
                    raise FlopwiseError(
                        f"{one_line(file, 200)}: {one_line(member.filename, 60)} has {member.file_size:,} "
                        f"bytes unpacked, limit {4 * ITEM_BYTES:,}; save it as .npy"
                    )
        with np.load(file, allow_pickle=False) as archive:
            members = {key: archive[key] for key in archive.files}  # bytes, where it is no array
    except FlopwiseError:
        raise
    except Exception as e:
        raise FlopwiseError(f"{one_line(file, 200)} is no readable array ({one_line(e, 120)})") from e
    arrays = {key: a for key, a in members.items() if isinstance(a, np.ndarray)}
    data = {key: a for key, a in arrays.items() if a.ndim > 1}
    if len(data) != 1:
        raise FlopwiseError(
            f"{one_line(file, 200)} has {len(data)} arrays of two dimensions or more, must have one"
        )
    labels = next((a for key, a in arrays.items() if key in ("y", "label", "labels") and a.ndim == 1), None)
    return next(iter(data.values())), labels


def _fits(file: Path, shape: tuple[int, ...], item_bytes: int) -> None:
    size = item_bytes * int(np.prod(np.array(shape, dtype=object)))
    if size > ITEM_BYTES:
        raise FlopwiseError(
            f"{one_line(file, 200)} is {size:,} bytes decoded, limit {ITEM_BYTES:,}; cut it up"
        )
