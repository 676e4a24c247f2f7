"""The race of training loops: who waits, what is counted, what the page says. No time is asserted."""

from __future__ import annotations

import io
import json
import sys

import pytest

from benchmarks import training_page, training_turns


def row(peer: str, ratio: float, parameters: int = 100_000, width: int = 48) -> dict:
    return {
        "name": f"training, width {width}, depth 2, {peer}", "ours": 80_000.0, "peer": 80_000.0 / ratio,
        "ratio": ratio, "ratio_low": ratio - 0.1, "ratio_high": ratio + 0.1, "ratio_wall": ratio,
        "width": width, "depth": 2, "parameters": parameters, "turns": 5, "matmul_peak_flop_s": 9e10,
        "share_of_peak": 0.7, "peer_share_of_peak": None if peer == "plain" else 0.4,
    }  # fmt: skip


RACED = {
    "date": "2026-01-02",
    "machine": {"device": "some processor", "cores": 2},
    "versions": {"torch": "9.9"},
    "rows": [
        row("trainer", 2.1), row("plain", 1.2), row("muon", 1.05),
        row("trainer", 1.3, 8_000_000, 576), row("plain", 1.25, 8_000_000, 576),
    ],
}  # fmt: skip
TIMED = {
    "rows": [
        {"width": w, "depth": 2, "products": 10.0, "attention": 4.0, "passes": 1.0, "step": 20.0,
         "step_in_torch": 30.0, "muon": 22.0}
        for w in (48, 576)
    ]
}  # fmt: skip


def test_the_page_says_which_goals_are_met_and_which_not():
    text = training_page.page(RACED, TIMED)
    met, missed = (line for line in text.splitlines() if line.startswith("Goals"))
    assert met == (
        "Goals met: `transformers` Trainer at 48 x 2 (2.10); plain loop at 576 x 2 (1.25); "
        "60% of the peak at 8.0M (70%)."
    )
    assert "Trainer at 576 x 2 (1.30)" in missed and "plain loop at 48 x 2 (1.20)" in missed
    assert (
        "| 48 x 2 (100,000) | flopwise with Muon | 80,000 | 76,190 | 1.05 (0.95 to 1.15) | 1.05 |  |" in text
    )
    assert "| 48 x 2 | 10.0 | 4.0 | 1.0 | 5.0 | 20.0 | 50% | 30.0 | 22.0 |" in text
    assert "would be 4.20 at 48 x 2, 2.60 at 576 x 2." in text


def test_a_contender_trains_in_turns_and_ends_when_the_benchmark_hangs_up(monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdin", io.StringIO("go\ngo\n"))
    monkeypatch.setattr(sys, "stdout", out)
    turns = training_turns.Turns(steps=5, skip=2)
    print("chatter of a library")
    steps = 0
    with pytest.raises(SystemExit) as end:
        while True:
            turns.tick()
            steps += 1
    assert end.value.code == 0 and steps == 9
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert len(lines) == 2 and all(set(line) == {"cpu", "wall"} for line in lines)
    assert all(value >= 0 for line in lines for value in line.values())


def test_a_contender_that_dies_is_told_of():
    pytest.importorskip("torch")
    from benchmarks.training import Contender

    gone = Contender(
        [sys.executable, "-c", "raise SystemExit(3)"], {"steps": 3, "skip": 1, "batch": 1, "length": 1}
    )
    with pytest.raises(RuntimeError, match="ended with exit code 3"):
        gone.turn()


def test_the_plain_model_has_as_many_parameters():
    torch = pytest.importorskip("torch")
    from benchmarks.training_plain import GPT, hidden_width

    hidden = hidden_width(100_080, 512, 128, 48, 2)
    model = GPT(512, 128, 48, 2, 4, hidden)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(100_080, rel=0.02)
    ids = torch.randint(512, (2, 128), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits, changed = model(ids), model(torch.cat([ids[:, :-1], 1 - ids[:, -1:].clamp(max=1)], 1))
    assert logits.shape == (2, 128, 512)
    assert torch.equal(logits[:, :-1], changed[:, :-1])
