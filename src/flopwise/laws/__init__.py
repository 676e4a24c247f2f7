"""Scaling laws: forms, fits with intervals, back-tests, choice. numpy and scipy only."""

from __future__ import annotations

from typing import Any

__all__ = ["Choice", "Fit", "Law", "backtest", "choose", "compare", "fit", "get", "laws", "register"]

_HOMES = {
    "Law": "law", "get": "law", "laws": "law", "register": "law", "Fit": "fitting", "fit": "fitting",
    "backtest": "choosing", "choose": "choosing", "compare": "choosing", "Choice": "choosing",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Load on first use: scipy is slow to import."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"flopwise.laws.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'flopwise.laws' has no attribute {name!r}")
