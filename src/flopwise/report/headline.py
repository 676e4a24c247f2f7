"""The first thing a reader sees: where the next FLOP should go, and one line per law."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flopwise.report.format import digits, percent, percent_range, plain, ratio, rounded
from flopwise.report.runs import MISSHAPEN, number


def headline(results: dict[str, Any]) -> dict[str, Any]:
    """`answer`, `expects` and `findings`, in plain sentences; each finding says whether it is good news."""
    answer, expects = _answer(results["plan"])
    sections = (("pretraining", _law1), ("posttraining", _law2), ("testtime", _law3))
    findings = [_finding(law, tell, results[name]) for law, (name, tell) in enumerate(sections, 1)]
    return {"answer": answer, "expects": expects, "findings": findings}


def _finding(law: int, tell: Callable[..., dict[str, Any]], section: dict[str, Any]) -> dict[str, Any]:
    """A law's line; where its section cannot be told, why."""
    try:
        return tell(section)
    except MISSHAPEN:
        return {"law": law, "good": None, "text": " ".join(section.get("missing", []))}


def _answer(plan: dict[str, Any]) -> tuple[str | None, str | None]:
    best = plan.get("checkable") or plan.get("uncheckable")
    if not isinstance(best, dict) or not best.get("how"):
        return None, None
    budget, questions = plan.get("budget_flops"), plan.get("questions")
    expects = (
        f"With {rounded(budget, 'FLOP')} for training and for {rounded(questions)} questions, it expects "
        f"{percent_range(best.get('accuracy'), best.get('low'), best.get('high'))} of them right"
    )
    other = plan.get("uncheckable")
    if plan.get("checkable") and isinstance(other, dict) and other.get("how") and other != best:
        share = percent_range(other.get("accuracy"), other.get("low"), other.get("high"))
        expects += f"; where answers cannot be checked, {share}"
    return str(best["how"]), expects + "."


def _law1(section: dict[str, Any]) -> dict[str, Any]:
    held, p = section["held_out"], section["prediction"]
    if not p or number(p.get("value")) is None:
        return {"law": 1, "good": None, "text": "No prediction: " + " ".join(section["missing"])}
    interval = f"{plain(p['value'])} [{plain(p.get('low'))}, {plain(p.get('high'))}]"
    if not held or held["predicted"] is None:
        return {
            "law": 1,
            "good": None,
            "text": f"Predicted a held-out loss of {interval}; the run has not been made yet.",
        }
    error = f"{100 * abs(held['relative_error']):.1f}%"
    where = (
        "inside the interval"
        if held["inside"]
        else "outside the interval: the law did not hold at this scale"
    )
    beyond = number(p.get("extrapolation"))
    scale = f" for a run {digits(beyond, 2)} times beyond the ladder" if beyond and beyond > 1 else ""
    text = f"Predicted a loss of {interval}{scale}; measured {plain(held['loss'])}: {where}, off by {error}."
    return {"law": 1, "good": bool(held["inside"]), "text": text}


def _law2(section: dict[str, Any]) -> dict[str, Any]:
    rows = [m for m in section["methods"] if m["control"] is not None]
    if not rows:
        return {"law": 2, "good": None, "text": "No method has been compared with its control yet."}
    words = {
        "beats": "beats its equal-compute control",
        "loses": "loses to its control",
        "even": "cannot be told from its control",
        "unknown": "has not been compared",
    }
    parts = []
    for verdict, plural in (
        ("beats", "beat their equal-compute controls"),
        ("even", "cannot be told from their controls"),
        ("loses", "lose to their controls"),
        ("unknown", "have not been compared"),
    ):
        names = [_inside(m["title"]) for m in rows if m["verdict"] == verdict]
        if names:
            parts.append(f"{_list(names)} {words[verdict] if len(names) == 1 else plural}")
    fell = [_inside(m["title"]) for m in rows if _falls(m["pass_at_16_change"])]
    tail = f" {_start(_list(fell))} lowered the coverage of 16 samples: sharper, not abler." if fell else ""
    return {
        "law": 2,
        "good": any(m["verdict"] == "beats" for m in rows),
        "text": _start("; ".join(parts)) + "." + tail,
    }


def _falls(change: dict[str, Any]) -> bool:
    value, se = number(change.get("value")), number(change.get("se"))
    return value is not None and se is not None and value < -1.96 * se


def _law3(section: dict[str, Any]) -> dict[str, Any]:
    best = next((m for m in section["models"] if m["id"] == section["best"]), None)
    if best is None or "verifier" not in best["curves"]:
        return {"law": 3, "good": None, "text": "No model has been sampled yet."}
    curve = best["curves"]["verifier"]
    first, last = curve[0], curve[-1]
    text = (
        f"{last['n']} samples of {best['name'] or best['id']} lift it from {percent(first['value'])} to "
        f"{percent(last['value'])} where answers can be checked"
    )
    others = [
        f"{percent(best['curves'][s][-1]['value'])} {words}"
        for s, words in (("majority", "by majority vote"), ("reward_model", "by the learned reward model"))
        if s in best["curves"]
    ]
    if others:
        text += f", to {_list(others)} where they cannot"
    text += f", for {ratio(last['flops'] / first['flops'])} the FLOPs per question."
    return {"law": 3, "good": last["value"] > first["value"], "text": text}


def _start(text: str) -> str:
    """A sentence's first letter, large."""
    return text[:1].upper() + text[1:]


def _inside(title: str) -> str:
    """A title within a sentence.

    >>> _inside("Rejection sampling"), _inside("GRPO")
    ('rejection sampling', 'GRPO')
    """
    return title if title[:2].isupper() else title[:1].lower() + title[1:]


def _list(names: list[str]) -> str:
    """Names as a phrase.

    >>> _list(["a", "b", "c"])
    'a, b and c'
    """
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
