"""Pairs and thumbs as training data: a run's own rows, or a dataset's, as rows of token ids with signs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from flopwise.errors import FlopwiseError
from flopwise.posttrain.bench import Bench, own_rows, to_examples
from flopwise.posttrain.examples import Example, lengths
from flopwise.posttrain.pairs import PAIRS_FILE, THUMBS_FILE, closing_id

if TYPE_CHECKING:
    from flopwise.records.folder import RunFolder


@dataclass(frozen=True)
class Feedback:
    """Judged completions, in units that stay together.

    Attributes:
        rows: the completions [R].
        signs: [R] 1 for what is wanted, -1 for what is not.
        per_unit: 2 where rows 2i and 2i + 1 are a pair, chosen first; 1 where each stands alone.
    """

    rows: Sequence[Example]
    signs: np.ndarray
    per_unit: int

    def __len__(self) -> int:
        """Units."""
        return len(self.signs) // self.per_unit

    def sizes(self) -> np.ndarray:
        """Tokens of each unit [units]."""
        return lengths(self.rows).reshape(-1, self.per_unit).sum(1)

    def places(self, units: np.ndarray) -> np.ndarray:
        """Rows of some units, in their order."""
        return (units[:, None] * self.per_unit + np.arange(self.per_unit)).ravel()


class _Sides(Sequence[Example]):
    """Rows of a dataset's pairs, read when they are asked for."""

    def __init__(self, pairs: Sequence[Any]):
        self.pairs = pairs

    def __len__(self) -> int:
        return 2 * len(self.pairs)

    def __getitem__(self, place: Any) -> Any:
        pair = self.pairs[int(place) // 2]
        return pair.rejected if place % 2 else pair.chosen


class _Judged(Sequence[Example]):
    """Rows of a dataset's judged completions, read when they are asked for."""

    def __init__(self, judged: Sequence[Any]):
        self.judged = judged

    def __len__(self) -> int:
        return len(self.judged)

    def __getitem__(self, place: Any) -> Any:
        return self.judged[int(place)].example


def read(bench: Bench, parents: dict[str, RunFolder], paired: bool) -> tuple[Feedback, Feedback | None]:
    """What to learn from and, apart from it, what to be judged on (None where nothing was held out).

    From the run in the role `pairs` or `thumbs`, or else from the dataset. `paired`: pairs are needed;
    without it they are taken apart, each answer by itself.

    Raises:
        FlopwiseError: there are none, or not of the kind that is needed.
    """
    if "pairs" in parents:
        rows = _rows(parents["pairs"], PAIRS_FILE)
        texts = [(row["prompt"], row[side]) for row in rows for side in ("chosen", "rejected")]
        signs = np.tile([1.0, -1.0], len(rows))
        problems = np.repeat([row["problem"] for row in rows], 2)
        cut = [row.get(f"{side}_cut", False) for row in rows for side in ("chosen", "rejected")]
        return _split(bench, texts, cut, signs, problems, 2 if paired else 1)
    if "thumbs" in parents and not paired:
        rows = _rows(parents["thumbs"], THUMBS_FILE)
        texts = [(row["prompt"], row["completion"]) for row in rows]
        signs = np.array([1.0 if row["label"] else -1.0 for row in rows])
        cut = [row.get("cut", False) for row in rows]
        return _split(bench, texts, cut, signs, np.array([row["problem"] for row in rows]), 1)
    train, held = (_of_dataset(bench.data, split, paired) for split in ("train", "heldout"))
    if not len(train):
        raise FlopwiseError("the dataset has no row left to learn from; lower heldout_fraction or add rows")
    return train, held if len(held) else None


def _rows(run: RunFolder, name: str) -> list[dict[str, Any]]:
    """The rows that a step of `posttrain.pairs` wrote."""
    try:
        with open(run.path / name, encoding="utf-8") as f:
            return [json.loads(line) for line in f]
    except FileNotFoundError:
        raise FlopwiseError(
            f"run {run.name or run.id} holds no {name}; give a run of method {name.split('.')[0]}"
        ) from None


def _split(
    bench: Bench, texts: list[tuple[str, str]], cut: list[bool], signs: np.ndarray, problems: np.ndarray,
    per_unit: int,
) -> tuple[Feedback, Feedback | None]:  # fmt: skip
    """A share of the problems is kept apart with all that was said of them, the same one for every seed."""
    examples = [
        Example(e.prompt, e.completion[:-1]) if short else e  # no end after an answer that had none
        for e, short in zip(_examples(bench, texts, problems), cut, strict=True)
    ]
    distinct = np.unique(problems)
    drawn = np.random.default_rng(len(distinct)).permutation(distinct)
    held = np.isin(problems, drawn[: round(bench.spec["heldout"] * len(distinct))])
    parts = [
        Feedback([examples[i] for i in np.flatnonzero(mask)], signs[mask], per_unit) for mask in (~held, held)
    ]
    return parts[0], parts[1] if len(parts[1]) else None


def _examples(bench: Bench, texts: list[tuple[str, str]], problems: np.ndarray) -> list[Example]:
    """Texts as the model reads them; prompts of somebody's own, which may be chats, come as their ids."""
    rows = own_rows(bench.data)
    if rows is None:
        return to_examples(bench.data, texts)
    asked = rows.problems("rl")
    completions = bench.tokenizer.encode_batch([completion for _, completion in texts])
    return [
        Example(tuple(asked[p].prompt_ids), (*completion, closing_id(rows)))
        for p, completion in zip(problems.tolist(), completions, strict=True)
    ]


def _of_dataset(data: Any, split: str, paired: bool) -> Feedback:
    """A dataset's rows of a split."""
    kind = getattr(data, "kind", None)
    if kind == "pairs":
        pairs = data.pairs(split)
        return Feedback(_Sides(pairs), np.tile([1.0, -1.0], len(pairs)), 2 if paired else 1)
    if kind == "unpaired" and not paired:
        judged = data.unpaired(split)
        signs = np.array([1.0 if j.label else -1.0 for j in judged])
        return Feedback(_Judged(judged), signs, 1)
    wanted = "prompt, chosen, rejected" + ("" if paired else ", or prompt, completion, label")
    raise FlopwiseError(f"the dataset's rows are {kind or 'a corpus'}; this method needs {wanted}")
