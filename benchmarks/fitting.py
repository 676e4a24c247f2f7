"""How fast a law is fitted: Chinchilla's form on 240 published runs, beside what else fits it.

    python -m benchmarks.fitting --data DIR [--out benchmarks/results/fitting.json] [--quick]

DIR holds `runs.csv` with columns N, D, loss and outlier; rows with outlier = 0 are used (240 points that
Besiroglu et al. 2024, arXiv 2404.10102, read from the figure of Hoffmann et al. 2022). Each side runs in a
process of its own on one thread, one after the other; peers that are packages in an environment of their own,
made on first use in a cache folder (`--cache`). Processor time is what is compared: a busy machine slows both
sides alike. Objectives are computed here, in float64, from the parameters that each side reports. `--quick`
gives peers fewer starts and scales their time up; the table then says so.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

DELTA = 1e-3
DRAWS = 1000
PEERS = {
    "chinchilla": ("chinchilla==0.2.0", (3, 8)),
    "simple-scaling-laws": ("simple-scaling-laws==0.2.0", (3, 12)),
}
"""Packages with the oldest Python they run on."""
HOFFMANN = {
    "a": np.arange(0.0, 26.0, 5.0), "b": np.arange(0.0, 26.0, 5.0), "e": np.arange(-1.0, 1.1, 0.5),
    "alpha": np.arange(0.0, 2.1, 0.5), "beta": np.arange(0.0, 2.1, 0.5),
}  # fmt: skip
"""The 4500 starts of Hoffmann et al. 2022, appendix D.3, which Besiroglu et al. 2024 use too; a, b, e are
logarithms."""
Table = dict[str, np.ndarray]
ENVIRONMENT = os.environ | {
    name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "POLARS_MAX_THREADS")
}


def read(folder: str) -> Table:
    """Columns N, D and loss of the rows that are no outliers."""
    with open(Path(folder) / "runs.csv", newline="") as f:
        rows = [row for row in csv.DictReader(f) if row["outlier"] == "0"]
    return {name: np.array([float(row[name]) for row in rows]) for name in ("N", "D", "loss")}


def clocked(work: Callable[[], Any], repeats: int = 1) -> tuple[dict[str, float], Any]:
    """Median processor and wall seconds, and the last result."""
    cpu, wall, out = [], [], None
    for _ in range(repeats):
        c, w = time.process_time(), time.perf_counter()
        out = work()
        cpu.append(time.process_time() - c)
        wall.append(time.perf_counter() - w)
    return {"cpu_s": float(np.median(cpu)), "wall_s": float(np.median(wall))}, out


# What each side does, in its own process. Results are printed as JSON.


def ours(folder: str, quick: bool) -> dict[str, Any]:
    """Cold call, warm fit, bootstrap and profiles, by log-Huber and by least squares of the loss."""
    cold, _ = clocked(lambda: __import__("flopwise.laws").laws.fit("chinchilla", read(folder)))
    from flopwise.laws import fit

    table = read(folder)
    repeats = 10 if quick else 30
    out: dict[str, Any] = {"cold": cold, "versions": _versions("flopwise")}
    for name, how in (("log_huber", {"loss": "log_huber", "delta": DELTA}), ("squared", {"loss": "squared"})):
        fit("chinchilla", table, **how)
        seconds, fitted = clocked(partial(fit, "chinchilla", table, **how), repeats)
        both, drawn = clocked(partial(fit, "chinchilla", table, bootstrap=DRAWS, **how), 1 if quick else 3)

        def profiles(fitted: Any = fitted) -> None:
            fitted.profiles.clear()
            fitted.profile("E")  # makes those of all parameters

        profile, _ = clocked(profiles, 5)
        out[name] = {
            "params": fitted.params, "fit": seconds, "bootstrap": _less(both, seconds), "profiles": profile,
            "bootstrap_converged": drawn.diagnostics["bootstrap"]["draws"],
            "intervals": {p: fitted.interval(p) for p in fitted.form.names},
        }  # fmt: skip
    return out


def chinchilla(folder: str, quick: bool) -> dict[str, Any]:
    """The grid of starts of its README, its own log-Huber loss, no pool of processes."""
    from chinchilla import Chinchilla
    from chinchilla._metrics import log_huber

    points = 3 if quick else 5
    grid = {"E": np.linspace(1, 2, points), "a": np.linspace(1, 10, points), "b": np.linspace(1, 10, points),
            "alpha": np.linspace(0.1, 0.7, points), "beta": np.linspace(0.1, 0.7, points)}  # fmt: skip
    with tempfile.TemporaryDirectory() as place:
        it = Chinchilla(place, param_grid=grid, loss_fn=partial(log_huber, delta=DELTA), log_level=50)
        table = read(folder)
        for n, d, loss in zip(table["N"], table["D"], table["loss"], strict=True):
            it.append(N=n, D=d, loss=loss)
        seconds, _ = clocked(lambda: it.fit(parallel=False))
    return {
        "params": it.params, "fit": seconds, "starts": points**5, "starts_of": 5**5,
        "versions": _versions("chinchilla"),
    }  # fmt: skip


def simple(folder: str, quick: bool) -> dict[str, Any]:
    """Its default law and grid; its fit always resamples, so one draw stands for none."""
    import polars
    from simple_scaling_laws import fit

    table = read(folder)
    n = len(table["N"])
    frame = polars.DataFrame({
        "training_run_id": [f"r{i}" for i in range(n)], "test_set_id": ["one"] * n,
        "model_size__N": table["N"], "dataset_size__D": table["D"], "test_loss__loss": table["loss"],
    })  # fmt: skip
    fit(frame, law="separable-power", n_draws=1)
    seconds, model = clocked(lambda: fit(frame, law="separable-power", n_draws=1), 3 if quick else 10)
    both, _ = clocked(lambda: fit(frame, law="separable-power", n_draws=DRAWS), 1)
    params = dict(model.params("test_loss__loss"))
    # Its factors are of variables divided by a reference.
    for factor, exponent, column in (("A", "alpha", "model_size__N"), ("B", "beta", "dataset_size__D")):
        params[factor] *= model.observed_domain[column]["reference"] ** params[exponent]
    return {
        "params": params, "fit": seconds, "bootstrap": _less(both, seconds), "starts": 1, "starts_of": 1,
        "versions": _versions("simple-scaling-laws"),
    }  # fmt: skip


def lbfgsb(folder: str, quick: bool) -> dict[str, Any]:
    """As Hoffmann et al. and Besiroglu et al. did: L-BFGS-B from a grid, slopes by differences."""
    from scipy.optimize import minimize

    table = read(folder)
    log_n, log_d, observed = np.log(table["N"]), np.log(table["D"]), np.log(table["loss"])

    def objective(p: np.ndarray) -> float:
        terms = np.stack([p[0] - p[3] * log_n, p[1] - p[4] * log_d, np.full_like(log_n, p[2])])
        top = terms.max(axis=0)
        r = np.abs(top + np.log(np.exp(terms - top).sum(axis=0)) - observed)
        return float(np.where(r <= DELTA, 0.5 * r**2, DELTA * (r - 0.5 * DELTA)).sum())

    starts = np.array(list(product(*HOFFMANN.values())))
    few = np.random.default_rng(0).permutation(len(starts))[: 50 if quick else 300]

    def search() -> Any:
        return min((minimize(objective, starts[i], method="L-BFGS-B") for i in few), key=lambda r: r.fun)

    seconds, best = clocked(search)
    a, b, e, alpha, beta = (float(v) for v in best.x)
    params = {"E": np.exp(e), "A": np.exp(a), "B": np.exp(b), "alpha": alpha, "beta": beta}
    return {
        "params": params, "fit": seconds, "starts": len(few), "starts_of": len(starts),
        "versions": _versions(),
    }  # fmt: skip


SIDES: dict[str, Callable[[str, bool], dict[str, Any]]] = {
    "flopwise": ours, "chinchilla": chinchilla, "simple-scaling-laws": simple, "scipy L-BFGS-B": lbfgsb,
}  # fmt: skip


def _less(both: dict[str, float], one: dict[str, float]) -> dict[str, float]:
    return {clock: both[clock] - one[clock] for clock in both}


def _versions(*packages: str) -> dict[str, str]:
    from importlib import metadata

    found = {name: metadata.version(name) for name in (*packages, "numpy", "scipy")}
    return {"python": ".".join(map(str, sys.version_info[:3])), **found}


# Around them: environments, processes, and the table.


def interpreter(name: str, cache: Path) -> str:
    """The Python with which a side runs; a peer's environment is made on first use.

    Raises:
        RuntimeError: there is no Python new enough, or the package cannot be installed; it says which.
    """
    if name not in PEERS:
        return sys.executable
    package, oldest = PEERS[name]
    place = cache / package.replace("==", "-")
    python = place / "bin" / "python"
    if not (place / "ready").exists():
        base = _python(oldest)
        for command in ([base, "-m", "venv", "--clear", str(place)],
                        [str(python), "-m", "pip", "install", "--quiet", package]):  # fmt: skip
            if (done := subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)).returncode:
                raise RuntimeError(f"{package}: {' '.join(command)} failed: {done.stderr.strip()[-200:]}")
        (place / "ready").touch()
    return str(python)


def _python(oldest: tuple[int, int]) -> str:
    """This Python if it is new enough, else the first of the machine's that is."""
    if sys.version_info[:2] >= oldest:
        return sys.executable
    names = [f"python3.{minor}" for minor in range(oldest[1], oldest[1] + 3)]
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates = [shutil.which(name) for name in names]
    candidates += [str(p) for name in names for p in sorted(pyenv.glob(f"*/bin/{name}"))]
    for candidate in filter(None, candidates):  # a version manager's shim may exist and not run
        if subprocess.run([candidate, "-c", ""], capture_output=True, check=False).returncode == 0:
            return candidate
    raise RuntimeError(
        f"needs Python {oldest[0]}.{oldest[1]} or newer, and none of {', '.join(names)} runs here"
    )


