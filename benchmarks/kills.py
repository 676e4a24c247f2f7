"""`python -m benchmarks.kills RECIPE FOLDER`: does a recipe that is killed 50 times end as one left alone?

The recipe is run to its end once, then again in another folder, where the whole tree of processes is ended by
SIGKILL at random moments, `--kills` times. Both must agree in every record: all metrics, FLOPs, tokens, and
the bytes of every model. What was finished before a kill must never be made again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from flopwise.records.record import RunRecord
from flopwise.records.store import RunStore

CODE = "from flopwise.cli import main; main()"
CLOCKS = {"wall_s", "device_s", "peak_bytes"}


def start(recipe: str, out: Path, extra: list[str]) -> subprocess.Popen[bytes]:
    """The experiment in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", CODE, "run", recipe, "--out", str(out), *extra],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip


def finish(recipe: str, out: Path, extra: list[str]) -> float:
    """Run to the end; the seconds it took.

    Raises:
        RuntimeError: it failed; the message is what it said.
    """
    began = time.monotonic()
    process = start(recipe, out, extra)
    _, said = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{recipe} failed with exit code {process.returncode}: {said.decode()[-500:]}")
    return time.monotonic() - began


def finished(out: Path) -> dict[str, RunRecord]:
    """Records of the runs that are done."""
    return {r.id: r for r in RunStore(out).records() if r.status == "done"} if out.is_dir() else {}


def measured(out: Path, record: RunRecord) -> dict[str, Any]:
    """All of a run that must not depend on kills: its record without clocks, its models byte by byte."""
    kept = record.model_dump(include={"id", "name", "kind", "method", "parents", "metrics", "model", "data"})
    for which in ("spend", "lineage_spend"):
        spend = getattr(record, which)
        kept[which] = None if spend is None else {
            k: v for k, v in spend.to_dict().items() if k not in CLOCKS
        }  # fmt: skip
    kept["files"] = {
        str(path.relative_to(out / record.id)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((out / record.id).rglob("model*.safetensors"))
    }
    return kept


def kill_at_random(
    recipe: str, out: Path, extra: list[str], kills: int, runs: int, seconds: float, seed: int
) -> dict[str, Any]:
    """Kill the recipe's processes `kills` times while it makes its `runs` runs; then let it end.

    When so and so many runs are done (drawn), and a random time after that: often before the next has begun,
    while torch is being loaded, or while files are written. Returns the kills made (fewer, if the recipe
    ended first), and how often a run that was done was found made again, which must be 0.
    """
    rng, made, again = random.Random(seed), 0, 0
    known: dict[str, RunRecord] = {}
    for mark in sorted(rng.choices(range(max(1, int(0.9 * runs))), k=kills)):
        process = start(recipe, out, extra)
        while process.poll() is None and len(finished(out)) < mark:
            time.sleep(0.05)
        time.sleep(rng.uniform(0.0, 3.0 + 2.0 * seconds / runs))
        if process.poll() is not None:
            _, said = process.communicate()
            if process.returncode:
                raise RuntimeError(f"{recipe} failed on its own after {made} kills: {said.decode()[-500:]}")
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        made += 1
        now = finished(out)
        again += sum(i not in now or now[i].created != r.created for i, r in known.items())
        known = now
        print(f"kill {made} of {kills}: {len(now)} of {runs} runs are done", file=sys.stderr, flush=True)
    finish(recipe, out, extra)
    now = finished(out)
    again += sum(i not in now or now[i].created != r.created for i, r in known.items())
    return {"kills": made, "made_again": again}


def compare(whole: Path, killed: Path) -> list[str]:
    """What differs between the two folders, in words; nothing, if all is well."""
    a, b = finished(whole), finished(killed)
    found = [f"run {i} is in one folder only" for i in a.keys() ^ b.keys()]
    for i in a.keys() & b.keys():
        one, two = measured(whole, a[i]), measured(killed, b[i])
        found += [f"run {i} ({a[i].name}): {key} differs" for key in one if one[key] != two[key]]
    left = [p for p in killed.rglob(".*") if p.is_file() and p.name != ".lock"]
    return found + [f"{path} was left half-written" for path in left]


def main(argv: list[str] | None = None) -> int:
    """Run the comparison; exit code 0 if nothing differs."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kills", description=__doc__)
    parser.add_argument("recipe")
    parser.add_argument(
        "folder", type=Path, help="holds whole/ and killed/ afterwards; whole/ is used if done"
    )
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("extra", nargs="*", help="words passed on to `flopwise run`, after --")
    options = parser.parse_args(argv)
    whole, killed = options.folder / "whole", options.folder / "killed"
    took = finish(options.recipe, whole, options.extra)
    # Of a folder that was done already, what its runs took is known from their records.
    took = max(took, sum(r.spend.wall_s or 0.0 for r in finished(whole).values()) / 2)
    runs = len(finished(whole))
    result = kill_at_random(options.recipe, killed, options.extra, options.kills, runs, took, options.seed)
    differences = compare(whole, killed)
    ended = finished(killed)
    losses = [r.metrics["loss"].value for r in ended.values() if "loss" in r.metrics]
    print(
        json.dumps({**result, "runs": len(ended), "losses_compared": len(losses), "differences": differences})
    )
    return 1 if differences or result["made_again"] else 0


if __name__ == "__main__":
    sys.exit(main())
