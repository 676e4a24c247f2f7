"""The law of a ladder: chosen on its own largest rung, then asked about a run nobody has made."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from flopwise.errors import FlopwiseError, one_line
from flopwise.pretrain.mistuned import mistuned
from flopwise.pretrain.observations import columns, gather

if TYPE_CHECKING:
    from flopwise.laws.comparing import Choice
    from flopwise.pretrain.noise import Noise
    from flopwise.pretrain.tuning import Tuning
    from flopwise.records.folder import RunFolder
    from flopwise.records.record import Metric

LEVELS = {"": 0.95, "90": 0.90}
"""Of the intervals that a prediction is written down with, by the ending of their keys."""

AT_BOUND = "at_bound"
"""Status of a fit with a parameter at the end of its range."""
FEWEST = 4
"""Sizes that a fit must keep: the largest and three to predict it from."""
LOSS_FORMS = ("chinchilla", "coupled", "broken")
"""Compete to predict the loss that a law of accuracy needs."""


def run_step(folder: RunFolder, parents: dict[str, RunFolder], progress: Callable[[float], None]) -> None:
    """Answer the question of `spec` (`launch.ladder_sections.LawEntry`) with the finished runs.

    Leaves points.json, and by method: choice.json, fit.json and prediction.json, written before the held-out
    run is made (`fit`); isoflop.json; comparison.json; notes.json with sentences.
    """
    from flopwise.flops.spend import Stopwatch
    from flopwise.pretrain import advantage, bookkeeping, mixed, rate_laws
    from flopwise.pretrain.tuning import read as read_tuning
    from flopwise.records.folder import atomic_write

    watch = Stopwatch()
    spec = folder.spec
    tuned = read_tuning(parents["tuning"].path) if "tuning" in parents else None
    rows = gather(run for role, run in parents.items() if role != "tuning")
    progress(0.1)
    ask = {
        "isoflop": bookkeeping.answer,
        "factor": advantage.answer,
        "rates": rate_laws.answer,
        "mixed": mixed.answer,
    }
    files, metrics = ask.get(spec["method"], _fit)(rows, spec, folder.seed, tuned)
    for name, content in {"points.json": rows, **files}.items():
        atomic_write(folder.path / name, json.dumps(content, indent=1, default=float))
    folder.finish(metrics=metrics, spend=watch.spend(tokens=0), extra={"law": spec["name"]})


def _fit(
    rows: list[dict[str, Any]], spec: dict[str, Any], seed: int, tuned: Tuning | None
) -> tuple[dict[str, Any], dict[str, Metric]]:
    """Fit every candidate, choose by back-test, predict the held-out runs in writing."""
    from flopwise.pretrain.noise import carry, seed_noise
    from flopwise.records.record import Metric

    table = renamed(columns(rows), spec["columns"])
    choice, table, left_out = choose_range(table, spec, seed)
    noise = seed_noise(table) if spec["target"] == "loss" else None
    if noise is not None:
        choice = replace(choice, fit=carry(choice.fit, noise))
    notes = left_out + _notes(table, choice, noise, tuned, spec["target"])
    files: dict[str, Any] = {
        "fit.json": choice.fit.to_dict(), "choice.json": choice.to_dict(), "notes.json": notes
    }  # fmt: skip
    metrics = {
        f"param_{name}": Metric(value=float(value), se=None, n=choice.fit.n_clusters)
        for name, value in choice.fit.params.items()
    }
    largest = float(table["C"].max())
    first_step = None
    if "loss" in choice.fit.form.variables and spec["target"] != "loss":
        first_step, *_ = choose_range(table, spec | {"candidates": LOSS_FORMS, "target": "loss"}, seed)
        notes.append(f"the loss of a run not yet made is {first_step.fit.law}'s prediction")
    made = [_prediction(choice, held, spec, largest, first_step) for held in spec["held_out"]]
    if made:
        files["prediction.json"] = made[0] | {"others": made[1:]}
        first = made[0]
        metrics |= {
            "predicted_loss": Metric(
                value=first["value"], se=(first["high"] - first["low"]) / 2 / 1.96, n=len(rows)
            ),
            "predicted_low": Metric(value=first["low"], se=None, n=None),
            "predicted_high": Metric(value=first["high"], se=None, n=None),
        }
    return files, metrics


def choose_range(
    table: dict[str, Any], spec: dict[str, Any], seed: int
) -> tuple[Choice, dict[str, Any], list[str]]:
    """The form, and from which size on: the smallest may bend away from the law of the others.

    The smallest sizes are left out, one by one, as long as the largest is then predicted better by a tenth
    (as a form with more parameters must) and three smaller ones remain to predict it from. Returns the
    choice, the table it is fitted to, and what was left out in a sentence.
    """
    from flopwise.laws import choose
    from flopwise.laws.comparing import SIMPLER

    def tried(rows: dict[str, Any]) -> Choice:
        found = choose(
            rows, spec["candidates"], target=spec["target"], cluster="run", by=spec["by"], seed=seed
        )
        again = found.among(lambda made: made.status != AT_BOUND)
        if found.fit.status != AT_BOUND or again is None:
            return found
        # A floor of zero is no floor of anything: the form that ends there bends too little beyond the data.
        note = f"{found.fit.law} errs least, but ends at a bound; a form that does not is preferred"
        return replace(again, reasons=[note, *again.reasons])

    choice, words = tried(table), []
    while spec["leave_out"] and len(sizes := np.unique(table["N"])) > FEWEST:
        fewer = {name: values[table["N"] > sizes[0]] for name, values in table.items()}
        try:
            other = tried(fewer)
        except FlopwiseError:
            break
        if not other.fit.misfit < SIMPLER * choice.fit.misfit:
            break
        words.append(
            f"the size of N = {sizes[0]:,.0f} is left out: without it the back-test on the largest errs by "
            f"{other.fit.misfit:.2%} instead of {choice.fit.misfit:.2%}"
        )
        choice, table = other, fewer
    return choice, table, words


def _prediction(
    choice: Choice, held: dict[str, Any], spec: dict[str, Any], largest: float, first_step: Choice | None
) -> dict[str, Any]:
    """What the chosen law says of a run not yet made; `first_step` predicts a loss that it depends on."""
    values = renamed(held, spec["columns"])
    out = {
        **held, "law": choice.fit.law, "target": spec["target"], "level": LEVELS[""], "made_at": time.time(),
        "C_ratio": held["C"] / largest,
    }  # fmt: skip
    for ending, level in LEVELS.items():
        low, high = 0.0, 0.0
        if first_step is not None:
            loss = first_step.fit.predict(level=level, **_at(first_step, held))
            values |= {"loss": float(loss.value)}
        made = choice.fit.predict(level=level, **_at(choice, values))
        if first_step is not None:
            # What the loss may be off by, through the second step's slope.
            ends = [
                float(choice.fit.predict(level=level, **_at(choice, values | {"loss": float(end)})).value)
                for end in (loss.low, loss.high)
            ]
            low, high = min(ends) - float(made.value), max(ends) - float(made.value)
        out |= {
            f"low{ending}": float(made.value) - math.hypot(float(made.value) - float(made.low), low),
            f"high{ending}": float(made.value) + math.hypot(float(made.high) - float(made.value), high),
        }
        if not ending:
            out |= {"value": float(made.value), "extrapolation": float(made.extrapolation)}
    return out


def _at(choice: Choice, values: dict[str, Any]) -> dict[str, float]:
    return {name: float(values[name]) for name in choice.fit.form.variables}


def renamed(table: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """The table with `names` (variable of a law: column) in the place of what bears the variable's name.

    Other counts of parameters are left out: with them a fit would ask which is meant.

    Raises:
        FlopwiseError: there is no such column.
    """
    for variable, column in names.items():
        if column not in table:
            known = ", ".join(sorted(k for k in table if k not in ("id", "run", "variant")))
            raise FlopwiseError(f"law: column {column!r:.40} for {variable} is not there; there are {known}")
    other_counts = {"N_active", "N_total", "N_embedding", "N_flops"} - set(names.values())
    kept = {name: values for name, values in table.items() if name not in other_counts}
    return kept | {variable: table[column] for variable, column in names.items()}


def _notes(
    table: dict[str, Any], choice: Choice, noise: Noise | None, tuned: Tuning | None, target: str
) -> list[str]:
    """What a reader should know of the table and the fit."""
    notes = [one_line(text, 300) for text in choice.fit.warnings]
    if noise is not None:
        notes.append(noise.words)
    if choice.fit.form.target == "loss":
        notes += mistuned(table, choice.fit, tuned, target=target)
    trunks, places = np.unique(table["run"]), set(zip(table["N"], table["D"], strict=True))
    notes.append(
        f"{len(table['run'])} points of {len(trunks)} trunks, {len(places)} sizes and budgets; points of one "
        "trunk count as one cluster"
    )
    return notes
