"""Expressions as graphs in normal form: arithmetic, functions, exact derivatives.

Equal products and sums are one node, so that values and derivatives share their work. `formula` makes a graph
from text, `tape` computes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from hashlib import md5
from typing import Any

import numpy as np

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class Node:
    """One operation on other nodes; equal operations are the same object.

    A "product" has as arguments a number, then factors each followed by its whole power; a "sum" a number,
    then terms each followed by its coefficient.
    """

    op: str
    args: tuple[Any, ...]
    names: frozenset[str]
    """Every variable and parameter below."""
    key: str
    """Made from what it is: orders factors and terms alike in every process."""


_NODES: dict[tuple[Any, ...], Node] = {}


def make(op: str, *args: Any) -> Node:
    """The node of an operation; the same one each time it is asked for."""
    """The node of an operation, the same one each time."""
    key = (op, *(id(a) if isinstance(a, Node) else a for a in args))
    if key not in _NODES:
        below = frozenset().union(*(a.names for a in args if isinstance(a, Node)))
        said = " ".join(a.key if isinstance(a, Node) else repr(a) for a in args)
        _NODES[key] = Node(
            op, args, below | {args[0]} if op == "name" else below, md5(f"{op} {said}".encode()).hexdigest()
        )
    return _NODES[key]


def const(value: float) -> Node:
    """A number."""
    return make("const", float(value))


def name(text: str) -> Node:
    """A variable or parameter."""
    return make("name", text)


ZERO, ONE = const(0.0), const(1.0)


def _value(a: Node) -> float | None:
    return a.args[0] if a.op == "const" else None


def taken_apart(a: Node, op: str) -> tuple[float, dict[Node, float]]:
    """As a number and factors with powers ("product"), or a number and terms with coefficients ("sum")."""
    if a.op == op:
        return a.args[0], dict(zip(a.args[1::2], a.args[2::2], strict=True))
    if a.op == "const":
        return a.args[0], {}
    if op == "product":
        return 1.0, {a: 1}
    number, factors = taken_apart(a, "product")
    return 0.0, {_product(1.0, factors): number}


def _ordered(parts: Mapping[Node, float]) -> list[Any]:
    return [x for pair in sorted(parts.items(), key=lambda pair: pair[0].key) for x in pair]


def _product(number: float, factors: Mapping[Node, float]) -> Node:
    kept: dict[Node, float] = {}
    for a, e in factors.items():
        if a.op == "exp" and a.args[0].op == "product" and a.args[0].args[0] < 0:
            a, e = call("exp", negative(a.args[0])), -e
        kept[a] = kept.get(a, 0) + e
    kept = {a: e for a, e in kept.items() if e}
    if number == 0 or not kept:
        return const(number)
    if number == 1 and list(kept.values()) == [1]:
        return next(iter(kept))
    return make("product", number, *_ordered(kept))


def add(a: Node, b: Node) -> Node:
    """a + b, like terms as one."""
    x, terms = taken_apart(a, "sum")
    y, more = taken_apart(b, "sum")
    for term, c in more.items():
        terms[term] = terms.get(term, 0.0) + c
    terms = {term: c for term, c in terms.items() if c}
    if not terms:
        return const(x + y)
    if x + y == 0 and len(terms) == 1:
        term, c = next(iter(terms.items()))
        return mul(const(c), term)
    return make("sum", x + y, *_ordered(terms))


def mul(a: Node, b: Node) -> Node:
    """a b, equal factors as one."""
    x, factors = taken_apart(a, "product")
    y, more = taken_apart(b, "product")
    for factor, e in more.items():
        factors[factor] = factors.get(factor, 0) + e
    return _product(x * y, factors)


def times(a: Node, b: Node) -> Node:
    """a b, where b is a sum term by term: like terms of a derivative then meet."""
    number, terms = taken_apart(b, "sum")
    out = mul(a, const(number))
    for term, c in terms.items():
        out = add(out, mul(a, mul(const(c), term)))
    return out


def div(a: Node, b: Node) -> Node:
    """a / b, what is above and below left out."""
    y, factors = taken_apart(b, "product")
    return mul(a, _product(1 / y if y else np.inf, {factor: -e for factor, e in factors.items()}))


def power(a: Node, b: Node) -> Node:
    """a^b: small whole powers as they are, others as exp(b log a)."""
    e = _value(b)
    if e is not None:
        if a.op == "const":
            with np.errstate(all="ignore"):
                return const(float(np.float64(a.args[0]) ** np.float64(e)))
        if e in (-1, 0, 1, 2):
            x, factors = taken_apart(a, "product")
            return _product(x**e if x or e > 0 else np.inf, {f: e * n for f, n in factors.items()})
    return call("exp", mul(b, call("log", a)))


def call(function: str, *args: Node) -> Node:
    """A function of `FUNCTIONS`, with logarithms of products of powers taken apart where that is exact."""
    if function == "log" and args[0].op == "exp":
        return args[0].args[0]
    if function == "exp" and args[0].op == "log":
        return args[0].args[0]
    if function == "log" and args[0].op == "const" and args[0].args[0] > 0:
        return const(np.log(args[0].args[0]))
    if function == "log" and args[0].op == "product" and args[0].args[0] == 1 and args[0].args[2:] == (-1,):
        return mul(const(-1), call("log", args[0].args[1]))
    return make(function, *args)


def negative(a: Node) -> Node:
    return mul(const(-1), a)


def subtract(a: Node, b: Node) -> Node:
    return add(a, negative(b))


def _special(function: str) -> Callable[..., Array]:
    """A function of scipy's, which is slow to import, on first use."""

    def run(*args: Array) -> Array:
        from scipy import special

        if function == "trigamma":
            return special.polygamma(1, *args)
        if function == "tetragamma":
            return special.polygamma(2, *args)
        return getattr(special, function)(*args)

    return run


