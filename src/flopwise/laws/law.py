"""What a law is: a named function of observations with parameters, bounds and source; and the catalogue."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from flopwise.errors import FlopwiseError

Array = np.ndarray
Columns = Mapping[str, Array]


@dataclass(frozen=True)
class Parameter:
    """A parameter with the range it may take and the ranges that starts are drawn from.

    `log`: searched on a logarithmic scale, so it stays positive. `unit`: a variable in whose units the
    parameter is; starts are then multiples of that variable's geometric mean, and bounds are not.
    """

    name: str
    start: tuple[float, float]
    log: bool = True
    bounds: tuple[float, float] = (0.0, np.inf)
    unit: str = ""


@dataclass(frozen=True)
class Law:
    """A form that can be fitted. `function(parameters, columns)` gives predictions [n].

    `linear` names parameters that enter as factors of terms given by `terms` (columns [n, k] for given
    nonlinear parameters): they are solved for instead of searched.
    """

    name: str
    regime: str
    formula: str
    variables: tuple[str, ...]
    target: str
    parameters: tuple[Parameter, ...]
    function: Callable[[Mapping[str, float], Columns], Array]
    source: str
    status: str
    """How far the formula was checked: "checked", "summary" or "unverified"."""
    linear: tuple[str, ...] = ()
    terms: Callable[[Mapping[str, float], Columns], Array] | None = None
    scale: str = "log"
    """Residuals on the "log" of the target, or "plain" (accuracies near 0 have no useful logarithm)."""
    needs: str = ""
    span: tuple[float, float] = (-np.inf, np.inf)
    """What the target can be; intervals end there."""
    from_zero: tuple[str, ...] = ()
    """Variables that may be 0; the others must be positive."""
    unready: Callable[[Mapping[str, float], Mapping[str, tuple[float, float]]], str] | None = None
    """Given parameters and the fitted range of each variable: why the law must not be extrapolated, or ""."""

    @property
    def names(self) -> tuple[str, ...]:
        """Parameter names in order."""
        return tuple(p.name for p in self.parameters)


_CATALOGUE: dict[str, Law] = {}


def register(law: Law) -> Law:
    """Add a law, one's own too; it gets fitting, intervals, back-tests and the command line.

    Raises:
        FlopwiseError: the name is taken by another law.
    """
    if _CATALOGUE.get(law.name, law) is not law:
        raise FlopwiseError(f"law {law.name!r} exists already; choose another name")
    _CATALOGUE[law.name] = law
    return law


def laws(regime: str | None = None) -> list[Law]:
    """The catalogue, by regime: pretraining, post-training, test-time."""
    _load()
    return [law for law in _CATALOGUE.values() if regime is None or law.regime == regime]


def get(name: str | Law) -> Law:
    """A law by name.

    Raises:
        FlopwiseError: there is none; the message names the closest.
    """
    if isinstance(name, Law):
        return name
    _load()
    if name not in _CATALOGUE:
        close = difflib.get_close_matches(name, _CATALOGUE, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(_CATALOGUE)}"
        raise FlopwiseError(f"law {name!r} is unknown; {hint}")
    return _CATALOGUE[name]


def _load() -> None:
    from flopwise.laws import posttraining, pretraining, testtime  # noqa: F401
