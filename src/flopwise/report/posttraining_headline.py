"""The first thing a reader of a post-training report sees: what helped, and what did not."""

from __future__ import annotations

from typing import Any

from flopwise.report.format import percent, points

WORDS = {"greedy": "greedy accuracy", "pass_at_1": "pass@1", "pass_at_16": "pass@16"}


def posttraining_headline(results: dict[str, Any]) -> dict[str, Any]:
    """`answer`, `expects` and one finding per method that has a start to be compared with."""
    entries = [e for e in results["methods"]["entries"] if e["change"] and not e["is_control"]]
    findings = [finding(e) for e in entries]
    best = max(entries, key=lambda e: _gain(e, "greedy"), default=None)
    if best is None or "greedy" not in best["change"]:
        told = results["comparisons"]["findings"]
        return {"answer": told[0].rstrip(".") if told else None, "expects": None, "findings": findings}
    change = best["change"]["greedy"]
    if change["value"] <= 0:
        answer = f"No method gained greedy accuracy on its start; {best['name']} lost least"
        return {"answer": answer, "expects": "What each moved stands below.", "findings": findings}
    answer = (
        f"{best['name']} gained most: {points(change['value'], change['se'])} points of greedy accuracy, "
        f"from {best['start']} to {percent(best['greedy']['value'], best['greedy']['se'])}"
    )
    held = [e for e in entries if e["versus"].get("greedy", {}).get("clear") and _versus(e) > 0]
    compared = [e for e in entries if "greedy" in e["versus"]]
    expects = (
        f"{len(held)} of {len(compared)} methods with a control of the same FLOPs beat it."
        if compared
        else "No method has a control of the same FLOPs here."
    )
    return {"answer": answer, "expects": expects, "findings": findings}


def _gain(entry: dict[str, Any], name: str) -> float:
    return float(entry["change"].get(name, {}).get("value") or 0.0)


def _versus(entry: dict[str, Any]) -> float:
    return float(entry["versus"]["greedy"]["value"])


def finding(entry: dict[str, Any]) -> dict[str, Any]:
    """One method in a sentence: what it moved against its start, and against its control."""
    parts = []
    for name, words in WORDS.items():
        change = entry["change"].get(name)
        if change:
            clear = "" if change["clear"] else " (not clear)"
            parts.append(f"{words} {points(change['value'], change['se'])}{clear}")
    text = ", ".join(parts)
    good: bool | None = None
    if versus := entry["versus"].get("greedy"):
        text += f"; against its control {points(versus['value'], versus['se'])}"
        good = (versus["value"] > 0) if versus["clear"] else None
    elif entry["change"].get("greedy", {}).get("clear"):
        good = entry["change"]["greedy"]["value"] > 0
    if entry["alarm"] and entry["alarm"]["rung"]:
        text += f"; the alarm rang in {entry['alarm']['rung']} of {entry['alarm']['of']} seeds"
    return {"name": entry["name"], "text": text + ".", "good": good}
