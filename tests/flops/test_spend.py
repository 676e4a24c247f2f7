"""The ledger's arithmetic: unknown is None, never 0."""

from __future__ import annotations

from flopwise.flops import Spend


def test_sums_by_purpose():
    a = Spend(1e9, 2e9, 3e9, tokens=10, wall_s=1.5, device_s=1.0, device="cpu", peak_bytes=100)
    b = Spend(1e9, 0.0, 1e9, tokens=5, wall_s=0.5, device_s=0.5, device="cpu", peak_bytes=300)
    assert a + b == Spend(2e9, 2e9, 4e9, 15, 2.0, 1.5, "cpu", 300)
    assert (a + b).total_flops == 8e9


def test_unknown_stays_unknown():
    assert Spend(1.0) + Spend(2.0) == Spend(3.0)
    assert (Spend(1.0) + Spend(2.0)).tokens is None
    assert (Spend(tokens=3) + Spend()).tokens == (Spend() + Spend(tokens=3)).tokens == 3


def test_different_devices_are_mixed():
    assert (Spend(device="a") + Spend(device="b")).device == "mixed"
    assert (Spend(device="a") + Spend()).device == "a"


def test_round_trip_ignores_what_is_newer():
    a = Spend(1.0, 2.0, 3.0, 4, 5.0, 6.0, "cpu", 7)
    assert Spend.from_dict(a.to_dict() | {"joules": 1.0}) == a
