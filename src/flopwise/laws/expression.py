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
from hashlib import md5
from typing import Any

import numpy as np

from flopwise.errors import FlopwiseError

Array = np.ndarray
LONGEST, DEEPEST = 2000, 150
"""Characters in a formula, and operations inside each other."""


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


def _node(op: str, *args: Any) -> Node:
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
    return _node("const", float(value))


def name(text: str) -> Node:
    """A variable or parameter."""
    return _node("name", text)


ZERO, ONE = const(0.0), const(1.0)


def _value(a: Node) -> float | None:
    return a.args[0] if a.op == "const" else None


def _parts(a: Node, op: str) -> tuple[float, dict[Node, float]]:
    """As a number and factors with powers ("product"), or a number and terms with coefficients ("sum")."""
    if a.op == op:
        return a.args[0], dict(zip(a.args[1::2], a.args[2::2], strict=True))
    if a.op == "const":
        return a.args[0], {}
    if op == "product":
        return 1.0, {a: 1}
    number, factors = _parts(a, "product")
    return 0.0, {_product(1.0, factors): number}


def _ordered(parts: Mapping[Node, float]) -> list[Any]:
    return [x for pair in sorted(parts.items(), key=lambda pair: pair[0].key) for x in pair]


def _product(number: float, factors: Mapping[Node, float]) -> Node:
    kept: dict[Node, float] = {}
    for a, e in factors.items():
        if a.op == "exp" and a.args[0].op == "product" and a.args[0].args[0] < 0:
            a, e = call("exp", _neg(a.args[0])), -e
        kept[a] = kept.get(a, 0) + e
    kept = {a: e for a, e in kept.items() if e}
    if number == 0 or not kept:
        return const(number)
    if number == 1 and list(kept.values()) == [1]:
        return next(iter(kept))
    return _node("product", number, *_ordered(kept))


def add(a: Node, b: Node) -> Node:
    """a + b, like terms as one."""
    x, terms = _parts(a, "sum")
    y, more = _parts(b, "sum")
    for term, c in more.items():
        terms[term] = terms.get(term, 0.0) + c
    terms = {term: c for term, c in terms.items() if c}
    if not terms:
        return const(x + y)
    if x + y == 0 and len(terms) == 1:
        term, c = next(iter(terms.items()))
        return mul(const(c), term)
    return _node("sum", x + y, *_ordered(terms))


def mul(a: Node, b: Node) -> Node:
    """a b, equal factors as one."""
    x, factors = _parts(a, "product")
    y, more = _parts(b, "product")
    for factor, e in more.items():
        factors[factor] = factors.get(factor, 0) + e
    return _product(x * y, factors)


def times(a: Node, b: Node) -> Node:
    """a b, where b is a sum term by term: like terms of a derivative then meet."""
    number, terms = _parts(b, "sum")
    out = mul(a, const(number))
    for term, c in terms.items():
        out = add(out, mul(a, mul(const(c), term)))
    return out


def div(a: Node, b: Node) -> Node:
    """a / b, what is above and below left out."""
    y, factors = _parts(b, "product")
    return mul(a, _product(1 / y if y else np.inf, {factor: -e for factor, e in factors.items()}))


def power(a: Node, b: Node) -> Node:
    """a^b: small whole powers as they are, others as exp(b log a)."""
    e = _value(b)
    if e is not None:
        if a.op == "const":
            with np.errstate(all="ignore"):
                return const(float(np.float64(a.args[0]) ** np.float64(e)))
        if e in (-1, 0, 1, 2):
            x, factors = _parts(a, "product")
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
    return _node(function, *args)


def _neg(a: Node) -> Node:
    return mul(const(-1), a)


def _sub(a: Node, b: Node) -> Node:
    return add(a, _neg(b))


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
    return _sub(ONE, mul(_sub(ONE, a), call("sigmoid", call("unbend", r, a))))


FUNCTIONS: dict[str, tuple[Callable[..., Array], tuple[Callable[..., Node], ...]]] = {
    "exp": (np.exp, (lambda a: call("exp", a),)),
    "log": (np.log, (lambda a: div(ONE, a),)),
    "log10": (np.log10, (lambda a: div(const(1 / np.log(10)), a),)),
    "log1p": (np.log1p, (lambda a: div(ONE, add(ONE, a)),)),
    "expm1": (np.expm1, (lambda a: call("exp", a),)),
    "sqrt": (np.sqrt, (lambda a: div(const(0.5), call("sqrt", a)),)),
    "tanh": (np.tanh, (lambda a: _sub(ONE, power(call("tanh", a), const(2))),)),
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
    "below": (lambda a, b: np.less(a, b).astype(float), (lambda a, b: ZERO, lambda a, b: ZERO)),
}
"""What a formula may call: how it is computed, and its derivative by each argument."""

