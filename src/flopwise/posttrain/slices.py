"""Slices of a task: where a model is weakest, and what each gained or lost from one model to the next."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from flopwise.errors import FlopwiseError
from flopwise.flops.ledger import Ledger
from flopwise.flops.spend import Stopwatch
from flopwise.posttrain.bench import Bench, Progress, load_model, model_fields

if TYPE_CHECKING:
    from flopwise.models.transformer import Transformer
    from flopwise.records.folder import RunFolder

SLICES_FILE = "slices.json"
LEAST = 20
"""Problems of a slice under which nothing is said about it."""


def weak_step(folder: RunFolder, parents: dict[str, RunFolder], progress: Progress) -> None:
    """Find the slices in which parent `init` is weaker than in all others together, on validation problems.

    Greedy answers; one-sided exact test (Fisher) of each slice against the rest, the p-values corrected for
    their number (Holm, Scand. J. Stat. 6 (1979) 65); 95% intervals that hold for all slices together. The
    weakest slice of many looks weaker than it is: `compare_step` measures on other problems.

    Raises:
        FlopwiseError: fewer than two slices have enough problems.
    """
    from flopwise.records.record import Metric

    watch, ledger = Stopwatch(), Ledger()
    bench = Bench.open(folder, parents)
    problems = by_slice(bench, "val", bench.spec["problems_per_slice"])
    if len(problems) < 2:
        raise FlopwiseError(
            f"weak-slices: {len(problems)} slice(s) of {bench.asked.task} have {LEAST} validation problems "
            "or more, two are needed; set data.slice_problems, so that each slice has some"
        )
    right: dict[str, np.ndarray] = {}
    for i, (name, asked) in enumerate(problems.items(), 1):
        right[name] = answers(bench, bench.model, parents["init"].id, asked, 0, ledger)[0].astype(bool)
        progress(0.95 * i / len(problems))
    rows = weakness({name: (int(r.sum()), len(r)) for name, r in right.items()}, bench.spec["alpha"])
    _write(folder, rows)
    folder.finish(
        metrics={
            "n_weak": Metric(value=sum(row["weak"] for row in rows), n=len(rows)),
            **{
                f"greedy_{row['slice']}": Metric(
                    value=row["accuracy"], n=row["n"],
                    se=math.sqrt(row["accuracy"] * (1 - row["accuracy"]) / row["n"]),
                )
                for row in rows
            },
        },
        spend=watch.spend(ledger),
        model=model_fields(bench.model),
        data={"corpus": bench.asked.task, "tokens_seen": 0, "tokens_unique": None, "modality": "text"},
        extra={"weak": [row["slice"] for row in rows if row["weak"]]},
    )  # fmt: skip


def compare_step(folder: RunFolder, parents: dict[str, RunFolder], progress: Progress) -> None:
    """What each slice gained or lost from model `before` to model `after`, on the same test problems.

    Both answer greedily and n times; differences are taken problem by problem, so what is hard for both
    cancels. Standard errors are over problems; the intervals hold for all slices together (Bonferroni).
    Evaluation is shown in the ledger and is no part of the spend.
    """
    from flopwise.records.record import Metric

    watch, ledger = Stopwatch(), Ledger()
    bench = Bench.open(folder, parents, role="before")
    models = {"before": bench.model, "after": load_model(parents["after"])}
    problems = by_slice(bench, "test", bench.spec["problems_per_slice"])
    if not problems:
        raise FlopwiseError(
            f"compare-slices: no slice of {bench.asked.task} has {LEAST} test problems; set "
            "data.slice_problems"
        )
    found: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = {}
    for i, (name, asked) in enumerate(problems.items(), 1):
        found[name] = {
            role: answers(bench, model, parents[role].id, asked, bench.spec["n"], ledger, "evaluate")
            for role, model in models.items()
        }
        progress(0.95 * i / len(problems))
    rows: list[dict[str, Any]] = []
    metrics = {}
    for name, pair in found.items():
        row: dict[str, Any] = {"slice": name, "n": len(problems[name])}
        for k, measure in enumerate(("greedy", "pass_at_1")):
            row[measure] = paired(pair["before"][k], pair["after"][k], len(found))
            gain = row[measure]
            metrics[f"{measure}_gain_{name}"] = Metric(value=gain["gain"], se=gain["se"], n=row["n"])
        rows.append(row)
    _write(folder, rows)
    folder.finish(
        metrics=metrics,
        spend=watch.spend(ledger),
        model=model_fields(models["after"]),
        data={"corpus": bench.asked.task, "tokens_seen": 0, "tokens_unique": None, "modality": "text"},
        extra={"slices": rows},
    )  # fmt: skip


def by_slice(bench: Bench, split: str, at_most: int) -> dict[str, list[Any]]:
    """Held-out problems of each slice with at least `LEAST` of them: of the slice's own set, where the data
    have one (`val_rare`), and those of the general set."""
    task, sets = bench.asked.open_task(), bench.asked.about.get("problems", {})
    found: dict[str, list[Any]] = {}
    for name in sets:
        if name.startswith(f"{split}_"):
            found.setdefault(name.removeprefix(f"{split}_"), []).extend(bench.problems(name))
    for problem in bench.problems(split):
        found.setdefault(task.slice_of(problem), []).append(problem)
    return {name: part[:at_most] for name, part in sorted(found.items()) if len(part) >= LEAST}


def answers(
    bench: Bench, model: Transformer, model_id: str, problems: Sequence[Any], n: int, ledger: Ledger,
    kind: str = "sample",
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Whether the greedy answer to each problem is right [P], and the right share of n samples [P]."""
    asked = list(problems)
    greedy = bench.sample(asked, 1, 0, 0.0, bench.spec["max_tokens"], model=model)
    ledger.used(kind, model_id, greedy.usage)
    right = bench.verify(asked, greedy).astype(float)
    if not n:
        return right, np.zeros(len(asked))
    seed = bench.folder.seed * 1_000_003 + 61
    samples = bench.sample(asked, n, seed, 1.0, bench.spec["max_tokens"], model=model)
    ledger.used(kind, model_id, samples.usage)
    return right, bench.verify(asked, samples).reshape(len(asked), n).mean(1)


