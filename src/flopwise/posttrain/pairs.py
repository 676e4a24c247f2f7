"""Feedback on a model's own answers, as rows that other tools read too: pairs and thumbs, one JSON a line.

`pairs.jsonl` has prompt, chosen, rejected; `thumbs.jsonl` prompt, completion, label. Both also name the
`problem` by its place among the training problems, so that rows of one problem can be kept together, and say
whether the token limit cut an answer (`cut`, `chosen_cut`, `rejected_cut`): no end belongs after such a one.
Learned from, it teaches a model to come to an end; left out, nothing keeps the model from rambling.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from flopwise.errors import FlopwiseError
from flopwise.flops.ledger import Ledger
from flopwise.flops.spend import Stopwatch
from flopwise.posttrain.bench import Bench, Progress, completion_ids, model_fields, verify_all

if TYPE_CHECKING:
    from flopwise.infer.local import LocalEngine
    from flopwise.posttrain.judge import Judge
    from flopwise.records.folder import RunFolder
    from flopwise.records.record import Metric

PAIRS_FILE, THUMBS_FILE = "pairs.jsonl", "thumbs.jsonl"
BLOCK = 512
"""Problems that are sampled together, with a seed of their own."""


@dataclass(frozen=True)
class Answers:
    """The distinct answers to one problem; `right` as the verifier says, None without one; `cut` where the
    token limit ended it, which is never right."""

    index: int
    problem: Any
    texts: list[str]
    right: list[bool] | None
    cut: list[bool]


class Sampling:
    """A step's answers, block by block, and what is counted of them."""

    def __init__(self, folder: RunFolder, parents: dict[str, RunFolder], progress: Progress):
        self.folder, self.parents, self.progress = folder, parents, progress
        self.watch, self.ledger = Stopwatch(), Ledger()
        self.bench = Bench.open(folder, parents)
        self.sampled = self.right = self.unfinished = 0

    def __iter__(self) -> Iterator[list[Answers]]:
        """Blocks of problems with their answers."""
        bench, spec = self.bench, self.bench.spec
        pool = bench.data.problems("rl")
        chosen = [(spec["first_problem"] + i) % len(pool) for i in range(min(spec["problems"], len(pool)))]
        for start in range(0, len(chosen), BLOCK):
            part = chosen[start : start + BLOCK]
            yield self._block([pool[i] for i in part], part, start)
            self.progress(min(0.99, (start + BLOCK) / len(chosen)))

    def _block(self, problems: list[Any], places: list[int], start: int) -> list[Answers]:
        bench, spec = self.bench, self.bench.spec
        seed = self.folder.seed * 1_000_003 + start
        batch = bench.sample(problems, spec["n"], seed, spec["temperature"], spec["max_tokens"])
        self.ledger.used("sample", self.parents["init"].id, batch.usage)
        texts = bench.tokenizer.decode_batch(completion_ids(batch, strip_stop=True))
        right = verify_all(bench.data, problems, batch) if bench.data.task else None
        self.sampled += len(texts)
        self.right += sum(right or [])
        self.unfinished += int((~batch.finished).sum())
        found: list[dict[str, tuple[bool, bool]]] = [{} for _ in problems]
        for row, (p, done) in enumerate(zip(batch.prompt_index.tolist(), batch.finished, strict=True)):
            if texts[row] and (done or spec["cut"] == "wrong"):
                found[p].setdefault(texts[row], (bool(right and right[row]), not done))
        return [
            Answers(place, problem, list(f), [r for r, _ in f.values()] if right else None,
                    [c for _, c in f.values()])
            for place, problem, f in zip(places, problems, found, strict=True)
        ]  # fmt: skip

    def finish(self, name: str, rows: list[dict[str, Any]], labels: list[bool], **extra: Any) -> None:
        """Write the rows and the record; `labels`: what was said is true, as far as a verifier can tell."""
        from flopwise.records.folder import atomic_write
        from flopwise.records.record import Metric

        folder, bench = self.folder, self.bench
        atomic_write(folder.path / name, "".join(json.dumps(row) + "\n" for row in rows))
        metrics = {
            "kept": Metric(value=len(rows), se=None, n=self.sampled),
            "unfinished": share(self.unfinished, self.sampled),
        }
        if bench.data.task:
            metrics["accept_rate"] = share(self.right, self.sampled)
            metrics["label_accuracy"] = share(sum(labels), len(labels))
        tokens = sum(row["tokens"] for row in self.ledger.rows())
        folder.finish(
            metrics=metrics, spend=self.watch.spend(self.ledger, tokens=tokens),
            model=model_fields(bench.model), extra=extra,
            data={"corpus": bench.data.task, "tokens_seen": 0, "tokens_unique": None, "modality": "text"},
        )  # fmt: skip

    def scores(self, answers: list[Answers]) -> list[np.ndarray]:
        """What the spec's `by` says of each problem's answers: the verifier and judges from 0 (bad) to 1, a
        reward model log-odds; models are not asked about an answer that was cut, which is worst."""
        by = self.bench.spec["by"]
        if by == "verifier":
            self.needs_task()
            return [np.array(a.right, dtype=float) for a in answers]
        if by == "judge":
            asked = [(a.problem, t) for a in answers for t in whole(a)]
            found, usage = self.judge.score([p for p, _ in asked], [t for _, t in asked])
            self.ledger.used("judge", self.judge.name, usage)
        else:
            found = self._rewards(answers)
        out = [np.full(len(a.texts), -np.inf) for a in answers]
        parts = np.split(found, np.cumsum([len(whole(a)) for a in answers])[:-1])
        for scores, part, a in zip(out, parts, answers, strict=True):
            scores[~np.array(a.cut, dtype=bool)] = part
        return out

    def _rewards(self, answers: list[Answers]) -> np.ndarray:
        prompts = self.bench.prompts([a.problem for a in answers])
        owners = [i for i, a in enumerate(answers) for _ in whole(a)]
        texts = self.bench.tokenizer.encode_batch([t for a in answers for t in whole(a)])
        end = closing_id(self.bench.data)
        sequences = [[*prompts[i], *text, end] for i, text in zip(owners, texts, strict=True)]
        start = time.perf_counter()
        found, flops = self._scorer.reward(sequences)
        tokens = sum(map(len, sequences))
        self.ledger.post("reward", self.parents["reward"].id, tokens, flops, time.perf_counter() - start)
        return np.asarray(found, dtype=float)

    @cached_property
    def _scorer(self) -> LocalEngine:
        from flopwise.infer.local import LocalEngine
        from flopwise.posttrain.bench import load_model

        return LocalEngine(load_model(self.parents["reward"]).eval())

    @cached_property
    def judge(self) -> Judge:
        """That of the role `judge`; what a server said is kept in the run's folder."""
        from flopwise.posttrain.judge import open_judge

        task = self.bench.data.open_task() if self.bench.data.task else None
        return open_judge(self.parents["judge"], task, self.folder.path / "judged")

    def needs_task(self) -> None:
        """Raise where nothing verifies answers."""
        if not self.bench.data.task:
            raise FlopwiseError(
                "by: verifier needs a task that verifies answers; these data have none: use judge or reward"
            )


