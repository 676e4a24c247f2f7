"""What is drawn, without a library: panels with axes, and marks that are arrays of numbers.

Both backends draw these, so that a figure shows the same series in either. Texts are plain: a backend must
not read markup in them, since names of laws and columns come from users.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from flopwise.errors import one_line
from flopwise.laws.law import Array, Law
from flopwise.report.svg import linear_axis, log_axis

INK, GREY, PALE = "#333333", "#8c8c8c", "#ececec"
BLUE, VERMILLION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#AA4499"
"""Of Okabe and Ito's palette (and one of Tol's): told apart with any colour vision."""
_RAMP = ((0x44, 0x01, 0x54), (0x3B, 0x52, 0x8B), (0x21, 0x91, 0x8C), (0x4A, 0xB8, 0x5C), (0xC2, 0xB0, 0x1E))
"""Dark to light at an even pace, as viridis, but ending where it can still be seen on white."""
_SUPERSCRIPT = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")
_NOUNS = {
    "N": "parameters", "D": "training tokens", "C": "compute", "S": "steps", "k": "samples per problem",
    "n": "samples drawn", "U": "unique tokens",
}  # fmt: skip
LABEL = 60
"""Letters of a name or unit that are shown."""
CROWD = 4000
"""Points drawn at most; more are thinned evenly."""


@dataclass(frozen=True)
class Line:
    """A curve through x, y [n]."""

    x: Array
    y: Array
    colour: str = BLUE
    label: str = ""
    dashed: bool = False
    width: float = 1.8


@dataclass(frozen=True)
class Band:
    """Between `low` and `high` [n] at x [n]."""

    x: Array
    low: Array
    high: Array
    colour: str = BLUE
    label: str = ""
    opacity: float = 0.16


@dataclass(frozen=True)
class Points:
    """Dots at x, y [n], of one colour or one each. `tips` [n]: what is told of each under a pointer."""

    x: Array
    y: Array
    colour: str | Sequence[str] = INK
    label: str = ""
    shape: str = "circle"
    """"circle", "diamond" or "cross"."""
    hollow: bool = False
    tips: Sequence[str] = ()


@dataclass(frozen=True)
class Bars:
    """Intervals of a point: along y, or along x where `sideways`."""

    x: Array
    y: Array
    low: Array
    high: Array
    colour: str = INK
    label: str = ""
    sideways: bool = False


@dataclass(frozen=True)
class Rule:
    """A thin line across the panel at a value of x (`upright`) or of y."""

    at: float
    upright: bool = False
    text: str = ""
    colour: str = GREY
    dashed: bool = True


@dataclass(frozen=True)
class Shade:
    """A range of x in pale grey."""

    low: float
    high: float
    label: str = ""


@dataclass(frozen=True)
class Note:
    """A few words beside a point."""

    x: float
    y: float
    text: str
    colour: str = INK


Mark = Line | Band | Points | Bars | Rule | Shade | Note


@dataclass(frozen=True)
class Axis:
    """From `low` to `high`, in this order; `ticks` with their `texts`."""

    low: float
    high: float
    log: bool
    label: str
    ticks: tuple[float, ...]
    texts: tuple[str, ...]

    def share(self, value: float) -> float:
        """Where a value lies between the ends: 0 to 1, beyond them outside of that."""
        low, high, at = (math.log(max(v, 1e-300)) if self.log else v for v in (self.low, self.high, value))
        return (at - low) / (high - low)


@dataclass(frozen=True)
class Panel:
    """Axes with marks; later marks lie on top."""

    x: Axis
    y: Axis
    marks: list[Mark]
    title: str = ""


@dataclass(frozen=True)
class Figure:
    """Panels in rows of `columns`, under a title and a line or two of explanation."""

    title: str
    note: str
    panels: list[Panel]
    columns: int = 1
    legend_title: str = ""
    notes: list[str] = field(default_factory=list)
    """Further sentences: what a reader should doubt, or what is not drawn."""

    @property
    def below(self) -> str:
        """All that is said under the title."""
        return " ".join(text for text in [self.note, *self.notes] if text)


def in_columns(panels: list[Panel], columns: int) -> list[Panel]:
    """With the name of a y axis said once a row where all have the same."""
    if len({p.y.label for p in panels}) > 1:
        return panels
    return [p if i % columns == 0 else replace(p, y=replace(p.y, label="")) for i, p in enumerate(panels)]


def axis(
    values: Array | Sequence[float], label: str, log: bool, soft: Array | Sequence[float] = (),
    percent: bool = False, n: int = 6,
) -> Axis:  # fmt: skip
    """An axis over `values`; `soft` ones (ends of intervals) widen it by half at most on either side."""
    hard = _usable(values, log)
    if not len(hard):
        hard = np.array([1.0, 10.0] if log else [0.0, 1.0])
    low, high = (np.log(hard) if log else hard).min(), (np.log(hard) if log else hard).max()
    room = 0.5 * (high - low) or (0.1 if log else 0.1 * abs(high) or 1.0)
    if len(more := _usable(soft, log)):
        more = np.log(more) if log else more
        low, high = max(min(low, more.min()), low - room), min(max(high, more.max()), high + room)
    ends = [math.exp(low), math.exp(high)] if log else [low, high]
    if log and ends[1] < 10 * ends[0]:
        # Less than a decade: round values at even steps say more than powers.
        pad = math.exp(0.06 * max(high - low, 0.05))
        ends = [ends[0] / pad, ends[1] * pad]
        found = linear_axis(ends, "", str, n)
        ticks: tuple[float, ...] = tuple(t for t in found.ticks if ends[0] <= t <= ends[1])
    else:
        found = (log_axis if log else linear_axis)(ends, "", str, n)
        ends, ticks = [found.low, found.high], found.ticks
    step = min(np.diff(ticks)) if len(ticks) > 1 else 0.0
    texts = tuple(percentage(t) if percent else short(t if abs(t) > 1e-9 * step else 0.0) for t in ticks)
    return Axis(float(ends[0]), float(ends[1]), log, label, ticks, texts)


def _usable(values: Array | Sequence[float], log: bool) -> Array:
    v = np.asarray(values, dtype=float).ravel()
    return v[np.isfinite(v) & (v > 0)] if log else v[np.isfinite(v)]


def wide(values: Array) -> bool:
    """Whether positive values span so much that only a logarithmic axis shows them."""
    v = np.asarray(values, dtype=float)
    return bool(len(v) and v.min() > 0 and v.max() > 10 * v.min())


def short(value: float, digits: int = 6) -> str:
    """A tick or label, rounded to `digits`: 2M, 1.5B, 10²¹.

    >>> short(2e6), short(1.5e9), short(1e21), short(3.2e19), short(0.25), short(-3), short(1234567, 2)
    ('2M', '1.5B', '10²¹', '3.2·10¹⁹', '0.25', '−3', '1.2M')
    """
    value = float(f"{value:.{digits}g}")
    size = abs(value)
    if size >= 1e15 or 0 < size < 1e-4:
        mantissa, exponent = f"{value:.2e}".split("e")
        power = "10" + str(int(exponent)).translate(_SUPERSCRIPT)
        text = power if float(mantissa) == 1 else f"{float(mantissa):g}·{power}"
    elif size >= 1e4:
        scale, letter = next(
            (s, c) for s, c in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")) if size >= s
        )
        text = f"{value / scale:.4g}{letter}"
    else:
        text = f"{value:g}"
    return text.replace("-", "−")


def percentage(value: float) -> str:
    """A tick of a share.

    >>> percentage(0.25), percentage(-0.005)
    ('25%', '−0.5%')
    """
    return f"{100 * value:.4g}%".replace("-", "−")


def ramp(share: float) -> str:
    """The colour of an ordered value, from dark (0) to light (1).

    >>> ramp(0.0), ramp(1.0)
    ('#440154', '#c2b01e')
    """
    at = min(max(share, 0.0), 1.0) * (len(_RAMP) - 1)
    i = min(int(at), len(_RAMP) - 2)
    return "#" + "".join(
        f"{round(a + (b - a) * (at - i)):02x}" for a, b in zip(_RAMP[i], _RAMP[i + 1], strict=True)
    )


def ramps(values: Array) -> list[str]:
    """A colour for each of ordered values, evenly over the ramp."""
    return [ramp(i / max(len(values) - 1, 1)) for i in range(len(values))]


def noun(name: str) -> str:
    """A column in words."""
    return _NOUNS.get(name, one_line(name, LABEL))


def labelled(law: Law, name: str) -> str:
    """A column with its unit, for an axis."""
    unit = law.unit(name)
    if not unit or unit.startswith(name):
        return one_line(unit or name, LABEL)
    return f"{one_line(name, LABEL)} ({one_line(unit, LABEL)})"


def capital(text: str) -> str:
    """With a capital at its start.

    >>> capital("loss against N")
    'Loss against N'
    """
    return text[:1].upper() + text[1:]
