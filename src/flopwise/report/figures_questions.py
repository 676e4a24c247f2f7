"""The figures of test time, exchange rates and the plan: what answering questions costs and gives."""

from __future__ import annotations

from typing import Any

from flopwise.report.figures import SERIES, share_text
from flopwise.report.format import count, flop, percent, percent_range, tick
from flopwise.report.runs import number
from flopwise.report.svg import Axis, Plot, linear_axis, log_axis

STRATEGY_COLOURS = {
    "verifier": "s0",
    "reward_model": "s1",
    "majority": "s2",
    "logprob": "s3",
    "greedy": "ink",
}
STRATEGY_NAMES = {
    "verifier": "verifier picks",
    "reward_model": "reward model picks",
    "majority": "majority vote",
    "logprob": "highest log-probability",
    "greedy": "greedy",
}
SHAPES = {"verifier": "circle", "reward_model": "square", "majority": "triangle", "logprob": "diamond"}


def strategies(model: dict[str, Any], highest: float) -> Plot | None:
    """Law 3: one model's accuracy against FLOPs per question by strategy; `highest` sets a common scale."""
    curves = {s: c for s, c in model["curves"].items() if s in STRATEGY_COLOURS}
    if not curves:
        return None
    xs = [q["flops"] for c in curves.values() for q in c]
    plot = Plot(
        log_axis(xs, "FLOPs per question (log)", tick, 3),
        linear_axis([0.0, highest], "accuracy", share_text, low=0.0),
        430,
        320,
        right=18,
        title=f"Accuracy of {model['name'] or model['id']} against FLOPs per question",
    )
    plot.band(_with_interval(curves.get("verifier", []), "flops"), "s0")
    for strategy, curve in curves.items():
        colour = STRATEGY_COLOURS[strategy]
        plot.line([(q["flops"], q["value"]) for q in curve], colour)
        for q in curve:
            share = percent_range(q["value"], q.get("low"), q.get("high"))
            tip = f"{STRATEGY_NAMES[strategy]}, n = {q['n']}\n{share}\n{flop(q['flops'])} per question"
            plot.dot(
                q["flops"],
                q["value"],
                colour,
                tip,
                SHAPES.get(strategy, "circle"),
                5 if strategy == "greedy" else 3.2,
                "hollow" if strategy == "greedy" else "",
            )
    return plot


def coverage(models: list[dict[str, Any]], narrow: bool) -> Plot | None:
    """Law 3: pass@k, fitted where solid, extrapolated where dashed, measured where hollow."""
    rows = [m for m in models if m["coverage"]][:SERIES]
    if not rows:
        return None
    ks = sorted({p["k"] for m in rows for p in m["coverage"]["points"]})
    ys = [p["value"] for m in rows for p in m["coverage"]["points"]] + [
        q["value"] for m in rows for q in m["coverage"]["line"]
    ]
    x = log_axis(ks, "samples k (log)", tick, 20)
    x = Axis(x.low, x.high, True, x.label, tuple(map(float, ks)), tick)
    plot = Plot(
        x,
        linear_axis(ys, "pass@k", share_text),
        *((358, 380) if narrow else (880, 400)),
        right=20 if narrow else 130,
        title="Coverage against samples, fitted to few and asked about many",
    )
    up_to = max(m["coverage"]["fitted_up_to"] for m in rows)
    plot.vertical(up_to * 1.2, "not fitted →" if not narrow else "")
    for i, m in enumerate(rows):
        colour, law = f"s{i}", m["coverage"]
        line = [(q["k"], q["value"]) for q in law["line"]]
        plot.line([q for q in line if q[0] <= law["fitted_up_to"] * 1.2], colour)
        plot.line([q for q in line if q[0] >= law["fitted_up_to"]], colour, "dash")
        if number(law["low"]) is not None and number(law["high"]) is not None:
            plot.error(law["k"], law["low"], law["high"], colour, cap=5)
        for p in law["points"]:
            tip = f"{m['name'] or m['id']}\npass@{p['k']} {percent(p['value'], p['se'])}"
            if p["k"] == law["k"]:
                tip += f"\nforecast {percent_range(law['predicted'], law['low'], law['high'])}"
            plot.dot(p["k"], p["value"], colour, tip, r=3.6, style="" if p["fitted"] else "hollow")
        if not narrow:
            plot.end_label(*line[-1], m["name"] or m["id"], colour)
    return plot


