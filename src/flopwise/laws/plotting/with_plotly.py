"""Figures in plotly: the same series, with what each point is under the pointer."""

from __future__ import annotations

import textwrap
from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from flopwise.laws.plotting.figure import (
    GREY,
    INK,
    PALE,
    Axis,
    Band,
    Bars,
    Figure,
    Line,
    Mark,
    Note,
    Panel,
    Points,
    Rule,
    Shade,
)  # fmt: skip

SHAPES = {"circle": "circle", "diamond": "diamond", "cross": "x"}

CONFIG = {"displaylogo": False}


def text(words: str) -> str:
    """Words without markup: plotly reads tags in labels, and dollars as formulas.

    >>> text("<b>loss</b> in $")
    '&lt;b&gt;loss&lt;/b&gt; in &#36;'
    """
    return escape(words, quote=False).replace("$", "&#36;")


def draw(figure: Figure) -> Any:
    """A plotly Figure."""
    n, columns = len(figure.panels), figure.columns
    rows = -(-n // columns)
    one = n == 1
    width = 900 if one else 340 * columns + 80
    said = textwrap.wrap(figure.below, int(width / 6.4))
    head = (62 if one else 78) + 17 * len(said)
    height = (470 if one else 300 * rows + 60) + head
    fig = make_subplots(
        rows=rows, cols=columns, subplot_titles=[text(p.title) for p in figure.panels],
        horizontal_spacing=0.09 if not one else None,
        vertical_spacing=min(80 / (300 * rows), 0.9 / max(rows - 1, 1)) if rows > 1 else None,
    )  # fmt: skip
    title = f"<b>{text(figure.title)}</b>"
    fig.update_layout(
        template="plotly_white", width=width, height=height, font={"color": INK, "size": 12},
        title={"text": title, "x": 0.01, "y": 1 - 18 / height, "yanchor": "top", "font": {"size": 17}},
        margin={"l": 70, "r": 20, "t": head, "b": 60 if one else 120},
        legend={
            "title": {"text": text(figure.legend_title)}, "font": {"size": 11.5},
            **({} if one else {"orientation": "h", "y": -74 / (height - head), "yanchor": "top"}),
        },
    )  # fmt: skip
    fig.update_annotations(font_size=12.5)
    if said:
        fig.add_annotation(
            text="<br>".join(text(line) for line in said), x=0, y=1, xref="paper", yref="paper",
            xanchor="left", yanchor="bottom", xshift=-58, yshift=14 if one else 30, showarrow=False,
            align="left", font={"size": 12, "color": "#595959"},
        )  # fmt: skip
    seen: set[str] = set()
    for i, panel in enumerate(figure.panels):
        _panel(fig, panel, {"row": i // columns + 1, "col": i % columns + 1}, seen)
    return fig


def save(figure: Figure) -> bytes:
    """One HTML file that opens offline: plotly's own script is inside."""
    page: str = draw(figure).to_html(full_html=True, include_plotlyjs=True, div_id="figure", config=CONFIG)
    return page.encode()


def _panel(fig: Any, panel: Panel, place: dict[str, int], seen: set[str]) -> None:
    for axis, update in ((panel.x, fig.update_xaxes), (panel.y, fig.update_yaxes)):
        update(**_axis(axis), **place)
    for mark in panel.marks:
        _mark(fig, mark, panel, place, seen)


def _axis(axis: Axis) -> dict[str, Any]:
    ends = [float(np.log10(v)) for v in (axis.low, axis.high)] if axis.log else [axis.low, axis.high]
    return {
        "type": "log" if axis.log else "linear", "range": ends, "title_text": text(axis.label),
        "tickvals": list(axis.ticks), "ticktext": [text(t) for t in axis.texts], "gridcolor": PALE,
        "zeroline": False, "linecolor": GREY, "showline": True, "ticks": "outside", "tickcolor": GREY,
        "minor": {"showgrid": False}, "title_standoff": 8,
    }  # fmt: skip


def _mark(fig: Any, mark: Mark, panel: Panel, place: dict[str, int], seen: set[str]) -> None:
    if isinstance(mark, Rule):
        line = {"color": mark.colour, "width": 1, "dash": "dash" if mark.dashed else "solid"}
        add, which = (fig.add_vline, "x") if mark.upright else (fig.add_hline, "y")
        add(**{which: mark.at}, line=line, layer="below", exclude_empty_subplots=False, **place)
        if mark.text:
            _words(fig, mark.text, panel, place, "#595959", **_beside(mark))
        return
    if isinstance(mark, Note):
        _words(fig, mark.text, panel, place, mark.colour, x=mark.x, y=mark.y, xanchor="left", xshift=4)
        return
    if isinstance(mark, Shade):
        tall = [np.full(2, v) for v in (panel.y.low, panel.y.high)]
        mark = Band(np.array([mark.low, mark.high]), tall[0], tall[1], "#d9d9c8", mark.label, 0.3)
    name = text(mark.label)
    legend = {"name": name, "legendgroup": name or None, "showlegend": bool(name) and name not in seen}
    seen.add(name)
    if isinstance(mark, Band):
        edge = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "legendgroup": name or None}
        fig.add_trace(go.Scatter(x=mark.x, y=mark.low, showlegend=False, **edge), **place)
        fig.add_trace(
            go.Scatter(x=mark.x, y=mark.high, fill="tonexty", fillcolor=_clear(mark.colour, mark.opacity),
                       **(edge | legend)), **place,
        )  # fmt: skip
        return
    if isinstance(mark, Line):
        line = {"color": mark.colour, "width": mark.width, "dash": "dash" if mark.dashed else "solid"}
        fig.add_trace(go.Scatter(x=mark.x, y=mark.y, mode="lines", line=line, **legend), **place)
        return
    if isinstance(mark, Bars):
        middle = mark.x if mark.sideways else mark.y
        bar = {
            "type": "data", "array": mark.high - middle, "arrayminus": middle - mark.low,
            "color": mark.colour, "thickness": 1.2, "width": 4,
        }  # fmt: skip
        fig.add_trace(
            go.Scatter(
                x=mark.x, y=mark.y, mode="markers", marker={"size": 1, "color": mark.colour},
                hoverinfo="skip", **{"error_x" if mark.sideways else "error_y": bar}, **legend,
            ), **place,
        )  # fmt: skip
        return
    _points(fig, mark, place, legend)


def _beside(mark: Rule) -> dict[str, Any]:
    """Where a rule's words stand: at its foot, or above its right end."""
    if mark.upright:
        return {"x": mark.at, "y": 0.0, "yref": "y domain", "xanchor": "left", "xshift": 4}
    return {"x": 1.0, "xref": "x domain", "y": mark.at, "xanchor": "right"}


def _words(fig: Any, words: str, panel: Panel, place: dict[str, int], colour: str, **where: Any) -> None:
    """A few words; annotations, unlike traces, take logarithms on a logarithmic axis."""
    for which, axis in (("x", panel.x), ("y", panel.y)):
        if axis.log and f"{which}ref" not in where:
            where[which] = float(np.log10(where[which]))
    fig.add_annotation(
        text=text(words), showarrow=False, yanchor="bottom", font={"size": 10.5, "color": colour}, **where,
        **place,
    )  # fmt: skip


def _points(fig: Any, mark: Points, place: dict[str, int], legend: dict[str, Any]) -> None:
    colour = mark.colour if isinstance(mark.colour, str) else list(mark.colour)
    tips = {"text": [text(t) for t in mark.tips], "hoverinfo": "text"} if len(mark.tips) else {}
    fig.add_trace(
        go.Scatter(
            x=mark.x, y=mark.y, mode="markers", **tips, **legend,
            marker={
                "symbol": SHAPES[mark.shape] + ("-open" if mark.hollow else ""), "color": colour,
                "size": 7 if len(mark.x) < 400 else 5, "line": {"width": 1.4 if mark.hollow else 0.5,
                "color": colour if mark.hollow else "white"},
            },
        ),
        **place,
    )  # fmt: skip


def _clear(colour: str, opacity: float) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity:g})"
