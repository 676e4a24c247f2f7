"""The data step: corpora to shards, the task to disjoint problem sets, all checked before a model sees it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flopwise.data import contamination, corpora, countdown, dedup, shards
from flopwise.data.countdown import TASKS, Problem
from flopwise.data.tokenizer import Tokenizer, train_bpe
from flopwise.errors import FlopwiseError

if TYPE_CHECKING:
    from flopwise.records.folder import RunFolder
    from flopwise.records.record import Metric

ABOUT_FILE, DEMO_SHARD = "about.json", "demonstrations"
TOKENIZER_SAMPLE = 3
"""The tokenizer learns from every third document: enough for a few hundred merges, at a third of the time."""


@dataclass(frozen=True)
class Demonstration:
    """A prompt with its worked solution."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class Split:
    """A corpus without near-duplicates, split by document."""

    corpus: corpora.Corpus
    train: list[str]
    heldout: list[str]
    n_duplicates: int


class PreparedData:
    """What `run_step` left in a folder, opened for reading.

    Raises:
        FlopwiseError: the folder holds no finished data.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            self.about: dict[str, Any] = json.loads((path / ABOUT_FILE).read_bytes())
            self.corpora: list[str] = [entry["name"] for entry in self.about["corpora"]]
            self.task: str = self.about["task"]
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise FlopwiseError(f"data folder {path} has no readable {ABOUT_FILE}; run its step again") from e

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer trained on this text."""
        return Tokenizer.load(self.path)

    def mixture(self, weights: dict[str, float]) -> shards.Mixture:
        """Batches in fixed shares of `text` (all corpora), `task` (the demonstrations) or single corpora."""
        files = {"text": [f"train-{name}" for name in self.corpora], "task": [DEMO_SHARD]}
        files |= {name: [f"train-{name}"] for name in self.corpora}
        unknown = sorted(set(weights) - set(files))
        if unknown:
            raise FlopwiseError(f"mixture: {unknown[0]!r:.60} is unknown; there are {', '.join(files)}")
        sources = {name: [shards.Shards(self.path / f) for f in files[name]] for name in weights}
        return shards.Mixture(sources, weights)

    def heldout(self, name: str, n_tokens: int, seq_len: int) -> tuple[np.ndarray, np.ndarray]:
        """Held-out windows [n, seq_len + 1] int64 of a corpus, `n_tokens` or so, and their documents [n]."""
        if name not in self.corpora:
            raise FlopwiseError(
                f"held-out text: corpus {name!r:.60} is not here; there are {', '.join(self.corpora)}"
            )
        return shards.Shards(self.path / f"heldout-{name}").document_windows(seq_len, n_tokens)

    def demos(self) -> list[Demonstration]:
        """The fixed set of worked solutions."""
        return [Demonstration(row["prompt"], row["completion"]) for row in self._rows("demos")]

    def problems(self, name: str) -> list[Problem]:
        """Problems of the set `rl`, `val` or `test`."""
        return [Problem(tuple(row["numbers"]), row["target"]) for row in self._rows(name)]

    def _rows(self, name: str) -> list[dict[str, Any]]:
        if name not in self.about["problems"]:
            raise FlopwiseError(
                f"problem set {name!r:.60} is unknown; there are {', '.join(self.about['problems'])}"
            )
        path = self.path / f"{name}.jsonl"
        try:
            return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        except (OSError, ValueError) as e:
            raise FlopwiseError(f"{path} cannot be read ({type(e).__name__}); run the data step again") from e


def run_step(folder: RunFolder, parents: dict[str, RunFolder], progress: Callable[[float], None]) -> None:
    """Prepare everything the spec (`launch.sections.DataSection`) asks for.

    Deterministic given spec, seed and the corpora that could be had; interrupted, it starts over.

    Raises:
        FlopwiseError: unknown corpus or task, too little text, or a held-out problem stands in training text.
    """
    from flopwise.flops.spend import Stopwatch
    from flopwise.records.folder import atomic_write
    from flopwise.records.record import Metric

    watch = Stopwatch()
    spec = folder.spec
    if spec["task"] not in TASKS:
        raise FlopwiseError(f"data.task is {spec['task']!r:.60}, must be one of {', '.join(TASKS)}")
    loaded, note = corpora.load_with_fallback(spec["corpora"], max_chars=spec["max_chars"])
    progress(0.25)
    splits = [_split_corpus(corpus, spec["heldout_fraction"], folder.seed) for corpus in loaded]
    progress(0.45)
    problems, demos = make_problems(spec, folder.seed)
    texts = (text for split in splits for text in split.train)
    report = _check_contamination(texts, demos, problems)
    progress(0.55)

    tokenizer = train_bpe((t for s in splits for t in s.train[::TOKENIZER_SAMPLE]), spec["vocab_size"])
    tokenizer.save(folder.path)
    progress(0.65)
    about: list[dict[str, Any]] = []
    for i, part in enumerate(splits, 1):
        about.append(_write_corpus(part, tokenizer, folder.path))
        progress(0.65 + 0.3 * i / len(splits))
    demo_tokens = shards.write(
        _encode((d.prompt + d.completion for d in demos), tokenizer),
        folder.path / DEMO_SHARD,
        tokenizer.eos_id,
    )
    _write_rows(folder.path / "demos.jsonl", (asdict(d) for d in demos))
    for name in ("rl", "val", "test"):
        _write_rows(
            folder.path / f"{name}.jsonl",
            ({"numbers": p.numbers, "target": p.target} for p in problems[name]),
        )
    summary = {
        "corpora": about, "task": spec["task"], "vocab_size": tokenizer.vocab_size,
        "demonstration_tokens": demo_tokens, "problems": {name: len(part) for name, part in problems.items()},
        "contamination": asdict(report), "note": note,
    }  # fmt: skip
    # Last of the data files: a folder with it is whole.
    atomic_write(folder.path / ABOUT_FILE, json.dumps(summary, indent=1) + "\n")
    tokens = sum(entry["tokens"] for entry in about) + demo_tokens
    folder.finish(
        metrics={
            "train_tokens": Metric(value=tokens),
            "demonstration_tokens": Metric(value=demo_tokens, n=len(demos)),
            "duplicates_removed": Metric(value=sum(s.n_duplicates for s in splits)),
            "contamination_hits": Metric(value=report.n_hits, n=report.n_texts),
            **_corpus_metrics(about),
        },
        spend=watch.spend(),
        data={
            "corpus": "+".join(c.name for c in loaded), "tokens_seen": None, "tokens_unique": tokens,
            "modality": "text",
        },
        extra={"note": note, "corpora": about},
    )  # fmt: skip


