"""What one run was and what it cost: records, run folders, the store. No torch."""

from __future__ import annotations

from typing import Any

__all__ = ["Metric", "RunFolder", "RunRecord", "RunStore", "read_table"]

_HOMES = {
    "Metric": "record", "RunRecord": "record",
    "RunFolder": "folder", "RunStore": "store", "read_table": "table",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Load on first use: the store needs duckdb, most callers do not."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"flopwise.records.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'flopwise.records' has no attribute {name!r}")
