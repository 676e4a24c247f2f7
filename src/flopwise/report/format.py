"""Numbers as people read them: three digits, a unit, an error beside the value."""

from __future__ import annotations

import math
from typing import Any

from flopwise.report.runs import number

NOTHING = "–"
SPACE = "\u00a0"
"""No-break space between number and unit."""

_PREFIXES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def digits(value: float, n: int = 3) -> str:
    """`n` significant digits without an exponent.

    >>> digits(1234.5), digits(1.2345), digits(0.0123456)
    ('1,230', '1.23', '0.0123')
    """
    if value == 0:
        return "0"
    places = n - 1 - math.floor(math.log10(abs(value)))
    rounded = round(value, places)
    places = n - 1 - math.floor(math.log10(abs(rounded)))
    return f"{rounded:,.{max(0, places)}f}"


def si(value: Any, unit: str = "", n: int = 3) -> str:
    """A quantity with its prefix.

    >>> si(1.7203e12, "FLOP").replace(SPACE, " "), si(92480, n=3).replace(SPACE, " "), si(None)
    ('1.72 TFLOP', '92.5 k', '–')
    """
    v = number(value)
    if v is None:
        return NOTHING
    if abs(v) >= 1e21:
        return f"{v:.{n - 1}e}{SPACE}{unit}".strip()
    for size, prefix in _PREFIXES:
        if abs(v) >= size * (1 - 0.5 * 10.0**-n):
            return f"{digits(v / size, n)}{SPACE}{prefix}{unit}"
    return f"{digits(v, n)}{SPACE}{unit}".strip()


def flop(value: Any) -> str:
    """FLOPs."""
    return si(value, "FLOP")


def flop_range(low: Any, high: Any) -> str:
    """An interval of FLOPs, the unit once where both ends share it.

    >>> flop_range(1.05e12, 2.1e12).replace(SPACE, " "), flop_range(9e11, 2.1e12).replace(SPACE, " ")
    ('1.05 to 2.10 TFLOP', '900 GFLOP to 2.10 TFLOP')
    """
    first, last = flop(low), flop(high)
    value, _, unit = first.partition(SPACE)
    return f"{value if unit and last.endswith(SPACE + unit) else first} to {last}"


def rounded(value: Any, unit: str = "") -> str:
    """A number that someone chose, without digits that say nothing.

    >>> rounded(5e13, "FLOP").replace(SPACE, " "), rounded(1_000_000), rounded(None)
    ('50 TFLOP', '1M', '–')
    """
    v = number(value)
    if v is None:
        return NOTHING
    text = tick(v) if unit else tick(v).replace("G", "B")
    return text if not unit else f"{text.rstrip('kMGTPE')}{SPACE}{text[len(text.rstrip('kMGTPE')) :]}{unit}"


def tick(value: float) -> str:
    """A tick of an axis whose name holds the unit: no digits that say nothing.

    >>> tick(2e12), tick(750_000), tick(0.0)
    ('2T', '750k', '0')
    """
    size, prefix = next(((s, p) for s, p in _PREFIXES if abs(value) >= s * (1 - 1e-9)), (1.0, ""))
    return f"{value / size:.6g}{prefix}" if abs(value) < 1e21 else f"{value:.0e}"


def count(value: Any) -> str:
    """Parameters, tokens, questions: prefix close to the number.

    >>> count(3_000_320), count(512)
    ('3.00M', '512')
    """
    v = number(value)
    if v is not None and abs(v) < 1e4 and v == int(v):
        return f"{int(v):,}"
    if v is not None and 1e9 <= abs(v) < 1e12:
        return f"{digits(v / 1e9)}B"
    return si(value).replace(SPACE, "")


def percent(value: Any, se: Any = None, places: int = 1) -> str:
    """A share, with its standard error.

    >>> percent(0.328125, 0.0293)
    '32.8 ± 2.9%'
    """
    v, e = number(value), number(se)
    if v is None:
        return NOTHING
    error = "" if e is None else f" ± {100 * e:.{places}f}"
    return f"{100 * v:.{places}f}{error}%".replace("-", "−")


def percent_range(value: Any, low: Any, high: Any, places: int = 1) -> str:
    """A share with its interval in brackets."""
    lo, hi = number(low), number(high)
    if number(value) is None or lo is None or hi is None:
        return percent(value, None, places)
    return f"{percent(value, None, places)} [{100 * lo:.{places}f}, {100 * hi:.{places}f}]"


def points(value: Any, se: Any = None, sign: str = "+") -> str:
    """A difference of shares, in points, with its sign; `sign` "" leaves a plus out.

    >>> points(-0.021, 0.009), points(0.021, sign="")
    ('−2.1 ± 0.9', '2.1')
    """
    v, e = number(value), number(se)
    if v is None:
        return NOTHING
    text = f"{100 * v:{sign}.1f}".replace("-", "−")
    return text if e is None else f"{text} ± {100 * e:.1f}"


def plain(value: Any, places: int = 3) -> str:
    """A loss or another number of order one."""
    v = number(value)
    return NOTHING if v is None else f"{v:.{places}f}".replace("-", "−")


def with_error(value: Any, se: Any, places: int = 3) -> str:
    """Value ± standard error."""
    return plain(value, places) + ("" if number(se) is None else f" ± {plain(se, places)}")


def general(value: Any) -> str:
    """A fitted parameter of any size.

    >>> general(3177.42), general(1.2e9).replace(SPACE, " "), general(0.33741)
    ('3,177', '1.20e9', '0.337')
    """
    v = number(value)
    if v is None:
        return NOTHING
    if v != 0 and not 1e-3 <= abs(v) < 1e6:
        mantissa, exponent = f"{v:.2e}".split("e")
        return f"{mantissa}e{int(exponent)}".replace("-", "−")
    text = digits(v, 4) if abs(v) >= 1000 else digits(v)
    return text.replace("-", "−")


def seconds(value: Any) -> str:
    """A duration.

    >>> seconds(8.2).replace(SPACE, " "), seconds(605).replace(SPACE, " "), seconds(9000).replace(SPACE, " ")
    ('8.2 s', '10 min', '2.5 h')
    """
    v = number(value)
    if v is None:
        return NOTHING
    if v < 120:
        return f"{v:.1f}{SPACE}s" if v < 100 else f"{v:.0f}{SPACE}s"
    return f"{v / 60:.0f}{SPACE}min" if v < 7200 else f"{v / 3600:.1f}{SPACE}h"


def ratio(value: Any) -> str:
    """How many times."""
    v = number(value)
    return NOTHING if v is None else f"{digits(v, 2 if abs(v) < 10 else 3)}×"
