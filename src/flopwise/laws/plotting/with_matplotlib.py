"""Figures in matplotlib, without pyplot: no window, no global state, safe in a server."""

from __future__ import annotations

import io
import textwrap
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D

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

SHAPES = {"circle": "o", "diamond": "D", "cross": "X"}
STYLE: Any = {
    # Names of laws and columns are a user's: a dollar sign in them is no formula.
    "text.parse_math": False, "text.usetex": False, "svg.fonttype": "none", "font.size": 10,
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": GREY, "axes.labelcolor": INK,
    "xtick.color": INK, "ytick.color": INK, "axes.linewidth": 0.8, "axes.formatter.use_mathtext": False,
    "figure.facecolor": "white", "axes.facecolor": "white", "font.family": "DejaVu Sans",
}  # fmt: skip


class Drawn(Canvas):
    """A matplotlib Figure that a notebook shows without pyplot."""

    def _repr_png_(self) -> bytes:
        out = io.BytesIO()
        self.savefig(out, format="png", dpi=110)
        return out.getvalue()


def draw(figure: Figure) -> Drawn:
    """A matplotlib Figure: `savefig` keeps it, a notebook shows it."""
    with mpl.rc_context(STYLE):
        rows = -(-len(figure.panels) // figure.columns)
        one = len(figure.panels) == 1
        width = 8.4 if one else 3.55 * figure.columns + 0.9
        # In inches: the title, and its explanation in as many lines as it needs.
        said = textwrap.wrap(figure.below, int(width * 13.2))
        head = 0.46 + 0.185 * len(said)
        height = (4.6 if one else 2.95 * rows) + head
        fig = Drawn(figsize=(width, height), layout="constrained")
        fig.get_layout_engine().set(rect=(0, 0, 1, 1 - head / height))  # type: ignore[union-attr, call-arg]
        fig.text(0.1 / width, 1 - 0.1 / height, figure.title, va="top", size=12.5, weight="bold", color=INK)
        fig.text(
            0.1 / width, 1 - 0.38 / height, "\n".join(said), va="top", size=9, color="#595959",
            linespacing=1.35,
        )  # fmt: skip
        labels: dict[str, Any] = {}
        axes = fig.subplots(rows, figure.columns, squeeze=False).ravel()
        for ax, panel in zip(axes, figure.panels, strict=False):
            _panel(ax, panel, labels)
        for ax in axes[len(figure.panels) :]:
            ax.remove()
        if labels:
            how: dict[str, Any] = {"frameon": False, "fontsize": 9, "title": figure.legend_title or None}
            if one:
                legend = axes[0].legend(
                    labels.values(), labels, loc="upper left", bbox_to_anchor=(1.01, 1.01), **how
                )
            else:
                legend = fig.legend(
                    labels.values(), labels, loc="outside lower center", ncols=min(len(labels), 4), **how
                )
            legend.set_alignment("left")
            legend.get_title().set_fontsize(9)
    return fig


def save(figure: Figure, format: str) -> bytes:
    """The figure as a file of this format: "png", "svg" or "pdf"."""
    fig, out = draw(figure), io.BytesIO()
    with mpl.rc_context(STYLE):
        when = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(format)
        fig.savefig(out, format=format, dpi=150, metadata=when)
    return out.getvalue()


def _panel(ax: Any, panel: Panel, labels: dict[str, Any]) -> None:
    for axis, which in ((panel.x, "x"), (panel.y, "y")):
        _axis(ax, axis, which)
    ax.grid(True, color=PALE, linewidth=0.8)
    ax.set_axisbelow(True)
    if panel.title:
        ax.set_title(panel.title, loc="left", size=10, color=INK)
    for i, mark in enumerate(panel.marks):
        handle = _mark(ax, mark, 2 + i)
        if handle is not None and (label := getattr(mark, "label", "")):
            labels.setdefault(label, handle)


def _axis(ax: Any, axis: Axis, which: str) -> None:
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

    getattr(ax, f"set_{which}scale")("log" if axis.log else "linear")
    getattr(ax, f"set_{which}lim")(axis.low, axis.high)
    getattr(ax, f"set_{which}label")(axis.label)
    scale = getattr(ax, f"{which}axis")
    scale.set_major_locator(FixedLocator(axis.ticks))
    scale.set_major_formatter(FixedFormatter(axis.texts))
    scale.set_minor_locator(NullLocator())


def _mark(ax: Any, mark: Mark, z: int) -> Any:
    """Draw it; what stands for it in the legend."""
    if isinstance(mark, Line):
        style = (0, (4, 3)) if mark.dashed else "-"
        return ax.plot(
            mark.x, mark.y, color=mark.colour, linewidth=mark.width, linestyle=style, zorder=z,
            solid_capstyle="butt" if mark.width > 3 else "round",
        )[0]  # fmt: skip
    if isinstance(mark, Band):
        return ax.fill_between(
            mark.x, mark.low, mark.high, color=mark.colour, alpha=mark.opacity, linewidth=0, zorder=z
        )
    if isinstance(mark, Points):
        return _points(ax, mark, z)
    if isinstance(mark, Bars):
        size = np.abs(np.stack([mark.low, mark.high]) - (mark.x if mark.sideways else mark.y))
        return ax.errorbar(
            mark.x, mark.y, **{"xerr" if mark.sideways else "yerr": size}, fmt="none", ecolor=mark.colour,
            elinewidth=1.2, capsize=3, zorder=z,
        )  # fmt: skip
    if isinstance(mark, Rule):
        line = ax.axvline if mark.upright else ax.axhline
        line(
            mark.at,
            color=mark.colour,
            linewidth=0.9,
            linestyle=(0, (3, 3)) if mark.dashed else "-",
            zorder=1.5,
        )
        if mark.text:
            across, along = ax.get_xaxis_transform(), ax.get_yaxis_transform()
            at, how = ((mark.at, 0.02), across) if mark.upright else ((0.99, mark.at), along)
            ax.annotate(
                mark.text, at, xycoords=how, xytext=(4, 2) if mark.upright else (0, 2),
                textcoords="offset points", ha="left" if mark.upright else "right", va="bottom", size=8,
                color="#595959", zorder=z,
            )  # fmt: skip
        return None
    if isinstance(mark, Shade):
        return ax.axvspan(mark.low, mark.high, color="#f3f3ee", linewidth=0, zorder=0.5)
    assert isinstance(mark, Note)
    ax.annotate(
        mark.text, (mark.x, mark.y), xytext=(5, 3), textcoords="offset points", size=8, color=mark.colour,
        zorder=z, annotation_clip=True,
    )  # fmt: skip
    return None


def _points(ax: Any, mark: Points, z: int) -> Any:
    if not len(mark.x):
        return None
    size = 22 if len(mark.x) < 400 else 11
    colours = [mark.colour] * len(mark.x) if isinstance(mark.colour, str) else list(mark.colour)
    ax.scatter(
        mark.x, mark.y, s=size * (1.3 if mark.shape == "cross" else 1), marker=SHAPES[mark.shape],
        facecolors="white" if mark.hollow else colours, edgecolors=colours if mark.hollow else "white",
        linewidths=1.2 if mark.hollow else 0.5, zorder=z,
    )  # fmt: skip
    one = colours[0] if len(set(colours)) == 1 else GREY
    return Line2D(
        [], [], linestyle="", marker=SHAPES[mark.shape], markersize=5, color=one,
        markerfacecolor="white" if mark.hollow else one,
    )  # fmt: skip
