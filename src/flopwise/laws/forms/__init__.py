"""The catalogue's forms, one file per family. To add one: a `register(Law(...))` in a file of its regime."""

from __future__ import annotations

from importlib import import_module

FAMILIES = (
    "dense", "kaplan", "families", "curves", "data", "mixtures", "numerics", "moe", "training",
    "downstream", "posttraining", "rl", "testtime", "testtime_counts",
)  # fmt: skip


def load() -> None:
    """Register every form; the order here is the order of the catalogue."""
    for family in FAMILIES:
        import_module(f"flopwise.laws.forms.{family}")
