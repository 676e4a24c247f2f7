"""From a folder of runs to one dict of results: all the report says, and `results.json`.

Keys of the results (missing numbers are null; each section's `missing` says in sentences what and why):

- `schema` (1), `kind` ("laws": all three; "ladder": pretraining alone; "posttrain": law 2 alone),
  `folder`, `made` (ISO time), `problems` (files that could not be read).
- `overview`: runs `done`, `failed`, `unfinished`; `total_flops` of all finished runs, and its parts
  `train_flops`, `generate_flops`, `score_flops`; `worker_seconds` (sum of the runs' wall time),
  `span_seconds` (first start to last end), `devices`, `versions`, `by_kind` (kind, runs, total_flops,
  worker_seconds).
- `headline`: `answer` (sentence or null), `expects`, `findings` (law, text, good: true, false or null).
- `pretraining`: `points` (N non-embedding parameters, D tokens, C measured training FLOPs of the lineage,
  loss in nats per token, se over documents), `prediction` (as written before the held-out run),
  `held_out` (the run, predicted, inside, relative_error of the prediction, written_before in seconds),
  `candidates` (back-tests), `chosen`, `reasons`, `fit` (params, intervals, warnings), `curves` (value,
  low and high of single runs, mean_low and mean_high of the law), `seed_noise`.
- `posttraining`: `methods` (start, accuracy, se, gain and gain_se paired over problems, spend, control,
  versus and versus_se against the control, verdict: beats, loses, even, unknown or no control; pass_at_1,
  pass_at_16 and their changes; curve of validation accuracy), `rl` (the sigmoid law, or the reasons for
  refusing it), `reward_models`.
- `testtime`: `models` with many samples and `others`: `curves` by strategy (n, flops per question, value,
  low, high, se), `coverage` (forecast from the first samples, beside what all measured), `examples`;
  `best` is the id of the model with the most coverage.
- `exchange`, `plan`, `verification`: the plan step's, as it wrote them; `joint`: the joint law's.
- `whatif`: laws as graphs with draws of their parameters, costs and where sliders begin; null without.
- `family`: `trees` (nested: id, name, kind, own_flops, lineage_flops, n_params, loss, accuracy,
  children), `bases` (each base against the sum of what was made from it).
- `data`: the data step's account: corpora with licences, problem sets, contamination; `sources`: every
  corpus with modality, tokens, near-duplicates removed and bytes per token.
- `ladders`: one entry per law fitted to a ladder: name, law, formula, target, `points` (rows of the fit's
  table, `y` the target, `predicted` and `residual` of the fit), `variants`, `curves` (by variant and size,
  over D and C), fit, candidates, chosen, `predictions` as written, `verification` (beside what was measured),
  `comparison` (factor of compute that a variant saves, with its interval), notes.
- `methods`: of an experiment of law 2, `entries` (every policy over its seeds: greedy, pass_at_1 and
  pass_at_16 with standard errors over problems and seeds, `change` from its start and `versus` its control,
  paired; spend, `beyond_flops` of all it was made from but its start; alarm; curves), `others` (scorers,
  data), `laws`, `overoptimised` (true and learned reward against sqrt KL).
- `comparisons`: of strategies at test time, `entries` (model, task, `greedy`, `strategies` with their
  points: n, value, low, high, and flops, tokens and seconds of a question; `frontier`, `searches` against
  best-of-n for the same FLOPs, `savings`, `examples`), `laws` (thinking, crossover).
- `rungs`: `points`, every measured run with its losses by corpus; `seed_noise`. `isoflop`: by variant,
  budgets with parabola and minimum, exponents of N* and D* in C. `tuning`: searches over the rates.
- `savings`: training FLOPs `spent` on branched trunks, of the same runs made apart (`separate`) and of the
  plain `grid`. `experts`: share of the tokens of each expert, by run and layer.
- `runs`: one row per run: id, name, kind, method, status, reason, seed, flops, train_flops, six_nd,
  seconds, lineage_flops.

"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flopwise.flops.spend import Spend
from flopwise.records.family import NOT_MODELS
from flopwise.records.record import RunRecord
from flopwise.report.family import collect_family, family_headline
from flopwise.report.headline import headline
from flopwise.report.ladder import collect_ladders, is_ladder
from flopwise.report.ladder_headline import ladder_headline
from flopwise.report.ladder_isoflop import collect_isoflop
from flopwise.report.ladder_rungs import (
    collect_experts,
    collect_rungs,
    collect_savings,
    collect_sources,
)
from flopwise.report.ladder_tuning import collect_tuning
from flopwise.report.law1 import collect_pretraining
from flopwise.report.law2 import collect_posttraining
from flopwise.report.law3 import collect_testtime
from flopwise.report.posttraining import collect_experiment, is_posttraining
from flopwise.report.posttraining_headline import posttraining_headline
from flopwise.report.runs import MISSHAPEN, Runs, clean, misshapen, number
from flopwise.report.testtime import collect_comparisons
from flopwise.report.whatif import collect_whatif

SCHEMA = 1
TELL: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "laws": headline, "ladder": ladder_headline, "posttrain": posttraining_headline,
    "family": family_headline,
}  # fmt: skip
"""What comes first, by kind of experiment."""
_NO_SAVINGS: dict[str, Any] = {"spent": None, "by_variant": []}
_EMPTY_RUNGS: dict[str, Any] = {
    "points": [], "variants": [], "measure": None, "corpora": [], "seed_noise": [], "noise": None,
    "missing": [],
}  # fmt: skip


def collect(folder: str | Path) -> dict[str, Any]:
    """All results of a folder of runs; what is missing is said, not guessed.

    Raises:
        FlopwiseError: there is no such folder, or no run in it.
    """
    runs = Runs(Path(folder))
    results: dict[str, Any] = {
        "schema": SCHEMA,
        "kind": _kind(runs),
        "folder": Path(folder).resolve().name,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "overview": _overview(runs),
    }
    if results["kind"] == "family":
        family = _section("The family tree", collect_family, runs)
        return _told(results | {"family": family, "data": _data(runs), "runs": _rows(runs)}, runs)
    results |= {
        "pretraining": _section("Pretraining", collect_pretraining, runs),
        "posttraining": _section("Post-training", collect_posttraining, runs),
        "testtime": _section("Test time", collect_testtime, runs),
        **_plan(runs),
        "family": _section("The family tree", collect_family, runs),
        "data": _data(runs) | {"sources": collect_sources(runs)},
        **_ladder(runs),
        "runs": _rows(runs),
    }
    if results["kind"] == "posttrain":
        empty: dict[str, Any] = {"entries": [], "others": [], "laws": [], "overoptimised": []}
        results["methods"] = empty | _section("The methods", collect_experiment, runs)
        none: dict[str, Any] = {"entries": [], "findings": [], "laws": []}
        results["comparisons"] = none | _section("The comparisons", collect_comparisons, runs)
    if results["kind"] == "laws":
        results["whatif"] = _maybe(collect_whatif, runs, results)
    return _told(results, runs)


def _maybe(tell: Callable[..., dict[str, Any] | None], runs: Runs, *rest: Any) -> dict[str, Any] | None:
    """A part that a page can do without: None if a file has an unexpected shape."""
    try:
        return tell(runs, *rest)
    except MISSHAPEN:
        return None


MANY = 1000
"""A folder of more models than this is no experiment that can be told method by method: its report is that
of the family."""


def _kind(runs: Runs) -> str:
    """What the folder holds: the kind of its report."""
    if sum(r.kind not in NOT_MODELS for r in runs.done.values()) > MANY:
        return "family"
    return "posttrain" if is_posttraining(runs) else "ladder" if is_ladder(runs) else "laws"


def _told(results: dict[str, Any], runs: Runs) -> dict[str, Any]:
    """The results with what comes first and what could not be read."""
    tell = TELL[results["kind"]]
    results["headline"] = {"answer": None, "expects": None, "findings": []}
    results["headline"] |= _section("The headline", tell, results)
    results["problems"] = runs.problems
    return clean(results)


def _section(what: str, tell: Callable[[Any], dict[str, Any]], source: Any) -> dict[str, Any]:
    """A section's results, or in its place why it cannot be told."""
    try:
        return tell(source)
    except MISSHAPEN as e:
        return misshapen(what, e)


