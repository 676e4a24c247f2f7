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


def test_a_base_from_elsewhere_is_null_in_json_and_makes_sums_lower_bounds():
    base = Spend(unknown="made elsewhere")
    values = base.to_dict()
    assert [values[f"{part}_flops"] for part in ("train", "generate", "score")] == [None, None, None]
    assert Spend.from_dict(values) == base and base.at_least
    lineage = base + Spend(3.0, 1.0)
    assert (lineage.total_flops, lineage.unknown, lineage.at_least) == (4.0, "made elsewhere", True)
    assert lineage.to_dict()["train_flops"] == 3.0 and not Spend().at_least


def test_a_breakdown_is_one_runs_and_damaged_ones_are_left_out():
    row = {"kind": "train", "model": "a", "tokens": 1, "flops": 2.0, "seconds": 0.1}
    assert (Spend(2.0, by=(row,)) + Spend(1.0, by=(row,))).by == ()
    assert Spend.from_dict({"by": [row, 3, None]}).by == (row,)
    assert Spend.from_dict({"by": "text"}).by == Spend.from_dict({"by": 7}).by == ()
