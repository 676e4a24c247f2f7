"""The page on forecasts, made from small tables of the same shape."""

from __future__ import annotations

import numpy as np
from benchmarks.coverage_forecast import page


def test_the_page_tells_errors_and_intervals_of_both_sets(tmp_path):
    rng = np.random.default_rng(0)
    heads = {"monkeys_math_pythia": "model,problem", "pythia_train_x_test": "benchmark,model,D,problem"}
    for name, head in heads.items():
        rows = [f"{head},n,c"]
        for group in ("A", "B"):
            group = group if "monkeys" in name else f"GSM8K,{group},1e9"
            hits = rng.binomial(10_000, rng.beta(0.5, 20.0, 30))
            rows += [f"{group},{i},10000,{c}" for i, c in enumerate(hits)]
        (tmp_path / name).mkdir()
        (tmp_path / name / "counts.csv").write_text("\n".join(rows))
    text = page(tmp_path, draws=1, seed=0)
    assert "--draws 1 --seed 0" in text and text.count("| groups, draws | 2, ") == 2
    rows = [
        line.split("|")
        for line in text.splitlines()
        if line.startswith("| **absolute error of the forecast**")
    ]
    assert len(rows) == 2 and all(0 <= float(cell.strip(" *")) < 0.3 for row in rows for cell in row[2:4])
