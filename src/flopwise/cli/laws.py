"""`flopwise laws`, `fit`, `predict`, `backtest`, `compare`: scaling laws on a table of one's own."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flopwise.cli.shared import Bar, number
from flopwise.errors import FlopwiseError, one_line

if TYPE_CHECKING:
    from flopwise.laws import Backtest, Fit

TABLE_HELP = "A CSV, TSV, Parquet or JSON-lines file, a folder of runs, or the folder of one run."
MAP_HELP = "Which column is which variable: N=n_params,loss=val_loss"
Source = Annotated[Path, typer.Argument(metavar="TABLE", help=TABLE_HELP)]
Name = Annotated[str, typer.Option("--law", help="A law of `flopwise laws`.")]
Map = Annotated[list[str] | None, typer.Option("--map", help=MAP_HELP)]
Where = Annotated[str | None, typer.Option("--where", help="An SQL condition on the table's columns.")]
Loss = Annotated[str, typer.Option("--loss", help="log_huber, log_squared or squared.")]
Delta = Annotated[float, typer.Option("--delta", help="Where Huber's loss turns linear.")]
Cluster = Annotated[str | None, typer.Option("--cluster", help="Column of runs whose points share noise.")]
By = Annotated[str, typer.Option("--by", help="Hold out the rows with the largest of this column.")]
Seed = Annotated[int, typer.Option("--seed", min=0)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    for command in (laws, fit, predict, backtest, compare):
        app.command(command.__name__)(command)


def laws(as_json: Json = False) -> None:
    """The catalogue: every law with its formula, variables and source."""
    from flopwise.laws.law import laws as catalogue

    if as_json:
        rows = [
            {
                "name": law.name, "regime": law.regime, "formula": law.formula,
                "variables": list(law.variables),
                "target": law.target, "parameters": list(law.names), "needs": law.needs, "source": law.source,
                "status": law.status,
            }
            for law in catalogue()
        ]  # fmt: skip
        typer.echo(json.dumps(rows, indent=1))
        return
    for law in catalogue():
        typer.echo(f"{law.name} ({law.regime}): {law.formula}")
        typer.echo(f"    columns {', '.join((*law.variables, law.target))}; {law.source}")


def fit(
    table: Source, law: Name, mapping: Map = None, where: Where = None, loss: Loss = "log_huber",
    delta: Delta = 1e-3,
    cluster: Cluster = None,
    bootstrap: Annotated[int, typer.Option("--bootstrap", min=0, help="Refits to resampled runs.")] = 0,
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option("--out", help="Keep the fit in this file.")] = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Fit a law to a table, with intervals."""
    from flopwise.laws import fit as fit_law

    bar = Bar("fit", quiet=as_json)
    columns, cluster = _read(table, mapping, where, cluster)
    with _heard():
        fitted = fit_law(
            law,
            columns,
            loss=loss,
            delta=delta,
            cluster=cluster,
            seed=seed,
            bootstrap=bootstrap,
            progress=bar,
        )
    bar.close()
    if out:
        fitted.to_json(out)
    if as_json:
        typer.echo(json.dumps(fitted.to_dict(), indent=1))
    else:
        _show(fitted)


def predict(
    fit: Annotated[Path, typer.Argument(metavar="FIT", help="A file written by `flopwise fit --out`.")],
    values: Annotated[list[str], typer.Argument(metavar="NAME=VALUE...", help="N=7B D=1.4T, or C=1e21.")],
    level: Annotated[float, typer.Option("--level", help="Of the interval.")] = 0.95,
    as_json: Json = False,
) -> None:
    """What a fit predicts: N=7B D=1.4T. For a law in N and D, C=1e21 gives the best split of that compute."""
    from flopwise.laws import Fit, get

    fitted = Fit.from_json(fit)
    given = {name: number(text, name) for name, text in _pairs(values)}
    if set(given) == {"C"} and get(fitted.law).variables == ("N", "D"):
        best = fitted.optimal(given["C"], level)
        if as_json:
            typer.echo(json.dumps({"law": fitted.law, "level": level, **asdict(best)}, indent=1))
            return
        for name, value in (("N", best.N), ("D", best.D), ("loss", best.loss)):
            low, high = best.intervals[name]
            typer.echo(f"{name:<5}{value:.4g}  {level:.0%} {low:.4g} to {high:.4g}")
        typer.echo(f"{best.D / best.N:.3g} tokens per parameter at C = 6 N D = {best.C:.3g}")
        return
    made = fitted.predict(level=level, **given)
    if as_json:
        typer.echo(json.dumps({"law": fitted.law, "level": level, **given, **asdict(made)}, indent=1))
        return
    target = get(fitted.law).target
    typer.echo(f"{target} {made.value:.5g}  {level:.0%} {made.low:.5g} to {made.high:.5g} for a single run")
    if made.extrapolation > 1:
        typer.echo(f"{made.extrapolation:.3g} times beyond the runs that were fitted")
    for warning in fitted.warnings:
        typer.echo(f"mind: {one_line(warning)}")


