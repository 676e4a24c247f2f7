"""Plots of fits, back-tests and forecasts of coverage, in matplotlib or plotly.

What is drawn is computed once (`curves`, `checks`, `compute`), as numbers; `with_matplotlib` and
`with_plotly` draw the same. Neither library is imported before a figure is asked for.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flopwise.errors import FlopwiseError, MissingExtra

if TYPE_CHECKING:
    from flopwise.laws.backtesting import Backtest
    from flopwise.laws.counts import Counts
    from flopwise.laws.coverage import Forecast
    from flopwise.laws.plotting.figure import Figure
    from flopwise.laws.result import Fit

__all__ = ["BACKENDS", "KINDS", "plot", "plot_backtest", "plot_forecast", "save", "series", "writable"]

KINDS = {
    "fit": ("level", "to", "backtest"), "residuals": ("backtest",), "profile": (), "isoflop": ("level", "C"),
    "frontier": ("level", "C"), "backtest": ("backtest",),
}  # fmt: skip
"""Kinds of figures, with the options of each."""
BACKENDS = ("matplotlib", "plotly")
FORMATS = {".png": "matplotlib", ".svg": "matplotlib", ".pdf": "matplotlib", ".html": "plotly"}


def series(fit: Fit, kind: str = "fit", **options: Any) -> Figure:
    """What a figure of a fit shows, as numbers.

    Args:
        kind: "fit": points, curves and bands. "residuals": predicted over measured against each variable.
            "profile": how far the objective rises around each parameter. "isoflop": loss against size at
            fixed compute, minima marked. "frontier": compute-optimal N and D against C. "backtest": error
            against distance.
        options: level (of intervals, default 0.95), to (last value of the variable on the axis, in its own
            units), C (budgets in FLOP), backtest (a `Backtest` of the same table: its held-out rows are
            marked).

    Raises:
        FlopwiseError: unknown kind or option, a kind that this law or fit cannot have.
    """
    from flopwise.laws.plotting import checks, compute, curves
    from flopwise.laws.plotting.points import level_of

    if kind not in KINDS:
        raise FlopwiseError(f"plot: kind {kind!r} is unknown; there are {', '.join(KINDS)}")
    if unknown := [name for name in options if name not in KINDS[kind]]:
        known = ", ".join(KINDS[kind]) or "none"
        raise FlopwiseError(f"plot: {kind!r} has no option {unknown[0]!r}; options: {known}")
    if kind == "backtest":
        if options.get("backtest") is None:
            raise FlopwiseError("plot: 'backtest' needs backtest=flopwise.backtest(law, table)")
        return checks.errors(options["backtest"])
    if kind == "residuals":
        return checks.residuals(fit, **options)
    if kind == "profile":
        return checks.profiles(fit)
    level = level_of(options)
    draw: Any = {"fit": curves.figure, "isoflop": compute.isoflop, "frontier": compute.frontier}[kind]
    out: Figure = draw(fit, level, **options)
    return out


def plot(fit: Fit, kind: str = "fit", backend: str = "matplotlib", **options: Any) -> Any:
    """A matplotlib or plotly Figure of a fit; kinds and options are those of `series`.

    Raises:
        FlopwiseError: as `series`; unknown backend; a library that is not installed.
    """
    drawn = _backend(backend)
    return drawn.draw(series(fit, kind, **options))


def plot_backtest(test: Backtest, backend: str = "matplotlib") -> Any:
    """Errors of held-out runs against how far beyond the fitted ones they lie; crosses: outside the interval.

    Raises:
        FlopwiseError: unknown backend; a library that is not installed.
    """
    from flopwise.laws.plotting.checks import errors

    drawn = _backend(backend)
    return drawn.draw(errors(test))


def plot_forecast(made: Forecast, backend: str = "matplotlib", samples: Counts | None = None) -> Any:
    """pass@k, measured and forecast with its interval; `samples`: what was drawn later, to compare with.

    Raises:
        FlopwiseError: unknown backend; a library that is not installed.
    """
    from flopwise.laws.plotting.compute import coverage

    drawn = _backend(backend)
    return drawn.draw(coverage(made, samples))


def save(source: Fit | Backtest | Figure, path: str | Path, kind: str = "fit", **options: Any) -> None:
    """Draw into a file: .png, .svg or .pdf by matplotlib, .html (interactive, opens offline) by plotly.

    `source`: a fit, with kind and options as `series`; a back-test; or series that were made before.

    Raises:
        FlopwiseError: another ending, no such folder, a library that is not installed; as `series`.
    """
    from flopwise.laws.backtesting import Backtest
    from flopwise.laws.plotting.checks import errors
    from flopwise.laws.plotting.figure import Figure
    from flopwise.records.folder import atomic_write

    path = writable(path)
    if isinstance(source, Figure):
        made = source
    else:
        made = errors(source) if isinstance(source, Backtest) else series(source, kind, **options)
    drawn = _backend(FORMATS[path.suffix.lower()])
    html = path.suffix.lower() == ".html"
    atomic_write(path, drawn.save(made) if html else drawn.save(made, path.suffix.lower()[1:]))


def writable(path: str | Path) -> Path:
    """The path, if a figure can be saved there: to call before a long fit.

    Raises:
        FlopwiseError: an ending that is no format, no such folder, a library that is not installed.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise FlopwiseError(f"plot: {path.name!r} must end in {', '.join(FORMATS)}")
    if not path.parent.is_dir():
        raise FlopwiseError(f"plot: the folder {path.parent} does not exist; make it first")
    _backend(FORMATS[path.suffix.lower()])
    return path


def _backend(name: str) -> Any:
    """The module that draws."""
    if name not in BACKENDS:
        raise FlopwiseError(f"plot: backend {name!r} is unknown; there are {', '.join(BACKENDS)}")
    try:
        import_module(name)
    except ModuleNotFoundError as e:
        raise MissingExtra(name, "plot", "plotting") from e
    return import_module(f"flopwise.laws.plotting.with_{name}")
