"""Law 3: the engine, strategies, verifiers, estimators."""

from __future__ import annotations

from typing import Any

__all__ = ["score"]


def __getattr__(name: str) -> Any:
    """Load on first use."""
    if name == "score":
        from flopwise.infer.estimators import score

        return score
    raise AttributeError(f"module 'flopwise.infer' has no attribute {name!r}")
