"""The page's sliders: laws and draws of an experiment's own fits, beginning at its own plan."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from flopwise.errors import FlopwiseError
from flopwise.report.runs import Runs, number

SPAN = 3.0
"""Decades that a slider reaches to either side."""
SAMPLES = 64.0
"""Most samples where the sliders begin; they reach 16 times as far."""


def collect_whatif(runs: Runs, results: dict[str, Any]) -> dict[str, Any] | None:
    """What the sliders compute from; None where the experiment left no law of accuracy, or no plan to begin
    at.

    FLOPs per parameter and token are the middle of what the ladder's runs and the sampled models took.
    """
    from flopwise.laws.saving import from_dict
    from flopwise.plan.whatif import whatif

    plan = results["plan"]
    budget, questions = number(plan.get("budget_flops")), number(plan.get("questions"))
    law = next(reversed(runs.find("fit", "pretraining_law")), None)
    joint = next(reversed(runs.find("fit", "testtime_law")), None)
    costs = _costs(results)
    if not (budget and questions and law and joint and costs):
        return None
    train, prompt, answer = costs
    try:
        fits = [from_dict(runs.json(record, "fit.json")) for record in (law, joint)]
        content = whatif(fits, budget, questions, prompt, answer, SAMPLES, train_cost=train)
    except (FlopwiseError, ValueError, KeyError, TypeError, IndexError, AttributeError):
        return None  # a fit that is missing or damaged is told of where it is shown
    return content | {"sliders": {
        "budget": _slider(budget), "queries": _slider(questions),
        "samples": [0.0, math.log2(16 * SAMPLES), math.log2(SAMPLES)],
    }}  # fmt: skip


def _slider(value: float) -> list[float]:
    """Ends and beginning, as logarithms."""
    middle = round(math.log10(value), 2)
    return [round(middle - SPAN, 2), round(middle + SPAN, 2), middle]


def _costs(results: dict[str, Any]) -> tuple[float, float, float] | None:
    """FLOPs per parameter and token trained; a question and an answer in tokens at 2 FLOPs per parameter."""
    trained = [
        p["C"] / (p["N"] * p["D"])
        for p in results["pretraining"].get("points", [])
        if all(number(p.get(name)) for name in ("C", "N", "D"))
    ]
    models = [*results["testtime"].get("models", []), *results["testtime"].get("others", [])]
    asked = [
        (m["prefill_flops"] / m["n_params"] / 2, m["flops_per_sample"] / m["n_params"] / 2)
        for m in models
        if all(number(m.get(name)) for name in ("prefill_flops", "flops_per_sample", "n_params"))
    ]
    if not trained or not asked:
        return None
    prompt, answer = np.median(np.array(asked), axis=0)
    return float(np.median(trained)), float(prompt), float(answer)
