"""Write docs/results/policies.md and its figure: policies per prompt, measured.

    python docs/policies_results.py [NAME=SAMPLES...]

SAMPLES are what `flopwise eval ... -o FOLDER` left (samples.npz, or its folder), with answers and, where
there is one, a reward model's scores. Published data are read from ../shared/data; what is absent is left
out, and said. All sentences about numbers are made from them.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

import numpy as np
from ladder_results import table

from flopwise.infer.policies import Beta, policies, spread, stopping
from flopwise.infer.policies.comparing import Curve, compare, weights
from flopwise.infer.policies.difficulty import coverage
from flopwise.infer.policies.options import VERIFIER, parallel
from flopwise.infer.policies.rules import Accept
from flopwise.infer.samples import Samples
from flopwise.laws.plotting import with_matplotlib
from flopwise.laws.plotting.figure import (
    BLUE,
    GREEN,
    PURPLE,
    VERMILLION,
    Figure,
    Line,
    Mark,
    Panel,
    axis,
    in_columns,
)

DOCS = Path(__file__).parent
DATA = DOCS.parents[1] / "shared" / "data"
COLOURS = {"uniform": BLUE, "adaptive": VERMILLION, "by difficulty": GREEN, "both": PURPLE}
A, B = 0.4, 1.2
"""Of the simulated chances."""
SETS, PROBLEMS = 200, 100

HEAD = """\
# Policies per prompt

When to stop and how to split a total over prompts, against uniform spending at equal compute:
[policies](../policies.md) says what each policy is. Chosen on one half of the problems and judged on the
other; difficulty comes from other samples than those evaluated and is paid for, but in the row marked free.
*gain*: in accuracy at equal compute; *saves*: compute at the accuracy of uniform spending, negative where
more is needed. *Two rounds*: look at the first samples, then take the others at once; all of them count.
Intervals are 95%, by a bootstrap over problems, paired. Made by

    {command}
"""


def main(given: list[str]) -> None:
    """Write the page and its figure."""
    named = [text.partition("=") for text in given]
    command = " ".join(["python docs/policies_results.py", *(f'"{n}=SAMPLES"' for n, _, _ in named)])
    parts = [HEAD.format(command=command), simulated(), monkeys(), scored()]
    curves: dict[str, dict[str, Any]] = {}
    for name, _, path in named:
        text, made = own(name, Path(path))
        parts.append(text)
        curves = curves or made
    if curves:
        picture = DOCS / "img" / "policies.png"
        with_matplotlib.draw(figure(curves)).savefig(picture, dpi=110, metadata={"Software": None})
        parts.append(f"{named[0][0]}:\n\n![Accuracy against compute, by policy](../img/{picture.name})\n")
    out = DOCS / "results" / "policies.md"
    out.write_text("\n".join(parts), encoding="utf-8")
    print(out.relative_to(DOCS.parent))


def samples_of(
    correct: np.ndarray, scores: np.ndarray | None = None, tokens: np.ndarray | None = None
) -> Samples:
    """Verdicts [P, n] as samples without answers; they cost their tokens, else 1 each."""
    P, n = correct.shape
    cost = np.ones((P, n)) if tokens is None else tokens.astype(float)
    return Samples(
        problems=[str(p) for p in range(P)], correct=correct, answers=[[None] * n for _ in range(P)],
        logprob=np.full((P, n), np.nan), tokens=cost.astype(np.int64), finished=np.ones((P, n), dtype=bool),
        prefill_flops=np.zeros(P), decode_flops=cost, scores={} if scores is None else {"reward": scores},
        unit="samples" if tokens is None else "tokens",
    )  # fmt: skip


def simulated() -> str:
    """Known truths: the optimum and the intervals."""
    one, truth = np.ones(1), (np.array([A]), np.array([B]))
    caps, ks, budget = [1, 2, 4, 8, 16, 32], [1, 2, 4, 8, 16], 4.0
    missed = [1 - float(coverage(*truth, t)[0]) for t in range(33)]
    values, costs = [1 - missed[c] for c in caps], [sum(missed[:c]) for c in caps]
    fixed = [float(coverage(*truth, k)[0]) for k in ks]
    gain = np.interp(budget, costs, values) - np.interp(budget, ks, fixed)
    saving = 1 - np.interp(np.interp(budget, ks, fixed), values, costs) / budget
    inside, found = np.zeros(2), np.zeros((SETS, 2))
    reached = np.zeros((SETS, 3))
    for seed in range(SETS):
        rng = np.random.default_rng(seed)
        p = rng.beta(A, B, PROBLEMS)
        s = samples_of(rng.random((PROBLEMS, 32)) < p[:, None])
        stop, plain = (
            Curve("", np.stack([o.value for o in made], axis=1), np.stack([o.cost for o in made], axis=1))
            for made in (stopping(s, [Accept()], caps), parallel(s, VERIFIER, ks))
        )
        row = compare(stop, plain, budget, weights(PROBLEMS, 500, seed))
        for i, (name, true) in enumerate((("gain", gain), ("saving", saving))):
            inside[i] += row[name]["low"] <= true <= row[name]["high"]
            found[seed, i] = row[name]["value"]
        right = s.correct[:, :8].sum(axis=1)
        cost = np.tile(one, PROBLEMS)
        for i, prior in enumerate((Beta(A, B), Beta.fit(s.correct[:, :8]))):
            k = spread(*prior.posterior(right, 8), cost, 16.0 * PROBLEMS)
            reached[seed, i] = np.mean(1 - (1 - p) ** k)
        reached[seed, 2] = np.mean(1 - (1 - p) ** 16)
    known, learned, uniform = reached.mean(axis=0)
    worst = float(np.max(1 - reached[:, 1] / reached[:, 0]))
    return f"""\