def make_problems(spec: dict[str, Any], seed: int) -> tuple[dict[str, list[Problem]], list[Demonstration]]:
    """Disjoint problem sets `demos`, `rl`, `val` and `test`, and the demonstrations of the first.

    No demonstration shows a way to a validation or test problem, not even as a dead end.
    """
    largest, dead_ends = TASKS[spec["task"]]
    problems = countdown.split(
        seed, largest=largest, demos=spec["demonstrations"], rl=spec["rl_problems"],
        val=spec["val_problems"], test=spec["test_problems"],
    )  # fmt: skip
    held_out = {p.key for p in problems["val"] + problems["test"]}
    demos = [
        Demonstration(p.prompt, countdown.demonstration(p, seed, held_out, dead_ends))
        for p in problems["demos"]
    ]
    return problems, demos


def split_documents(texts: Sequence[str], fraction: float, seed: int) -> tuple[list[str], list[str]]:
    """Training and held-out documents; at least two are held out, so that a standard error exists.

    >>> [len(part) for part in split_documents([str(i) for i in range(100)], 0.05, 0)]
    [95, 5]
    """
    if len(texts) < 4:
        raise FlopwiseError(
            f"data: {len(texts)} documents are too few to hold some out; raise data.max_chars"
        )
    n_held = min(len(texts) - 2, max(2, round(len(texts) * fraction)))
    order = np.random.default_rng((seed, len(texts))).permutation(len(texts))
    held = set(order[:n_held].tolist())
    return [t for i, t in enumerate(texts) if i not in held], [t for i, t in enumerate(texts) if i in held]


def _split_corpus(corpus: corpora.Corpus, fraction: float, seed: int) -> Split:
    texts = [d.text for d in corpus.documents]
    kept = [texts[i] for i in dedup.near_duplicates(texts)]
    train, heldout = split_documents(kept, fraction, seed)
    return Split(corpus, train, heldout, len(texts) - len(kept))


def _check_contamination(
    texts: Iterable[str], demos: list[Demonstration], problems: dict[str, list[Problem]]
) -> contamination.Report:
    def everything() -> Iterator[str]:
        yield from (d.prompt + d.completion for d in demos)
        yield from texts

    report = contamination.check(everything(), problems["val"] + problems["test"])
    if report.n_hits:
        raise FlopwiseError(
            f"data: {report.n_hits} passages of training text give held-out problems away, first "
            f"{report.examples[0]!r}; change recipe.seed or the corpora"
        )
    return report


def _write_corpus(part: Split, tokenizer: Tokenizer, folder: Path) -> dict[str, Any]:
    """Shards `train-NAME` and `heldout-NAME`; returns the corpus's entry in about.json."""
    name = part.corpus.name
    tokens = shards.write(_encode(part.train, tokenizer), folder / f"train-{name}", tokenizer.eos_id)
    heldout_tokens = shards.write(
        _encode(part.heldout, tokenizer), folder / f"heldout-{name}", tokenizer.eos_id
    )
    overlap = contamination.ngram_overlap(part.train, part.heldout)
    return {
        "name": name, "license": part.corpus.license, "source": part.corpus.source,
        "documents": len(part.train), "heldout_documents": len(part.heldout),
        "duplicates_removed": part.n_duplicates,
        "characters": sum(map(len, part.train)), "tokens": tokens, "heldout_tokens": heldout_tokens,
        "bytes_per_token": sum(len(t.encode()) for t in part.train) / tokens,
        "heldout_ngram_overlap": overlap.share, "heldout_documents_copied": overlap.n_copied,
    }  # fmt: skip


def _corpus_metrics(about: list[dict[str, Any]]) -> dict[str, Metric]:
    from flopwise.records.record import Metric

    counts = {"tokens": "documents", "heldout_tokens": "heldout_documents", "bytes_per_token": "documents",
              "heldout_ngram_overlap": "heldout_documents"}  # fmt: skip
    return {f"{key}_{e['name']}": Metric(value=e[key], n=e[n]) for e in about for key, n in counts.items()}


def _encode(texts: Iterable[str], tokenizer: Tokenizer, block: int = 256) -> Iterator[list[int]]:
    """Ids of each text, in blocks: lists of Python integers for a whole corpus would take gigabytes."""
    waiting: list[str] = []
    for text in texts:
        waiting.append(text)
        if len(waiting) == block:
            yield from tokenizer.encode_batch(waiting)
            waiting = []
    yield from tokenizer.encode_batch(waiting)


def _write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    from flopwise.records.folder import atomic_write

    atomic_write(path, "".join(json.dumps(row) + "\n" for row in rows))
