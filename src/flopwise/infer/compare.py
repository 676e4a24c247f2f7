"""Strategies beside each other: accuracy, FLOPs, tokens and seconds a question at n = 1, 2, 4, ...

Strategies that choose replay from one set of samples; those that act are run once for each budget. All see
the same problems, so differences are paired. What a strategy costs includes prefill and its judge.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flopwise.errors import FlopwiseError
from flopwise.infer.estimators import mean_interval, paired
from flopwise.infer.evaluate import EXAMPLES_FILE, SAMPLES_FILE, metric, powers_of_two
from flopwise.infer.samples import Samples
from flopwise.infer.scorers import need
from flopwise.infer.strategies import Acting, Choosing, Outcome, make_all
from flopwise.infer.strategies.base import plain

if TYPE_CHECKING:
    from flopwise.infer.room import Room
    from flopwise.records.folder import RunFolder
    from flopwise.records.record import Metric

COMPARISON_FILE, SPENT_FILE = "comparison.json", "spent.json"
GREEDY = "greedy"
SHOWN_STEPS = 60
"""Of a trace in the file of examples."""


@dataclass(frozen=True)
class Point:
    """A strategy with a budget of n samples: accuracy with its 95% interval over problems, what a question
    costs on average, and the paired difference to the comparison's first strategy with the same budget.

    `flops` is None where nobody knows the model. `frontier`: nothing cheaper is as accurate.
    """

    n: int
    value: float
    low: float | None
    high: float | None
    se: float | None
    flops: float | None
    tokens: float
    seconds: float | None
    abstained: float | None = None
    """Share of problems left without an answer, where it was counted."""
    difference: dict[str, float | None] | None = None
    frontier: bool = False

    @property
    def cost(self) -> float:
        """FLOPs, or tokens where they are not known."""
        return self.tokens if self.flops is None else self.flops


@dataclass(frozen=True)
class Curve:
    """A strategy's points, smallest budget first; `values` [points, P] are chances to be right."""

    name: str
    by: str | None
    points: list[Point]
    values: np.ndarray = field(repr=False)
    acts: bool = False


@dataclass(frozen=True)
class Comparison:
    """Curves in the order asked for, the samples they replay from, and examples of what acting ones did."""

    curves: list[Curve]
    greedy: Point
    samples: Samples
    examples: list[dict[str, Any]] = field(default_factory=list)

    @property
    def unit(self) -> str:
        """Of costs: FLOPs, or tokens behind a server."""
        return "FLOPs" if self.greedy.flops is not None else "tokens"

    @property
    def frontier(self) -> list[dict[str, Any]]:
        """The points that nothing cheaper matches, cheapest first."""
        found = [(c.name, p) for c in self.curves for p in c.points if p.frontier]
        return [
            {"name": name, "n": p.n, "value": p.value, "flops": p.flops, "tokens": p.tokens}
            for name, p in sorted(found, key=lambda f: f[1].cost)
        ]

    def at_equal_cost(self) -> list[dict[str, Any]]:
        """At what each budget of the first strategy costs: the most accurate point that each can afford."""
        rows = []
        for anchor in self.curves[0].points:
            by = {}
            for c in self.curves:
                within = [p for p in c.points if p.cost <= anchor.cost * (1 + 1e-9)]
                if within:
                    best = max(within, key=lambda p: p.value)
                    by[c.name] = {"n": best.n, "value": best.value}
            rows.append({"cost": anchor.cost, "best": max(by, key=lambda name: by[name]["value"]), "by": by})
        return rows

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {
            "strategies": [
                {"name": c.name, "by": c.by, "acts": c.acts, "points": [asdict(p) for p in c.points]}
                for c in self.curves
            ],
            "frontier": self.frontier,
            "equal_cost": self.at_equal_cost(),
            "greedy": asdict(self.greedy),
            "unit": self.unit,
            "n_problems": self.samples.P,
        }


