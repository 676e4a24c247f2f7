"""Judged samples of many problems: choosing strategies and policies replay from these arrays."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from flopwise.errors import FlopwiseError, one_line

SCORE = "score_"
"""Before a judge's name in the file's arrays; the reward model's array is called `reward`."""
JUDGE_FLOPS = "flops_"


@dataclass(frozen=True)
class Samples:
    """n samples of each of P problems, each with its verdict, scores and cost.

    An unfinished sample (cut at the limit) is wrong and abstains. Costs are FLOPs, or what `unit` says where
    nobody knows the model.
    """

    problems: list[str]
    """Prompts, or names."""
    correct: np.ndarray
    """[P, n] bool: the verifier's word."""
    answers: list[list[str | None]]
    """[P][n] in canonical form; None abstains."""
    logprob: np.ndarray
    """[P, n] nats of the whole completion under the model; NaN where a server gave none."""
    tokens: np.ndarray
    """[P, n] tokens written, the stop token included."""
    finished: np.ndarray
    """[P, n] bool: whether it came to its end within the limit."""
    prefill_flops: np.ndarray
    """[P] reading the prompt, once for all samples."""
    decode_flops: np.ndarray
    """[P, n] writing."""
    scores: dict[str, np.ndarray] = field(default_factory=dict)
    """[P, n] by judge: reward, process_min, process_last, process_product, probe, judge; NaN: no score."""
    score_flops: dict[str, np.ndarray] = field(default_factory=dict)
    """[P, n] by judge; the verifier takes none."""
    seconds: float | None = None
    """By the clock, for all of it."""
    greedy: np.ndarray | None = None
    """[P] bool: whether the answer at temperature 0 is right."""
    greedy_flops: np.ndarray | None = None
    """[P] prefill included."""
    texts: list[list[str]] | None = None
    """[P][n] completions, where they were kept."""
    unit: str = "FLOPs"
    """Of all costs: FLOPs, tokens or samples."""

    def __post_init__(self) -> None:
        shape = np.shape(self.correct)
        if len(shape) != 2 or not all(shape):
            raise FlopwiseError(f"samples: verdicts have the shape {shape}, must be [problems, samples]")
        arrays = {"logprob": self.logprob, "tokens": self.tokens, "finished": self.finished}
        arrays |= {"decode_flops": self.decode_flops, **self.scores}
        arrays |= {f"FLOPs of {name}": value for name, value in self.score_flops.items()}
        for name, value in arrays.items():
            if np.shape(value) != shape:
                raise FlopwiseError(f"samples: {name} has the shape {np.shape(value)}, must be {shape}")
        rows: dict[str, Sized | None] = {"problems": self.problems, "answers": self.answers}
        rows |= {"prefill_flops": self.prefill_flops, "greedy": self.greedy, "texts": self.texts}
        rows |= {"greedy_flops": self.greedy_flops}
        for name, row in rows.items():
            if row is not None and len(row) != shape[0]:
                raise FlopwiseError(f"samples: {name} has {len(row)} rows for {shape[0]} problems")
        if any(len(row) != shape[1] for rows in (self.answers, self.texts or ()) for row in rows):
            raise FlopwiseError(f"samples: a problem must have {shape[1]} answers and texts")

    @property
    def P(self) -> int:
        """Problems."""
        return int(self.correct.shape[0])

    @property
    def n(self) -> int:
        """Samples of each problem."""
        return int(self.correct.shape[1])

    def score(self, judge: str) -> np.ndarray:
        """[P, n] by which a judge ranks samples: verifier, logprob, logprob_mean (per token), or a name in
        `scores`.

        Raises:
            FlopwiseError: nobody asked that judge.
        """
        if judge == "verifier":
            return self.correct.astype(float)
        if judge == "logprob":
            return self.logprob
        if judge == "logprob_mean":
            return self.logprob / np.maximum(self.tokens, 1)
        if judge not in self.scores:
            known = ", ".join(["verifier", "logprob", "logprob_mean", *self.scores])
            raise FlopwiseError(
                f"samples: there is no score by {one_line(judge, 40)!r}, there are {known}; sample again "
                "with that judge"
            )
        return self.scores[judge]

    def cost(self, k: float, judge: str | None = None) -> np.ndarray:
        """[P] mean cost of k of the samples: one prefill, k times writing and, with a judge, scoring one."""
        each = self.decode_flops.mean(axis=1)
        if judge is not None and judge in self.score_flops:
            each = each + self.score_flops[judge].mean(axis=1)
        return self.prefill_flops + k * each

    def split(self, m: int) -> tuple[Samples, Samples]:
        """The first m samples of each problem, and the rest: what is learned from the first (how hard a
        problem is) may be judged on the rest alone.

        Raises:
            FlopwiseError: m leaves nothing on one side.
        """
        if not 0 < m < self.n:
            raise FlopwiseError(f"samples: {m} of {self.n} cannot be split off; must be 1 to {self.n - 1}")
        return self._columns(slice(0, m)), self._columns(slice(m, None))

    def take(self, problems: Sequence[int] | np.ndarray) -> Samples:
        """Some problems, by place; the time is nobody's then."""
        rows = np.asarray(problems, dtype=np.int64)
        return replace(
            self, problems=[self.problems[i] for i in rows], correct=self.correct[rows],
            answers=[self.answers[i] for i in rows], logprob=self.logprob[rows], tokens=self.tokens[rows],
            finished=self.finished[rows], prefill_flops=self.prefill_flops[rows],
            decode_flops=self.decode_flops[rows], scores={k: v[rows] for k, v in self.scores.items()},
            score_flops={k: v[rows] for k, v in self.score_flops.items()}, seconds=None,
            greedy=None if self.greedy is None else self.greedy[rows],
            greedy_flops=None if self.greedy_flops is None else self.greedy_flops[rows],
            texts=None if self.texts is None else [self.texts[i] for i in rows],
        )  # fmt: skip

    def _columns(self, part: slice) -> Samples:
        return replace(
            self, correct=self.correct[:, part], answers=[row[part] for row in self.answers],
            logprob=self.logprob[:, part], tokens=self.tokens[:, part], finished=self.finished[:, part],
            decode_flops=self.decode_flops[:, part], scores={k: v[:, part] for k, v in self.scores.items()},
            score_flops={k: v[:, part] for k, v in self.score_flops.items()}, seconds=None,
            texts=None if self.texts is None else [row[part] for row in self.texts],
        )  # fmt: skip

    def save(self, path: Path, **more: np.ndarray) -> None:
        """Write one .npz, atomically: arrays, and texts as JSON within; `more` arrays lie beside them."""
        from flopwise.records.folder import atomic_write

        about = {
            "problems": self.problems, "answers": self.answers, "seconds": self.seconds, "unit": self.unit,
            "texts": self.texts,
        }  # fmt: skip
        arrays: dict[str, Any] = {
            "correct": self.correct, "logprob": self.logprob, "lengths": self.tokens,
            "finished": self.finished, "prefill_flops": self.prefill_flops, "decode_flops": self.decode_flops,
            "about": np.frombuffer(json.dumps(about).encode(), dtype=np.uint8),
        }  # fmt: skip
        arrays |= {_key(name): scores for name, scores in self.scores.items()}
        arrays |= {f"{JUDGE_FLOPS}{name}": flops for name, flops in self.score_flops.items()}
        given = {"greedy": self.greedy, "greedy_flops": self.greedy_flops}
        arrays |= {name: value for name, value in given.items() if value is not None} | more
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)
        atomic_write(path, buffer.getvalue())

    @classmethod
    def load(cls, path: Path) -> Samples:
        """What `save` wrote.

        Raises:
            FlopwiseError: the file is absent, damaged, or holds no judged samples.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            about = json.loads(arrays["about"].tobytes())
            given = {
                name: arrays[name]
                for name in ("correct", "logprob", "finished", "prefill_flops", "decode_flops")
            }
            texts = {name: about[name] for name in ("problems", "answers", "seconds", "unit", "texts")}
            lengths = arrays["lengths"]
        except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile) as e:
            raise FlopwiseError(
                f"{path} holds no samples ({one_line(e, 80)}); make them with `flopwise eval ... -o`"
            ) from e
        scores = {name.removeprefix(SCORE): a for name, a in arrays.items() if name.startswith(SCORE)}
        if "reward" in arrays:
            scores["reward"] = arrays["reward"]
        flops = {n.removeprefix(JUDGE_FLOPS): a for n, a in arrays.items() if n.startswith(JUDGE_FLOPS)}
        return cls(
            tokens=lengths, scores=scores, score_flops=flops, greedy=arrays.get("greedy"),
            greedy_flops=arrays.get("greedy_flops"), **given, **texts,
        )  # fmt: skip

    @classmethod
    def from_table(cls, table: Mapping[str, Any], n: int | None = None) -> Samples:
        """Anybody's samples: a row per sample with columns `problem`, `correct` and, where there are any,
        `answer`, `score` or several `score_NAME`, `tokens`, `logprob`, `flops` (of writing it).

        Without `flops` a sample costs its tokens, without these too it costs 1, and `unit` says so.

        Args:
            n: take the first n of each problem; by default all, and all problems must have equally many.

        Raises:
            FlopwiseError: a column is absent, a value is not what it should be, or problems have unequal or
                too few samples.
        """
        from flopwise.infer.scoring import number_problems, read_answer, read_verdicts
        from flopwise.records.table import numbers, require

        for name in ("problem", "correct"):
            require(dict(table), name, "samples")
        columns = {name: np.asarray(values) for name, values in table.items()}
        problem, right = number_problems(columns["problem"]), read_verdicts(columns["correct"])
        counts = np.bincount(problem)
        least, most = int(counts.min()), int(counts.max())
        n = most if n is None else n
        if not 1 <= n <= least:
            raise FlopwiseError(
                f"samples: problems have {least} to {most} samples, {n} of each asked for; take {least}"
            )
        order = np.argsort(problem, kind="stable")
        rank = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
        places = order[rank < n].reshape(-1, n)

        def column(name: str, otherwise: float) -> np.ndarray:
            if name not in columns:
                return np.full(places.shape, otherwise)
            return numbers(columns, name, "samples")[places]

        unit = "FLOPs" if "flops" in columns else "tokens" if "tokens" in columns else "samples"
        costs = {"FLOPs": "flops", "tokens": "tokens", "samples": ""}[unit]
        names = [name for name in columns if name == "score" or name.startswith(SCORE)]
        given = columns["answer"] if "answer" in columns else np.full(len(problem), None)
        return cls(
            problems=[str(value) for value in columns["problem"][places[:, 0]]], correct=right[places],
            answers=[[read_answer(value) for value in row] for row in given[places].tolist()],
            logprob=column("logprob", np.nan), tokens=column("tokens", 1).astype(np.int64),
            finished=np.ones(places.shape, dtype=bool), prefill_flops=np.zeros(len(places)),
            decode_flops=column(costs, 1.0),
            scores={name.removeprefix(SCORE): column(name, np.nan) for name in names}, unit=unit,
        )  # fmt: skip


def _key(judge: str) -> str:
    return judge if judge == "reward" else f"{SCORE}{judge}"
