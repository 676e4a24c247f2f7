"""Quantities as people write them, 7B, 1.4T tokens, 6.3 x 10^21 FLOP: read where one meaning is possible."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

FLOP, PARAMS, TOKENS = "FLOP", "parameters", "tokens"

_UNITS = {
    "parameters": PARAMS, "parameter": PARAMS, "params": PARAMS, "param": PARAMS,
    "tokens": TOKENS, "token": TOKENS, "toks": TOKENS, "tok": TOKENS, "flops": FLOP, "flop": FLOP,
}  # fmt: skip
# Powers of ten. A "b" is a billion as in 7B, never a byte; an "m" is a million, never a thousandth.
_SUFFIXES = {
    "": 0, "k": 3, "m": 6, "b": 9, "g": 9, "t": 12, "thousand": 3, "million": 6, "mn": 6,
    "billion": 9, "bn": 9, "trillion": 12, "tn": 12,
}  # fmt: skip
# Only compute is counted in these: "5E" of anything else is a number that was cut off.
_FLOP_SUFFIXES = _SUFFIXES | {
    "p": 15, "e": 18, "z": 21, "y": 24, "kilo": 3, "mega": 6, "giga": 9, "tera": 12, "peta": 15, "exa": 18,
    "zetta": 21, "yotta": 24,
}  # fmt: skip
_DIGITS = re.compile(
    r"(?P<sign>[+-]?)(?P<whole>[0-9]{1,3}(?P<gap>[,' _\u00a0\u2009\u202f])[0-9]{3}(?:(?P=gap)[0-9]{3})*"
    r"|[0-9]+(?:_[0-9]+)*|(?=\.[0-9]))(?P<rest>,[0-9]+)?(?P<fraction>\.[0-9]*)?(?P<power>e[+-]?[0-9]+)?"
    r"(?![0-9,.])"
)
_PLAIN = re.compile(r"[+-]?[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]{1,4})?")
_TIMES_TEN = re.compile(r"\s*[x×*·⋅]\s*10\s*(?:\^|\*\*)\s*([+-]?[0-9]+)")
_TEN = re.compile(r"10\s*(?:\^|\*\*)\s*([+-]?[0-9]+)")
_DAYS = re.compile(r"([a-z]+?)\s*f(?:lops?)?(?:/s)?[ -]?days?")
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")


@dataclass(frozen=True)
class Quantity:
    """One text as a number; `other` is a second number that it could as well mean (1,250 is 1250 or 1.25)."""

    value: float
    scale: float = 1.0
    """What its suffix stood for, 1 without one."""
    unit: str = ""
    other: float | None = None
    comma: str = ""
    """What its commas are: "thousands", "decimal", "either", or "" without any."""


def parse(text: str, unit: str = "") -> Quantity | None:
    """A text as a number, or None where it is none or could be several.

    Args:
        unit: what the number counts, as `unit_of` tells it: compute may have the suffixes P, E, Z and Y.

    >>> parse("1.4T tokens").value, parse("6.3 x 10^21").value, parse("5 PF-days").value
    (1400000000000.0, 6.3e+21, 4.32e+20)
    >>> parse("7Q"), parse("5E"), parse("5E", FLOP).value
    (None, None, 5e+18)
    """
    text = text.strip().casefold()
    if not text.isascii():
        text = re.sub(r"(?<=10)[⁻⁺]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+", lambda m: "^" + m[0].translate(_RAISED), text)
    if ten := _TEN.match(text):
        readings, comma, power, tail = ["1"], "", ten[1], text[ten.end() :]
    elif digits := _DIGITS.match(text):
        readings, comma = _readings(digits)
        power, tail = (digits["power"] or "e0")[1:], text[digits.end() :]
        if times := _TIMES_TEN.match(tail):
            tail, power = tail[times.end() :], str(int(power) + int(times[1]))
    else:
        return None
    scale = _scale(tail.strip(), unit)
    if scale is None or not readings or len(power) > 6:
        return None
    tens, factor, found = scale
    # One conversion, so that 22.1k is 22100 and not 22100.000000000004.
    values = [float(f"{reading}e{int(power) + tens}") * factor for reading in readings]
    other = values[1] if len(values) > 1 else None
    return Quantity(values[0], float(f"1e{tens}") * factor, found, other, comma)


def _readings(match: re.Match[str]) -> tuple[list[str], str]:
    """What the digits may mean, as Python writes it, if they mean anything; and what their commas are."""
    sign, whole, gap, fraction = match["sign"], match["whole"], match["gap"], match["fraction"] or ""
    plain = sign + (whole.replace(gap or "_", "") or "0") + fraction
    if match["rest"]:
        return ([], "") if gap or fraction else ([f"{plain}.{match['rest'][1:]}"], "decimal")
    if gap != ",":
        return [plain], ""
    decimal = sign + whole.replace(",", ".")
    single = whole.count(",") == 1 and not fraction
    if whole.startswith("0"):
        return ([decimal], "decimal") if single else ([], "")
    return ([plain, decimal], "either") if single else ([plain], "thousands")


def _scale(tail: str, unit: str) -> tuple[int, float, str] | None:
    """Power of ten, further factor and unit that the text after a number stands for."""
    if tail == "%":
        return -2, 1.0, "%"
    if match := _DAYS.fullmatch(tail):
        tens = _FLOP_SUFFIXES.get(match[1])
        return None if tens is None else (tens, 86400.0, FLOP)
    found = ""
    for word, meaning in _UNITS.items():
        if tail.endswith(word):
            tail, found = tail.removesuffix(word).rstrip(" "), meaning
            break
    table = _FLOP_SUFFIXES if FLOP in (unit, found) else _SUFFIXES
    return (table[tail], 1.0, found) if tail in table else None


def unit_of(name: str) -> str:
    """What a column of this name counts, "" if the name does not tell.

    >>> unit_of("C"), unit_of("train_flops"), unit_of("n_params"), unit_of("D"), unit_of("loss")
    ('FLOP', 'FLOP', 'parameters', 'tokens', '')
    """
    folded = name.casefold()
    if name == "C" or "flop" in folded or "compute" in folded:
        return FLOP
    if name == "N" or "param" in folded:
        return PARAMS
    return TOKENS if name == "D" or "token" in folded else ""


@dataclass
class Reading:
    """The texts of a column as numbers: `values` by text; `problems` says of the others why not."""

    values: dict[str, float] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    """What a reader should be told, one line each."""


def read_texts(texts: Iterable[str], column: str, bare: tuple[float, float] | None = None) -> Reading:
    """Read all texts of a column together, for one may tell what another means (0,5 beside 1,250).

    Args:
        texts: the column's different texts, first met first.
        bare: smallest and largest number that stands beside the texts as a number, if any does.
    """
    expected = unit_of(column)
    out = Reading()
    found: dict[str, Quantity] = {}
    low, high = bare or (math.inf, -math.inf)
    for text in texts:
        if _PLAIN.fullmatch(text):  # most are, and there may be ten million
            out.values[text] = value = float(text)
            low, high = min(low, value), max(high, value)
            continue
        quantity = parse(text, expected)
        if quantity is None:
            out.problems[text] = ""
        else:
            found[text] = quantity
    commas = {q.comma for q in found.values()}
    units = list(dict.fromkeys(q.unit for q in found.values() if q.unit))
    bare = (low, high) if low <= high else None
    per_cent = bare is None and all(q.unit == "%" for q in found.values())
    for text, q in found.items():
        value = q.value
        if expected and q.unit not in ("", expected):
            out.problems[text] = f"a column of {expected} cannot hold {_said(q.unit)}"
        elif q.unit == "%" and not per_cent:
            out.problems[text] = "other rows are not in per cent"
        elif q.unit and q.unit != units[0]:
            out.problems[text] = f"other rows are in {_said(units[0])}"
        elif {"thousands", "decimal"} <= commas and q.comma:
            out.problems[text] = (
                "where commas stand between thousands in some rows and before decimals in others"
            )
        elif q.comma == "either" and not commas & {"thousands", "decimal"}:
            out.problems[text] = f"which is {q.value:.10g} or {q.other:.10g}"
        else:
            if q.comma == "either" and "decimal" in commas and q.other is not None:
                value = q.other
            out.values[text] = value
    out.notes = _notes(out, found, column, bare)
    return out


def _said(unit: str) -> str:
    return "per cent" if unit == "%" else unit


def _notes(
    out: Reading, found: dict[str, Quantity], column: str, bare: tuple[float, float] | None
) -> list[str]:
    """A line where suffixes were read, a line where some values lack them, a line on decimal commas."""
    notes = []
    scaled = {text: q for text, q in found.items() if q.scale != 1 and text in out.values}
    if scaled:
        text, q = next(iter(scaled.items()))
        notes.append(
            f"column {column!r}: {text!r} is read as {out.values[text]:.6g} (its suffix is {q.scale:g})"
        )
        size = [abs(out.values[t]) for t in scaled]
        plain = {text: abs(out.values[text]) for text in found if text in out.values and text not in scaled}
        plain |= {f"{v:g}": abs(v) for v in bare or ()}
        for other, v in plain.items():
            if 0 < v < min(size) / 1e4 or v > max(size) * 1e4:
                notes.append(
                    f"column {column!r} mixes values with a suffix ({text!r}) and without ({other!r}), which "
                    f"is taken as it stands; write all in full or give each its suffix"
                )
                break
    for text, q in found.items():
        if q.comma == "decimal" and text in out.values:
            notes.append(f"column {column!r}: {text!r} is read as {out.values[text]:.6g} (decimal comma)")
            break
    return notes
