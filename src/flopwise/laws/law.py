"""What a law is: a named formula with parameters, bounds, source and published values; and the catalogue."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from flopwise.errors import FlopwiseError
from flopwise.laws import expression
from flopwise.laws.expression import Node
from flopwise.laws.formula import Formula, parse
from flopwise.laws.tape import Tape

Array = np.ndarray
Columns = Mapping[str, Array]
LARGEST = 1e200
"""Size of a parameter beyond which sums of it are no numbers."""
REGIMES = ("pretraining", "post-training", "test-time")
MEANING = {
    "checked": "checked against the authors' code or data",
    "summary": "checked against a summary or transcript of the paper",
    "unverified": "from memory: check before use",
    "own": "no paper to check against",
}
"""How far a formula or a published value was checked."""
STATUSES = tuple(MEANING)

UNITS = {
    "N": "parameters", "D": "training tokens", "U": "unique training tokens", "C": "FLOP",
    "S": "optimiser steps", "loss": "nats per token", "k": "samples per problem", "n": "samples drawn",
    "c": "samples correct", "error": "share wrong", "accuracy": "share right", "coverage": "share solved",
    "reward": "reward (a share unless said otherwise)",
}  # fmt: skip
"""Of standard columns, in the order in which a law's variables are listed. Any unit will do if it is one
throughout; exponents do not depend on it."""


@dataclass(frozen=True)
class Parameter:
    """A parameter with the range it may take and the ranges that starts are drawn from.

    `log`: searched on a logarithmic scale, so it stays positive. `unit`: a variable in whose units the
    parameter is; starts are then multiples of that variable's geometric mean, and bounds are not. A parameter
    that is linear given the others is solved for: its start matters little.
    """

    name: str
    start: tuple[float, float] = (0.01, 100.0)
    log: bool = True
    bounds: tuple[float, float] = (0.0, np.inf)
    unit: str = ""


@dataclass(frozen=True)
class Published:
    """Values that somebody printed: where, how far they were checked, and in which units or on what data."""

    values: Mapping[str, float]
    source: str
    status: str
    note: str = ""


@dataclass(frozen=True)
class Law:
    """A form that can be fitted.

    `formula` is text that `formula.parse` reads: "loss = E + A / N^alpha + B / D^beta". Its names that are
    no parameters are the variables; values, derivatives, linear parameters and LaTeX come from it. A law that
    has no such formula gives `function(parameters, columns)` with predictions that broadcast ([n], and [b, n]
    for parameters [b, 1]), and then `variables` and `target`; derivatives are differences.

    `likelihood`: for counts, the negative logarithm of one row's likelihood as a formula "nll = ..." in the
    parameters and the columns of a table of counts; the law is then fitted by maximum likelihood. Where no
    formula will do, `nll_function` is such a function of parameters and columns, with `count_columns`.
    """

    name: str
    regime: str
    formula: str
    parameters: tuple[Parameter, ...]
    source: str
    status: str
    needs: str = ""
    variables: tuple[str, ...] = ()
    target: str = ""
    function: Callable[[Mapping[str, Any], Columns], Array] | None = None
    likelihood: str = ""
    nll_function: Callable[[Mapping[str, Any], Columns], Array] | None = None
    count_columns: tuple[str, ...] = ()
    published: tuple[Published, ...] = ()
    scale: str = "log"
    """Residuals on the "log" of the target, or "plain" (accuracies near 0 have no useful logarithm)."""
    span: tuple[float, float] = (-np.inf, np.inf)
    """What the target can be; intervals end there."""
    from_zero: tuple[str, ...] = ()
    """Variables that may be 0."""
    signed: tuple[str, ...] = ()
    """Variables that may be any number; all others must be positive."""
    units: Mapping[str, str] = field(default_factory=dict)
    """Of variables and target where they differ from `UNITS`."""
    unready: Callable[[Mapping[str, float], Mapping[str, tuple[float, float]]], str] | None = None
    """Given parameters and the fitted range of each variable: why the law must not be extrapolated, or ""."""

    def __post_init__(self) -> None:
        if self.function is None:
            found = _in_order(self.formula, self.parsed.names - set(self.names))
            object.__setattr__(self, "variables", self.variables or found)
            object.__setattr__(self, "target", self.target or self.parsed.target)
            if unused := [p for p in self.names if p not in self.parsed.names | self._nll_names]:
                raise FlopwiseError(f"law {self.name}: parameter {unused[0]} is not in {self.formula!r}")
        if self.target in self.variables:
            raise FlopwiseError(f"law {self.name}: {self.target} is on both sides of {self.formula[:80]!r}")
        if not (self.variables and self.target):
            raise FlopwiseError(f"law {self.name}: name its variables and its target")

    def __call__(self, params: Mapping[str, Any], x: Columns) -> Array:
        """Predictions [n] for parameters by name; [b, n] where parameters are [b, 1]."""
        if self.function is not None:
            return self.function(params, x)
        tape = self.tape(0)
        return np.asarray(tape.run(tape.bind(x), params)[0])

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Parameter names in order."""
        return tuple(p.name for p in self.parameters)

    @cached_property
    def positive(self) -> Array:
        """Which parameters are searched as logarithms [k]."""
        return np.array([p.log for p in self.parameters])

    @property
    def columns(self) -> tuple[str, ...]:
        """What a table must hold for a fit."""
        return self.counts or (*self.variables, self.target)

    @property
    def from_counts(self) -> bool:
        """Whether it is fitted by the likelihood of counts."""
        return bool(self.likelihood or self.nll_function)

    @cached_property
    def counts(self) -> tuple[str, ...]:
        """Columns of the likelihood; none for laws that are fitted to values."""
        if self.likelihood:
            return _in_order(self.likelihood, self._nll_names - set(self.names))
        return self.count_columns

    @cached_property
    def parsed(self) -> Formula:
        """The formula's graph and LaTeX."""
        return parse(self.formula)

    @cached_property
    def nll(self) -> Node:
        """The graph of one row's negative log-likelihood."""
        return parse(self.likelihood).node

    @cached_property
    def _nll_names(self) -> frozenset[str]:
        return self.nll.names if self.likelihood else frozenset()

    @cached_property
    def latex(self) -> str:
        """The formula for print; a law given as a function prints its text."""
        return self.parsed.latex if self.function is None else rf"\text{{{self.formula}}}"

    @cached_property
    def linear(self) -> tuple[str, ...]:
        """Parameters that enter as factors of terms, given the others: solved for instead of searched."""
        return expression.linear(self.parsed.node, self.names) if self.function is None else ()

    def fix(self, values: Mapping[str, float]) -> Law:
        """The law with these parameters held at these values; its other parameters are fitted.

        Raises:
            FlopwiseError: no such parameter, or a value outside its bounds.
        """
        for p, value in values.items():
            if p not in self.names:
                raise FlopwiseError(
                    f"fix: {self.name} has no parameter {p!r}; there are {', '.join(self.names)}"
                )
            low, high = self.parameters[self.names.index(p)].bounds
            usable = isinstance(value, int | float | np.floating) and abs(value) <= LARGEST
            if not usable or not low <= value <= high:
                raise FlopwiseError(
                    f"fix: {p} is {str(value)[:40]}, must be a number from {max(low, -LARGEST):g} to "
                    f"{min(high, LARGEST):g}"
                )
        if not values:
            return self
        kept = tuple(p for p in self.parameters if p.name not in values)
        if not kept:
            raise FlopwiseError(f"fix: every parameter of {self.name} is held; leave one free to be fitted")

        def held(function: Callable[..., Array] | None) -> Callable[..., Array] | None:
            return function and (lambda params, x: function({**values, **params}, x))

        return replace(
            self, parameters=kept, function=held(self.function), nll_function=held(self.nll_function),
            formula=_held(self.formula, values) if self.function is None else self.formula,
            likelihood=_held(self.likelihood, values) if self.likelihood else "",
        )  # fmt: skip

    def from_shares(self) -> Law:
        """The law of a share (accuracy, coverage) with the binomial likelihood of counts: columns n and c.

        Raises:
            FlopwiseError: it is not a law of a share.
        """
        if self.from_counts:
            return self
        if self.span != (0.0, 1.0) or self.function is not None or {"n", "c"} & set(self.names):
            raise FlopwiseError(
                f"{self.name} is not a formula for a share from 0 to 1; no binomial likelihood"
            )
        head, _, definitions = self.formula.partition(" where ")
        share = head.partition("=")[2]
        where = f"{definitions} and" if definitions else ""
        nll = f"nll = -(c * log(share_) + (n - c) * log(1 - share_)) where {where} share_ = {share}"
        return replace(self, likelihood=nll)

    def unit(self, column: str) -> str:
        """Of a variable or the target."""
        return self.units.get(column) or UNITS.get(column, "")

    def tape(self, order: int, what: str = "value") -> Tape:
        """Compiled: value; then first and second derivatives by the parameters as they are searched.

        `what`: "value"; "nll", the likelihood of a row; "terms", the factors of the linear parameters, and
        what is left without them.
        """
        key = (order, what)
        if key not in self._tapes:
            self._tapes[key] = self._compile(order, what)
        return self._tapes[key]

    @cached_property
    def _tapes(self) -> dict[tuple[int, str], Tape]:
        return {}

    def _compile(self, order: int, what: str) -> Tape:
        node = self.nll if what == "nll" else self.parsed.node
        fixed = frozenset(node.names) - set(self.names)
        if what == "terms":
            slopes = [expression.derivative(node, p) for p in self.linear]
            rest = node
            for p, slope in zip(self.linear, slopes, strict=True):
                rest = expression.add(
                    rest, expression.mul(expression.const(-1), expression.mul(expression.name(p), slope))
                )
            return Tape((*slopes, rest), fixed)
        outputs = [node]
        if order:
            first = [searched_derivative(node, p) for p in self.parameters]
            outputs += first
            if order > 1:
                outputs += [
                    searched_derivative(first[i], p)
                    for i in range(len(first))
                    for p in self.parameters[: i + 1]
                ]
        return Tape(tuple(outputs), fixed)


