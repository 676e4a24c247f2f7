"""Scaling laws: forms, fits with intervals, back-tests, choice. numpy and scipy only.

The package is callable: `flopwise.laws()` is the catalogue, whichever of package and function came first.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

__all__ = [
    "Backtest", "Choice", "Comparison", "Fit", "Law", "Parameter", "Published", "backtest",
    "choose", "compare", "fit", "get", "laws", "own", "register",
]  # fmt: skip

_HOMES = {
    "Law": "law", "Parameter": "law", "get": "law", "laws": "law", "register": "law", "Fit": "result",
    "fit": "fitting",
    "Backtest": "backtesting", "backtest": "backtesting", "choose": "comparing", "compare": "comparing",
    "Choice": "comparing", "Comparison": "comparing", "Published": "law", "own": "law",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Load on first use: scipy is slow to import."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"flopwise.laws.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'flopwise.laws' has no attribute {name!r}")


class _Package(ModuleType):
    def __call__(self, regime: str | None = None) -> Any:
        """The catalogue: `flopwise.laws.law.laws`."""
        from flopwise.laws.law import laws

        return laws(regime)


sys.modules[__name__].__class__ = _Package
