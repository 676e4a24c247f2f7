"""A small plotting kit: axes, marks and labels as inline SVG, coloured by the page's own style sheet.

Nothing is fetched, text stays text, and light and dark come from CSS variables: a mark names a colour class
(`s0` to `s7`, `held`, `ink`), never a colour. Every string that reaches the SVG is escaped here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

Point = tuple[float, float]
Label = tuple[float, float, str, str]
"""Words beside a place: x, y, words, colour."""
LABEL_WIDTH = 90
"""Pixels between two places from which on their words do not meet."""


@dataclass(frozen=True)
class Axis:
    """A range of values with its ticks. `log`: both ends must be above 0."""

    low: float
    high: float
    log: bool = False
    label: str = ""
    ticks: tuple[float, ...] = ()
    text: Callable[[float], str] = str

    def share(self, value: float) -> float:
        """Where a value lies between the ends: 0 to 1, cut there."""
        if self.log:
            at = (math.log(max(value, 1e-300)) - math.log(self.low)) / (
                math.log(self.high) - math.log(self.low)
            )
        else:
            at = (value - self.low) / (self.high - self.low)
        return min(1.0, max(0.0, at))


def linear_axis(
    values: Sequence[float], label: str, text: Callable[[float], str], n: int = 5, **ends: float
) -> Axis:
    """An axis over values with round ticks; `low` and `high` fix an end."""
    low, high = ends.get("low", min(values)), ends.get("high", max(values))
    if high <= low:
        low, high = low - 0.5 * (abs(low) or 1.0), high + 0.5 * (abs(high) or 1.0)
    pad = 0.06 * (high - low)
    low, high = ends.get("low", low - pad), ends.get("high", high + pad)
    step = _round_step((high - low) / n)
    first = math.ceil(low / step - 1e-9)
    ticks = tuple(i * step for i in range(first, math.floor(high / step + 1e-9) + 1))
    return Axis(low, high, False, label, ticks, text)


def log_axis(
    values: Sequence[float], label: str, text: Callable[[float], str], n: int = 6, pad: float = 0.05
) -> Axis:
    """A logarithmic axis over positive values, ticks at 1, 2, 5 or at decades, about `n` at most."""
    positive = [v for v in values if v > 0] or [1.0, 10.0]
    low, high = math.log(min(positive)), math.log(max(positive))
    if high - low < 0.1:
        low, high = low - 0.5, high + 0.5
    low, high = low - pad * (high - low), high + pad * (high - low)
    decades = range(math.floor(low / math.log(10)) - 1, math.ceil(high / math.log(10)) + 1)
    ticks: tuple[float, ...] = ()
    for multiples in ((1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        ticks = tuple(m * 10.0**d for d in decades for m in multiples if low <= math.log(m * 10.0**d) <= high)
        if len(ticks) <= n:
            break
    if len(ticks) > n:
        ticks = ticks[:: math.ceil(len(ticks) / n)]
    return Axis(math.exp(low), math.exp(high), True, label, ticks, text)


def _round_step(step: float) -> float:
    """The 1, 2, 2.5 or 5 times a power of ten that comes nearest to a step."""
    power = 10.0 ** math.floor(math.log10(step))
    return min((m * power for m in (1.0, 2.0, 2.5, 5.0, 10.0)), key=lambda s: abs(math.log(s / step)))


@dataclass
class Plot:
    """One pair of axes. Sizes are CSS pixels at the width the figure is meant for, so text keeps its size."""

    x: Axis
    y: Axis
    width: float = 760
    height: float = 400
    right: float = 16
    title: str = ""
    """What the figure shows, for those who cannot see it."""
    left: float = 46
    top: float = 28
    bottom: float = 44
    marks: list[str] = field(default_factory=list)
    labels: list[Label] = field(default_factory=list)

    def at(self, x: float, y: float) -> Point:
        """Pixel position of a value."""
        w, h = self.width - self.left - self.right, self.height - self.top - self.bottom
        return self.left + w * self.x.share(x), self.top + h * (1 - self.y.share(y))

    def _path(self, points: Sequence[Point]) -> str:
        return "M" + "L".join(f"{px:.1f} {py:.1f}" for px, py in (self.at(*p) for p in points))

    def line(self, points: Sequence[Point], colour: str, style: str = "") -> None:
        """A line through points; `style` adds classes (`dash`, `thin`, `faint`)."""
        if len(points) > 1:
            self.marks.append(f'<path class="line {colour} {style}" d="{self._path(points)}"/>')

    def band(self, rows: Sequence[tuple[float, float, float]], colour: str) -> None:
        """The area between two lines: rows of x, low, high."""
        if len(rows) > 1:
            around = [*((x, low) for x, low, _ in rows), *((x, high) for x, _, high in reversed(rows))]
            self.marks.append(f'<path class="band {colour}" d="{self._path(around)}Z"/>')

    def error(self, x: float, low: float, high: float, colour: str, cap: float = 0.0) -> None:
        """A vertical interval."""
        (px, a), (_, b) = self.at(x, low), self.at(x, high)
        d = f"M{px:.1f} {a:.1f}V{b:.1f}"
        if cap:
            d += f"M{px - cap:.1f} {a:.1f}h{2 * cap:.1f}M{px - cap:.1f} {b:.1f}h{2 * cap:.1f}"
        self.marks.append(f'<path class="error {colour}" d="{d}"/>')

    def dot(
        self,
        x: float,
        y: float,
        colour: str,
        tip: str = "",
        shape: str = "circle",
        r: float = 4.0,
        style: str = "",
    ) -> None:
        """A marker; `tip` is what hovering or tapping shows, line by line."""
        px, py = self.at(x, y)
        if shape == "circle":
            body = f'<circle cx="{px:.1f}" cy="{py:.1f}" r="{r}"'
        else:
            a = 1.4 * r
            d = {
                "diamond": f"M{px:.1f} {py - a:.1f}l{a:.1f} {a:.1f}l{-a:.1f} {a:.1f}l{-a:.1f} {-a:.1f}z",
                "square": f"M{px - r:.1f} {py - r:.1f}h{2 * r:.1f}v{2 * r:.1f}h{-2 * r:.1f}z",
                "triangle": f"M{px:.1f} {py - 1.2 * r:.1f}l{1.2 * r:.1f} {2.1 * r:.1f}h{-2.4 * r:.1f}z",
            }[shape]
            body = f'<path d="{d}"'
        self.marks.append(f'{body} class="dot {colour} {style}"/>')
        if tip:
            self.marks.append(
                f'<circle class="hit" cx="{px:.1f}" cy="{py:.1f}" r="11" data-tip="{escape(tip)}"/>'
            )

    def column(self, first: float, last: float, y: float, colour: str, tip: str = "") -> None:
        """A filled column from the axis up to `y`, between two values of x."""
        (px, py), (end, base) = self.at(first, y), self.at(last, self.y.low)
        at = f'x="{px:.1f}" y="{py:.1f}" width="{max(end - px, 0.5):.1f}" height="{base - py:.1f}"'
        self.marks.append(f'<rect class="column {colour}" {at}/>')
        if tip:
            whole = at.replace(f'y="{py:.1f}"', f'y="{self.top}"')
            whole = whole.replace(f'height="{base - py:.1f}"', f'height="{base - self.top:.1f}"')
            self.marks.append(f'<rect class="hit" {whole} data-tip="{escape(tip)}"/>')

    def text(
        self,
        x: float,
        y: float,
        words: str,
        colour: str = "ink",
        anchor: str = "start",
        dx: float = 0,
        dy: float = 0,
    ) -> None:
        """Words at a value, moved by pixels."""
        px, py = self.at(x, y)
        self.marks.append(
            f'<text class="label {colour}" x="{px + dx:.1f}" y="{py + dy:.1f}" text-anchor="{anchor}">'
            f"{escape(words)}</text>"
        )

    def end_label(self, x: float, y: float, words: str, colour: str) -> None:
        """Words beside the end of a line; those that would overlap are moved apart."""
        px, py = self.at(x, y)
        self.labels.append((px, py, words, colour))

    def vertical(self, x: float, words: str = "", style: str = "") -> None:
        """A rule at a value of x."""
        px, _ = self.at(x, self.y.low)
        self.marks.append(
            f'<path class="rule {style}" d="M{px:.1f} {self.top}V{self.height - self.bottom}"/>'
        )
        if words:
            end = px > self.width - 120
            self.marks.append(
                f'<text class="label muted" x="{px + (-5 if end else 5):.1f}" y="{self.top + 11}" '
                f'text-anchor="{"end" if end else "start"}">{escape(words)}</text>'
            )

    def render(self) -> str:
        """The whole figure."""
        w, h = self.width, self.height
        base, out = h - self.bottom, []
        for tick in self.y.ticks:
            _, py = self.at(self.x.low, tick)
            out.append(f'<path class="grid" d="M{self.left} {py:.1f}H{w - self.right}"/>')
            out.append(
                f'<text class="tick" x="{self.left - 8}" y="{py + 3.5:.1f}" text-anchor="end">'
                f"{escape(self.y.text(tick))}</text>"
            )
        for tick in self.x.ticks:
            px, _ = self.at(tick, self.y.low)
            out.append(f'<path class="tickmark" d="M{px:.1f} {base}v4"/>')
            out.append(
                f'<text class="tick" x="{px:.1f}" y="{base + 17}" text-anchor="middle">'
                f"{escape(self.x.text(tick))}</text>"
            )
        out.append(f'<path class="axis" d="M{self.left} {base}H{w - self.right}"/>')
        out.append(f'<text class="axis-name" x="0" y="12">{escape(self.y.label)}</text>')
        out.append(
            f'<text class="axis-name" x="{w - self.right}" y="{h - 6}" text-anchor="end">'
            f"{escape(self.x.label)}</text>"
        )
        out += self.marks
        for px, py, words, colour in _spread(self.labels, self.top, base):
            out.append(
                f'<text class="label {colour}" x="{px + 9:.1f}" y="{py + 4:.1f}">{escape(words)}</text>'
            )
        body = "".join(out)
        return (
            f'<svg class="plot" viewBox="0 0 {w:g} {h:g}" role="img" '
            f'aria-label="{escape(self.title or self.y.label)}" '
            f'style="max-width:{1.25 * w:g}px">{body}</svg>'
        )


def _spread(labels: list[Label], top: float, base: float, gap: float = 15) -> list[Label]:
    """Labels moved apart vertically by at least `gap`, those that stand beside one another alone."""
    columns: list[list[Label]] = []
    for label in sorted(labels, key=lambda label: label[0]):
        if columns and label[0] - columns[-1][-1][0] < LABEL_WIDTH:
            columns[-1].append(label)
        else:
            columns.append([label])
    return [label for column in columns for label in _spread_column(column, top, base, gap)]


def _spread_column(labels: list[Label], top: float, base: float, gap: float) -> list[Label]:
    """As little as a sweep down and a sweep back up need."""
    rows = sorted(labels, key=lambda label: label[1])
    ys = [row[1] for row in rows]
    for i in range(1, len(ys)):
        ys[i] = max(ys[i], ys[i - 1] + gap)
    overflow = ys[-1] - (base - 4) if ys else 0.0
    if overflow > 0:
        ys[-1] -= overflow
        for i in range(len(ys) - 2, -1, -1):
            ys[i] = min(ys[i], ys[i + 1] - gap)
    return [(px, max(top, y), words, colour) for (px, _, words, colour), y in zip(rows, ys, strict=True)]
