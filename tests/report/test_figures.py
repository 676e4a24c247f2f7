"""Axes, marks and the figures drawn with them: coordinates lie where the values say."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from typing import Any

import pytest

from flopwise.report import figures, figures_questions
from flopwise.report.svg import Axis, Plot, linear_axis, log_axis


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (2.61, 3.79), (-3e12, 5e12), (0.311, 0.312), (5.0, 5.0)]
)
def test_linear_ticks_are_round_inside_and_few(low: float, high: float) -> None:
    axis = linear_axis([low, high], "", str)
    assert 3 <= len(axis.ticks) <= 9
    steps = {round((b - a) / (axis.ticks[1] - axis.ticks[0]), 6) for a, b in pairwise(axis.ticks)}
    assert steps == {1.0}
    assert all(axis.low - 1e-9 <= t <= axis.high + 1e-9 * abs(axis.high) for t in axis.ticks)


@pytest.mark.parametrize(("low", "high"), [(7e5, 3e6), (1.0, 64.0), (1e2, 1e9), (3.0, 3.0)])
def test_log_ticks_lie_inside(low: float, high: float) -> None:
    axis = log_axis([low, high], "", str)
    assert 1 <= len(axis.ticks) <= 6
    assert all(axis.low <= t <= axis.high for t in axis.ticks)
    assert axis.low <= low <= high <= axis.high


def test_values_land_in_proportion() -> None:
    plot = Plot(
        Axis(1.0, 100.0, log=True),
        Axis(0.0, 2.0),
        width=200,
        height=100,
        left=50,
        right=50,
        top=10,
        bottom=10,
    )
    assert plot.at(10.0, 1.0) == pytest.approx((100.0, 50.0))
    assert plot.at(1.0, 0.0) == pytest.approx((50.0, 90.0))
    assert plot.at(1e9, 99.0) == pytest.approx((150.0, 10.0))


def test_labels_are_moved_apart_and_stay_inside() -> None:
    plot = Plot(Axis(0, 1), Axis(0, 1), width=200, height=200)
    for i in range(6):
        plot.end_label(1.0, 0.01 * i, f"label {i}", "s0")
    ys = sorted(
        float(y) for y in re.findall(r'<text class="label s0" x="[\d.]+" y="([\d.]+)"', plot.render())
    )
    assert min(b - a for a, b in pairwise(ys)) >= 14.9
    assert ys[-1] <= 200 - plot.bottom + 4


def test_text_in_figures_is_escaped() -> None:
    plot = Plot(Axis(0, 1, label="<b>"), Axis(0, 1, label='"&'), title="<script>")
    plot.dot(0.5, 0.5, "s0", tip='"><script>')
    plot.text(0.5, 0.5, "</svg>")
    svg = plot.render()
    assert "<script>" not in svg
    assert svg.count("</svg>") == 1
    assert "&quot;&gt;&lt;script&gt;" in svg


def numbers(svg: str) -> list[float]:
    return [float(v) for v in re.findall(r'(?:cx|cy|x|y)="(-?[\d.]+|nan|inf)"', svg)]


def test_all_marks_lie_in_the_frame(results: dict[str, Any]) -> None:
    r = results
    methods = r["posttraining"]["methods"]
    best = r["testtime"]["models"][0]
    drawn = [
        figures.loss_tokens(r["pretraining"], False),
        figures.loss_tokens(r["pretraining"], True),
        figures.loss_compute(r["pretraining"], False),
        figures.methods(r["posttraining"], True),
        figures.validation(methods[0], "s0"),
        figures.reinforcement(r["posttraining"]["rl"][0], False),
        figures_questions.strategies(best, 1.0),
        figures_questions.coverage(r["testtime"]["models"], False),
        figures_questions.break_even(r["exchange"]["rates"][0], 1e6),
        figures_questions.options(r["plan"], False),
        figures_questions.verification(r["verification"], True),
    ]
    for plot in drawn:
        assert plot is not None
        svg = plot.render()
        values = numbers(svg)
        assert len(values) > 10
        assert all(math.isfinite(v) and -1 <= v <= max(plot.width, plot.height) for v in values)
        assert not re.search(r"nan|inf(?!o|\w)", " ".join(re.findall(r' d="([^"]*)"', svg)))


def test_the_held_out_point_is_drawn_where_it_was_measured(results: dict[str, Any]) -> None:
    section = results["pretraining"]
    plot = figures.loss_tokens(section, False)
    assert plot is not None
    px, py = plot.at(section["held_out"]["D"], section["held_out"]["loss"])
    assert f'cx="{px:.1f}" cy="{py:.1f}"' in plot.render()


def test_break_even_lines_cross_where_the_table_says(results: dict[str, Any]) -> None:
    rate = results["exchange"]["rates"][0]
    once = next(w["one_off_flops"] for w in rate["ways"] if w.get("one_off_flops"))
    each = next(w["per_question_flops"] for w in rate["ways"] if w.get("per_question_flops"))
    assert rate["break_even"][0]["questions"] == pytest.approx(once / each, rel=0.05)
    assert figures_questions.break_even({**rate, "ways": rate["ways"][:1]}, None) is None


def test_nothing_to_draw_gives_no_figure() -> None:
    empty: dict[str, Any] = {"points": [], "curves": [], "held_out": None, "prediction": None}
    assert figures.loss_tokens(empty, False) is None
    assert figures.both(figures.loss_tokens, empty) == ""
    assert figures_questions.coverage([], False) is None
    assert figures_questions.options({}, False) is None
