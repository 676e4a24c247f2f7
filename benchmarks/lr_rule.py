"""Does one base rate of Muon fit every width? `python -m benchmarks.lr_rule --out DIR`.

Sweeps the base rate over factors of 2 around the recipe's, at each width, on the demo's data, mixture and
schedule with the other rates left alone, and prints held-out loss by width and rate. Points are kept in
DIR/lr_rule.json as they are made, so a stopped sweep goes on; data is prepared there by the demo's own step
(a folder of a demo's run is used as it is). `docs/results/lr_rule.md` shows what came out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

WIDTHS = (32, 64, 128)
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
RECIPE = Path(__file__).parents[1] / "recipes" / "demo.yaml"


def prepare(out: Path, recipe: Any) -> Any:
    """The demo's data, made in `out` unless it is there."""
    from flopwise.data.prepare import PreparedData, run_step
    from flopwise.records.store import RunStore

    folder = RunStore(out).prepare(
        "data", recipe.data.task, recipe.data.model_dump(), seed=recipe.seed, name="data"
    )
    if not folder.done:
        run_step(folder, {}, lambda fraction: None)
    return PreparedData(folder.path)


def point(recipe: Any, data: Any, width: int, factor: float, seed: int, tokens: int) -> dict[str, float]:
    """Train one model as a branch of the ladder would end, and measure it as the ladder does."""
    import torch

    from benchmarks.training import Folder
    from flopwise.models.config import ModelConfig
    from flopwise.models.transformer import Transformer
    from flopwise.pretrain.evaluate import heldout_losses, pooled
    from flopwise.train.loop import train
    from flopwise.train.objectives import Batch, cross_entropy
    from flopwise.train.optim import Optimiser, Rates
    from flopwise.train.schedule import WSD

    ladder = recipe.ladder
    B, T = ladder.batch_size, ladder.seq_len
    steps = round(tokens / (B * T))
    cfg = ModelConfig.from_width(width, ladder.depth, recipe.data.vocab_size, ladder.context)
    model = Transformer(cfg).initialise(seed)
    rates = ladder.rates.model_dump()
    optimiser = Optimiser(model, Rates(**{**rates, "muon": rates["muon"] * factor}))
    mixture = data.mixture(ladder.mixture)

    def next_batch(step: int) -> Batch:
        rows = torch.from_numpy(mixture.batch(step, B, T, seed))
        return Batch(rows[:, :-1], rows[:, 1:])

    schedule = WSD(ladder.warmup_steps, round(steps * (1 - ladder.decay_fraction)), steps)
    with tempfile.TemporaryDirectory() as folder:
        train(
            model, optimiser, next_batch, cross_entropy, schedule, Folder(Path(folder)),
            first_step=0, last_step=steps,
        )  # fmt: skip
    joint = pooled(heldout_losses(model, data, 16_384, T))
    return {"loss": joint.value, "se": joint.se}


def table(points: list[dict[str, Any]], base: float) -> str:
    """Mean held-out loss over seeds, a row per width, the best rate of each marked."""
    seeds = sorted({p["seed"] for p in points})
    lines = [
        "| width | " + " | ".join(f"{base * f:g}" for f in FACTORS) + " |",
        "|---" * (len(FACTORS) + 1) + "|",
    ]
    for width in WIDTHS:
        losses = {
            f: statistics.mean(found)
            for f in FACTORS
            if (found := [p["loss"] for p in points if (p["width"], p["factor"]) == (width, f)])
        }
        best = min(losses, key=lambda f: losses[f], default=None)
        cells = [
            ("**{:.3f}**" if f == best else "{:.3f}").format(losses[f]) if f in losses else ""
            for f in FACTORS
        ]
        lines.append(f"| {width} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", f"Seeds: {', '.join(map(str, seeds))}."])


def main(argv: list[str] | None = None) -> int:
    """Sweep what is missing, print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lr_rule", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for data and results")
    parser.add_argument("--tokens", type=int, default=500_000, help="per model")
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args(argv)

    import torch

    from flopwise.flops.hardware import keep_freed_memory
    from flopwise.launch.recipe import load
    from flopwise.records.folder import atomic_write

    torch.set_num_threads(1)
    keep_freed_memory()
    recipe = load(RECIPE)
    options.out.mkdir(parents=True, exist_ok=True)
    data = prepare(options.out, recipe)
    path = options.out / "lr_rule.json"
    points: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    for seed in range(options.seeds):
        for factor in sorted(FACTORS, key=lambda f: max(f, 1 / f)):
            for width in WIDTHS:
                key = {"width": width, "factor": factor, "seed": seed, "tokens": options.tokens}
                if any(key.items() <= p.items() for p in points):
                    continue
                points.append({**key, **point(recipe, data, width, factor, seed, options.tokens)})
                atomic_write(path, json.dumps(points, indent=1) + "\n")
                print(points[-1], file=sys.stderr, flush=True)
    print(table([p for p in points if p["tokens"] == options.tokens], recipe.ladder.rates.muon))
    return 0


if __name__ == "__main__":
    sys.exit(main())