def compare(
    room: Room, strategies: Sequence[Choosing | Acting], n: int, seed: int = 0,
    on_progress: Callable[[float], None] | None = None, keep: Path | None = None, shown: int = 2,
) -> Comparison:  # fmt: skip
    """Every strategy at budgets of 1, 2, 4, ... and n samples, on the room's problems.

    Args:
        room: fresh; nothing is counted in it.
        keep: folder in which samples and the runs of acting strategies are kept, and read if they are there.
        shown: problems whose traces by acting strategies are kept as examples.

    Raises:
        FlopwiseError: no strategy, n below 1, a judge that is not in the room.
    """
    if not strategies or n < 1:
        raise FlopwiseError(f"compare: {len(strategies)} strategies and n={n}, must be at least one each")
    sizes = sorted({*powers_of_two(n), n})
    acting = [s for s in strategies if not isinstance(s, Choosing)]
    for s in strategies:
        for name in _judges(s):
            need(room.scorers, name.partition("_")[0], s.name)
    share = 1 / (1 + len(acting))
    report = on_progress or (lambda f: None)
    samples, spent = _samples(room, strategies, n, seed, partial(_part, report, share, 0), keep)
    found: list[Curve] = []
    examples: list[dict[str, Any]] = []
    for s in strategies:
        if isinstance(s, Choosing):
            found.append(_chosen(s, samples, sizes, spent))
        else:
            part = partial(_part, report, share, acting.index(s) + 1)
            curve, some = _acted(room, s, sizes, seed, part, keep, shown)
            found.append(curve)
            examples += some
    one = _greedy(samples, spent)
    return Comparison(_with_frontier(_with_differences(found)), one, samples, examples)


def _part(report: Callable[[float], None], share: float, before: int, done: float) -> None:
    """Progress of one of several parts that count alike."""
    report(share * (before + done))


def _judges(s: Choosing | Acting) -> list[str]:
    return ([s.judge] if s.judge else []) if isinstance(s, Choosing) else list(s.judges)


def _samples(
    room: Room, strategies: Sequence[Choosing | Acting], n: int, seed: int, report: Callable[[float], None],
    keep: Path | None,
) -> tuple[Samples, dict[str, float]]:  # fmt: skip
    """Samples with greedy answers and every score that is needed; seconds per sample in each part, and
    seconds and tokens of a greedy answer."""
    choosing = [s for s in strategies if isinstance(s, Choosing)]
    scores = [name for s in choosing for name in _judges(s)]
    if keep is not None and (keep / SAMPLES_FILE).is_file() and (keep / SPENT_FILE).is_file():
        return Samples.load(keep / SAMPLES_FILE), json.loads((keep / SPENT_FILE).read_bytes())
    first, work = room.fresh(), room.fresh()
    greedy = first.samples(1, temperature=0.0)
    sampling = any(s.temperature is None for s in choosing)
    samples = work.samples(n, seed, scores, on_progress=report) if sampling else greedy
    samples = replace(samples, greedy=greedy.correct[:, 0], greedy_flops=greedy.cost(1))
    spent = {name: seconds / samples.correct.size for name, seconds in work.clock.items()}
    spent |= {"greedy": first.clock["sample"] / samples.P, "greedy_tokens": float(greedy.tokens.mean())}
    if keep is not None:
        from flopwise.records.folder import atomic_write

        samples.save(keep / SAMPLES_FILE)
        atomic_write(keep / SPENT_FILE, json.dumps(spent))
    return samples, spent


def _chosen(s: Choosing, samples: Samples, sizes: Sequence[int], spent: dict[str, float]) -> Curve:
    known = samples.unit == "FLOPs"
    by = getattr(s, "by", None)
    if s.temperature == 0:
        return Curve(s.name, by, [_greedy(samples, spent)], s.replay(samples, 1)[None])
    each = spent["sample"] + (spent.get(s.judge.partition("_")[0], 0.0) if s.judge else 0.0)
    rows, points = [], []
    for k in sizes:
        values = s.replay(samples, k)
        cost = float(samples.cost(k, s.judge).mean()) if known else None
        points.append(_point(k, values, cost, k * float(samples.tokens.mean()), k * each))
        rows.append(values)
    return Curve(s.name, by, points, np.stack(rows))


def _greedy(samples: Samples, spent: dict[str, float]) -> Point:
    assert samples.greedy is not None and samples.greedy_flops is not None
    flops = float(samples.greedy_flops.mean()) if samples.unit == "FLOPs" else None
    return _point(1, samples.greedy.astype(float), flops, spent["greedy_tokens"], spent["greedy"])


