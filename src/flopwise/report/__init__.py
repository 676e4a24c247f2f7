"""The report: records to one results dict, and that to one HTML file that opens offline. No torch."""

from __future__ import annotations

from typing import Any

__all__ = ["build", "collect"]

_HOMES = {"build": "html", "collect": "collect"}


def __getattr__(name: str) -> Any:
    """Load on first use: jinja2, scipy and the store are needed by few callers."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"flopwise.report.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'flopwise.report' has no attribute {name!r}")
