"""Published data of downstream scores, post-training and test time, fitted again: what comes out.

`rows(data_dir)` fits everything that lies in the folder and returns one row for each thing that was published
(about a minute and a half on one slow core). Values are measured here unless the row says who published them.
"""

from __future__ import annotations

import csv
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from flopwise.errors import FlopwiseError
from flopwise.laws import Fit, fit, get
from flopwise.laws.forms.downstream import sloth

Row = dict[str, str]
Table = dict[str, np.ndarray]
YES, NEARLY, NO, OWN = "comes out", "nearly", "does not come out", "nothing published for these data"


def rows(data_dir: str | Path) -> list[Row]:
    """Keys folder, what, published, found, interval, verdict, note; folders that are absent give no rows."""
    out: list[Row] = []
    for folder, reproduce in REPRODUCED.items():
        if (Path(data_dir) / folder).is_dir():
            out += [{"folder": folder} | row for row in reproduce(Path(data_dir) / folder)]
    return out


def _row(what: str, published: str, found: str, verdict: str, note: str = "", interval: str = "") -> Row:
    return {
        "what": what, "published": published, "found": found, "interval": interval, "verdict": verdict,
        "note": note,
    }


def _read(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as f:
        return list(csv.DictReader(f))


def _column(table: list[dict[str, str]], name: str) -> np.ndarray:
    return np.array([float(row[name]) for row in table])


def _number(text: str) -> float:
    return float(text) if text else np.nan


def _between(pair: tuple[float, float], form: str = ".3f") -> str:
    return f"{pair[0]:{form}} to {pair[1]:{form}}"


def _at(fitted: Fit, **variables: object) -> np.ndarray:
    return np.asarray(fitted.predict(**variables).value)


# Fine-tuning (Lin et al. 2024)

FULL, EIGHTH = 1638400.0, 204800.0
LIN = {
    "flan": ("0.0065, plain 0.0358", "0.779, plain 0.347"),
    "gigaword": ("0.0052, plain 0.0106", "0.970, plain 0.951"),
}
"""Means of the authors' results/rmsd.csv; correlations of direct fits at 1/8 in their results/tab2.txt."""


def _finetune(folder: Path) -> Iterator[Row]:
    curves: dict[str, dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for row in _read(folder / "losses.csv"):
        curves[row["dataset"]][row["model"]].append((float(row["D"]), float(row["loss"])))
    for dataset, models in curves.items():
        laws = {"rectified": 0.0, "rectified without D = 0": 1.0, "loss = E + B / D^beta": 1.0}
        spread: dict[str, list[float]] = {law: [] for law in laws}
        predicted: dict[str, list[float]] = {law: [] for law in laws}
        truth = []
        for points in models.values():
            D, loss = np.array(sorted(points)).T
            truth.append(loss[-1])
            for law, least in laws.items():
                form, tuned = law.split(" without")[0], D > 0
                kept = least <= D
                whole = fit(form, {"D": D[kept], "loss": loss[kept]}, loss="log_squared", intervals="delta")
                spread[law].append(np.sqrt(np.mean(np.log(_at(whole, D=D[tuned]) / loss[tuned]) ** 2)))
                kept &= D <= EIGHTH
                part = fit(form, {"D": D[kept], "loss": loss[kept]}, loss="log_squared", intervals="delta")
                predicted[law].append(float(_at(part, D=FULL)))
        rmsd = {law: np.mean(v) for law, v in spread.items()}
        pearson = {law: np.corrcoef(v, truth)[0, 1] for law, v in predicted.items()}
        error = {law: np.mean(np.abs(np.array(v) / truth - 1)) for law, v in predicted.items()}
        zero, bent, plain = laws
        yield _row(
            f"{dataset}: mean deviation of log loss, rectified form, {len(truth)} models", LIN[dataset][0],
            f"{rmsd[bent]:.4f}, plain {rmsd[plain]:.4f}", YES,
            f"fitted to D of 200 and more, as they do; with D = 0 as well {rmsd[zero]:.4f}",
        )
        yield _row(
            f"{dataset}: correlation over models of the loss at D = 1638400, predicted from D <= 204800",
            LIN[dataset][1], f"{pearson[bent]:.3f}, plain {pearson[plain]:.3f}",
            YES if dataset == "gigaword" else "better than published",
            f"with D = 0 as well {pearson[zero]:.3f}; relative error {100 * error[bent]:.1f} %, with D = 0 "
            f"{100 * error[zero]:.1f} %, plain {100 * error[plain]:.1f} %; the paper's .909 and .989 are by "
            "its own selection method, not by this fit",
        )


# Loss to error (Gadre et al. 2024)

GADRE = {"c4_original": ("C4", 0), "rpj": ("RedPajama", 1), "rw_original": ("RefinedWeb", 2)}


def _gadre(folder: Path) -> Iterator[Row]:
    runs = _read(folder / "runs.csv")
    published = get("error_exponential").published
    for name, (title, i) in GADRE.items():
        own = [r for r in runs if r["dataset"] == name]
        fitted = {}
        for tasks, which in ((17, i), (46, i + 3)):
            used = [r for r in own if r["in_error_fit"] == "1"]
            table = {"loss": _column(used, "loss_c4_val"), "error": _column(used, f"err_avg{tasks}")}
            f = fitted[tasks] = fit("error_exponential", table, loss="squared")
            values = published[which].values
            same = all(abs(f.params[p] / v - 1) < 0.003 for p, v in values.items())
            yield _row(
                f"{title}: error of {tasks} tasks from C4 loss, eps, k, gamma",
                ", ".join(f"{v:g}" for v in values.values()), ", ".join(f"{f.params[p]:.3f}" for p in values),
                YES if same else NO, f"{len(used)} runs",
                "; ".join(f"{p} {_between(f.interval(p), '.2f')}" for p in values),
            )
        if name != "rpj":
            continue
        used = [r for r in own if r["in_loss_fit"] == "1"]
        table = {"N": _column(used, "N"), "D": _column(used, "D"), "loss": _column(used, "loss_c4_val")}
        first = fit("overtraining", table, loss="squared", intervals="delta")
        for target, errors in (("rpj-open_lm_1b-32.0", (0.71, 3.64)), ("rpj-open_lm_7b-1.0", (0.73, 0.05))):
            run = next(r for r in own if r["name"] == target)
            loss = float(_at(first, N=float(run["N"]), D=float(run["D"])))
            predicted = float(_at(fitted[17], loss=loss))
            found = [
                100 * abs(loss / float(run["loss_c4_val"]) - 1),
                100 * abs(predicted / float(run["err_avg17"]) - 1),
            ]
            size, ratio = float(run["N"]) / 1e9, float(run["D"]) / float(run["N"])
            yield _row(
                f"RedPajama, {size:.1f}B, {ratio:.0f} tokens a parameter: relative error of predicted C4 "
                "loss; of 17-task error through it",
                "; ".join(f"{v} %" for v in errors), "; ".join(f"{v:.2f} %" for v in found),
                YES if np.allclose(found, errors, atol=0.01) else NO,
                "least squares of the loss, not of its logarithm",
            )


# Two steps (Bhagia et al. 2024)

LADDER = re.compile(r"(190M|370M|760M|1B)-(1|2|5|10)xC")
TASKS = ("mmlu", "hellaswag", "piqa", "socialiqa", "arc_challenge", "arc_easy", "csqa", "openbookqa")
EASY = TASKS[:4]


def _smooth(values: np.ndarray, width: int = 5) -> np.ndarray:
    return np.array([values[max(0, i - width + 1) : i + 1].mean() for i in range(len(values))])


def _ladder(folder: Path) -> Iterator[Row]:
    final = [r for r in _read(folder / "final.csv") if not LADDER.fullmatch(r["run"])]
    targets = [r for r in final if r["run"].startswith("peteish")]
    curves: dict[str, list[dict[str, str]]] = defaultdict(list)
    for row in _read(folder / "curves.csv"):
        if LADDER.fullmatch(row["run"]):
            curves[row["run"]].append(row)
    errors: dict[str, dict[str, float]] = {r["run"]: {} for r in targets}
    for task in TASKS:
        first: dict[str, list[float]] = {"N": [], "D": [], "loss": []}
        x, y = [1e-6], [1.0]  # an ideal model, as in the authors' second step
        for points in curves.values():
            points = sorted(points, key=lambda r: float(r["D"]))
            loss, accuracy = (_smooth(_column(points, f"{task}_{kind}")) for kind in ("bpb", "acc"))
            for name, value in (("N", points[-1]["N"]), ("D", points[-1]["D"]), ("loss", loss[-1])):
                first[name].append(float(value))
            skip = int(np.ceil(0.1 * len(points)))
            x += list(loss[skip:])
            y += list(accuracy[skip:])
        one = fit("chinchilla", {k: np.array(v) for k, v in first.items()}, intervals="delta")
        both = {"loss": np.array(x), "accuracy": np.array(y)}
        two = fit("task_sigmoid", both, "squared", intervals="delta")
        for run in targets:
            loss_there = float(_at(one, N=float(run["N"]), D=float(run["D"])))
            errors[run["run"]][task] = 100 * (float(_at(two, loss=loss_there)) - float(run[f"{task}_acc"]))
    for name, size in (("peteish7_eval_anneal", "7B, 4T tokens"), ("peteish13_eval_final", "13B, 5T tokens")):
        error = errors[name]
        easy, hard = max(abs(error[t]) for t in EASY), np.mean([abs(error[t]) for t in TASKS[4:]])
        signed = ", ".join(f"{t} {e:+.1f}" for t, e in error.items())
        yield _row(
            f"{size}: error of predicted accuracy, largest of the four best tasks; mean of the other four",
            "within 2 points; 6.9 points", f"{easy:.1f}; {hard:.1f} points", YES if easy < 2 else NEARLY,
            f"{signed}; the four best are those with the least error here; moving average of 5, first 10 % "
            "left out, an ideal point, as in their code",
        )


# Reinforcement learning

QUESTIONS = 1319


def _rl(folder: Path) -> Iterator[Row]:
    curves: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    for row in _read(folder / "curves.csv"):
        curves[row["model"]].append((float(row["step"]), float(row["gsm8k_acc"]), float(row["N_nominal"])))
    joint: dict[str, list[float]] = {"N": [], "C": [], "error": []}
    ends = []
    for model, points in curves.items():
        step, accuracy, size = np.array(sorted(points)).T
        half, last = step <= step[-1] / 2, 100 * accuracy[-1]
        right, n = np.round(accuracy * QUESTIONS), np.full(len(step), float(QUESTIONS))
        f = fit("rl_sigmoid", {"C": step[half], "n": n[half], "c": right[half]}, loss="binomial")
        late = half & (step > 0)
        power = fit("rl_power", {"C": step[late], "error": 1 - accuracy[late]}, loss="log_squared")
        note = f"measured {last:.1f}; the power law predicts {100 * (1 - float(_at(power, C=step[-1]))):.1f}"
        what = f"{model}: accuracy at the last step from the first half of the curve"
        ends.append((size[0], step[-1], accuracy[-1]))
        joint["N"] += list(size[late])
        joint["C"] += list(size[late] * step[late])
        joint["error"] += list(1 - accuracy[late])
        try:
            there = f.predict(C=step[-1])
        except FlopwiseError as e:
            why = str(e).split(":", 1)[1].split(";")[0].strip()
            yield _row(what, "", f"refused: {why}", OWN, note)
            continue
        low, high = 100 * there.low, 100 * there.high
        inside = "inside" if low <= last <= high else "outside"
        yield _row(
            what, "", f"{100 * there.value:.1f}", OWN, f"{note}; {inside} the interval",
            f"{low:.1f} to {high:.1f}",
        )
    f = fit("rl_power_size", {k: np.array(v) for k, v in joint.items()}, loss="log_squared")
    off = [100 * abs(1 - float(_at(f, N=N, C=N * step)) - end) for N, step, end in ends]
    yield _row(
        "all five sizes: rl_power_size from the first halves, mean absolute error at the last steps", "",
        f"{np.mean(off):.1f} points", OWN,
        f"largest {np.max(off):.1f} (the smallest model, whose gain comes late); kmax "
        f"{f.params['kmax']:.2f}, N0 {f.params['N0']:.1e}; compute is steps times size",
    )


# Thinking

def _thinking(folder: Path) -> Iterator[Row]:
    points = _read(folder / "points.csv")
    table = {"tokens": _column(points, "avg_tokens_used"), "accuracy": _column(points, "accuracy")}
    f = fit("thinking_length", table, loss="squared")
    yield _row(
        "o1-mini on AIME 2024: accuracy per factor e of tokens, b", "about linear in log tokens",
        f"{f.params['b']:.3f}", YES,
        f"plateau {f.params['top']:.2f}: not identified; "
        f"scatter {f.scatter:.3f}; 30 problems give about .09",
        _between(f.interval("b")),
    )
    short = {k: v[table["tokens"] < 3e4] for k, v in table.items()}
    there = fit("thinking_length", short, loss="squared").predict(tokens=table["tokens"][-1])
    yield _row(
        "the same: accuracy at 88 448 tokens from 22 034 and fewer", "", f"{float(there.value):.2f}", OWN,
        "measured .70; wide, as it must be: the last points are majority votes",
        _between((float(there.low), float(there.high)), ".2f"),
    )


# Train-to-Test

SAMPLES = 2.0 ** np.arange(8)


def _solved(n: np.ndarray, c: np.ndarray, k: float) -> float:
    from scipy.special import gammaln

    rest = np.maximum(n - c, k)
    missed = np.exp(gammaln(rest + 1) - gammaln(rest - k + 1) - gammaln(n + 1) + gammaln(n - k + 1))
    return float(np.mean(1 - np.where(n - c >= k, missed, 0.0)))


def _train_to_test(folder: Path) -> Iterator[Row]:
    counts = _read(folder / "counts.csv")
    for benchmark, least in (("GSM8K", 2e9), ("MATH", 2e10)):
        used = [r for r in counts if r["benchmark"] == benchmark and float(r["D"]) >= least]
        raw = {name: _column(used, name) for name in ("N", "D", "n", "c")}
        table: dict[str, list[float]] = defaultdict(list)
        for N, D in sorted(set(zip(raw["N"], raw["D"], strict=True))):
            one = (raw["N"] == N) & (raw["D"] == D)
            for k in SAMPLES:
                solved = _solved(raw["n"][one], raw["c"][one], k)
                for name, value in (("N", N), ("D", D), ("k", k), ("coverage", solved)):
                    table[name].append(value)
        whole = {name: np.array(v) for name, v in table.items()}
        some = whole["coverage"] > 0
        whole = {name: v[some] for name, v in whole.items()} | {"nlp": -np.log(whole["coverage"][some])}
        large = whole["N"] > 5e9
        seen, held = ({name: v[keep] for name, v in whole.items()} for keep in (~large, large))
        there = {name: held[name] for name in ("N", "D", "k")}
        small = {name: v[raw["N"] < 5e9] for name, v in raw.items()}
        loss_form = fit("train_to_test_loss", seen, "log_squared", intervals="delta")
        accuracy_form = fit("train_to_test_accuracy", seen, "squared", intervals="delta")
        by_counts = fit("train_to_test_counts", small, starts=30, intervals="delta")
        for name, predicted in {
            "loss form": np.exp(-_at(loss_form, **there)), "accuracy form": _at(accuracy_form, **there),
            "accuracy form by likelihood of counts": _at(by_counts, **there),
            "the 2.8B model's value": _nearest(seen, held),
        }.items():
            error = np.abs(predicted - held["coverage"])
            nlp = np.abs(np.log(np.clip(predicted, 1e-9, 1.0)) / -held["nlp"] - 1)
            yield _row(
                f"{benchmark}: pass@1 to pass@128 of 6.9B and 12B from sizes up to 2.8B, {name}", "",
                f"{100 * nlp.mean():.1f} % of -log pass@k", OWN,
                f"mean absolute error of pass@k {error.mean():.4f} of {held['coverage'].mean():.3f}; "
                f"checkpoints of {least:.0e} tokens and more; minus log of mean coverage, as many problems "
                "are never solved; on its own models the paper has 2.8 % (loss form), 8.4 % (accuracy form)",
            )


def _nearest(seen: Mapping[str, np.ndarray], held: Mapping[str, np.ndarray]) -> np.ndarray:
    """What the largest size seen has at the same D and k."""
    largest = seen["N"] == seen["N"].max()
    known = {
        (D, k): value
        for D, k, value in zip(seen["D"][largest], seen["k"][largest], seen["coverage"][largest], strict=True)
    }
    return np.array([known.get((D, k), np.nan) for D, k in zip(held["D"], held["k"], strict=True)])


# Families of public models (Maia Polo et al. 2024)

CHANCE = {
    "MMLU": 0.25, "ARC": 0.25, "HellaSwag": 0.25, "Winogrande": 0.5, "TruthfulQA": 0.0, "GSM8K": 0.0,
    "IFEval": 0.0, "BBH": 0.25, "MATH Lvl 5": 0.0, "GPQA": 0.25, "MUSR": 0.3, "MMLU-PRO": 0.1,
}


def _families(folder: Path) -> Iterator[Row]:
    models = [r for r in _read(folder / "models.csv") if r["Instruct"] == "False"]
    error, last, better = [], [], []
    for benchmark, chance in CHANCE.items():
        families: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
        for r in models:
            point = (_number(r["N_billion"]), _number(r["D_trillion"]), _number(r[benchmark]))
            if np.isfinite(point).all():
                families[r["Family"]].append(point)
        families = {k: sorted(set(v)) for k, v in sorted(families.items()) if len({p[0] for p in v}) > 2}
        rows_of = [(i, p) for i, points in enumerate(families.values()) for p in points]
        mine, persistence = [], []
        for i, points in enumerate(families.values()):
            for target in (p for p in points if p[0] == points[-1][0]):
                table = _dummies([r for r in rows_of if r != (i, target)], len(families))
                law = sloth(len(families))
                f = fit(law, table, "squared", starts=30, intervals="delta", fixed={"g": max(chance, 1e-6)})
                ask = {k: v for k, v in _dummies([(i, target)], len(families)).items() if k != "score"}
                smaller = [p for p in points if p[0] < target[0]]
                mine.append(abs(float(_at(f, **ask)[0]) - target[2]))
                persistence.append(abs(smaller[-1][2] - target[2]))
        error += mine
        last += persistence
        better.append(np.mean(mine) < np.mean(persistence))
    yield _row(
        "largest model of each family from all others, one skill: mean absolute error of the score", "",
        f"{np.mean(error):.3f}", OWN,
        f"{len(error)} predictions on {len(CHANCE)} benchmarks; the score of the next smaller model instead: "
        f"{np.mean(last):.3f}; better on {sum(better)} benchmarks; lower ends g held at chance",
    )


def _dummies(points: list[tuple[int, tuple[float, float, float]]], families: int) -> Table:
    family = np.array([i for i, _ in points])
    values = np.array([p for _, p in points])
    flags = {f"F{j + 1}": (family == j) * 1.0 for j in range(families)}
    return {"N": values[:, 0] * 1e9, "D": values[:, 1] * 1e12, "score": values[:, 2]} | flags


REPRODUCED: dict[str, Callable[[Path], Iterator[Row]]] = {
    "finetune_rectified": _finetune, "gadre_overtraining": _gadre, "olmo_ladder": _ladder,
    "rl_qwen3_gsm8k": _rl, "o1_tokens_aime": _thinking, "pythia_train_x_test": _train_to_test,
    "llm_benchmarks_families": _families,
}

if __name__ == "__main__":
    for row in rows(sys.argv[1]):
        print(*(f"{key}: {value}" for key, value in row.items() if value), sep="\n   ")