def _acted(
    room: Room, s: Acting, sizes: Sequence[int], seed: int, report: Callable[[float], None],
    keep: Path | None, shown: int,
) -> tuple[Curve, list[dict[str, Any]]]:  # fmt: skip
    rows, points, examples = [], [], []
    for i, k in enumerate(sizes):
        values, cost, tokens, seconds, silent, some = _run(room, s, k, seed, keep, shown)
        point = _point(k, values, None if room.cfg is None else cost, tokens, seconds)
        points.append(replace(point, abstained=silent))
        rows.append(values)
        examples += some
        report((i + 1) / len(sizes))
    return Curve(s.name, getattr(s, "by", None), points, np.stack(rows), acts=True), examples


def _run(
    room: Room, s: Acting, k: int, seed: int, keep: Path | None, shown: int
) -> tuple[np.ndarray, float, float, float, float, list[dict[str, Any]]]:
    """One budget: right or wrong [P]; mean FLOPs, tokens, seconds; share without answer; examples."""
    import hashlib

    kept = None
    if keep is not None:
        kept = keep / f"acted-{hashlib.sha256(f'{s.name} {k}'.encode()).hexdigest()[:16]}.npz"
        if kept.is_file():
            with np.load(kept, allow_pickle=False) as file:
                numbers, values = file["numbers"].tolist(), file["values"]
                return values, *numbers, json.loads(file["examples"].tobytes())  # type: ignore[return-value]
    work = room.fresh()
    outcomes = s.run(work, list(range(len(room.problems))), k, seed)
    chosen = [o.chosen for o in outcomes]
    values = np.array([c is not None and bool(c.correct) for c in chosen], dtype=float)
    cost = float(np.mean([sum(o.flops.values()) for o in outcomes]))
    tokens = float(np.mean([o.tokens for o in outcomes]))
    silent = float(np.mean([c is None or c.answer is None for c in chosen]))
    some = [_example(room, p, s.name, k, o) for p, o in enumerate(outcomes[:shown])]
    numbers = [cost, tokens, work.seconds / len(outcomes), silent]
    if kept is not None:
        from flopwise.records.folder import atomic_write

        buffer = io.BytesIO()
        text = np.frombuffer(json.dumps(some).encode(), dtype=np.uint8)
        np.savez_compressed(buffer, values=values, numbers=np.array(numbers), examples=text)
        atomic_write(kept, buffer.getvalue())
    return values, *numbers, some  # type: ignore[return-value]


def _example(room: Room, p: int, name: str, k: int, o: Outcome) -> dict[str, Any]:
    best, problem = o.chosen, room.problems[p]
    return {
        "prompt": problem.prompt, "strategy": name, "n": k,
        "completion": "" if best is None else best.text, "correct": bool(best is not None and best.correct),
        "steps": [] if best is None else [vars(step) for step in room.task.steps(best.text, problem)],
        "trace": plain(o.trace[:SHOWN_STEPS]), "trace_steps": len(o.trace),
    }  # fmt: skip


def _point(n: int, values: np.ndarray, flops: float | None, tokens: float, seconds: float | None) -> Point:
    m = mean_interval(values)
    assert m["value"] is not None
    return Point(n, m["value"], m["low"], m["high"], m["se"], flops, tokens, seconds)


def _with_differences(curves: list[Curve]) -> list[Curve]:
    """Each point's accuracy minus the first strategy's with the same budget, or with its largest below."""
    first = curves[0]
    out = [first]
    for c in curves[1:]:
        points = []
        for point, row in zip(c.points, c.values, strict=True):
            place = max((i for i, p in enumerate(first.points) if p.n <= point.n), default=0)
            d = paired(first.values[place], row, True)
            if d["value"] is not None:
                value, half = float(d["value"]), _half(len(row)) * float(d["se"])
                # What is nothing but rounding is 0.
                value, low, high = (round(v, 12) + 0.0 for v in (value, value - half, value + half))
                point = replace(
                    point, difference={"value": value, "low": low, "high": high, "se": float(d["se"])}
                )
            points.append(point)
        out.append(replace(c, points=points))
    return out


def _half(n: int) -> float:
    from scipy import stats

    return float(stats.t.ppf(0.975, n - 1))