def pairs_step(folder: RunFolder, parents: dict[str, RunFolder], progress: Progress) -> None:
    """Pairs from n answers of parent `init` to each problem, at most `per_problem`: `pairs.jsonl`.

    By the verifier a right answer stands before a wrong one, and a share `flip` of the pairs is turned over;
    by a reward model the best before the worst; a judge is shown two answers and names the better one.

    Raises:
        FlopwiseError: no problem has two answers that differ in worth.
    """
    sampling = Sampling(folder, parents, progress)
    spec, rng = folder.spec, np.random.default_rng((folder.seed, 31))
    rows: list[dict[str, Any]] = []
    true: list[bool] = []
    for answers in sampling:
        limit = spec["per_problem"]
        found = _compared(sampling, answers, limit, rng) if spec["by"] == "judge" else [
            pair_up(scores, limit, rng) for scores in sampling.scores(answers)
        ]  # fmt: skip
        for a, pairs in zip(answers, found, strict=True):
            for better, worse in pairs:
                if spec["flip"] and rng.random() < spec["flip"]:
                    better, worse = worse, better
                row = {"prompt": a.problem.prompt, "chosen": a.texts[better], "rejected": a.texts[worse]}
                cut = {"chosen_cut": a.cut[better], "rejected_cut": a.cut[worse]}
                rows.append(row | {"problem": a.index} | cut)
                if a.right is not None and a.right[better] != a.right[worse]:
                    true.append(a.right[better])
    if not rows:
        raise FlopwiseError(
            f"pairs: none of {spec['problems']} problems has a better and a worse answer among {spec['n']}; "
            "sample more of each, or start from a better model"
        )
    sampling.finish(PAIRS_FILE, rows, true)


