"""Prepared data, opened for reading: batches, held-out windows, tokenizer, and whether a model fits them."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flopwise.data.build import ABOUT_FILE
from flopwise.data.mixture import Mixture
from flopwise.data.shards import Shards
from flopwise.data.tasks import Demonstration, Task, task
from flopwise.data.tokenizer import Tokenizer
from flopwise.errors import FlopwiseError

if TYPE_CHECKING:
    from flopwise.models.config import ModelConfig

DEMO_SHARD = "demonstrations"


class PreparedData:
    """What a data step (`data.build`, `data.prepare`) or `flopwise prepare` left in a folder.

    Attributes:
        corpora: names of the sources, in their order.
        task: name of the verifiable task, where there is one.
        about: content of about.json; `about["corpora"]` has an entry per source (`docs/data.md`).
        vocab_size: rows that an embedding table needs.
        eos_id, pad_id: ids that end a document and fill up rows.

    Raises:
        FlopwiseError: the folder holds no finished data.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            self.about: dict[str, Any] = json.loads((path / ABOUT_FILE).read_bytes())
            self.corpora: list[str] = [entry["name"] for entry in self.about["corpora"]]
            self.task: str | None = self.about.get("task")
            self.vocab_size: int = int(self.about["vocab_size"])
            self.eos_id, self.pad_id = int(self.about.get("eos_id", 0)), int(self.about.get("pad_id", 1))
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise FlopwiseError(f"data folder {path} has no readable {ABOUT_FILE}; run its step again") from e

    @cached_property
    def tokenizer(self) -> Any:
        """The `data.tokenizer.Tokenizer` of the text; None where there is no text (hence the loose type: most
        callers know that there is)."""
        return Tokenizer.load(self.path) if self.of_modality("text") or self.task else None

    def of_modality(self, kind: str) -> list[str]:
        """Names of the sources of a modality."""
        return [e["name"] for e in self.about["corpora"] if e.get("modality", "text") == kind]

    def mixture(self, weights: dict[str, float], unique_tokens: int | None = None) -> Mixture:
        """Batches in fixed shares of sources; a modality (`text`, `image`) stands for all of its sources.

        Args:
            weights: shares by name; they are scaled to sum to 1.
            unique_tokens: only so many tokens of each are shown, in whole windows, again and again: the same
                ones for every model, and fewer are a part of more. None: all.

        Raises:
            FlopwiseError: an unknown name, a share that is not above 0, or a damaged shard.
        """
        shards = {
            name: [self.path / f"train-{part}" for part in parts] for name, parts in self._parts().items()
        }
        if self.task:
            shards["task"] = [self.path / DEMO_SHARD]
        if unknown := sorted(set(weights) - set(shards)):
            raise FlopwiseError(f"mixture: {unknown[0]!r:.60} is unknown; there are {', '.join(shards)}")
        sources = {name: [Shards(path) for path in shards[name]] for name in weights}
        return Mixture(sources, weights, unique_tokens)

    def heldout(self, name: str, n_tokens: int, seq_len: int) -> tuple[np.ndarray, np.ndarray]:
        """Held-out windows [n, seq_len + 1] int64 of a source, `n_tokens` or so, and their documents [n].

        Raises:
            FlopwiseError: an unknown name, a damaged shard, or no document as long as a window.
        """
        if name not in self.corpora:
            raise FlopwiseError(
                f"held-out data: source {name!r:.60} is not here; there are {', '.join(self.corpora)}"
            )
        return Shards(self.path / f"heldout-{name}").document_windows(seq_len, n_tokens)

    def raw(self, name: str, ids: np.ndarray) -> Any:
        """Token ids of a source back to what they stand for: a text, or the array its modality gives.

        Ids outside of the source's range are left out.
        """
        entry = next((e for e in self.about["corpora"] if e["name"] == name), None)
        if entry is None:
            raise FlopwiseError(f"source {name!r:.60} is not here; there are {', '.join(self.corpora)}")
        kind = entry.get("modality", "text")
        if kind == "text" and self.tokenizer is not None:
            return self.tokenizer.decode(np.asarray(ids).tolist())
        from flopwise.data.modalities import modality

        mine = next(r for r in self.about["vocabulary"] if name in r["sources"])
        local = np.asarray(ids, dtype=np.int64) - mine["offset"]
        return modality(kind).decode(local[(local >= 0) & (local < mine["size"])], entry["options"])

    def check(
        self, weights: dict[str, float], batch_size: int, seq_len: int, unique_tokens: int | None = None,
        model: ModelConfig | None = None,
    ) -> None:  # fmt: skip
        """Whether a run can be made of these data, before compute is spent on it: shards whole, batches not
        larger than the data, held-out documents as long as a window, a vocabulary that fits.

        Raises:
            FlopwiseError: it cannot; one line says why.
        """
        if model is not None:
            check_fits(self, model)
        self.mixture(weights, unique_tokens).check(batch_size, seq_len)
        for name in weights:
            for part in self._parts().get(name, ()):
                self.heldout(part, seq_len, seq_len)

    def demos(self) -> list[Demonstration]:
        """The fixed set of worked solutions."""
        return [Demonstration(row["prompt"], row["completion"]) for row in self._rows("demos")]

    def open_task(self) -> Task[Any]:
        """The verifiable task itself.

        Raises:
            FlopwiseError: the data were prepared without one, or with one that this version has not.
        """
        if self.task is None:
            raise FlopwiseError(f"{self.path} was prepared without a task; give data.task in its recipe")
        return task(self.task)

    def problems(self, name: str) -> list[Any]:
        """Problems of the set `rl`, `val` or `test`, or of one slice, as `test_rare`."""
        rows = self._rows(name)
        return [self.open_task().from_row(row) for row in rows]

    def _rows(self, name: str) -> list[dict[str, Any]]:
        if name not in (sets := self.about.get("problems", {})):
            there = f"there are {', '.join(sets)}" if sets else f"{self.path} was prepared without a task"
            raise FlopwiseError(f"problem set {name!r:.60} is unknown; {there}")
        path = self.path / f"{name}.jsonl"
        try:
            return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        except (OSError, ValueError) as e:
            raise FlopwiseError(f"{path} cannot be read ({type(e).__name__}); run the data step again") from e

    def _parts(self) -> dict[str, list[str]]:
        """Sources by what a mixture may name: a modality, or one of them."""
        kinds = dict.fromkeys(e.get("modality", "text") for e in self.about["corpora"])
        return {kind: self.of_modality(kind) for kind in kinds} | {name: [name] for name in self.corpora}


def check_fits(data: PreparedData, model: ModelConfig) -> None:
    """Whether a model's embedding table has a row for every id of the data.

    Raises:
        FlopwiseError: it is too small, or so much larger that another tokenizer is likely the model's own.
    """
    if model.vocab_size < data.vocab_size:
        raise FlopwiseError(
            f"model: a vocabulary of {model.vocab_size:,}, the data in {data.path} have {data.vocab_size:,}; "
            "use the tokenizer the model was made with, or make the model for these data"
        )
    if model.vocab_size > 2 * data.vocab_size + 256:
        raise FlopwiseError(
            f"model: a vocabulary of {model.vocab_size:,}, the data in {data.path} have only "
            f"{data.vocab_size:,}: another tokenizer made them; prepare them with the model's own"
        )
