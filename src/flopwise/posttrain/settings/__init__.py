"""The methods that recipes and commands know, by name; one file per family. Imports no torch."""

from __future__ import annotations

import difflib

from flopwise.errors import FlopwiseError
from flopwise.posttrain.settings import preference, rewards, rl, synthetic, tuning
from flopwise.posttrain.settings.method import Method

FAMILIES = (tuning, preference, rewards, rl, synthetic)

METHODS: dict[str, Method] = {m.name: m for family in FAMILIES for m in family.METHODS}


def method(name: str) -> Method:
    """The method of that name.

    Raises:
        FlopwiseError: there is none; the nearest is named.
    """
    if name not in METHODS:
        close = difflib.get_close_matches(str(name), METHODS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(METHODS)}"
        raise FlopwiseError(f"method {str(name)!r:.60} is unknown; {hint}")
    return METHODS[name]


__all__ = ["METHODS", "Method", "method"]