def backtest(
    table: Source, law: Name, by: By = "C", mapping: Map = None, where: Where = None,
    loss: Loss = "log_huber",
    delta: Delta = 1e-3, cluster: Cluster = None, seed: Seed = 0, as_json: Json = False,
) -> None:  # fmt: skip
    """Fit a law to all but the largest runs, then see how well it predicts those."""
    from flopwise.laws import backtest as run

    columns, cluster = _read(table, mapping, where, cluster)
    _trials(
        [run(law, columns, by=by, loss=loss, delta=delta, cluster=cluster, seed=seed)],
        by,
        as_json,
        single=True,
    )


def compare(
    table: Source,
    laws: Annotated[str | None, typer.Option("--laws", help="Names, comma between; all that apply.")] = None,
    by: By = "C", mapping: Map = None, where: Where = None, cluster: Cluster = None, seed: Seed = 0,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Back-test several laws on the largest runs, best first."""
    from flopwise.laws import compare as run
    from flopwise.laws.law import laws as catalogue

    columns, cluster = _read(table, mapping, where, cluster)
    names = [n.strip() for n in laws.split(",") if n.strip()] if laws else []
    applying = [law.name for law in catalogue() if {*law.variables, law.target} <= set(columns)]
    if not (names or applying):
        wanted = "; ".join(f"{law.name} {', '.join((*law.variables, law.target))}" for law in catalogue())
        raise FlopwiseError(
            f"compare: {table} has the columns of no law; name them with --map. Laws need: {wanted}"
        )
    bar = Bar("compare", quiet=as_json)
    with _heard():
        trials = run(names or applying, columns, by=by, cluster=cluster, seed=seed, progress=bar)
    bar.close()
    _trials(trials, by, as_json)


def _pairs(texts: list[str]) -> Iterator[tuple[str, str]]:
    """NAME=VALUE of each text."""
    for text in texts:
        name, sign, value = text.partition("=")
        if not (sign and name.strip() and value.strip()):
            raise FlopwiseError(f"{text[:60]!r} must be NAME=VALUE, as N=7B")
        yield name.strip(), value.strip()


@contextmanager
def _heard() -> Iterator[None]:
    """What the library warns of, one line each on stderr."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for w in caught:
        if issubclass(w.category, UserWarning):
            typer.echo(f"flopwise: {one_line(w.message)}", err=True)


def _read(
    source: Path, mapping: list[str] | None, where: str | None, cluster: str | None
) -> tuple[dict[str, Any], str | None]:
    """The table, and what to cluster by: for a folder of runs its trunks, whose branches share noise."""
    from flopwise.records.table import read_table

    with _heard():
        table = read_table(source, dict(_pairs([p for m in mapping or [] for p in m.split(",")])), where)
    return table, cluster or ("run" if source.is_dir() and "run" in table else None)


def _show(fitted: Fit) -> None:
    from rich.console import Console
    from rich.table import Table

    from flopwise.laws import get

    console = Console(markup=False)
    law = get(fitted.law)
    console.print(f"{law.name}: {law.formula}", highlight=False)
    table = Table("parameter", "value", "95% from", "to", box=None, pad_edge=False)
    for name, value in fitted.params.items():
        table.add_row(name, f"{value:.5g}", *(f"{end:.4g}" for end in fitted.interval(name)))
    console.print(table)
    runs = f" of {fitted.n_clusters} runs" if fitted.n_clusters < fitted.n else ""
    unit = "" if fitted.scale == "plain" else " of the value"
    scatter = f"{fitted.scatter:.3g}" if fitted.scale == "plain" else f"{fitted.scatter:.2%}"
    console.print(
        f"{fitted.n} points{runs}; objective {fitted.objective:.8g} ({fitted.loss}); scatter of single runs "
        f"{scatter}{unit}; {fitted.status}",
        highlight=False,
    )
    for warning in fitted.warnings:
        console.print(f"mind: {warning}", highlight=False)


def _trials(trials: list[Backtest], by: str, as_json: bool, single: bool = False) -> None:
    if as_json:
        rows = [t.to_dict() | {"by": by, "fit": t.fit.to_dict()} for t in trials]
        typer.echo(json.dumps(rows[0] if single else rows, indent=1))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(
        "law", "error (rms)", "worst", "in 95% interval", "fitted to", "status", box=None, pad_edge=False
    )
    for t in trials:
        table.add_row(
            t.law, f"{t.rms:.2%}", f"{max(t.errors, key=abs):+.2%}", f"{sum(t.inside)} of {len(t.inside)}",
            f"{t.fit.n} points", t.fit.status,
        )  # fmt: skip
    console = Console(markup=False)
    console.print(table)
    console.print(f"held out: {by} = {trials[0].held_out:.4g}", highlight=False)
