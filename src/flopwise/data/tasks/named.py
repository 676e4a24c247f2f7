"""Variants of a task by name: `chain:checks=0.8,slips=0.3` is `chain` with other settings.

The name says all there is to say of a task, so records, splits and demonstrations follow from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from flopwise.errors import FlopwiseError, one_line


@dataclass(frozen=True)
class Option:
    """A number that a task's name may set, within limits; `whole`: an integer."""

    low: float
    high: float
    default: float
    whole: bool = False


def options(name: str, known: Mapping[str, Option]) -> dict[str, float]:
    """The options in a task's name after its colon, each at its default where it is not named.

    Raises:
        FlopwiseError: an option that the task does not have, twice the same one, or a number out of limits.

    >>> options("chain:checks=0.8", {"checks": Option(0, 1, 0.4), "slips": Option(0, 1, 0.1)})
    {'checks': 0.8, 'slips': 0.1}
    """
    task, _, text = name.partition(":")
    found: dict[str, float] = {}
    for part in text.split(","):
        key, sign, value = part.partition("=")
        if not sign or key not in known:
            raise FlopwiseError(
                f"task {one_line(name, 60)!r}: {part[:40]!r} must be OPTION=NUMBER, the option one of "
                f"{', '.join(known)}"
            )
        if key in found:
            raise FlopwiseError(f"task {one_line(name, 60)!r}: {key} is named twice; name it once")
        option = known[key]
        number = _number(value, option.whole)
        if number is None or not option.low <= number <= option.high:
            kind = "a whole number" if option.whole else "a number"
            raise FlopwiseError(
                f"task {one_line(name, 60)!r}: {key} is {value[:20]!r}, must be {kind} from "
                f"{option.low:g} to {option.high:g}, without needless zeros"
            )
        found[key] = number
    if not task:
        raise FlopwiseError(f"task {one_line(name, 60)!r}: there is no task before the colon")
    return {key: found.get(key, option.default) for key, option in known.items()}


def _number(text: str, whole: bool) -> float | None:
    """The number, None if the text is none; written plainly, so that one setting has one name."""
    try:
        number = int(text) if whole else float(text)
    except ValueError:
        return None
    return number if f"{number:g}" == text or str(number) == text else None