## Simulated truths

Chances of success from Beta({A}, {B}), {SETS} sets of {PROBLEMS} problems, answers that can be checked.

- Stopping at the first right answer against a fixed number of samples, 4 a problem: the true gain is
  {gain:+.1%} and the true saving {saving:.1%}; measured on average {found[:, 0].mean():+.1%} and
  {found[:, 1].mean():.1%}. The 95% intervals held the truth in {inside[0] / SETS:.1%} (gain) and
  {inside[1] / SETS:.1%} (saving) of the sets.
- 16 more samples a problem, spread by each problem's posterior after 8: {known:.2%} solved with the true
  prior, which is the optimum for what is known; {learned:.2%} with the prior learned from the same set
  ({1 - learned / known:.2%} less; at worst {worst:.2%}); {uniform:.2%} by 16 of each.
"""


def columns(path: str) -> dict[str, np.ndarray] | None:
    """A published table, None where it is absent."""
    if not (DATA / path).is_file():
        return None
    with open(DATA / path, newline="", encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    return {key: np.array([row[key] for row in rows]) for key in rows[0]}


def monkeys() -> str:
    """Pythia on MATH with an answer that can be checked: 100 samples a problem."""
    found = columns("monkeys_math_pythia/counts.csv")
    if found is None:
        return "## Pythia on MATH\n\nThe published samples were not there.\n"
    n, c = found["n"].astype(int), found["c"].astype(int)
    rows: list[list[str]] = []
    saved: list[float] = []
    gains: dict[str, list[float]] = {"by posterior": [], "by difficulty, free": []}
    for model in sorted(set(found["model"]), key=lambda name: _size(str(name))):
        mine = found["model"] == model
        rng = np.random.default_rng(0)
        correct = np.argsort(rng.random((mine.sum(), n.max())), axis=1) < c[mine, None]
        made = policies(samples_of(correct), each=100, by="verifier", m=20, repeats=2)
        by = {row["name"]: row for row in made["policies"]}
        stop, free, spread_ = by["adaptive"], by["by difficulty, free"], by["by posterior"]
        saved.append(stop["saving"]["value"])
        for key in gains:
            gains[key].append(by[key]["gain"]["value"])
        rows.append([
            model, f"{made['uniform']['accuracy']['value']:.1%}", f"{stop['accuracy']['value']:.1%}",
            ends(stop["gain"], "+"), ends(stop["saving"]), f"{spread_['accuracy']['value']:.1%}",
            ends(spread_["gain"], "+"), ends(free["gain"], "+"),
        ])  # fmt: skip
    paid, free_ = (np.mean(gains[key]) for key in gains)
    said = (
        f"Stopping at the first right answer saves {min(saved):.0%} to {max(saved):.0%}: solved problems "
        "stop at once, and what they leave goes to the others. Difficulty from 20 samples, a fifth of the "
        f"budget, changes accuracy by {100 * paid:+.1f} points on average where it is paid for, by "
        f"{100 * free_:+.1f} where it is free: a problem's own wrong samples say the same, and cost nothing "
        "more."
    )
    head = [
        "model",
        "uniform",
        "stop at first right",
        "gain",
        "saves",
        "by posterior",
        "gain",
        "bins, free: gain",
    ]
    return f"""\
## Pythia on MATH, 10,000 samples of 128 problems

Brown et al. 2024 (arXiv 2407.21787); answers that can be checked, 100 samples a problem in all. Difficulty by
the verifier on 20 other samples, which are paid for (by posterior) or free (bins).

