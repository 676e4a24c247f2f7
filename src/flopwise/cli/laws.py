"""`flopwise laws`, `fit`, `predict`, `backtest`, `compare`: scaling laws on a table of one's own."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flopwise.cli.shared import Bar, commas, number, pairs
from flopwise.cli.tables import Cluster, Json, Map, Seed, Source, Sql, Where, console, heard, table_of
from flopwise.errors import FlopwiseError, one_line

if TYPE_CHECKING:
    from flopwise.laws import Backtest, Comparison, Fit, Law

LAW_HELP = (
    "A law of `flopwise laws`, or a formula of your own: 'loss = E + A / D^b', whose names that are "
    "no columns "
    "are positive parameters. Without it, the simplest that predicts your largest runs is chosen."
)
LOSS_HELP = (
    "log_huber, log_squared, squared, robust (limit fitted to the scatter), or binomial for shares "
    "with columns "
    "n and c. Laws of counts take their own likelihood."
)
INTERVALS_HELP = "profile (likelihood), delta (quick), bootstrap, posterior."
Loss = Annotated[str, typer.Option("--loss", help=LOSS_HELP)]
Delta = Annotated[float, typer.Option("--delta", help="Where Huber's loss turns linear, in log units.")]
By = Annotated[str, typer.Option("--by", help="Hold out the rows with the largest of this column.")]
Fix = Annotated[list[str] | None, typer.Option("--fix", help="Hold parameters: E=1.69,alpha=0.34")]
LAST = 4
"""Laws tried at most where none is named."""


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    for command in (laws, fit, predict, backtest, compare):
        app.command(command.__name__)(command)


def laws(
    name: Annotated[str | None, typer.Argument(help="Tell all about this law.")] = None,
    regime: Annotated[
        str | None, typer.Option("--regime", help="pretraining, post-training or test-time.")
    ] = None,
    as_json: Json = False,
) -> None:
    """The catalogue: every law with its formula, columns and source; with a NAME, all about one."""
    from flopwise.laws.law import REGIMES, get
    from flopwise.laws.law import laws as catalogue

    if regime and regime not in REGIMES:
        raise FlopwiseError(f"laws: regime {regime[:40]!r} is unknown; there are {', '.join(REGIMES)}")
    found = [get(name)] if name else catalogue(regime)
    if as_json:
        rows = [_entry(law) for law in found]
        typer.echo(json.dumps(rows[0] if name else rows, indent=1))
    elif name:
        _show_law(found[0])
    else:
        for law in found:
            typer.echo(f"{law.name} ({law.regime}): {law.formula}")
            typer.echo(f"    columns {', '.join(law.columns)}; {law.source}")
        typer.echo(
            f"{len(found)} laws; `flopwise laws NAME` tells units, published values and what one needs"
        )


def fit(
    table: Source,
    law: Annotated[str | None, typer.Option("--law", help=LAW_HELP)] = None,
    mapping: Map = None, where: Where = None, sql: Sql = None, loss: Loss = "log_huber", delta: Delta = 1e-3,
    cluster: Cluster = None,
    intervals: Annotated[str, typer.Option("--intervals", help=INTERVALS_HELP)] = "profile",
    bootstrap: Annotated[int, typer.Option("--bootstrap", min=0, help="Refits to resampled runs.")] = 0,
    fix: Fix = None, seed: Seed = 0,
    out: Annotated[Path | None, typer.Option("--out", help="Keep the fit in this file.")] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Draw it: .png, .svg, .pdf, or .html (interactive).")
    ] = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Fit a law to a table: parameters with intervals, what to doubt, and which run would tell more.

    The table needs columns named as the law's variables and target (N, D, loss); --map renames yours.
    """
    from flopwise.laws import fit as fit_law

    if out and (out.is_dir() or not out.absolute().parent.is_dir()):
        raise FlopwiseError(f"fit: --out {out} cannot be written: give a file in a folder that exists")
    if plot:
        from flopwise.laws.plotting import save, writable

        writable(plot)  # before a long fit
    columns, cluster = table_of(table, mapping, where, sql, cluster)
    bar = Bar("fit", quiet=as_json)
    reasons: list[str] = []
    with heard():
        if law is None:
            law, reasons = _chosen(columns, cluster, seed)
        fitted = fit_law(
            law, columns, loss=loss, delta=delta, cluster=cluster, seed=seed, bootstrap=bootstrap,
            intervals=intervals, fixed=_fixed(fix), progress=bar,
        )  # fmt: skip
        content = fitted.to_dict()  # profiles are made here, and may add warnings
    bar.close()
    if out:
        fitted.to_json(out)
    if plot:
        save(fitted, plot)
    if as_json:
        typer.echo(json.dumps(content | {"chosen_because": reasons} | _advice(fitted), indent=1))
    else:
        for reason in reasons:
            typer.echo(reason)
        _show(fitted)