def _sigmoid(x: Array) -> Array:
    return np.exp(-np.logaddexp(0.0, -x))  # to the last digit at both ends


def _unbend(r: Array, a: Array) -> Array:
    """u with u - (1 - a) softplus(u) = r, for a > 0: r far below 0 and r / a far above.

    The left side is monotone and bends one way only, so Newton's steps from the asymptotes cannot fail.
    """
    r, bend = np.broadcast_arrays(np.asarray(r, float), 1 - np.asarray(a, float))
    u = np.where(r < 0, r, r / (1 - bend))
    for _ in range(60):
        step = (r - u + bend * np.logaddexp(0.0, u)) / (1 - bend * _sigmoid(u))
        u = u + step
        if not (np.abs(step) > 1e-14 * (1 + np.abs(u))).any():
            break
    return u


def _unbend_slope(r: Node, a: Node) -> Node:
    return subtract(ONE, mul(subtract(ONE, a), call("sigmoid", call("unbend", r, a))))


FUNCTIONS: dict[str, tuple[Callable[..., Array], tuple[Callable[..., Node], ...]]] = {
    "exp": (np.exp, (lambda a: call("exp", a),)),
    "log": (np.log, (lambda a: div(ONE, a),)),
    "log10": (np.log10, (lambda a: div(const(1 / np.log(10)), a),)),
    "log1p": (np.log1p, (lambda a: div(ONE, add(ONE, a)),)),
    "expm1": (np.expm1, (lambda a: call("exp", a),)),
    "sqrt": (np.sqrt, (lambda a: div(const(0.5), call("sqrt", a)),)),
    "tanh": (np.tanh, (lambda a: subtract(ONE, power(call("tanh", a), const(2))),)),
    "sigmoid": (_sigmoid, (lambda a: mul(call("sigmoid", a), subtract(ONE, call("sigmoid", a))),)),
    "abs": (np.abs, (lambda a: make("sign", a),)),
    "softplus": (lambda a: np.logaddexp(0.0, a), (lambda a: call("sigmoid", a),)),
    "unbend": (
        _unbend,
        (
            lambda r, a: div(ONE, _unbend_slope(r, a)),
            lambda r, a: negative(div(call("softplus", call("unbend", r, a)), _unbend_slope(r, a))),
        ),
    ),
    "min": (
        np.minimum,
        (lambda a, b: make("below", a, b), lambda a, b: subtract(ONE, make("below", a, b))),
    ),
    "max": (
        np.maximum,
        (lambda a, b: subtract(ONE, make("below", a, b)), lambda a, b: make("below", a, b)),
    ),
    "gammaln": (_special("gammaln"), (lambda a: make("digamma", a),)),
    "betaln": (
        _special("betaln"),
        (
            lambda a, b: subtract(make("digamma", a), make("digamma", add(a, b))),
            lambda a, b: subtract(make("digamma", b), make("digamma", add(a, b))),
        ),
    ),
    "digamma": (_special("digamma"), (lambda a: make("trigamma", a),)),
    "trigamma": (_special("trigamma"), (lambda a: make("tetragamma", a),)),
    "tetragamma": (_special("tetragamma"), ()),
    "sign": (np.sign, (lambda a: ZERO,)),
    "below": (lambda a, b: np.less(a, b).astype(float), (lambda a, b: ZERO, lambda a, b: ZERO)),
}
"""What a formula may call: how it is computed, and its derivative by each argument."""


@lru_cache(maxsize=20_000)
def derivative(a: Node, by: str) -> Node:
    """The derivative by a variable or parameter."""
    if by not in a.names:
        return ZERO
    if a.op == "name":
        return ONE
    total = ZERO
    if a.op == "sum":
        for term, c in taken_apart(a, "sum")[1].items():
            total = add(total, mul(const(c), derivative(term, by)))
        return total
    if a.op == "product":
        factors = taken_apart(a, "product")[1]
        for factor, e in factors.items():
            rest = _product(a.args[0] * e, {f: n - (f is factor) for f, n in factors.items()})
            total = add(total, mul(rest, derivative(factor, by)))
        return total
    for arg, slope in zip(a.args, FUNCTIONS[a.op][1], strict=True):
        total = add(total, mul(derivative(arg, by), slope(*a.args)))
    return total


def linear(node: Node, parameters: Iterable[str]) -> tuple[str, ...]:
    """Parameters that enter linearly together, given the others: the largest set in order of appearance."""
    names = list(parameters)
    slopes = {p: derivative(node, p) for p in names}
    alone = [p for p in names if p in node.names and p not in slopes[p].names]

    def grown(first: str) -> list[str]:
        chosen = [first]
        for p in alone:
            if p not in chosen and not any(p in slopes[q].names or q in slopes[p].names for q in chosen):
                chosen.append(p)
        return chosen

    best = max((grown(p) for p in alone), key=len, default=[])
    return tuple(p for p in names if p in best)
