"""What a table's own columns say against each other: other units, other counts of the same thing, copies."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flopwise.errors import one_line
from flopwise.records.columns import as_column, from_objects

_EMBEDDING = re.compile(r"(no|non|not|without|excl|excluding|ex|minus)[_ -]?emb", re.IGNORECASE)
_COUNT = re.compile(r"N|(?i:(n|num|model)?[_ -]?param(eter)?s?)")
_QUALIFIER = re.compile(r"[_ -]?(total|active|activated|all|full|count|billions?|millions?)", re.IGNORECASE)
_SCALE = re.compile(r"billion|million|trillion|_[bmt]$|1e\d+", re.IGNORECASE)


def conventions(columns: Mapping[str, Any], used: Sequence[str], cluster: str | None = None) -> list[str]:
    """Lines a reader of a fit should see, because they change exponents and no search would notice.

    Told are: N or D that look given in thousands, millions or billions, as a whole or in some rows; N beside
    another count of parameters (with or without embeddings, total or active) that differs by more than 5%,
    which changes exponents (Pearce and Song 2024, arXiv 2406.12907; Porian et al. 2024, arXiv 2406.19146); C
    that is not within a factor of 2 of 6 N D; rows that repeat others.

    Args:
        columns: the whole table [n], columns that the fit does not use too.
        used: the fit's variables and target.
        cluster: its column of runs, if it has one; repeated rows are then not told.
    """
    numeric = {}
    for name in columns:
        values = _values(columns[name], name in (*used, "N", "D", "C"))
        if values is not None:
            numeric[name] = values
    n = next((len(numeric[name]) for name in used if name in numeric), 0)
    numeric = {name: values for name, values in numeric.items() if len(values) == n}
    out = _units(numeric, used)
    if "N" in used and "N" in numeric:
        out += _counts(numeric)
    if "C" in used or {"N", "D"} <= set(used):
        out += _compute(numeric)
    if cluster is None:
        out += _copies(columns, numeric, used)
    return [one_line(line) for line in out]


def _values(column: Any, texts: bool) -> np.ndarray | None:
    """A column's numbers, NaN where there is none; None for a column of other things, texts unless asked."""
    raw = as_column(column)
    if raw.ndim != 1:
        return None
    if raw.dtype.kind in "iuf":
        return raw.astype(float)
    return from_objects(raw, "")[0] if texts and raw.dtype.kind in "OUS" else None


def _units(numeric: Mapping[str, np.ndarray], used: Sequence[str]) -> list[str]:
    """N or D below what any model has, in every row or in some."""
    out = []
    for name, other in (("N", "D"), ("D", "N")):
        values = numeric.get(name)
        if name not in used or values is None:
            continue
        values = np.sort(values[np.isfinite(values) & (values > 0)])
        if not len(values):
            continue
        beside = numeric.get(other, np.array([np.nan]))
        if values[-1] < 1000 and np.nanmin(np.where(beside > 0, beside, np.nan), initial=np.inf) > 1e6:
            out.append(
                f"{name} is {values[0]:g} to {values[-1]:g} beside {other} above 1e6: if it is in "
                f"billions, fit --map '{name}={name}*1e9': coefficients are in its units"
            )
        gap = int(np.argmax(np.diff(np.log(values)))) if len(values) > 1 else 0
        if len(values) > 1 and values[gap] < 1e4 and values[gap + 1] > 1e4 * values[gap]:
            out.append(
                f"{name} is at most {values[gap]:g} in {gap + 1} of {len(values)} rows and at least "
                f"{values[gap + 1]:g} in the others: units look mixed; give all rows in full"
            )
    return out


def _other_counts(numeric: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Other columns that count parameters."""
    out = {}
    for name, values in numeric.items():
        plain = _EMBEDDING.split(name)[0] if _EMBEDDING.search(name) else _QUALIFIER.sub("", name)
        if name != "N" and not _SCALE.search(name) and _COUNT.fullmatch(plain.strip("_ -")):
            out[name] = values
    return out


def _counts(numeric: Mapping[str, np.ndarray]) -> list[str]:
    """Other counts of parameters that differ from N."""
    out = []
    for name, other in _other_counts(numeric).items():
        good = (other > 0) & (numeric["N"] > 0)
        ratio = np.abs(np.log(other[good] / numeric["N"][good]))
        if not len(ratio) or ratio.max() <= np.log(1.05):
            continue
        row = int(np.flatnonzero(good)[np.argmax(ratio)])
        out.append(
            f"N and column {name!r} count parameters differently, by a factor of {np.exp(ratio.max()):.3g} "
            f"in row {row + 1}: which is used changes exponents; say which, or fit --map 'N={name}' too"
        )
    return out


def _compute(numeric: Mapping[str, np.ndarray]) -> list[str]:
    """C against 6 N D, with N or any other count of parameters in the table."""
    if not {"N", "D", "C"} <= set(numeric):
        return []
    with np.errstate(all="ignore"):
        ratios = [
            numeric["C"] / (6 * count * numeric["D"])
            for count in (numeric["N"], *_other_counts(numeric).values())
        ]
    off = np.logical_and.reduce([np.isfinite(r) & ((r > 2) | (r < 0.5)) for r in ratios])
    if not off.any():
        return []
    rows = np.flatnonzero(off)
    named = ", ".join(str(row + 1) for row in rows[:5]) + (", ..." if len(rows) > 5 else "")
    known = int(np.isfinite(ratios[0]).sum())
    return [
        f"C is not within a factor of 2 of 6 N D in {len(rows)} of {known} rows (rows {named}; in row "
        f"{rows[0] + 1} it is {ratios[0][rows[0]]:.3g} times): see what they count, or fit --map 'C=6*N*D'"
    ]


def _copies(columns: Mapping[str, Any], numeric: Mapping[str, np.ndarray], used: Sequence[str]) -> list[str]:
    """Rows with the variables and the target of an earlier row."""
    names = [name for name in used if name in numeric]
    if len(names) < len(used) or len({len(numeric[name]) for name in names}) != 1:
        return []
    table = [numeric[name] + 0.0 for name in names]  # -0.0 is 0.0
    key = np.zeros(len(table[0]), dtype=np.uint64)
    for values in table:  # rows by a hash: sorting the rows themselves takes ten times as long
        key = (key ^ values.view(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        key ^= key >> np.uint64(32)
    order = np.argsort(key, kind="stable")
    row, earlier = order[1:], order[:-1]
    same = key[row] == key[earlier]
    row, earlier = row[same], earlier[same]
    same = np.logical_and.reduce([values[row] == values[earlier] for values in table])
    if same.sum() < 0.02 * len(key):  # so few may be chance, unless all that is known of them is the same
        others = [as_column(columns[name]) for name in columns if name not in used]
        others = [values for values in others if values.shape == key.shape]
        pairs = zip(row, earlier, strict=True)
        same &= np.array([all(str(o[a]) == str(o[b]) for o in others) for a, b in pairs], dtype=bool)
    if not same.any():
        return []
    first = np.argmin(np.where(same, row, len(key)))
    return [
        f"{same.sum()} of {len(key)} rows repeat the {', '.join(names)} of another (row {row[first] + 1} "
        f"that of row {earlier[first] + 1}): drop copies (they narrow intervals) or name runs with --cluster"
    ]
