"""What has been read before need not be read again: a tree of token prefixes with their keys and values."""

from __future__ import annotations

from collections.abc import Sequence

from flopwise.infer.cache import Segment, Slots


class _Node:
    """Tokens on the way here from the parent, and their keys and values."""

    def __init__(self, tokens: tuple[int, ...], segment: Segment | None, parent: _Node | None):
        self.tokens, self.segment, self.parent = tokens, segment, parent
        self.children: dict[int, _Node] = {}
        self.used = 0


class PrefixTree:
    """Keys and values of token sequences, each shared beginning stored once; the least recently used go.

    Search asks for continuations of texts that extend each other: with this only what is new is computed.
    (Zheng et al., arXiv 2312.07104, section 3, call the same a radix tree.)

    Args:
        limit: bytes of keys and values that may be held; 0 holds none.
    """

    def __init__(self, limit: int):
        self.limit, self.bytes = limit, 0
        self._root = _Node((), None, None)
        self._clock = 0

    def clear(self) -> None:
        """Forget everything."""
        self._root, self.bytes = _Node((), None, None), 0

    def match(self, tokens: Sequence[int]) -> list[Segment]:
        """Segments, in order, of the longest beginning of `tokens` that is known."""
        found: list[Segment] = []
        for node, n in self._walk(tokens):
            assert node.segment is not None
            found.append(node.segment if n == len(node.tokens) else node.segment.part(0, n))
        return found

    def known(self, tokens: Sequence[int]) -> int:
        """How many tokens `match` would give."""
        return sum(n for _, n in self._walk(tokens))

    def insert(self, tokens: Sequence[int], slots: Slots, slot: int) -> None:
        """Keep the keys and values of `tokens`, which fill a slot from its beginning."""
        if not self.limit:
            return
        way = self._walk(tokens)
        at = sum(n for _, n in way)
        node = self._root
        if way:
            node, n = way[-1]
            if n < len(node.tokens) and at < len(tokens):
                node = self._split(node, n)
        if at < len(tokens):
            segment = slots.read(slot, at, len(tokens))
            if segment.bytes > self.limit:
                return
            child = _Node(tuple(tokens[at:]), segment, node)
            child.used = self._clock
            node.children[tokens[at]] = child
            self.bytes += segment.bytes
            self._evict()

    def _walk(self, tokens: Sequence[int]) -> list[tuple[_Node, int]]:
        """Nodes along `tokens`, with how many of each one's tokens agree (all, but perhaps of the last)."""
        self._clock += 1
        node, at, way = self._root, 0, []
        while at < len(tokens) and (child := node.children.get(tokens[at])):
            n = 0
            for a, b in zip(child.tokens, tokens[at : at + len(child.tokens)], strict=False):
                if a != b:
                    break
                n += 1
            child.used = self._clock
            way.append((child, n))
            if n < len(child.tokens):
                break
            node, at = child, at + n
        return way

    def _split(self, node: _Node, n: int) -> _Node:
        """Cut a node in two after n tokens; returns the upper half."""
        assert node.segment is not None and node.parent is not None
        upper = _Node(node.tokens[:n], node.segment.part(0, n), node.parent)
        upper.used = node.used
        node.segment, node.tokens = node.segment.part(n, len(node.tokens)), node.tokens[n:]
        node.parent.children[upper.tokens[0]] = upper
        upper.children[node.tokens[0]], node.parent = node, upper
        return upper

    def _evict(self) -> None:
        """Drop leaves that were not used for longest until the limit holds, with a tenth to spare."""
        if self.bytes <= self.limit:
            return
        while self.bytes > 0.9 * self.limit:
            leaves, todo = [], [self._root]
            while todo:
                node = todo.pop()
                todo += node.children.values()
                if not node.children and node.segment is not None:
                    leaves.append(node)
            leaves.sort(key=lambda leaf: leaf.used)
            for leaf in leaves:
                assert leaf.parent is not None and leaf.segment is not None
                del leaf.parent.children[leaf.tokens[0]]
                self.bytes -= leaf.segment.bytes
                if self.bytes <= 0.9 * self.limit:
                    return