def _with_frontier(curves: list[Curve]) -> list[Curve]:
    """Mark the points that are more accurate than all that cost no more."""
    every = sorted(
        ((c, i) for c, curve in enumerate(curves) for i in range(len(curve.points))),
        key=lambda at: (curves[at[0]].points[at[1]].cost, -curves[at[0]].points[at[1]].value),
    )
    best, marked = -1.0, set()
    for c, i in every:
        if curves[c].points[i].value > best:
            best = curves[c].points[i].value
            marked.add((c, i))
    return [
        replace(curve, points=[replace(p, frontier=(c, i) in marked) for i, p in enumerate(curve.points)])
        for c, curve in enumerate(curves)
    ]


def write(folder: Path, comparison: Comparison, about: dict[str, Any] | None = None) -> None:
    """comparison.json, samples.npz (`infer.samples`) and, of acting strategies, examples.json."""
    from flopwise.records.folder import atomic_write

    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / COMPARISON_FILE, json.dumps(comparison.to_dict() | (about or {}), indent=1))
    if comparison.examples:
        atomic_write(folder / EXAMPLES_FILE, json.dumps(comparison.examples, indent=1))
    rows = {f"curve_{c.name}": c.values for c in comparison.curves}
    comparison.samples.save(folder / SAMPLES_FILE, **rows)


def run_step(folder: RunFolder, parents: dict[str, RunFolder], progress: Callable[[float], None]) -> None:
    """Compare strategies on parent `model`, with the scorers of parents `reward` and `process` where given,
    on the problems of parent `data`; a step that was stopped goes on with the strategies that are left."""
    from flopwise.data.prepare import PreparedData
    from flopwise.flops.spend import Stopwatch
    from flopwise.infer.opening import Setting, open_model, open_room
    from flopwise.posttrain.bench import model_fields

    watch, spec = Stopwatch(), folder.spec
    data = PreparedData(parents["data"].path)
    setting = Setting(
        style=spec.get("style", "plain"), shots=spec.get("shots", 4), temperature=spec["temperature"],
        max_tokens=spec["max_tokens"], precision=spec.get("precision", "float32"),
        reward=parents["reward"].path if "reward" in parents else None,
        process=parents["process"].path if "process" in parents else None,
    )  # fmt: skip
    strategies = make_all(",".join(spec["strategies"]))
    opened = open_model(parents["model"].path, setting, strategies)
    problems = data.problems(spec["split"])[: spec["problems"]]
    room = open_room(opened, data.open_task(), problems, setting)
    found = compare(room, strategies, spec["n"], folder.seed, progress, folder.path)
    about = {"task": data.task, "style": room.asked.style, "temperature": room.temperature, "n": spec["n"]}
    write(folder.path, found, about)
    for part in (*folder.path.glob("acted-*.npz"), folder.path / SPENT_FILE):
        part.unlink(missing_ok=True)
    samples = found.samples
    acted = sum(p.flops or 0.0 for c in found.curves if c.acts for p in c.points) * samples.P
    chosen = float((samples.prefill_flops + samples.decode_flops.sum(axis=1)).sum())
    assert samples.greedy_flops is not None
    judges = {id(flops): flops for flops in samples.score_flops.values()}
    folder.finish(
        metrics=_metrics(found),
        spend=watch.spend(
            generate_flops=acted + chosen + float(samples.greedy_flops.sum()),
            score_flops=float(sum(flops.sum() for flops in judges.values())),
        ),
        model=model_fields(opened.engine.model),  # type: ignore[attr-defined]
        data={"corpus": data.task, "tokens_seen": 0, "tokens_unique": None, "modality": "text"},
        extra={"frontier": found.frontier, "strategies": [c.name for c in found.curves]},
    )  # fmt: skip


def _metrics(found: Comparison) -> dict[str, Metric]:
    """Greedy, and every strategy at its largest budget."""
    assert found.samples.greedy is not None
    rows = {GREEDY: metric(found.samples.greedy.astype(float))}
    for c in found.curves:
        if c.name != GREEDY:
            name = "".join(letter if letter.isalnum() else "_" for letter in c.name)
            rows[f"{name}_at_{c.points[-1].n}"] = metric(c.values[-1])
    return rows