def predict(
    fit: Annotated[Path, typer.Argument(metavar="FIT", help="A file written by `flopwise fit --out`.")],
    values: Annotated[list[str], typer.Argument(metavar="NAME=VALUE...", help="N=7B D=1.4T, or C=1e21.")],
    level: Annotated[float, typer.Option("--level", help="Of the interval.")] = 0.95,
    demand: Annotated[
        str, typer.Option("--demand", help="Tokens of inference that C also pays for, at 2 N each.")
    ] = "0",
    as_json: Json = False,
) -> None:
    """What a fit predicts: N=7B D=1.4T. For a law in N and D, C=1e21 gives the best split of that compute."""
    from flopwise.laws import Fit

    fitted = Fit.from_json(fit)
    given = {name: number(text, name) for name, text in pairs(values, "N=7B").items()}
    if set(given) == {"C"} and fitted.form.variables == ("N", "D"):
        best = fitted.optimal(given["C"], number(demand, "demand") if demand != "0" else 0.0, level)
        if as_json:
            typer.echo(json.dumps({"law": fitted.law, "level": level, **asdict(best)}, indent=1))
            return
        for name, value in (("N", best.N), ("D", best.D), ("loss", best.loss)):
            low, high = best.intervals[name]
            typer.echo(f"{name:<5}{value:.4g}  {level:.0%} {low:.4g} to {high:.4g}")
        typer.echo(f"{best.D / best.N:.3g} tokens per parameter at C = {best.C:.3g}")
        made = fitted.predict(N=best.N, D=best.D, level=level)
    else:
        made = fitted.predict(level=level, **given)
        if as_json:
            typer.echo(json.dumps({"law": fitted.law, "level": level, **given, **asdict(made)}, indent=1))
            return
        alone = f"; the law itself {made.mean_low:.5g} to {made.mean_high:.5g}" if fitted.scatter else ""
        typer.echo(
            f"{fitted.form.target} {made.value:.5g}  {level:.0%} {made.low:.5g} to {made.high:.5g} "
            f"for {'a single run' if fitted.scatter else 'the law itself'}{alone}"
        )
    if made.extrapolation > 1:
        typer.echo(f"{made.extrapolation:.3g} times beyond the runs that were fitted")
    for warning in (*made.warnings, *fitted.warnings):
        typer.echo(f"mind: {one_line(warning)}")


def backtest(
    table: Source,
    law: Annotated[str, typer.Option("--law", help="A law of `flopwise laws`, or a formula.")],
    by: By = "C", mapping: Map = None, where: Where = None, sql: Sql = None, loss: Loss = "log_huber",
    delta: Delta = 1e-3, cluster: Cluster = None, fix: Fix = None, seed: Seed = 0,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Draw error against distance: .png, .svg, .pdf, .html.")
    ] = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Fit a law to all but the largest runs and predict those; then from less and less: error against
    distance."""
    from flopwise.laws import backtest as run

    columns, cluster = table_of(table, mapping, where, sql, cluster)
    with heard():
        made = run(law, columns, by=by, loss=loss, delta=delta, cluster=cluster, seed=seed, fixed=_fixed(fix))
    if plot:
        from flopwise.laws.plotting import save

        save(made, plot)
    if as_json:
        typer.echo(json.dumps(made.to_dict() | {"fit": made.fit.to_dict()}, indent=1))
    else:
        _show_backtest(made)


def compare(
    table: Source,
    laws: Annotated[str | None, typer.Option("--laws", help="Names, comma between; all that apply.")] = None,
    by: By = "C", mapping: Map = None, where: Where = None, sql: Sql = None, cluster: Cluster = None,
    seed: Seed = 0, as_json: Json = False,
) -> None:  # fmt: skip
    """Back-test several laws on the largest runs, best first; which wins, or how to average them."""
    from flopwise.laws import compare as run
    from flopwise.laws.law import laws as catalogue

    columns, cluster = table_of(table, mapping, where, sql, cluster)
    names = [n.strip() for n in commas(laws) if n.strip()] if laws else []
    if not names:
        names = _applying(catalogue(), columns)
    if not names:
        raise FlopwiseError(_no_law("compare", columns))
    bar = Bar("compare", quiet=as_json)
    with heard():
        made = run(names, columns, by=by, cluster=cluster, seed=seed, progress=bar)
    bar.close()
    if as_json:
        rows = [t.to_dict() | {"weight": made.weights[t.law], "fit": t.fit.to_dict()} for t in made]
        typer.echo(json.dumps({"verdict": made.verdict, "wins": made.wins, "laws": rows}, indent=1))
    else:
        _show_comparison(made)


def _applies(law: Law, columns: dict[str, Any]) -> bool:
    """Whether the table has all that a law of values needs, its target a column of its own."""
    return not law.from_counts and {*law.variables, law.target} <= set(columns)


def _applying(laws: list[Law], columns: dict[str, Any]) -> list[str]:
    """Laws of the first regime that has any, in as many of the table's variables as possible."""
    found = [law for law in laws if _applies(law, columns) and law.target not in ("N", "D", "C")]
    found = [law for law in found if law.regime == found[0].regime]
    most = max((len(law.variables) for law in found), default=0)
    return [law.name for law in found if len(law.variables) == most]