{table(head, rows)}
{said}
"""


def _size(name: str) -> float:
    number = name.split()[-1]
    return float(number[:-1]) * {"M": 1e6, "B": 1e9}[number[-1]]


def scored() -> str:
    """MATH-500 with the scores of a process reward model."""
    found = columns("scored_completions/samples.csv")
    if found is None:
        return "## MATH-500 with a process reward model\n\nThe published samples were not there.\n"
    order = np.lexsort((found["sample"].astype(int), found["seed"].astype(int), found["problem"]))
    correct, scores, tokens = (
        found[name][order].astype(float).reshape(-1, 24) for name in ("correct", "prm_score", "tokens")
    )
    s = samples_of(correct > 0, scores, tokens)
    parts = []
    for strategy, by in (("best_of_n:reward", "reward"), (VERIFIER, "verifier")):
        made = policies(s, each=8, strategies=[strategy], by=by, m=2, orders=400)
        parts.append(f"{strategy}, as many tokens as 8 samples of each take:\n\n{rows_of(made)}")
    return (
        "## MATH-500 with a process reward model\n\n40 problems, 24 samples each of a 1.5B model with the "
        "mean step score of a 1.5B process reward model (scored_completions; three seeds of 8, together). "
        "Cost in tokens written; the reward model's is not known and not counted.\n\n"
        + "\n".join(parts)
        + "\n40 problems are few: read the intervals.\n"
    )


def own(name: str, path: Path) -> tuple[str, dict[str, dict[str, Any]]]:
    """Samples made here, by each strategy."""
    s = Samples.load(path / "samples.npz" if path.is_dir() else path)
    parts, curves = [], {}
    strategies = ["self_consistency", *(f"best_of_n:{j}" for j in s.scores), VERIFIER]
    for strategy in strategies:
        made = policies(s, each=8, strategies=[strategy], repeats=3)
        what = made["difficulty"]
        parts.append(
            f"**{strategy}**, as many {s.unit} as 8 samples of each take; difficulty by {what['by']} of "
            f"{what['m']} samples:\n\n{rows_of(made)}"
        )
        curves[strategy] = made
    title = (
        f"## {name}\n\n{s.P} problems, {s.n} samples each; one sample is right with {s.correct.mean():.1%}. "
        f"Cost in {s.unit}, prompt and judge included.\n\n"
    )
    return title + "\n".join(parts), curves


def rows_of(made: dict[str, Any]) -> str:
    """A table of policies, and what the adaptive one does."""
    rows = []
    for row in ({"name": "uniform", **made["uniform"]}, *made["policies"]):
        rows.append([
            row["name"], ends(row["accuracy"]), f"{row['cost'] * made['problems'] / made['budget']:.2f}",
            ends(row["gain"], "+") if "gain" in row else "", ends(row["saving"]) if "saving" in row else "",
        ])  # fmt: skip
    shown = table(["", "accuracy", "of budget", "gain", "saves"], rows)
    does = {row["name"]: row["does"][0]["do"] for row in made["policies"] if len(row.get("does", ())) == 1}
    said = "; ".join(f"{name}: {' or '.join(part['option'] for part in do)}" for name, do in does.items())
    return f"{shown}\n{said}.\n" if said else shown


def ends(found: dict[str, float | None], sign: str = "") -> str:
    """A share with its interval."""
    if found["value"] is None:
        return "not reached"
    low, high = ("none" if found[k] is None else f"{found[k]:{sign}.1%}" for k in ("low", "high"))
    return f"{found['value']:{sign}.1%} ({low} to {high})"


def figure(curves: dict[str, dict[str, Any]]) -> Figure:
    """Accuracy against mean cost, a panel for each strategy."""
    panels = []
    for strategy, made in curves.items():
        marks: list[Mark] = []
        xs, ys = [], []
        for curve in made["curves"]:
            if curve["name"] in COLOURS:
                x = np.array([p["cost"] for p in curve["points"]])
                y = np.array([p["accuracy"] for p in curve["points"]])
                marks.append(Line(x, y, COLOURS[curve["name"]], curve["name"]))
                xs, ys = [*xs, *x], [*ys, *y]
        x_axis = axis(xs, f"{made['unit']} a question", True)
        panels.append(Panel(x_axis, axis(ys, "accuracy", False, percent=True), marks, strategy))
    note = "Chosen on one half of the problems, judged on the other; difficulty is paid for."
    return Figure("Accuracy against compute, by policy", note, in_columns(panels, 2), 2)


if __name__ == "__main__":
    main(sys.argv[1:])
