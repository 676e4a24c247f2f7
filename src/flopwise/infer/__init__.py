"""Law 3: the engine, strategies, verifiers, estimators."""

from __future__ import annotations

from typing import Any

__all__ = ["score", "solve"]

_HOMES = {"score": "scoring", "solve": "solving"}


def __getattr__(name: str) -> Any:
    """Load on first use."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"flopwise.infer.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'flopwise.infer' has no attribute {name!r}")
