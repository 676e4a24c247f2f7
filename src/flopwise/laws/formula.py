"""A formula in text becomes what a fit needs: a graph (`expression`), and LaTeX.

    loss = E + A / N^alpha + B / D^beta
    loss = E + (a * M^eta + b * M^-eta) * C^-eta where M = D / N and C = 6 * N * D

Arithmetic and the functions of `expression.FUNCTIONS` are understood, and nothing of Python's can be reached.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass

from flopwise.errors import FlopwiseError
from flopwise.laws.expression import (
    FUNCTIONS,
    Node,
    add,
    call,
    const,
    div,
    mul,
    name,
    negative,
    power,
    subtract,
)

LONGEST, DEEPEST = 2000, 150
"""Characters in a formula, and operations inside each other."""


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


_BINARY = {ast.Add: add, ast.Sub: subtract, ast.Mult: mul, ast.Div: div, ast.Pow: power}


def _graph(tree: ast.expr, known: Mapping[str, Node], text: str) -> Node:
    if isinstance(tree, ast.BinOp) and type(tree.op) in _BINARY:
        return _BINARY[type(tree.op)](_graph(tree.left, known, text), _graph(tree.right, known, text))
    if isinstance(tree, ast.UnaryOp) and isinstance(tree.op, ast.USub | ast.UAdd):
        inner = _graph(tree.operand, known, text)
        return negative(inner) if isinstance(tree.op, ast.USub) else inner
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
