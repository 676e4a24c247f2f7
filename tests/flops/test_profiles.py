"""Profiles of accelerators, as their makers publish them."""

from __future__ import annotations

import pytest

from flopwise.errors import FlopwiseError
from flopwise.flops.hardware import PROFILES, profile


def test_a_profile_is_found_by_name():
    h100 = profile("H100")
    assert (h100.peak, h100.bandwidth, h100.memory, h100.watts) == (989e12, 3.35e12, 80e9, 700.0)
    assert all(p.peak > 1e14 and p.bandwidth > 5e11 and p.watts < 1500 for p in PROFILES.values())


def test_an_unknown_one_names_those_there_are():
    with pytest.raises(FlopwiseError, match="'abacus' is unknown; there are a100, h100"):
        profile("abacus")
