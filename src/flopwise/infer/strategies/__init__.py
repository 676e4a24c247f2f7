"""Ways to turn a question and compute into one answer, one file each.

A name on the command line is NAME, NAME:BY for one with a judge, or NAME:key=value:key=value; several are
separated by commas.
"""

from __future__ import annotations

from dataclasses import fields
from importlib import import_module
from typing import Any, get_type_hints

from flopwise.errors import FlopwiseError, one_line
from flopwise.infer.strategies.base import (
    Acting,
    Candidate,
    Choice,
    Choosing,
    Outcome,
    TraceStep,
    trace_of,
)

__all__ = [
    "REGISTRY", "Acting", "Candidate", "Choice", "Choosing", "Outcome", "TraceStep", "describe",
    "make", "make_all", "trace_of",
]  # fmt: skip

REGISTRY: dict[str, tuple[str, str]] = {
    "greedy": ("greedy:Greedy", "one sample of the likeliest tokens"),
    "self_consistency": ("self_consistency:SelfConsistency", "the answer that most samples give"),
    "best_of_n": ("best_of_n:BestOfN", "the sample that a judge scores highest"),
    "weighted": ("weighted:Weighted", "the answer whose samples' scores by a judge sum to most"),
    "beam": ("beam:Beam", "beam search: the steps of highest value go on in several ways"),
    "dvts": ("dvts:Dvts", "several narrow beams that do not compete (diverse verifier tree search)"),
    "lookahead": ("lookahead:Lookahead", "beam search by the value of what comes of a step"),
    "rebase": ("rebase:Rebase", "steps go on in as many ways as their value's share of the budget"),
    "mcts": ("mcts:Mcts", "Monte Carlo tree search with values of steps"),
    "particle": ("particle:Particle", "steps drawn anew by their values' odds (particle filtering)"),
    "revise": ("revise:Revise", "answers one after the other, each with those before it in view"),
    "refine": ("refine:Refine", "an answer criticised and written again from its first wrong step"),
    "mixed": ("mixed:Mixed", "several chains of revisions side by side"),
    "budget": ("budget:Budget", "one trace forced to think longer, or cut short with an answer"),
    "adaptive": ("adaptive:Adaptive", "samples until a rule has seen enough, each prompt by itself"),
}
"""By name: MODULE:CLASS within this package, a frozen dataclass, and one line about it."""


def make(text: str) -> Choosing | Acting:
    """A strategy as it is written on the command line.

    >>> make("best_of_n:reward").name
    'best_of_n:reward'

    Raises:
        FlopwiseError: there is none of that name, it has no such setting, or a value is out of range.
    """
    name, *settings = text.strip().split(":")
    if name not in REGISTRY:
        raise FlopwiseError(f"strategy is {one_line(name, 40)!r}, must be one of {', '.join(REGISTRY)}")
    module, _, cls = REGISTRY[name][0].partition(":")
    made = getattr(import_module(f"{__name__}.{module}"), cls)
    types = get_type_hints(made)
    known = {f.name: types[f.name] for f in fields(made)}
    given: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            key, value = "by", setting
        if key not in known:
            has = ", ".join(known) if known else "none"
            raise FlopwiseError(f"{name}: there is no setting {one_line(setting, 40)!r}; it has {has}")
        given[key] = _typed(value, known[key], f"{name}:{key}")
    found: Choosing | Acting = made(**given)
    return found


def make_all(text: str) -> list[Choosing | Acting]:
    """Strategies separated by commas, each once.

    Raises:
        FlopwiseError: none is named, or one as in `make`.
    """
    found = {s.name: s for part in text.split(",") if part.strip() for s in [make(part)]}
    if not found:
        raise FlopwiseError(f"strategy is {one_line(text, 40)!r}, must name one of {', '.join(REGISTRY)}")
    return list(found.values())


def describe() -> list[dict[str, Any]]:
    """Every strategy: name, what it is, whether it chooses or acts, settings with their defaults."""
    rows = []
    for name, (_, about) in REGISTRY.items():
        made: Any = make(name)
        settings = {f.name: getattr(made, f.name) for f in fields(made)}
        kind = "chooses" if isinstance(made, Choosing) else "acts"
        rows.append({"name": name, "about": about, "kind": kind, "settings": settings})
    return rows


def _typed(text: str, wanted: Any, where: str) -> Any:
    """A setting's value as its dataclass field declares it."""
    kinds = {int: "a whole number", float: "a number", bool: "true or false", str: "a name"}
    options = [t for t in getattr(wanted, "__args__", (wanted,)) if t in kinds] or [str]
    for kind in options:
        try:
            if kind is bool:
                return {"true": True, "false": False}[text.lower()]
            return kind(text)
        except (ValueError, KeyError):
            continue
    raise FlopwiseError(f"{where} is {one_line(text, 40)!r}, must be {kinds[options[0]]}")