def _list(tell: Callable[..., list[dict[str, Any]]], runs: Runs, *rest: Any) -> list[dict[str, Any]]:
    """A section that is a list; if a file has an unexpected shape, empty, and told among the problems."""
    try:
        return tell(runs, *rest)
    except MISSHAPEN as e:
        runs.problems += misshapen(tell.__name__.removeprefix("collect_"), e)["missing"]
        return []


def _ladder(runs: Runs) -> dict[str, Any]:
    """The parts that tell of a ladder."""
    rungs = _EMPTY_RUNGS | _section("The rungs", collect_rungs, runs)
    points = rungs["points"]
    return {
        "ladders": collect_ladders(runs),
        "rungs": rungs,
        "isoflop": _list(collect_isoflop, runs, points),
        "savings": _NO_SAVINGS
        | _section("What branching saved", lambda found: collect_savings(runs, found), points),
        "experts": _list(collect_experts, runs),
        "tuning": collect_tuning(runs),
    }


def _overview(runs: Runs) -> dict[str, Any]:
    done = list(runs.done.values())
    total = sum((r.spend for r in done), Spend())
    kinds: dict[str, list[RunRecord]] = {}
    for r in done:
        kinds.setdefault(r.kind, []).append(r)
    versions: dict[str, str] = {}
    for r in done:
        versions |= r.versions
    return {
        "done": len(done),
        "failed": len(runs.failed),
        "unfinished": len(runs.unfinished),
        **{
            f"{part}_flops": getattr(total, f"{part}_flops")
            for part in ("total", "train", "generate", "score")
        },
        "worker_seconds": total.wall_s,
        "span_seconds": _span(done),
        "devices": sorted({r.spend.device for r in done if r.spend.device}),
        "versions": versions,
        "by_kind": [
            {
                "kind": kind,
                "runs": len(group),
                "total_flops": sum(r.spend.total_flops for r in group),
                "worker_seconds": sum(r.spend.wall_s or 0.0 for r in group),
            }
            for kind, group in kinds.items()
        ],
    }


