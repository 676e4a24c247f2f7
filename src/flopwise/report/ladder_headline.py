"""The first thing a reader of a ladder's report sees: what was predicted and what came."""

from __future__ import annotations

from typing import Any

from flopwise.report.format import NOTHING, count, digits, flop, percent, plain, ratio
from flopwise.report.runs import number


def ladder_headline(results: dict[str, Any]) -> dict[str, Any]:
    """`answer`, `expects` and one finding per law, in plain sentences."""
    tested = [(entry, t) for entry in results["ladders"] for t in entry["verification"]]
    tested = [(e, t) for e, t in tested if _number(t, "predicted") and _number(t, "measured")]
    findings = [_finding(entry) for entry in results["ladders"]]
    if tested:
        entry, test = tested[0]
        error = off(test)
        answer = (
            f"Predicted {value(test['predicted'], entry['target'])}, measured "
            f"{value(test['measured'], entry['target'])}: off by {error}"
        )
        return {"answer": answer, "expects": told(entry, test), "findings": findings}
    waiting = [(e, p) for e in results["ladders"] for p in e["predictions"]]
    if waiting:
        entry, p = waiting[0]
        answer = f"Predicted {value(p['value'], entry['target'])} for a run that is not finished"
        return {"answer": answer, "expects": interval_words(p, entry["target"]), "findings": findings}
    n = len(results["rungs"]["points"])
    title = f"A ladder of {n} run{'s' if n != 1 else ''}" if n else None
    return {"answer": title, "expects": None, "findings": findings}


def _used(entry: dict[str, Any]) -> int:
    """Runs that the law was fitted to: some sizes may have been left out."""
    return int((entry["fit"] or {}).get("n") or len(entry["points"]))


def _number(row: dict[str, Any], key: str) -> float | None:
    return number(row.get(key))


def value(v: Any, target: str) -> str:
    """A predicted value as its target is read.

    >>> value(0.314, "accuracy"), value(2.3456, "loss")
    ('31.4%', '2.346')
    """
    return percent(v) if target.startswith(("accuracy", "error")) else plain(v)


def off(test: dict[str, Any]) -> str:
    """How far a prediction was off, with as many digits as it deserves."""
    error = number(test.get("relative_error"))
    if error is None:
        return NOTHING
    return f"{100 * abs(error):.2f}%" if abs(error) < 0.01 else f"{digits(100 * abs(error), 2)}%"


def interval_words(p: dict[str, Any], target: str) -> str:
    """Both intervals of a prediction, in a sentence."""
    parts = []
    for level, low, high in (
        (90, "low90", "high90"),
        (round(100 * (_number(p, "level") or 0.95)), "low", "high"),
    ):
        a, b = _number(p, low), _number(p, high)
        if a is not None and b is not None:
            parts.append(f"{level}% {value(a, target)} to {value(b, target)}")
    return f"Its interval is {' and '.join(parts)}." if parts else ""


def told(entry: dict[str, Any], test: dict[str, Any]) -> str:
    """What was asked, what the interval was, and whether the measurement lies inside."""
    beyond = _number(test, "C_ratio")
    if beyond is None and _number(test, "C"):
        largest = max((q["C"] for q in entry["points"] if q.get("C")), default=None)
        beyond = test["C"] / largest if largest else None
    before = _number(test, "before_start_s")
    text = f"{called(entry)}, fitted to {_used(entry)} runs, was asked about a run with "
    text += f"{ratio(beyond)} the largest compute it had seen" if beyond else "more compute than it had seen"
    text += f" ({flop(test['C'])})" if _number(test, "C") else ""
    text += ", before that run was started. " if before is not None and before >= 0 else ". "
    inside90, inside = test.get("inside90"), test.get("inside")
    words = {True: "inside", False: "outside"}
    verdicts = []
    if inside90 in words:
        ends = f"{value(test['low90'], entry['target'])} to {value(test['high90'], entry['target'])}"
        verdicts.append(f"{words[inside90]} the 90% interval ({ends})")
    if inside in words:
        level = round(100 * (_number(test, "level") or 0.95))
        ends = f"{value(test['low'], entry['target'])} to {value(test['high'], entry['target'])}"
        verdicts.append(f"{words[inside]} the {level}% interval ({ends})")
    if before is not None and before < 0:
        text += "The prediction was written after that run had begun: it proves nothing. "
    return text + (f"The measurement lies {' and '.join(verdicts)}." if verdicts else "")


def called(entry: dict[str, Any]) -> str:
    """A law's form in a sentence; a formula of somebody's own is too long for one."""
    law = entry["law"] or "The law"
    return law if len(law) <= 24 else f"The formula of {entry['name']}"


def _width(test: dict[str, Any]) -> str:
    """Half of the 90% interval over the prediction: what being inside is worth."""
    low, high, middle = (_number(test, key) for key in ("low90", "high90", "predicted"))
    if low is None or high is None or not middle:
        return ""
    return f" of ±{digits(50 * (high - low) / abs(middle), 2)}%"


def _finding(entry: dict[str, Any]) -> dict[str, Any]:
    """A law's line."""
    name = entry["name"] or entry["id"]
    tests = [t for t in entry["verification"] if _number(t, "predicted") and _number(t, "measured")]
    if entry["comparison"]:
        row = max(entry["comparison"], key=lambda c: c["factor"])
        against = row["against"] or "the others"
        text = f"A FLOP spent on {row['variant']} is worth {plain(row['factor'], 2)} spent on {against}"
        sure = None
        if row["low"] is not None and row["high"] is not None:
            text += f" (95%: {plain(row['low'], 2)} to {plain(row['high'], 2)})"
            sure = True if row["low"] > 1 else False if row["high"] < 1 else None
        return {"id": entry["id"], "name": name, "good": sure, "text": text + "."}
    if tests:
        inside = [
            t.get("inside90") if isinstance(t.get("inside90"), bool) else t.get("inside") for t in tests
        ]
        worst = max(abs(number(t.get("relative_error")) or 0.0) for t in tests)
        text = f"{called(entry)}: off by {off(tests[0])}" if len(tests) == 1 else (
            f"{called(entry)}: {sum(map(bool, inside))} of {len(tests)} measurements inside, off by "
            f"{digits(100 * worst, 2)}% at most"
        )  # fmt: skip
        if len(tests) == 1 and inside[0] is not None:
            text += f", {'inside' if inside[0] else 'outside'} its interval{_width(tests[0])}"
        return {
            "id": entry["id"],
            "name": name,
            "good": all(inside) if None not in inside else None,
            "text": text + ".",
        }
    if entry["fit"]:
        sizes = len({q.get("N") for q in entry["points"]})
        runs = count(len(entry["points"]))
        status = str(entry["status"]).replace("_", " ")
        text = f"{called(entry)} fitted to {runs} runs of {sizes} sizes: {status}."
        return {"id": entry["id"], "name": name, "good": None, "text": text}
    text = " ".join(entry["missing"]) or " ".join(entry["notes"][:1])
    return {"id": entry["id"], "name": name, "good": None, "text": text}
