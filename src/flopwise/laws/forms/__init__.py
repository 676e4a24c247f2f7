"""The catalogue's forms, one file per family. To add one: a `register(Law(...))` in a file of its regime."""

from __future__ import annotations

from importlib import import_module

FAMILIES = (
    "dense", "kaplan", "families", "curves", "data", "mixtures", "numerics", "moe", "training",
    "downstream", "posttraining", "rl", "testtime", "testtime_counts", "joint",
)  # fmt: skip


for _family in FAMILIES:  # whichever file is asked for first, the catalogue's order is this one
    import_module(f"flopwise.laws.forms.{_family}")
