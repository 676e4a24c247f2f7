"""A formula in text becomes what a fit needs: values, exact derivatives, which parameters are linear, LaTeX.

    loss = E + A / N^alpha + B / D^beta
    loss = E + (a * M^eta + b * M^-eta) * C^-eta where M = D / N and C = 6 * N * D

The text is parsed to a graph in which equal parts are one node, so values and derivatives share their work;
parts that depend on the data alone are computed once for each data set (`Compiled.bind`). Derivatives are
symbolic. Only arithmetic and the functions in `FUNCTIONS` are understood: nothing of Python's can be reached.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from flopwise.errors import FlopwiseError

Array = np.ndarray
LONGEST, DEEPEST = 2000, 150
"""Characters in a formula, and operations inside each other."""


@dataclass(frozen=True, eq=False)
class Node:
    """One operation on other nodes; equal operations are the same object."""

    op: str
    args: tuple[Any, ...]
    names: frozenset[str]
    """Every variable and parameter below."""


_NODES: dict[tuple[Any, ...], Node] = {}


def _node(op: str, *args: Any) -> Node:
    key = (op, *(id(a) if isinstance(a, Node) else a for a in args))
    if key not in _NODES:
        below = frozenset().union(*(a.names for a in args if isinstance(a, Node)))
        _NODES[key] = Node(op, args, below | {args[0]} if op == "name" else below)
    return _NODES[key]


def const(value: float) -> Node:
    """A number."""
    return _node("const", float(value))


def name(text: str) -> Node:
    """A variable or parameter."""
    return _node("name", text)


ZERO, ONE = const(0.0), const(1.0)


def _value(a: Node) -> float | None:
    return a.args[0] if a.op == "const" else None


def add(a: Node, b: Node) -> Node:
    """a + b."""
    if a is ZERO or b is ZERO:
        return b if a is ZERO else a
    if a.op == b.op == "const":
        return const(a.args[0] + b.args[0])
    return _node("add", a, b)


def mul(a: Node, b: Node) -> Node:
    """a b, numbers first, a product of exponentials as one."""
    if a is ZERO or b is ZERO:
        return ZERO
    if a is ONE or b is ONE:
        return b if a is ONE else a
    if a.op == b.op == "const":
        return const(a.args[0] * b.args[0])
    if b.op == "const":
        a, b = b, a
    if a.op == "const" and b.op == "mul" and b.args[0].op == "const":
        return mul(const(a.args[0] * b.args[0].args[0]), b.args[1])
    if a.op != "const" and b.op == "mul" and b.args[0].op == "const":
        return mul(b.args[0], mul(a, b.args[1]))
    if a.op == "mul" and a.args[0].op == "const" and b.op != "const":
        return mul(a.args[0], mul(a.args[1], b))
    return _node("mul", a, b)


def div(a: Node, b: Node) -> Node:
    """a / b."""
    if a is ZERO or b is ONE:
        return a
    if b.op == "const" and b is not ZERO:
        return mul(const(1 / b.args[0]), a)
    if a.op == "mul" and a.args[0].op == "const":
        return mul(a.args[0], div(a.args[1], b))
    return ONE if a is b else _node("div", a, b)


def power(a: Node, b: Node) -> Node:
    """a^b: small whole powers as they are, others as exp(b log a)."""
    e = _value(b)
    if e is not None:
        if e == 0:
            return ONE
        if e == 1:
            return a
        if a.op == "const":
            with np.errstate(all="ignore"):
                return const(float(np.float64(a.args[0]) ** np.float64(e)))
        if e == 2:
            return _node("square", a)
        if e == -1:
            return div(ONE, a)
    return call("exp", mul(b, call("log", a)))


def call(function: str, *args: Node) -> Node:
    """A function of `FUNCTIONS`, with logarithms of products of powers taken apart where that is exact."""
    if function == "log" and args[0].op == "exp":
        return args[0].args[0]
    if function == "exp" and args[0].op == "log":
        return args[0].args[0]
    if function == "log" and args[0].op == "const" and args[0].args[0] > 0:
        return const(np.log(args[0].args[0]))
    if function == "log" and args[0].op == "div" and args[0].args[0] is ONE:
        return mul(const(-1), call("log", args[0].args[1]))
    return _node(function, *args)


def _neg(a: Node) -> Node:
    return mul(const(-1), a)


def _sub(a: Node, b: Node) -> Node:
    return ZERO if a is b else add(a, _neg(b))


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
    return 0.5 * (1 + np.tanh(0.5 * x))


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
    return _sub(ONE, mul(_sub(ONE, a), call("sigmoid", call("unbend", r, a))))


FUNCTIONS: dict[str, tuple[Callable[..., Array], tuple[Callable[..., Node], ...]]] = {
    "exp": (np.exp, (lambda a: call("exp", a),)),
    "log": (np.log, (lambda a: div(ONE, a),)),
    "log10": (np.log10, (lambda a: div(const(1 / np.log(10)), a),)),
    "log1p": (np.log1p, (lambda a: div(ONE, add(ONE, a)),)),
    "expm1": (np.expm1, (lambda a: call("exp", a),)),
    "sqrt": (np.sqrt, (lambda a: div(const(0.5), call("sqrt", a)),)),
    "square": (np.square, (lambda a: mul(const(2), a),)),
    "tanh": (np.tanh, (lambda a: _sub(ONE, _node("square", call("tanh", a))),)),
    "sigmoid": (_sigmoid, (lambda a: mul(call("sigmoid", a), _sub(ONE, call("sigmoid", a))),)),
    "abs": (np.abs, (lambda a: _node("sign", a),)),
    "softplus": (lambda a: np.logaddexp(0.0, a), (lambda a: call("sigmoid", a),)),
    "unbend": (
        _unbend,
        (
            lambda r, a: div(ONE, _unbend_slope(r, a)),
            lambda r, a: _neg(div(call("softplus", call("unbend", r, a)), _unbend_slope(r, a))),
        ),
    ),
    "min": (
        np.minimum,
        (lambda a, b: _node("below", a, b), lambda a, b: _sub(ONE, _node("below", a, b))),
    ),
    "max": (
        np.maximum,
        (lambda a, b: _sub(ONE, _node("below", a, b)), lambda a, b: _node("below", a, b)),
    ),
    "gammaln": (_special("gammaln"), (lambda a: _node("digamma", a),)),
    "betaln": (
        _special("betaln"),
        (
            lambda a, b: _sub(_node("digamma", a), _node("digamma", add(a, b))),
            lambda a, b: _sub(_node("digamma", b), _node("digamma", add(a, b))),
        ),
    ),
    "digamma": (_special("digamma"), (lambda a: _node("trigamma", a),)),
    "trigamma": (_special("trigamma"), (lambda a: _node("tetragamma", a),)),
    "tetragamma": (_special("tetragamma"), ()),
    "sign": (np.sign, (lambda a: ZERO,)),
    "below": (lambda a, b: (a < b).astype(float), (lambda a, b: ZERO, lambda a, b: ZERO)),
}
"""What a formula may call: how it is computed, and its derivative by each argument."""

_OPERATIONS: dict[str, Callable[..., Array]] = {
    "add": np.add, "mul": np.multiply, "div": np.divide, **{f: how for f, (how, _) in FUNCTIONS.items()},
}  # fmt: skip


@lru_cache(maxsize=20_000)
def derivative(a: Node, by: str) -> Node:
    """The derivative by a variable or parameter."""
    if by not in a.names:
        return ZERO
    if a.op == "name":
        return ONE
    if a.op == "add":
        return add(derivative(a.args[0], by), derivative(a.args[1], by))
    if a.op == "mul":
        u, v = a.args
        return add(mul(derivative(u, by), v), mul(u, derivative(v, by)))
    if a.op == "div":
        u, v = a.args
        return _sub(div(derivative(u, by), v), mul(div(a, v), derivative(v, by)))
    total = ZERO
    for arg, slope in zip(a.args, FUNCTIONS[a.op][1], strict=True):
        total = add(total, mul(derivative(arg, by), slope(*a.args)))
    return total


@dataclass(frozen=True)
class Formula:
    """A parsed formula: its left side, the graph of its right side, and its LaTeX."""

    target: str
    node: Node
    latex: str

    @property
    def names(self) -> frozenset[str]:
        """Variables and parameters."""
        return self.node.names


def parse(text: str) -> Formula:
    """Parse `target = expression [where name = expression and ...]`.

    Raises:
        FlopwiseError: not of that form, or something in it is not understood; the message says what.
    """
    if len(text) > LONGEST:
        raise FlopwiseError(f"formula has {len(text)} characters, at most {LONGEST} are understood")
    head, *rest = re.split(r"\bwhere\b", text)
    if len(rest) > 1:
        raise FlopwiseError(f"formula {text[:80]!r} says 'where' twice")
    definitions: dict[str, Node] = {}
    said = []
    for part in re.split(r"\band\b|;", rest[0]) if rest else []:
        left, tree = _side(part, text)
        definitions[left] = _graph(tree, definitions, text)
        said.append(f"{_symbol(left)} = {_tex(tree)}")
    left, tree = _side(head, text)
    latex = f"{_symbol(left)} = {_tex(tree)}"
    if said:
        latex += r",\quad " + r",\; ".join(said)
    return Formula(left, _graph(tree, definitions, text), latex)


def _side(part: str, text: str) -> tuple[str, ast.expr]:
    left, sign, right = part.partition("=")
    left = left.strip()
    if not sign or not left.isidentifier():
        raise FlopwiseError(f"formula {text[:80]!r} must be NAME = EXPRESSION, as loss = E + A / N^alpha")
    try:
        tree = ast.parse(right.strip().replace("^", "**"), mode="eval").body
        level, depth = [tree], 0
        while level := [child for node in level for child in ast.iter_child_nodes(node)]:
            if (depth := depth + 1) > DEEPEST:
                raise ValueError(f"it is nested more than {DEEPEST} deep")
        return left, tree
    except (SyntaxError, ValueError, RecursionError, MemoryError) as e:
        raise FlopwiseError(f"formula {text[:80]!r} cannot be read after '{left} =': {e}") from e


_BINARY = {ast.Add: add, ast.Sub: _sub, ast.Mult: mul, ast.Div: div, ast.Pow: power}


def _graph(tree: ast.expr, known: Mapping[str, Node], text: str) -> Node:
    if isinstance(tree, ast.BinOp) and type(tree.op) in _BINARY:
        return _BINARY[type(tree.op)](_graph(tree.left, known, text), _graph(tree.right, known, text))
    if isinstance(tree, ast.UnaryOp) and isinstance(tree.op, ast.USub | ast.UAdd):
        inner = _graph(tree.operand, known, text)
        return _neg(inner) if isinstance(tree.op, ast.USub) else inner
    if isinstance(tree, ast.Name):
        return known.get(tree.id) or name(tree.id)
    if isinstance(tree, ast.Constant) and type(tree.value) in (int, float):
        return const(float(tree.value))  # type: ignore[arg-type]
    if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and not tree.keywords:
        function = tree.func.id
        if function in FUNCTIONS and FUNCTIONS[function][1]:
            wanted = len(FUNCTIONS[function][1])
            if len(tree.args) != wanted:
                raise FlopwiseError(
                    f"formula {text[:80]!r}: {function} takes {wanted} arguments, not {len(tree.args)}"
                )
            return call(function, *(_graph(a, known, text) for a in tree.args))
    raise FlopwiseError(
        f"formula {text[:80]!r}: {ast.unparse(tree)[:40]!r} is not understood; it may hold + - * / ^, "
        f"numbers, "
        f"names and {', '.join(f for f in FUNCTIONS if f not in ('sign', 'below', 'square'))}"
    )


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


@dataclass
class Tape:
    """Nodes in the order of their computation."""

    outputs: tuple[Node, ...]
    variables: frozenset[str]
    _data: list[Node] = field(default_factory=list)
    """Nodes that depend on variables alone, and are needed by others or asked for."""
    _rest: list[Node] = field(default_factory=list)

    def __post_init__(self) -> None:
        seen: set[int] = set()

        def visit(node: Node) -> None:
            if id(node) in seen:
                return
            seen.add(id(node))
            for a in node.args:
                if isinstance(a, Node):
                    visit(a)
            (self._data if node.names <= self.variables else self._rest).append(node)

        for node in self.outputs:
            visit(node)
        # For each step: function, places of its arguments; data first.
        places = {id(n): i for i, n in enumerate(self._data + self._rest)}
        self._outputs = [places[id(n)] for n in self.outputs]

        def steps(nodes: list[Node]) -> list[tuple[Any, ...]]:
            return [
                (n.op, n.args[0])
                if n.op in ("name", "const")
                else (_OPERATIONS[n.op], *(places[id(a)] for a in n.args))
                for n in nodes
            ]

        self._data_steps, self._rest_steps = steps(self._data), steps(self._rest)

    def bind(self, x: Mapping[str, Array]) -> list[Any]:
        """Values of what depends on data alone."""
        values: list[Any] = []
        with np.errstate(all="ignore"):
            _run(self._data_steps, values, x)
        return values

    def run(self, bound: list[Any], params: Mapping[str, Any]) -> list[Any]:
        """Outputs, for parameters that broadcast against the data."""
        values = bound.copy()
        with np.errstate(all="ignore"):
            _run(self._rest_steps, values, params)
        return [values[i] for i in self._outputs]


def _run(steps: list[tuple[Any, ...]], values: list[Any], given: Mapping[str, Any]) -> None:
    for step in steps:
        if len(step) == 3:
            values.append(step[0](values[step[1]], values[step[2]]))
        elif step[0] == "name":
            values.append(given[step[1]])
        elif step[0] == "const":
            values.append(step[1])
        else:
            values.append(step[0](values[step[1]]))


_GREEK = [
    "alpha",
    "beta",
    "gamma",
    "delta",
    "epsilon",
    "eps",
    "zeta",
    "eta",
    "theta",
    "kappa",
    "lam",
    "mu",
    "nu",
    "xi",
    "pi",
    "rho",
    "sigma",
    "tau",
    "phi",
    "chi",
    "psi",
    "omega",
]
_TEX_NAMES = {"eps": r"\epsilon", "lam": r"\lambda"}


def _symbol(text: str) -> str:
    """LaTeX of a name: Greek letters, and the rest as an index."""
    for greek in sorted(_GREEK, key=len, reverse=True):
        if text == greek or (text.startswith(greek) and not text[len(greek)].isalpha()):
            head, tail = _TEX_NAMES.get(greek, "\\" + greek), text[len(greek) :].strip("_")
            break
    else:
        if text.isalpha() and text.islower() and len(text) > 2:
            return r"\mathrm{" + text + "}"
        head, tail = text[0], text[1:].strip("_")
    tail = tail.replace("_", ",")
    return head + ("_{" + (rf"\{tail}" if tail in _GREEK else tail) + "}" if tail else "")


def _tex(tree: ast.expr, outer: int = 0) -> str:
    """LaTeX; `outer` is the precedence around it: 1 sum, 2 product, 3 power."""

    def bracket(text: str, own: int) -> str:
        return rf"\left({text}\right)" if own < outer else text

    if isinstance(tree, ast.Constant):
        return f"{tree.value:g}" if isinstance(tree.value, int | float) else str(tree.value)
    if isinstance(tree, ast.Name):
        return _symbol(tree.id)
    if isinstance(tree, ast.UnaryOp):
        return bracket("-" + _tex(tree.operand, 2), 2)
    if isinstance(tree, ast.Call):
        inside = ", ".join(_tex(a) for a in tree.args)
        function = ast.unparse(tree.func)
        if function == "exp":
            return f"e^{{{inside}}}"
        if function == "sqrt":
            return rf"\sqrt{{{inside}}}"
        known = {"log": r"\ln", "log10": r"\log_{10}", "min": r"\min", "max": r"\max", "sigmoid": r"\sigma"}
        return known.get(function, rf"\operatorname{{{function}}}") + rf"\left({inside}\right)"
    if isinstance(tree, ast.BinOp):
        if isinstance(tree.op, ast.Div):
            return rf"\frac{{{_tex(tree.left)}}}{{{_tex(tree.right)}}}"
        if isinstance(tree.op, ast.Pow):
            base = _tex(tree.left)
            if not isinstance(tree.left, ast.Name | ast.Constant):
                base = rf"\left({base}\right)"
            return bracket(f"{base}^{{{_tex(tree.right)}}}", 3)
        if isinstance(tree.op, ast.Mult):
            right = 3 if isinstance(tree.right, ast.UnaryOp) else 2
            return bracket(rf"{_tex(tree.left, 2)} \, {_tex(tree.right, right)}", 2)
        sign = "+" if isinstance(tree.op, ast.Add) else "-"
        return bracket(f"{_tex(tree.left, 1)} {sign} {_tex(tree.right, 1 if sign == '+' else 2)}", 1)
    return ast.unparse(tree)