def searched_derivative(node: Node, p: Parameter) -> Node:
    """By the parameter, or by its logarithm where that is searched."""
    slope = expression.derivative(node, p.name)
    return expression.times(expression.name(p.name), slope) if p.log else slope


def _held(text: str, values: Mapping[str, float]) -> str:
    """The formula with parameters defined as numbers."""
    head, _, definitions = text.partition(" where ")
    numbers = [f"{name} = {float(value)!r}" for name, value in values.items()]
    return f"{head} where {' and '.join([*numbers, *([definitions] if definitions else [])])}"


def _in_order(text: str, names: frozenset[str]) -> tuple[str, ...]:
    """Standard columns first, in the order of `UNITS`, then others as the text has them."""
    words = re.findall(r"[^\W\d]\w*", unicodedata.normalize("NFKC", text))
    said = dict.fromkeys(w for w in words if w in names)
    return tuple([u for u in UNITS if u in said] + [w for w in said if w not in UNITS])


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


def own(
    formula: str, columns: Iterable[str] = tuple(UNITS),
    start: Mapping[str, tuple[float, float]] | None = None, name: str = "",
) -> Law:  # fmt: skip
    """A law from its formula alone: names that are no `columns` are positive parameters.

    `start`: for parameters whose size is not around 1, the range that searches begin in.

    >>> own("loss = E + A / D^b").names
    ('E', 'A', 'b')
    """
    parsed = parse(formula)
    names = _in_order(formula, parsed.names - set(columns))
    if not names:
        raise FlopwiseError(f"formula {formula[:80]!r} has no parameters: all its names are columns")
    ranges = {p: (0.01, 10.0) for p in names} | dict(start or {})
    # A parameter that divides a column, or is divided by one, is of the column's size.
    sizes = {}
    for a, b in re.findall(r"\b(\w+)\s*/\s*(\w+)\b(?!\s*(?:\^|\*\*))", formula):
        for p, column in ((a, b), (b, a)):
            if p in names and column in columns and p not in (start or {}):
                sizes[p] = column
    parameters = tuple(
        Parameter(p, (1e-6, 1e6), unit=sizes[p])
        if p in sizes
        else Parameter(p, ranges[p], bounds=(0.0, 1e100))
        for p in names
    )
    return Law(
        name=name or formula, regime="own", formula=formula, parameters=parameters,
        source="given as a formula", status="own",
    )  # fmt: skip


def laws(regime: str | None = None) -> list[Law]:
    """The catalogue, by regime: pretraining, post-training, test-time."""
    _load()
    return [law for law in _CATALOGUE.values() if regime is None or law.regime == regime]


def get(name: str | Law) -> Law:
    """A law by name; a text with "=" is a formula of one's own (`own`).

    Raises:
        FlopwiseError: there is none; the message names the closest.
    """
    if isinstance(name, Law):
        return name
    if not isinstance(name, str):
        raise FlopwiseError(f"law is a {type(name).__name__}, must be a name, a formula or a Law")
    if "=" in name:
        return own(name)
    _load()
    if name not in _CATALOGUE:
        close = difflib.get_close_matches(name, _CATALOGUE, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"`flopwise laws` lists all {len(_CATALOGUE)}"
        raise FlopwiseError(f"law {name!r} is unknown; {hint}")
    return _CATALOGUE[name]


def _load() -> None:
    from flopwise.laws import forms  # noqa: F401