def weakness(counts: dict[str, tuple[int, int]], alpha: float = 0.05) -> list[dict[str, Any]]:
    """Slices with (right, of how many), weakest first: accuracy, interval, p-value as it is and corrected.

    `low` and `high` are Wilson's interval (J. Am. Stat. Assoc. 22 (1927) 209) at a level that covers all
    slices together with 1 - alpha; `weak` are those whose corrected p-value is below alpha.

    >>> rows = weakness({"common": (160, 400), "rare": (4, 400)})
    >>> [(row["slice"], row["accuracy"], row["weak"]) for row in rows]
    [('rare', 0.01, True), ('common', 0.4, False)]
    """
    from scipy.stats import hypergeom, norm

    total_right, total = (sum(c[i] for c in counts.values()) for i in (0, 1))
    z = float(norm.ppf(1 - alpha / 2 / len(counts)))
    rows: list[dict[str, Any]] = []
    for name, (right, n) in counts.items():
        low, high = _wilson(right, n, z)
        p = float(hypergeom.cdf(right, total, total_right, n))
        rows.append(
            {"slice": name, "n": n, "right": right, "accuracy": right / n, "low": low, "high": high, "p": p}
        )
    corrected = 0.0
    for i, row in enumerate(sorted(rows, key=lambda r: r["p"])):
        corrected = max(corrected, min(1.0, (len(rows) - i) * row["p"]))
        row |= {"p_corrected": corrected, "weak": corrected < alpha}
    return sorted(rows, key=lambda r: r["accuracy"])


def _wilson(right: int, n: int, z: float) -> tuple[float, float]:
    p, w = right / n, z * z / n
    middle = (p + w / 2) / (1 + w)
    half = math.sqrt(p * (1 - p) * w + w * w / 4) / (1 + w)
    return max(0.0, middle - half), min(1.0, middle + half)


def paired(before: np.ndarray, after: np.ndarray, comparisons: int = 1) -> dict[str, float]:
    """Means [P] before and after, the mean difference with its standard error, and its 95% interval, wide
    enough to hold for so many comparisons together.

    >>> paired(np.array([0.0, 0.0, 1.0, 0.0]), np.array([1.0, 0.0, 1.0, 1.0]))["gain"]
    0.5
    """
    from scipy.stats import norm

    apart = after - before
    se = float(apart.std(ddof=1) / math.sqrt(len(apart)))
    gain, z = float(apart.mean()), float(norm.ppf(1 - 0.025 / comparisons))
    return {
        "before": float(before.mean()), "after": float(after.mean()), "gain": gain, "se": se,
        "low": gain - z * se, "high": gain + z * se,
    }  # fmt: skip


def read_slices(folder: RunFolder) -> list[dict[str, Any]]:
    """What `weak_step` or `compare_step` found, a row for each slice.

    Raises:
        FlopwiseError: the run found nothing of the kind.
    """
    try:
        rows: list[dict[str, Any]] = json.loads((folder.path / SLICES_FILE).read_bytes())
        return rows
    except (OSError, ValueError):
        raise FlopwiseError(
            f"run {folder.id} ({folder.name or folder.method}) has no slices; give a run of weak-slices"
        ) from None


def _write(folder: RunFolder, rows: list[dict[str, Any]]) -> None:
    from flopwise.records.folder import atomic_write

    atomic_write(folder.path / SLICES_FILE, json.dumps(rows, indent=1) + "\n")