def measure(name: str, folder: str, quick: bool, cache: Path) -> dict[str, Any]:
    """What one side measured, in a process of its own.

    Raises:
        RuntimeError: it cannot be set up, or failed.
    """
    command = [interpreter(name, cache), __file__, "--data", folder, "--side", name] + ["--quick"] * quick
    if name not in PEERS:
        command[1:2] = ["-m", "benchmarks.fitting"]
    where = Path(__file__).parents[1]
    done = subprocess.run(command, stdout=subprocess.PIPE, env=ENVIRONMENT, cwd=where, check=False)
    if done.returncode:
        raise RuntimeError(f"{name}: ended with code {done.returncode}; its output is above")
    out: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return out


def objectives(params: dict[str, float], table: Table) -> dict[str, float]:
    """Both sums over points: Huber's loss of the difference of logarithms, and squares of the difference."""
    N, D, loss = table["N"], table["D"], table["loss"]
    y = params["E"] + params["A"] / N ** params["alpha"] + params["B"] / D ** params["beta"]
    r = np.abs(np.log(y) - np.log(loss))
    huber = np.where(r <= DELTA, 0.5 * r**2, DELTA * (r - 0.5 * DELTA)).sum()
    return {"log_huber": float(huber), "squared": float(np.square(y - loss).sum())}