def break_even(rate: dict[str, Any], questions: float | None) -> Plot | None:
    """All laws: extra FLOPs of each way to a target accuracy against the number of questions.

    None unless a way that is paid once and one that is paid per question are both known.
    """
    ways = [
        (i, w, number(w.get("one_off_flops")) or 0.0, number(w.get("per_question_flops")) or 0.0)
        for i, w in enumerate(rate.get("ways") or [])
        if w.get("reached")
    ]
    if not any(once for *_, once, _ in ways) or not any(each for *_, each in ways):
        return None
    q = [10.0 ** (i / 4) for i in range(8, 37)]
    lines = [(i, w, [(x, once + x * each) for x in q]) for i, w, once, each in ways if once or each]
    plot = Plot(
        log_axis(q, "questions (log)", tick, 5, pad=0.0),
        log_axis([y for *_, line in lines for _, y in line], "extra FLOPs in all (log)", tick, 5),
        430,
        320,
        right=18,
        title=f"Extra FLOPs of each way to {percent(rate.get('target'))}",
    )
    if questions and q[0] < questions < q[-1]:
        plot.vertical(questions, "planned")
    for i, way, line in lines:
        colour = f"s{i % SERIES}"
        plot.line(line, colour)
        for x, y in line[::4]:
            plot.dot(x, y, colour, f"{way.get('how')}\n{flop(y)} for {count(x)} questions", r=2.2)
    return plot


def options(plan: dict[str, Any], narrow: bool) -> Plot | None:
    """The plan: accuracy against total FLOPs of every option, the budget as a rule."""
    rows = [
        o
        for o in plan.get("options") or []
        if number(o.get("accuracy")) is not None and number(o.get("total_flops"))
    ]
    if len(rows) < 2:
        return None
    budget = number(plan.get("budget_flops"))
    plot = Plot(
        log_axis(
            [o["total_flops"] for o in rows] + ([budget] if budget else []),
            "FLOPs in all (log)",
            tick,
            3 if narrow else 6,
        ),
        linear_axis(
            [v for o in rows for key in ("accuracy", "low", "high") if (v := number(o.get(key))) is not None],
            "expected accuracy",
            share_text,
        ),
        *((358, 340) if narrow else (880, 360)),
        right=20,
        title="Options of the plan: accuracy against total FLOPs",
    )
    if budget:
        plot.vertical(budget, "budget")
    chosen = [plan.get("checkable"), plan.get("uncheckable")]
    for o in rows:
        colour = STRATEGY_COLOURS.get(str(o.get("strategy")), "ink")
        low, high = number(o.get("low")), number(o.get("high"))
        if low is not None and high is not None:
            plot.error(o["total_flops"], low, high, f"{colour} faint")
        share = percent_range(o["accuracy"], low, high)
        tip = f"{o.get('how')}\n{share}\n{flop(o['total_flops'])}, {o.get('origin')}"
        picked = o in chosen
        plot.dot(
            o["total_flops"],
            o["accuracy"],
            colour,
            tip,
            SHAPES.get(str(o.get("strategy")), "circle"),
            6 if picked else 3.2,
            "picked" if picked else "" if o.get("origin") == "measured" else "hollow",
        )
    return plot


def verification(content: dict[str, Any], narrow: bool) -> Plot | None:
    """The joint law on a run that no fit saw: predicted band, measured points."""
    rows = [
        p
        for p in content.get("points") or []
        if all(number(p.get(key)) is not None for key in ("k", "predicted", "measured"))
    ]
    if len(rows) < 2:
        return None
    ys = [
        v
        for p in rows
        for key in ("predicted", "measured", "low", "high", "measured_low", "measured_high")
        if (v := number(p.get(key))) is not None
    ]
    x = log_axis([p["k"] for p in rows], "samples k (log)", tick, 20)
    x = Axis(x.low, x.high, True, x.label, tuple(float(p["k"]) for p in rows), tick)
    plot = Plot(
        x,
        linear_axis(ys, "accuracy", share_text),
        *((358, 300) if narrow else (880, 320)),
        right=20,
        title="Predicted and measured accuracy of the run that no fit saw",
    )
    plot.band(_with_interval(rows, "k"), "held")
    plot.line([(p["k"], p["predicted"]) for p in rows], "held", "dash")
    for p in rows:
        low, high = number(p.get("measured_low")), number(p.get("measured_high"))
        if low is not None and high is not None:
            plot.error(p["k"], low, high, "ink")
        expected = percent_range(p["predicted"], p.get("low"), p.get("high"))
        tip = f"k = {p['k']}\nmeasured {percent(p['measured'])}\npredicted {expected}"
        plot.dot(p["k"], p["measured"], "ink", tip)
    return plot


def _with_interval(rows: list[dict[str, Any]], x: str) -> list[tuple[float, float, float]]:
    """x, low and high of the rows that have an interval."""
    return [
        (r[x], r["low"], r["high"])
        for r in rows
        if number(r.get("low")) is not None and number(r.get("high")) is not None
    ]
