"""Draw the figures of the documentation again: `python docs/figures.py [DATA]`.

DATA is the folder of published runs that lies beside the project (default ../shared/data); a figure whose
data are not there is left as it is. `python docs/figures.py DATA NAME...` draws some of them.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from flopwise.laws import backtest, fit, plotting
from flopwise.laws.counts import Counts
from flopwise.laws.coverage import forecast
from flopwise.laws.plotting import with_matplotlib
from flopwise.laws.plotting.compute import coverage
from flopwise.laws.plotting.figure import VERMILLION, Figure, Points, axis, in_columns
from flopwise.records.table import read_table

IMAGES = Path(__file__).parent / "img"
DPI = 100


def chinchilla(data: Path) -> Figure:
    """240 runs of Hoffmann et al. 2022, read off their figure by Besiroglu et al. 2024 (arXiv 2404.10102)."""
    return plotting.series(fit("chinchilla", _chinchilla(data)))


def isoflop(data: Path) -> Figure:
    """The same runs at their budgets."""
    return plotting.series(fit("chinchilla", _chinchilla(data)), "isoflop")


def distance(data: Path) -> Figure:
    """The same runs: how errors grow with distance."""
    test = backtest("chinchilla", _chinchilla(data))
    return plotting.series(test.fit, "backtest", backtest=test)


def profiles(data: Path) -> Figure:
    """Muennighoff et al. 2023 (arXiv 2305.16264), five parameters held as there: the decay of repetition."""
    table = _read(data, "data_constrained_c4/runs.csv")
    table = _only(table, table["in_fit"] == 1)
    held = {"alpha": 0.3526596, "beta": 0.3526596}
    held |= {name: float(np.exp(v)) for name, v in (("A", 6.255414), ("B", 7.3049974), ("E", 0.6254804))}
    return plotting.series(fit("data_constrained", table, fixed=held), "profile")


def reinforcement(data: Path) -> Figure:
    """GRPO on GSM8K, one run: the whole curve, and its first half, which is not to be extrapolated."""
    table = _read(data, "rl_qwen3_gsm8k/curves.csv")
    table = _only(table, table["model"] == "Qwen3-1.7B-Base")
    curve = {"C": table["step"], "reward": table["gsm8k_acc"]}
    early = curve["C"] <= 24
    whole, cut = (
        plotting.series(fit("rl_sigmoid", rows, loss="squared")) for rows in (curve, _only(curve, early))
    )
    later = _only(curve, ~early)
    x, y = (axis(curve[name], label, False) for name, label in (
        ("C", "C (steps of RL)"), ("reward", "share of GSM8K solved"),
    ))  # fmt: skip
    unseen = Points(later["C"], later["reward"], VERMILLION, "what came later", "diamond", hollow=True)
    return replace(
        whole, title="A reinforcement curve tells its ceiling only once it has bent", columns=2,
        panels=in_columns([
            replace(whole.panels[0], x=x, y=y, title="the whole curve"),
            replace(cut.panels[0], x=x, y=y, title="cut after step 24",
                    marks=[*cut.panels[0].marks, unseen]),
        ], 2),
        notes=[*whole.notes, *cut.notes],
    )  # fmt: skip


def samples(data: Path) -> Figure:
    """Brown et al. 2024 (arXiv 2407.21787), Pythia 12B on MATH: 10,000 samples forecast from 100."""
    table = _read(data, "monkeys_math_pythia/counts.csv")
    table = _only(table, table["model"] == "Pythia 12B")
    every = Counts.of(table["n"], table["c"])
    few = every.thinned(100, np.random.default_rng(0))
    ks = [1, 2, 4, 8, 16, 32, 64, 100, 200, 400, 800, 1600, 3200, 6400, 10000]
    return coverage(forecast(few, ks), every)


FIGURES = {
    "chinchilla": chinchilla, "isoflop": isoflop, "distance": distance, "profiles": profiles,
    "reinforcement": reinforcement, "coverage": samples,
}  # fmt: skip


def _chinchilla(data: Path) -> dict[str, Any]:
    table = _read(data, "chinchilla_epoch/runs.csv")
    return _only(table, table["outlier"] == 0)


def _read(data: Path, name: str) -> dict[str, Any]:
    if not (data / name).is_file():
        raise FileNotFoundError(data / name)
    return dict(read_table(data / name))


def _only(table: dict[str, Any], kept: np.ndarray) -> dict[str, Any]:
    return {name: np.asarray(values)[kept] for name, values in table.items()}


def main(data: str = "../shared/data", *names: str) -> None:
    """Write the figures whose data are there."""
    for name, draw in FIGURES.items():
        if names and name not in names:
            continue
        try:
            figure = draw(Path(data))
        except FileNotFoundError as e:
            print(f"{name}: left as it is ({e})")
            continue
        path = IMAGES / f"laws_{name}.png"
        with_matplotlib.draw(figure).savefig(path, dpi=DPI, metadata={"Software": None})
        print(f"{path} {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(*sys.argv[1:])