def rows(sides: dict[str, dict[str, Any]], table: Table) -> list[dict[str, Any]]:
    """Of the table, ours first: what each did, how well, in what time, and the ratio to ours."""
    own = sides["flopwise"]
    out = []

    def add(side: str, task: str, loss: str, seconds: dict[str, float], base: float, **more: Any) -> None:
        params = more.pop("params")
        out.append({
            "side": side, "task": task, "loss": loss, "objective": objectives(params, table)[loss],
            "params": params, **seconds, "ratio": seconds["cpu_s"] / base, **more,
        })  # fmt: skip

    for loss in ("log_huber", "squared"):
        mine = own[loss]
        for task in ("fit", "bootstrap", "profiles"):
            add("flopwise", task, loss, mine[task], mine[task]["cpu_s"], params=mine["params"])
    first = own["log_huber"]
    add(
        "flopwise",
        "import and first fit",
        "log_huber",
        own["cold"],
        own["cold"]["cpu_s"],
        params=first["params"],
    )
    for side, found in sides.items():
        if side == "flopwise":
            continue
        loss = "squared" if side == "simple-scaling-laws" else "log_huber"
        scale = found["starts_of"] / found["starts"]
        for task in ("fit", "bootstrap"):
            if task in found:
                seconds = {clock: v * scale for clock, v in found[task].items()}
                add(side, task, loss, seconds, own[loss][task]["cpu_s"], params=found["params"],
                    starts=found["starts_of"], measured_starts=found["starts"])  # fmt: skip
    return out


def markdown(found: list[dict[str, Any]]) -> str:
    """The table for a page."""
    lines = [
        "| | task | minimises | starts | processor s | wall s | ratio to flopwise | objective | "
        "E, A, B, alpha, beta |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found:
        values = ", ".join(f"{row['params'][p]:.5g}" for p in ("E", "A", "B", "alpha", "beta"))
        starts = str(row.get("starts", ""))
        if row.get("measured_starts", row.get("starts")) != row.get("starts"):
            starts += f" (scaled from {row['measured_starts']})"
        ratio = "" if row["side"] == "flopwise" else f"{row['ratio']:,.0f}"
        lines.append(
            f"| {row['side']} | {row['task']} | {row['loss']} | {starts} | {row['cpu_s']:.4g} | "
            f"{row['wall_s']:.4g} | {ratio} | {row['objective']:.10g} | {values} |"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Measure every side, print the table, write what was asked for; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fitting", description=__doc__)
    parser.add_argument("--data", required=True, metavar="DIR", help="folder with runs.csv")
    parser.add_argument("--out", metavar="FILE", help="also write the measurements here, as JSON")
    parser.add_argument("--quick", action="store_true", help="fewer starts and repeats; peers' times scaled")
    parser.add_argument("--only", nargs="*", choices=SIDES, default=list(SIDES), metavar="SIDE")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "flopwise-benchmarks")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    folder = str(Path(options.data).resolve())
    if options.side:
        print(json.dumps(SIDES[options.side](folder, options.quick)))
        return 0
    sides, missing = {}, []
    for name in dict.fromkeys(["flopwise", *options.only]):
        print(f"measuring {name} ...", file=sys.stderr, flush=True)
        try:
            sides[name] = measure(name, folder, options.quick, options.cache)
        except RuntimeError as e:
            if name == "flopwise":
                raise
            missing.append(str(e))
            print(f"left out: {e}", file=sys.stderr)
    found = rows(sides, read(folder))
    print(markdown(found))
    if options.out:
        from flopwise.flops.hardware import describe
        from flopwise.records.folder import atomic_write

        content = {
            "date": time.strftime("%Y-%m-%d", time.gmtime()), "machine": describe(), "quick": options.quick,
            "versions": {name: side["versions"] for name, side in sides.items()}, "left_out": missing,
            "rows": found, "flopwise": sides["flopwise"],
        }  # fmt: skip
        atomic_write(Path(options.out), json.dumps(content, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