_OPERATIONS: dict[str, Callable[..., Array]] = {
    "add": np.add, "mul": np.multiply, "div": np.divide, "square": np.square,
    **{f: how for f, (how, _) in FUNCTIONS.items()},
}  # fmt: skip


@lru_cache(maxsize=20_000)
def derivative(a: Node, by: str) -> Node:
    """The derivative by a variable or parameter."""
    if by not in a.names:
        return ZERO
    if a.op == "name":
        return ONE
    total = ZERO
    if a.op == "sum":
        for term, c in _parts(a, "sum")[1].items():
            total = add(total, mul(const(c), derivative(term, by)))
        return total
    if a.op == "product":
        factors = _parts(a, "product")[1]
        for factor, e in factors.items():
            rest = _product(a.args[0] * e, {f: n - (f is factor) for f, n in factors.items()})
            total = add(total, mul(rest, derivative(factor, by)))
        return total
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
        level: list[ast.AST] = [tree]
        depth = 0
        while level := [child for node in level for child in ast.iter_child_nodes(node)]:
            if (depth := depth + 1) > DEEPEST:
                raise ValueError(f"it is nested more than {DEEPEST} deep")
        return left, tree
    except (SyntaxError, ValueError, RecursionError, MemoryError) as e:
        why = e.msg if isinstance(e, SyntaxError) else str(e)
        raise FlopwiseError(f"formula {text[:80]!r} cannot be read after '{left} =': {why}") from e


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


def _lowered(
    node: Node, variables: frozenset[str], known: dict[Node, Node], joined: set[tuple[str, Node, Node]]
) -> Node:
    """Products and sums as operations on two: what is one number per parameter set first, then what depends
    on data alone, and only then what has a value for each set at each point."""
    if node in known:
        return known[node]
    if node.op in ("product", "sum"):
        number, parts = _parts(node, node.op)
        groups: tuple[list[Node], ...] = ([], [], [])
        below: tuple[list[Node], ...] = ([], [], [])
        for part, count in parts.items():
            if node.op == "sum":
                part, count = _lowered(mul(const(count), part), variables, known, joined), 1
            else:
                if part.op == "exp" and count < 0:
                    part, count = call("exp", _neg(part.args[0])), -count
                part = _lowered(part, variables, known, joined)
            i = 0 if not part.names & variables else 1 if part.names <= variables else 2
            (groups if count > 0 else below)[i].extend(_powers(part, int(abs(count))))
        plain = number == (node.op == "product")
        if not plain:
            groups[0].insert(0, const(number))
        how = "mul" if node.op == "product" else "add"
        out: Node | None = None
        for above, under in zip(groups, below, strict=True):
            here = _folded(how, above, joined)
            if under:
                here = _node("div", here or ONE, _folded("mul", under, joined))
            if here is not None:
                out = here if out is None else _node(how, out, here)
        assert out is not None
    elif node.op in ("const", "name"):
        out = node
    else:
        out = _node(node.op, *(_lowered(a, variables, known, joined) for a in node.args))
    known[node] = out
    return out


def _powers(a: Node, n: int) -> list[Node]:
    """Factors whose product is a^n."""
    return [_node("square", a)] * (n // 2) + [a] * (n % 2)


def _folded(op: str, nodes: list[Node], joined: set[tuple[str, Node, Node]]) -> Node | None:
    """One node; two that were joined elsewhere are joined again, and computed once."""
    nodes = list(nodes)
    while len(nodes) > 1:
        pairs = [(a, b) for i, a in enumerate(nodes) for b in nodes[i + 1 :]]
        a, b = next(((a, b) for a, b in pairs if (op, a, b) in joined), pairs[0])
        joined.add((op, a, b))
        nodes.remove(a)
        nodes.remove(b)
        nodes.insert(0, _node(op, a, b))
    return nodes[0] if nodes else None


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

        known: dict[Node, Node] = {}
        joined: set[tuple[str, Node, Node]] = set()
        outputs = [_lowered(node, self.variables, known, joined) for node in self.outputs]
        for node in outputs:
            visit(node)
        # For each step: function, places of its arguments; data first.
        places = {id(n): i for i, n in enumerate(self._data + self._rest)}
        self._outputs = [places[id(n)] for n in outputs]

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
