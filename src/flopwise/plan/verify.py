"""A plan held to its word: what it predicted beside what was measured, at its recommendation and beside it.

A plan that was kept (`flopwise plan --out`) names its predictions. Records to check them by come from a table
of runs, or are made: three runs of a ladder recipe, at the recommended size and tokens and at two neighbours.
Folders of a finished experiment hold checks of their own, made by its verify step (`pretrain.verify`) or its
plan step (`plan.step`); these are read as they are.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flopwise.errors import FlopwiseError, one_line

if TYPE_CHECKING:
    from flopwise.launch.recipe import LadderRecipe
    from flopwise.laws.result import Fit

WITHIN = 0.02
"""A record is of the predicted place if no variable differs by more than this share."""
NEARBY = 0.5
"""So far off, a record tests a prediction that the law makes anew; farther off it is of something else."""
LEVEL = 0.9
"""Of a fit's intervals, where predictions are made anew."""
WIDTHS = 8
"""Widths that models are made in are multiples of this."""


@dataclass(frozen=True)
class Check:
    """A prediction and, where there is a record of it, what was measured there.

    `role`: "recommended", "neighbour" or what a folder's own check calls it; `runs`: how many were averaged.
    """

    role: str
    what: str
    at: dict[str, float]
    predicted: float
    low: float
    high: float
    level: float
    measured: float | None = None
    runs: int = 0
    inside: bool | None = None
    relative_error: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Verification:
    """All checks, and the verdict in a sentence."""

    checks: list[Check]
    verdict: str
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return asdict(self)