def _compared(
    sampling: Sampling, answers: list[Answers], limit: int, rng: np.random.Generator
) -> list[list[tuple[int, int]]]:
    """Random pairs of each problem's answers, as a judge orders them; undecided ones are left out. One that
    was cut loses unasked."""
    drawn = []
    for i, a in enumerate(answers):
        order = rng.permutation(len(a.texts)).tolist()
        drawn += [(i, order[2 * k], order[2 * k + 1]) for k in range(min(limit, len(order) // 2))]
    asked = [(i, x, y) for i, x, y in drawn if not answers[i].cut[x] and not answers[i].cut[y]]
    chance, usage = sampling.judge.prefer(
        [answers[i].problem for i, _, _ in asked],
        [answers[i].texts[x] for i, x, _ in asked],
        [answers[i].texts[y] for i, _, y in asked],
    )
    sampling.ledger.used("judge", sampling.judge.name, usage)
    said = dict(zip(asked, chance.tolist(), strict=True))
    found: list[list[tuple[int, int]]] = [[] for _ in answers]
    for i, x, y in drawn:
        p = said.get((i, x, y), (1 + answers[i].cut[y] - answers[i].cut[x]) / 2)
        if p != 0.5:
            found[i].append((x, y) if p > 0.5 else (y, x))
    return found


def thumbs_step(folder: RunFolder, parents: dict[str, RunFolder], progress: Progress) -> None:
    """A thumb up or down for each distinct answer of parent `init`: `thumbs.jsonl`.

    With `flip`, the verifier errs on that share of the answers, always alike on the same one.

    Raises:
        FlopwiseError: all thumbs point the same way.
    """
    from flopwise.posttrain.judge import NoisyVerifier

    sampling = Sampling(folder, parents, progress)
    spec = folder.spec
    threshold = spec.get("threshold")
    if threshold is None:
        threshold = 0.0 if spec["by"] == "reward" else 0.5
    rows: list[dict[str, Any]] = []
    true: list[bool] = []
    for answers in sampling:
        if spec["flip"]:
            sampling.needs_task()
            noisy = NoisyVerifier(sampling.bench.data.open_task(), spec["flip"], folder.seed)
            scores = [
                np.where(a.cut, 0.0, noisy.score([a.problem] * len(a.texts), a.texts)[0]) for a in answers
            ]
        else:
            scores = sampling.scores(answers)
        for a, values in zip(answers, scores, strict=True):
            for i, text in enumerate(a.texts):
                up = bool(values[i] > threshold)
                row = {"prompt": a.problem.prompt, "completion": text, "label": up, "problem": a.index}
                rows.append(row | {"cut": a.cut[i]})
                if a.right is not None:
                    true.append(a.right[i] == up)
    ups = sum(row["label"] for row in rows)
    if ups in (0, len(rows)):
        raise FlopwiseError(
            f"thumbs: all {len(rows)} point {'up' if ups else 'down'}, there is nothing to tell apart; "
            "sample easier or harder problems, or set threshold"
        )
    sampling.finish(THUMBS_FILE, rows, true, up=ups / len(rows))


def whole(answers: Answers) -> list[str]:
    """Those that were not cut."""
    return [text for text, cut in zip(answers.texts, answers.cut, strict=True) if not cut]


def closing_id(data: Any) -> int:
    """The token after an answer: the end of an assistant's turn in a chat, else the end of the text."""
    return int(getattr(data, "stop_ids", [data.eos_id])[-1])


def share(part: int, whole: int) -> Metric:
    """A share with its standard error."""
    from flopwise.records.record import Metric

    p = part / whole if whole else 0.0
    return Metric(value=p, se=math.sqrt(p * (1 - p) / whole) if whole else None, n=whole)


def pair_up(scores: np.ndarray, limit: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """The best answer with the worst, the second best with the second worst, ..., while their scores differ;
    ties in random order.

    >>> pair_up(np.array([0.0, 2.0, 1.0, 2.0, 1.0]), 3, np.random.default_rng(0))
    [(3, 0), (1, 4)]
    """
    order = rng.permutation(len(scores))
    order = order[np.argsort(-scores[order], kind="stable")]
    return [
        (int(order[i]), int(order[-1 - i]))
        for i in range(min(limit, len(order) // 2))
        if scores[order[i]] > scores[order[-1 - i]]
    ]
