"""flopwise: where should the next FLOP go? The three scaling laws, measured, fitted, predicted, planned."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "Fit": "laws", "backtest": "laws", "choose": "laws", "compare": "laws", "fit": "laws", "laws": "laws",
    "best_of": "laws.tuning", "envelope": "laws.envelope", "isoflop": "laws.isoflop",
    "RunRecord": "records", "RunStore": "records", "read_table": "records", "run": "launch",
    "score": "infer", "solve": "infer", "plan": "plan",
}  # fmt: skip
__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    """Public names load on first use, so that `import flopwise` costs nothing."""
    if name in _HOMES:
        from importlib import import_module

        module = import_module(f"flopwise.{_HOMES[name]}")
        # `laws` and `plan` are packages that can be called: the same object before and after their import.
        return module if name in ("laws", "plan") else getattr(module, name)
    raise AttributeError(f"module 'flopwise' has no attribute {name!r}")
