"""Hugging Face layout in and out: `config.json`, `model.safetensors`, tokenizer. Nothing is unpickled."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from flopwise.errors import FlopwiseError
from flopwise.models import families, lora
from flopwise.models.adapters import is_adapter
from flopwise.models.renaming import state_from_hf, state_to_hf
from flopwise.models.transformer import Transformer
from flopwise.records.folder import atomic_write

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja",
)  # fmt: skip


class SavesItself(Protocol):
    """A tokenizer that can write its files."""

    def save(self, folder: Path) -> None: ...


def save(model: Transformer, folder: Path, tokenizer: SavesItself | None = None) -> None:
    """Write a model so that `transformers` loads it as it is, adapters merged in; the weights are renamed
    into place last."""
    from safetensors.torch import save_file

    if model.lora is not None:
        model = lora.merged(model)
    folder.mkdir(parents=True, exist_ok=True)
    config = families.to_hf(model.cfg, "ForSequenceClassification" if model.n_scores else "ForCausalLM")
    if model.n_scores:
        # Without a padding id the sequence classifier of `transformers` cannot find the last token.
        config |= {
            "id2label": {str(i): f"SCORE_{i}" for i in range(model.n_scores)},
            "num_labels": model.n_scores,
        }
        config["pad_token_id"] = 1
    atomic_write(folder / "config.json", json.dumps(config, indent=1))
    if tokenizer is not None:
        tokenizer.save(folder)
    temporary = folder / f".model.safetensors.{os.getpid()}.tmp"
    try:
        save_file(state_to_hf(model), temporary, metadata={"format": "pt"})
        os.replace(temporary, folder / "model.safetensors")
    finally:
        temporary.unlink(missing_ok=True)


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Transformer:
    """Read a folder of any of the `families`, sharded or not; of a folder with an adapter, its base model
    with the adapter merged in (`lora.load` keeps it apart).

    Args:
        dtype: of the weights. bfloat16 halves the memory: for models that are not trained.

    Raises:
        FlopwiseError: a file is missing or damaged, the family is not supported, or shapes disagree with
            the config.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if is_adapter(folder):
        model = lora.merged(lora.load(folder))
        cast = {name: t.to(dtype) for name, t in model.state_dict().items()}
        return Transformer.holding(model.cfg, cast, model.n_scores)
    try:
        cfg = families.from_hf(_read_json(folder, "config.json"))
        tensors: dict[str, Tensor] = {}
        for path in _weight_files(folder):
            tensors |= load_file(path)
        scores = tensors["score.weight"].shape[0] if "score.weight" in tensors else 0
        mapped = {id(t) for t in tensors.values()}  # lie in the file, and not as processors like it
        weights = state_from_hf(cfg, tensors).items()
        model = Transformer.holding(cfg, {n: t.to(dtype, copy=id(t) in mapped) for n, t in weights}, scores)
    except KeyError as e:
        raise FlopwiseError(f"model {folder}: {e.args[0]!r} is missing from its files") from e
    except (SafetensorError, OSError, RuntimeError) as e:
        lines = str(e).splitlines()
        reason = next((line.strip() for line in lines if "mismatch" in line), lines[0])[:160]
        raise FlopwiseError(
            f"model {folder}: weights cannot be read ({reason}); fetch or train it again"
        ) from e
    return model


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy the files of a tokenizer, as far as `source` has them; `folder` is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            atomic_write(folder / name, (source / name).read_bytes())


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    try:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FlopwiseError(
            f"model {folder}: there is no {name}; give a folder in Hugging Face layout"
        ) from None
    except (ValueError, OSError) as e:
        raise FlopwiseError(f"model {folder}: {name} cannot be read ({type(e).__name__})") from e
    if not isinstance(content, dict):
        raise FlopwiseError(f"model {folder}: {name} holds a {type(content).__name__}, must be a JSON object")
    return content


def _weight_files(folder: Path) -> list[Path]:
    """One file, or the shards of an index; names that point outside the folder are refused."""
    index = "model.safetensors.index.json"
    if not (folder / index).exists():
        return [folder / "model.safetensors"]
    shards = _read_json(folder, index).get("weight_map")
    if not isinstance(shards, dict):
        raise FlopwiseError(f"model {folder}: {index} has no weight_map; fetch the model again")
    names = list(dict.fromkeys(shards.values()))
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise FlopwiseError(f"model {folder}: {index}: {name!r:.80} is not a plain file name; not read")
    return [folder / name for name in names]
