"""The plan: measured systems, exchange rates, what a budget should buy. No torch.

The package is callable: `flopwise.plan(fits, budget=..., demand=...)` splits a budget under fitted laws.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

__all__ = ["Option", "Plan", "Split", "System", "exchange_rates", "make_plan", "plan"]

_HOMES = {
    "Plan": "frontier", "Split": "frontier", "plan": "frontier",
    "Option": "allocate", "make_plan": "allocate",
    "System": "systems", "exchange_rates": "exchange",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Load on first use."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"flopwise.plan.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'flopwise.plan' has no attribute {name!r}")


class _Package(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Split a budget: `flopwise.plan.frontier.plan`."""
        from flopwise.plan.frontier import plan

        return plan(*args, **kwargs)


sys.modules[__name__].__class__ = _Package