def read_plan(path: str | Path) -> list[Check]:
    """Predictions of a kept plan, its recommendation first, nothing measured yet.

    Raises:
        FlopwiseError: no such file, no plan, or one without predictions.
    """
    who, how = f"verify: {path}", "keep a plan with: flopwise plan FIT --out plan.json"
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FlopwiseError(f"{who} does not exist; {how}") from None
    except (OSError, ValueError, RecursionError) as e:
        raise FlopwiseError(f"{who} cannot be read as JSON ({type(e).__name__})") from e
    if not isinstance(content, dict) or not content.get("predictions"):
        raise FlopwiseError(f"{who} names no predictions; {how}")
    try:
        return [
            _prediction(role, entry)
            for role, key in (("recommended", "predictions"), ("neighbour", "neighbours"))
            for entry in content.get(key) or []
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        why = f"{type(e).__name__}: {one_line(e, 60)}"
        raise FlopwiseError(f"{who}: a prediction lacks its parts ({why})") from e


def _prediction(role: str, entry: Mapping[str, Any]) -> Check:
    value, low, high = (float(entry[k]) for k in ("value", "low", "high"))
    at = {str(n): float(v) for n, v in entry["at"].items()}
    if not np.isfinite([value, *at.values()]).all() or not low <= value <= high:
        raise ValueError(f"{entry['what']}: {value:g} from {low:g} to {high:g}")
    return Check(role, str(entry["what"]), at, value, low, high, float(entry.get("level", LEVEL)))


def verify(
    plan: str | Path | list[Check], runs: Any, fit: Fit | None = None, within: float = WITHIN
) -> Verification:
    """Compare a plan's predictions with measured runs.

    Args:
        plan: a kept plan's file, or its predictions.
        runs: table with the predictions' variables and what they predict; a folder of runs too, held-out ones
            included.
        fit: the law, to predict anew at the nearest record, where none is within but one is `NEARBY`.
        within: share that a variable of a record may differ by from the place of the prediction.

    Raises:
        FlopwiseError: the plan or the table cannot be read, or a column is missing.
    """
    from flopwise.records.table import numbers, read_table

    if not 0 < within < 1:
        raise FlopwiseError(f"verify: within is {within}, must be between 0 and 1, as {WITHIN}")
    wanted = read_plan(plan) if isinstance(plan, str | Path) else plan
    table = read_table(runs, held_out=True)
    out = []
    for check in wanted:
        measured = numbers(table, check.what, "verify: runs")
        off = np.zeros(len(measured))
        for name, value in check.at.items():
            if name not in table and value == 1.0 and name == "k":
                continue  # one sample is what is measured where nothing is said of samples
            column = numbers(table, name, "verify: runs")
            away = np.abs(column / value - 1) if value else np.abs(column)
            off = np.maximum(off, away)
        near = off <= within
        if near.any():
            out.append(_checked(check, measured[near], ""))
            continue
        i = int(np.argmin(off))
        if fit is None or off[i] > NEARBY:
            anew = f"; --fit predicts anew up to {NEARBY:.0%} off" if fit is None else ""
            note = f"no run within {within:.0%}; the nearest is {off[i]:.0%} off{anew}"
            out.append(Check(**{**asdict(check), "note": note}))
            continue
        at = {n: float(numbers(table, n, "verify: runs")[i]) for n in fit.form.variables}
        made = fit.predict(level=check.level, **at)
        said = (float(made.value), float(made.low), float(made.high))
        again = Check(check.role, check.what, at, *said, check.level)
        same = np.all([numbers(table, n, "verify: runs") == v for n, v in at.items()], axis=0)
        out.append(_checked(again, measured[same], f"predicted anew, {off[i]:.0%} from the plan's place"))
    return Verification(out, _verdict(out))


def _checked(check: Check, measured: np.ndarray, note: str) -> Check:
    value = float(measured.mean())
    return Check(
        check.role, check.what, check.at, check.predicted, check.low, check.high, check.level, value,
        len(measured), check.low <= value <= check.high,
        check.predicted / value - 1 if value else None, note,
    )  # fmt: skip


def _verdict(checks: list[Check]) -> str:
    """Whether the plan kept its word, and whether its recommendation was the best of what was measured."""
    seen = [c for c in checks if c.measured is not None]
    if not seen:
        return f"nothing to verify by: no record of any of {len(checks)} predictions"
    inside = sum(bool(c.inside) for c in seen)
    out = f"{inside} of {len(seen)} measured inside the predicted {seen[0].level:.0%} interval"
    if len(seen) < len(checks):
        out += f"; {len(checks) - len(seen)} not measured"
    best = next((c for c in seen if c.role == "recommended"), None)
    rivals = [c for c in seen if c.role == "neighbour" and best is not None and c.what == best.what]
    if best is not None and rivals:
        lower = best.what in ("loss", "error")
        values = [c.measured for c in rivals if c.measured is not None]
        edge = min(values) if lower else max(values)
        assert best.measured is not None
        ahead = best.measured <= edge if lower else best.measured >= edge
        gap = abs(best.measured - edge)
        how = "at least as good as" if ahead else "worse than"
        out += f"; the recommendation is {how} its best neighbour, by {gap:.3g} {best.what}"
    return out


def from_runs(folder: str | Path) -> Verification:
    """The checks that a finished experiment's own steps made.

    Raises:
        FlopwiseError: there are none in the folder.
    """
    from flopwise.records.folder import RunFolder
    from flopwise.records.store import RunStore

    root, checks = Path(folder), []
    for record in RunStore(root).records():
        if record.status != "done":
            continue
        path = RunFolder(root / record.id).path
        for name, read in (("verification.json", _of_ladder), ("plan.json", _of_demo)):
            if (path / name).is_file():
                checks += read(json.loads((path / name).read_bytes()))
    if not checks:
        raise FlopwiseError(
            f"verify: no step in {root} has checked a prediction; give a plan and its runs: flopwise verify "
            f"plan.json --runs {root}"
        )
    return Verification(checks, _verdict(checks))


def _of_ladder(rows: Any) -> list[Check]:
    """Of verification.json (`pretrain.verify`), at its 90% interval."""
    return [
        Check(
            str(r["name"]), str(r["target"]), {"C_ratio": float(r["C_ratio"])}, float(r["predicted"]),
            float(r["low90"]), float(r["high90"]), 0.9, float(r["measured"]), 1, bool(r["inside90"]),
            float(r["relative_error"]), f"{r['law']}, {r['run']}",
        )
        for r in rows
        if math.isfinite(float(r["measured"]))
    ]  # fmt: skip


def _of_demo(content: Any) -> list[Check]:
    """Of a plan step's plan.json (`plan.step`), at its 95% interval."""
    found = content.get("verification") or {} if isinstance(content, dict) else {}
    return [
        Check(
            "joint law", f"pass@{p['k']}", {n: float((found | p)[n]) for n in ("N", "D", "k")},
            float(p["predicted"]), float(p["low"]), float(p["high"]), 0.95, float(p["measured"]), 1,
            bool(p["inside"]), float(p["predicted"]) / float(p["measured"]) - 1 if p["measured"] else None,
        )
        for p in found.get("points", [])
    ]  # fmt: skip


def run_recipe(plan: list[Check], recipe: LadderRecipe) -> dict[str, Any]:
    """The recipe that measures a plan's predictions: the given one with a variant for each, nothing else.

    Widths are the nearest that models are made in; tokens are rounded to whole steps.

    Raises:
        FlopwiseError: predictions that are not of the loss at N and D alone, or a size no width comes near.
    """
    content = recipe.model_dump(mode="json", exclude_unset=True)
    ladder = {k: v for k, v in content["ladder"].items() if k not in ("isoflop", "per_parameter", "held_out")}
    variants: dict[str, Any] = {}
    for i, check in enumerate(plan):
        if not {"N", "D"} <= set(check.at) or check.what != "loss" or check.at.get("k", 1.0) != 1.0:
            raise FlopwiseError(
                f"verify: a ladder measures the loss at N and D, and the plan predicts {check.what} at "
                f"{', '.join(check.at)}; measure it yourself and give --runs TABLE"
            )
        width = _width(recipe, check.at["N"])
        step = recipe.ladder.batch_size * recipe.ladder.seq_len
        tokens = max(round(check.at["D"] / step), 1) * step
        name = "recommended" if i == 0 else f"neighbour-{i}"
        variants[name] = {"widths": [width], "budgets": [tokens]}
    first = variants["recommended"]
    ladder |= {"widths": first["widths"], "budgets": first["budgets"], "extra_seeds": {}}
    return content | {"ladder": ladder, "variants": variants, "laws": []}


def _width(recipe: LadderRecipe, N: float) -> int:
    """The width whose non-embedding parameters are nearest to N."""
    from flopwise.flops.count import count_params

    ladder = recipe.ladder
    model = ladder.model.model_dump()

    def size(width: int) -> float:
        cfg = ladder.rule_set.config(
            width, recipe.data.tokenizer.vocab_size, ladder.context, ladder.depth, **model
        )
        return float(count_params(cfg).non_embedding)

    width = WIDTHS
    while size(width + WIDTHS) < N:
        width += WIDTHS
        if width > 65_536:
            raise FlopwiseError(f"verify: N = {N:.3g} is beyond what one machine's ladder makes")
    best = min((width, width + WIDTHS), key=lambda w: abs(math.log(size(w) / N)))
    if abs(math.log(size(best) / N)) > math.log(1.5):
        raise FlopwiseError(
            f"verify: no width of this recipe has about N = {N:.3g} parameters, the nearest {size(best):.3g}"
        )
    return best