def _no_law(who: str, columns: dict[str, Any]) -> str:
    shown = ", ".join(list(columns)[:12])
    return (
        f"{who}: the columns {shown[:120]} are those of no law; most need N, D and loss, or C and loss: name "
        f"yours with --map N=COLUMN,loss=COLUMN, or choose one of `flopwise laws` and say --law NAME"
    )


def _chosen(columns: dict[str, Any], cluster: str | None, seed: int) -> tuple[str, list[str]]:
    """The law for a table whose user named none: simple ones that apply, judged on the largest runs."""
    from flopwise.laws import choose
    from flopwise.laws.law import get
    from flopwise.laws.law import laws as catalogue

    usual = ("overtraining", "chinchilla", "coupled", "kaplan") if {"N", "D"} <= set(columns) else ("power",)
    names = [n for n in usual if _applies(get(n), columns)]
    if not names and {"n", "c"} <= set(columns):
        return "beta_binomial", [
            "counts of right samples: beta_binomial; flopwise coverage compares five forms"
        ]
    if not names:
        names = sorted(_applying(catalogue(), columns), key=lambda n: len(get(n).names))
    if not names:
        raise FlopwiseError(_no_law("fit", columns))
    try:
        made = choose(columns, names[:LAST], cluster=cluster, by="C", seed=seed)
    except FlopwiseError:
        # Too few runs to hold any out: the simplest, whose own words say what is missing.
        return names[0], [f"too few runs to hold the largest out: {names[0]}, the simplest form, untested"]
    return made.fit.law, made.reasons


def _fixed(texts: list[str] | None) -> dict[str, float]:
    out = {}
    for name, text in pairs(texts or (), "E=1.69").items():
        try:
            out[name] = float(text)
        except ValueError:
            raise FlopwiseError(f"--fix {name}={text[:40]}: must be a number") from None
    return out


def _advice(fitted: Fit) -> dict[str, Any]:
    """A verdict, and the run that would tell most."""
    from flopwise.laws.advice import next_run, verdict

    made = next_run(fitted)
    return {"verdict": verdict(fitted, made), "next_run": asdict(made) if made else None}


def _entry(law: Law) -> dict[str, Any]:
    """A law as JSON takes it."""
    return {
        "name": law.name, "regime": law.regime, "formula": law.formula, "latex": law.latex,
        "variables": list(law.variables), "target": law.target, "columns": list(law.columns),
        "units": {c: law.unit(c) for c in dict.fromkeys((*law.columns, *law.variables, law.target))},
        "parameters": list(law.names), "linear": list(law.linear),
        "bounds": {p.name: [p.bounds[0], p.bounds[1] if p.bounds[1] < float("inf") else None] if p.log or
                   abs(p.bounds[0]) < float("inf") else None for p in law.parameters},
        "likelihood": law.likelihood or None, "needs": law.needs, "source": law.source, "status": law.status,
        "published": [
            {"values": dict(p.values), "source": p.source, "status": p.status, "note": p.note}
            for p in law.published
        ],
    }  # fmt: skip


def _show_law(law: Law) -> None:
    from flopwise.laws.law import MEANING

    typer.echo(f"{law.name} ({law.regime})\n    {law.formula}\n")
    for column in dict.fromkeys((*law.columns, *law.variables, law.target)):
        typer.echo(f"    {column:<12}{law.unit(column)}")
    free = [p.name for p in law.parameters if p.name not in law.linear]
    typer.echo(f"    parameters  {', '.join(law.names)}" + (
        f"; linear{' given ' + ', '.join(free) if free else ''}: {', '.join(law.linear)}"
        if law.linear else ""))  # fmt: skip
    typer.echo(f"    needs       {law.needs}")
    typer.echo(f"    source      {law.source} ({MEANING[law.status]})")
    for p in law.published:
        values = ", ".join(f"{name} {value:g}" for name, value in p.values.items())
        note = f"; {p.note}" if p.note else ""
        typer.echo(f"    published   {values}  ({p.source}; {MEANING[p.status]}{note})")
    columns = ",".join(f"{c}=COLUMN" for c in law.columns)
    typer.echo(f"\n    flopwise fit TABLE --law {law.name} --map {columns}")