def _span(records: list[RunRecord]) -> float | None:
    """Seconds from the first start to the last end; None if some run's times are unknown."""
    try:
        ends = [datetime.fromisoformat(r.created or "").timestamp() for r in records]
        starts = [end - (r.spend.wall_s or 0.0) for end, r in zip(ends, records, strict=True)]
    except ValueError:
        return None
    return max(ends) - min(starts) if ends else None


def _plan(runs: Runs) -> dict[str, Any]:
    """What the plan step and the joint law's step left."""
    step = next(reversed(runs.find("plan")), None)
    content = runs.json(step, "plan.json") if step else None
    content = content if isinstance(content, dict) else {}
    missing = [] if content else [runs.why("plan", "The plan")]
    joint_step = next(reversed(runs.find("fit", "testtime_law")), None)
    joint = runs.json(joint_step, "joint.json") if joint_step else None
    fitted = _dict(runs.json(joint_step, "fit.json")) if joint_step else {}
    fitted = {key: value for key, value in fitted.items() if key not in ("covariance", "samples")}
    exchange, plan = _dict(content.get("exchange")), _dict(content.get("plan"))
    verification = _dict(content.get("verification"))
    return {
        "exchange": exchange | {"missing": missing if not exchange else []},
        "plan": plan | {"missing": missing if not plan else []},
        "verification": verification | {"missing": missing if not verification.get("points") else []},
        "joint": joint | {"fit": fitted} if isinstance(joint, dict) else None,
    }


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _data(runs: Runs) -> dict[str, Any]:
    step = next(reversed(runs.find("data")), None)
    about = runs.json(step, "about.json") if step else None
    if not isinstance(about, dict):
        return {"missing": [runs.why("data", "The account of the data")]}
    return about | {"missing": []}


def _rows(runs: Runs) -> list[dict[str, Any]]:
    """All runs, oldest first; failed and unfinished ones last."""
    rows = [
        {
            "id": r.id,
            "name": r.name,
            "kind": r.kind,
            "method": r.method,
            "status": r.status,
            "reason": r.reason,
            "seed": r.seed,
            "flops": r.spend.total_flops,
            "train_flops": r.spend.train_flops,
            "six_nd": _six_nd(r),
            "seconds": r.spend.wall_s,
            "lineage_flops": r.lineage_spend.total_flops,
            "created": r.created,
            "peak_bytes": r.spend.peak_bytes,
        }
        for r in [*runs.done.values(), *runs.failed.values()]
    ]
    for row in rows:
        if row["status"] != "done":
            # A failed run's spend was not recorded: unknown, not nothing.
            row |= dict.fromkeys(("flops", "train_flops", "six_nd", "seconds", "lineage_flops"))
    rows += [
        {
            "id": f.id,
            "name": f.name,
            "kind": f.kind,
            "method": f.method,
            "status": "unfinished",
            "seed": f.seed,
        }
        for f in runs.unfinished
    ]
    return rows


def _six_nd(record: RunRecord) -> float | None:
    """6 N D in non-embedding parameters, beside a run's counted training; None where it trained nothing."""
    given = number(record.extra.get("six_nd"))
    if given is not None or not record.spend.train_flops:
        return given
    N = number((record.model or {}).get("n_params_non_embedding"))
    D = number((record.data or {}).get("tokens_seen"))
    return 6.0 * N * D if N and D else None
