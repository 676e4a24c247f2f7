"""A graph compiled to numpy calls; what depends on the data alone is computed once for each data set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from flopwise.laws.expression import (
    FUNCTIONS,
    ONE,
    Array,
    Node,
    call,
    const,
    make,
    mul,
    negative,
    taken_apart,
)  # fmt: skip

_OPERATIONS: dict[str, Callable[..., Array]] = {
    "add": np.add, "mul": np.multiply, "div": np.divide, "square": np.square,
    **{f: how for f, (how, _) in FUNCTIONS.items()},
}  # fmt: skip


def _lowered(
    node: Node, variables: frozenset[str], known: dict[Node, Node], joined: set[tuple[str, Node, Node]]
) -> Node:
    """Products and sums as operations on two: what is one number per parameter set first, then what depends
    on data alone, and only then what has a value for each set at each point."""
    if node in known:
        return known[node]
    if node.op in ("product", "sum"):
        number, parts = taken_apart(node, node.op)
        groups: tuple[list[Node], ...] = ([], [], [])
        below: tuple[list[Node], ...] = ([], [], [])
        for part, count in parts.items():
            if node.op == "sum":
                part, count = _lowered(mul(const(count), part), variables, known, joined), 1
            else:
                if part.op == "exp" and count < 0:
                    part, count = call("exp", negative(part.args[0])), -count
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
                here = make("div", here or ONE, _folded("mul", under, joined))
            if here is not None:
                out = here if out is None else make(how, out, here)
        assert out is not None
    elif node.op in ("const", "name"):
        out = node
    else:
        out = make(node.op, *(_lowered(a, variables, known, joined) for a in node.args))
    known[node] = out
    return out


def _powers(a: Node, n: int) -> list[Node]:
    """Factors whose product is a^n."""
    return [make("square", a)] * (n // 2) + [a] * (n % 2)


def _folded(op: str, nodes: list[Node], joined: set[tuple[str, Node, Node]]) -> Node | None:
    """One node; two that were joined elsewhere are joined again, and computed once."""
    nodes = list(nodes)
    while len(nodes) > 1:
        pairs = [(a, b) for i, a in enumerate(nodes) for b in nodes[i + 1 :]]
        a, b = next(((a, b) for a, b in pairs if (op, a, b) in joined), pairs[0])
        joined.add((op, a, b))
        nodes.remove(a)
        nodes.remove(b)
        nodes.insert(0, make(op, a, b))
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