def _show(fitted: Fit) -> None:
    from rich.table import Table

    screen = console()
    screen.print(f"{fitted.law}: {fitted.form.formula}" if fitted.law != fitted.form.formula else fitted.law)
    table = Table("parameter", "value", "95% from", "to", box=None, pad_edge=False)
    for name, value in fitted.params.items():
        table.add_row(name, f"{value:.5g}", *_ends(fitted, name))
    for name, value in fitted.fixed.items():
        table.add_row(name, f"{value:.5g}", "held", "")
    screen.print(table)
    runs = f" of {fitted.n_clusters} runs" if fitted.n_clusters < fitted.n else ""
    unit = "" if fitted.scale == "plain" else " of the value"
    scatter = f"{fitted.scatter:.3g}" if fitted.scale == "plain" else f"{fitted.scatter:.2%}"
    said = "" if fitted.form.from_counts else f"; scatter of single runs {scatter}{unit}"
    screen.print(
        f"{fitted.n} points{runs}; objective {fitted.objective:.8g} ({fitted.loss}){said}; intervals by "
        f"{fitted.intervals}; {fitted.status}",
    )
    for warning in fitted.warnings:
        screen.print(f"mind: {warning}")
    judged = _advice(fitted)
    screen.print(f"verdict: {judged['verdict']}")
    advice: dict[str, Any] | None = judged["next_run"]
    if advice:
        run, aim = (", ".join(f"{n} = {v:.3g}" for n, v in advice[key].items()) for key in ("run", "aim"))
        before, after = (
            f"{advice[k]:.2%}" if fitted.scale == "log" else f"{advice[k]:.3g}" for k in ("before", "after")
        )
        screen.print(
            f"next: a run at {run} ({advice['cost']:.0%} of the largest) would narrow the law at "
            f"{aim} from about "
            f"±{before} to ±{after}"
        )


def _ends(fitted: Fit, name: str) -> list[str]:
    """Ends of a parameter's interval; "open" where nothing rules out any value on that side."""
    open_ = (False, False)
    if fitted.intervals == "profile" and name in fitted.profiles:
        open_ = fitted.profiles[name].open_ends(fitted.t(0.95, name))
    return [
        "open" if away or not (end == 0 or 1e-60 < abs(end) < 1e60) else f"{end:.4g}"
        for end, away in zip(fitted.interval(name), open_, strict=True)
    ]


def _show_backtest(made: Backtest) -> None:
    from rich.table import Table

    table = Table(
        f"fitted up to {made.by}", "points", "times beyond", "held out", "error (rms)", "worst",
        "in 95% interval", "status", box=None, pad_edge=False,
    )  # fmt: skip
    for t in made.trials:
        table.add_row(
            f"{t.threshold:.4g}", str(t.n), f"{t.distance.min():.3g} to {t.distance.max():.3g}",
            str(len(t.errors)), f"{t.rms:.2%}", f"{t.errors[abs(t.errors).argmax()]:+.2%}",
            f"{t.inside.sum()} of {len(t.inside)}", t.fit.status,
        )  # fmt: skip
    screen = console()
    screen.print(f"{made.law}: error against distance")
    screen.print(table)
    for line in made.skipped:
        screen.print(f"not fitted {line}")
    screen.print(f"held out first: {made.by} = {made.held_out:.4g}")


def _show_comparison(made: Comparison) -> None:
    from rich.table import Table

    table = Table(
        "law", "error (rms)", "worst", "in 95% interval", "over all distances", "fitted to",
        "weight", "status",
        box=None, pad_edge=False,
    )  # fmt: skip
    for t in made:
        table.add_row(
            t.law, f"{t.rms:.2%}", f"{max(t.errors, key=abs):+.2%}", f"{sum(t.inside)} of {len(t.inside)}",
            f"{t.covered:.0%}", f"{t.fit.n} points", f"{made.weights[t.law]:.2f}", t.fit.status,
        )  # fmt: skip
    screen = console()
    screen.print(table)
    screen.print(f"held out: {made[0].by} = {made[0].held_out:.4g}")
    screen.print(made.verdict)
