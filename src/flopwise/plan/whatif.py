"""Fitted laws and draws of their parameters as JSON that a page can compute plans from, with nothing to
fetch.

A law goes as the graph of its formula, nested lists that begin with an operation;
`report/templates/whatif.js` walks them. Text of a law is never code there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from flopwise.errors import FlopwiseError
from flopwise.laws.expression import FUNCTIONS, Node
from flopwise.plan.response import Response, responses

if TYPE_CHECKING:
    from flopwise.laws import Fit

DRAWS = 40
"""Parameter sets behind the intervals of the sliders."""
UNSAID = ("trigamma", "tetragamma", "digamma", "unbend", "below", "sign")
"""Operations of derivatives and of forms that the page does not compute."""


def tree(node: Node) -> Any:
    """A graph as nested lists: a number, ["name", text], ["sum", number, term, factor, ...],
    ["product", number, factor, power, ...] or [function, argument, ...].

    Raises:
        FlopwiseError: an operation that the page does not compute.
    """
    if node.op == "const":
        return float(node.args[0])
    if node.op == "name":
        return ["name", node.args[0]]
    if node.op in ("sum", "product"):
        pairs = zip(node.args[1::2], node.args[2::2], strict=True)
        return [node.op, float(node.args[0]), *(v for a, e in pairs for v in (tree(a), float(e)))]
    if node.op not in FUNCTIONS or node.op in UNSAID:
        raise FlopwiseError(f"what-if: {node.op} is not computed in a page")
    return [node.op, *(tree(a) for a in node.args)]


def whatif(
    fits: Sequence[Fit], budget: float, queries: float, prompt_tokens: float, answer_tokens: float,
    samples_max: float, train_cost: float = 6.0, answer_cost: float = 2.0, seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """What the sliders need: the law (or chain of two) with its draws, where they begin, what a point costs.

    Raises:
        FlopwiseError: no law in N and D, a law without a formula, or values that are no numbers above 0.
    """
    response = responses(fits)[0]
    given = {
        "budget": budget, "queries": queries, "answer_tokens": answer_tokens, "samples_max": samples_max,
        "train_cost": train_cost, "answer_cost": answer_cost,
    }  # fmt: skip
    for name, value in given.items():
        if not (np.isfinite(value) and value > 0):
            raise FlopwiseError(f"what-if: {name} is {value}, must be a number above 0")
    return {
        "law": response.name, "metric": response.metric, "rises": response.rises,
        "variables": sorted(response.variables), "steps": _steps(response), "draws": _draws(response, seed),
        "ranges": {name: list(map(float, ends)) for name, ends in response.ranges.items()},
        "span": [_end(v) for v in response.fit.form.span],
        "prompt_tokens": float(prompt_tokens), **{name: float(v) for name, v in given.items()},
    }  # fmt: skip


def _steps(response: Response) -> list[dict[str, Any]]:
    """One law after the other: what it gives, from which graph, with which best parameters."""
    out = []
    for f in (response.inner, response.fit):
        if f is None:
            continue
        if f.form.function is not None:
            raise FlopwiseError(f"what-if: {f.law} has no formula that a page could compute")
        target = "loss" if f is response.inner else response.metric
        out.append({"target": target, "tree": tree(f.form.parsed.node), "params": dict(f.params)})
    return out


def _draws(response: Response, seed: int) -> list[list[dict[str, float]]]:
    """For each step `DRAWS` sets of parameters."""
    found = response.draws(DRAWS, seed)
    return [[{name: float(v[i, 0]) for name, v in step.items()} for i in range(DRAWS)] for step in found]


def _end(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
