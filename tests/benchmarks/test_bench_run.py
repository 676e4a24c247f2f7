"""The runner of benchmarks: names, the table, what is saved. No time is asserted anywhere."""

from __future__ import annotations

import json

import pytest

from benchmarks import lr_rule, run

ROWS = [
    {"name": "[b]quick[/b]", "unit": "tokens/s", "ours": 3000.0, "peer": 1500.0, "peer_name": "other",
     "ratio": 2.0, "ratio_low": 1.9, "ratio_high": 2.1, "setup": "small",
     "share_of_peak": 0.5, "peer_share_of_peak": 0.25},
    {"name": "peak", "unit": "FLOP/s", "ours": 9e10, "peer": None, "peer_name": None, "ratio": None,
     "setup": "one"},
]  # fmt: skip


def test_unknown_name(capsys):
    assert run.main(["peak", "nosuch"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "benchmark 'nosuch' does not exist; there are peak, training, sampling, loading, tree, posttraining, "
        "sample_store, sampling_large"
    ]


def test_the_table_shows_both_sides(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    run.show(ROWS)
    out = capsys.readouterr().out
    for text in ("[b]quick[/b]", "2.00 (1.90 to 2.10)", "50% / 25%", "1,500 other", "9e+10 FLOP/s"):
        assert text in out


def test_saved_rows_name_machine_and_date(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "RESULTS", tmp_path / "results")
    saved = json.loads(run.save("training", ROWS).read_text())
    assert saved["rows"] == ROWS
    assert saved["machine"]["device"] and saved["date"] and saved["versions"]


def test_a_failing_benchmark_is_reported(monkeypatch, capsys):
    monkeypatch.setattr(run, "NAMES", ("absent",))
    assert run.main([]) == 1
    assert "benchmark absent failed" in capsys.readouterr().err


def test_rate_table_marks_the_best_of_each_width():
    losses = {(32, 0.5): [3.0, 3.2], (32, 1.0): [2.9, 3.1], (64, 0.5): [2.0], (64, 1.0): [2.5]}
    points = [
        {"width": w, "factor": f, "seed": s, "loss": loss}
        for (w, f), v in losses.items()
        for s, loss in enumerate(v)
    ]
    lines = lr_rule.table(points, 0.02).splitlines()
    assert lines[0] == "| width | 0.005 | 0.01 | 0.02 | 0.04 | 0.08 |"
    assert lines[2] == "| 32 |  | 3.100 | **3.000** |  |  |"
    assert lines[3] == "| 64 |  | **2.000** | 2.500 |  |  |"
    assert lines[-1] == "Seeds: 0, 1."


@pytest.mark.slow
def test_peaks_are_plausible():
    rows = run.measure("peak")
    assert [r["unit"] for r in rows] == ["FLOP/s", "FLOP/s", "bytes/s"]
    assert all(1e8 < r["ours"] < 1e15 for r in rows)
