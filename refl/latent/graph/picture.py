"""A graph as a picture: positions from left to right, the net's layers from below to above, tokens
at the bottom, the explained output on top.

A disk is a neuron, a square a head. Red is for what is explained, blue against it, and so that a
gray print keeps it: nodes have a plus or a minus, edges against are dashed, tokens have a line
below or above. The wider an edge the more relevance it holds. Only the strongest edges are drawn,
and of very long inputs only the columns that matter: the picture says how much that leaves out.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from textwrap import wrap

from refl.latent.graph.nodes import Node, Nodes
from refl.show import drawing
from refl.show.account import legend, quantity
from refl.show.colors import LEVELS, Color, background, foreground, level
from refl.show.drawing import ADVANCE, BLACK, Box, Curve, Disk, Drawing, Part, Words
from refl.show.numbers import adding_up, amount, decimals, percent
from refl.show.text import one_line, printable, shorten, visible

MARGIN, SIZE, SMALL = 10.0, 9.0, 6.0
RADIUS, CELL = 5.0, 16.0
TOP = MARGIN + SIZE + 24
"""Where the output is."""
NARROWEST = 360.0
"""Of the picture: room for its words."""
BETWEEN = 44.0
"""Between rows: room for curves."""
LINE = 17.0
"""From line to line of nodes within a row."""
ABREAST = 4
"""Nodes side by side in a row of one position."""
PART, EDGES = 0.8, 250
"""Edges are drawn until so much of the sum of |relevance| is, and so many of them at most."""
COLUMNS = 40
"""Positions that are drawn."""
LONGEST = 14
"""Letters of a token."""
WIDEST, PALEST = 7.0, 6
"""Of edges: points, and the least level of their color."""
GRAY: Color = (120, 124, 130)
RULE: Color = (232, 234, 238)
WHITE: Color = (255, 255, 255)

Letters = Callable[[str], str]


def svg(graph: Nodes) -> str:
    """As SVG: text is text, and nothing but the file is needed."""
    return drawing.svg(_Picture(graph, str).drawn())


def pdf(graph: Nodes) -> bytes:
    """As PDF, fonts embedded; characters that the font lacks as their escapes. Raises ReflError
    where matplotlib (the extra `figures`) is not installed.
    """
    return drawing.pdf(_Picture(graph, drawing.embeddable()).drawn())


@dataclass(frozen=True)
class _Spot:
    """Where a node is: its center, and how far its ends are from there."""

    x: float
    y: float
    reach: float


@dataclass
class _Picture:
    graph: Nodes
    letters: Letters

    def drawn(self) -> Drawing:
        title = self.letters(f"{quantity(self.graph.explanation)} = {self._amount(self._whole)}")
        parts: list[Part] = [Words(MARGIN, MARGIN + SIZE, title, SIZE, bold=True)]
        e = self.graph.explanation
        about = (e.about.get("model", ""), "edited" * ("edits" in e.about), e.method.title)
        said = self.letters(shorten(" · ".join(one_line(a) for a in about if a), 60))
        parts.append(Words(MARGIN, MARGIN + SIZE + 11, said, SMALL + 1, GRAY))
        parts += [*self._rules(), *self._curves()]
        for node in self._inner_drawn:
            parts += self._node(node)
        parts += [*self._output(), *self._tokens(), *self._stacks]
        below, y = self._said(self._bottom + (44 if self._stacks else 34))
        wide = max(self._width, drawing.width(title, SIZE) + 2 * MARGIN, NARROWEST)
        return Drawing(wide, y, tuple(parts + below), title)

    # -- what is drawn -----------------------------------------------------------------------------

    @property
    def _whole(self) -> float:
        return self.graph.output.relevance

    @cached_property
    def _columns(self) -> list[int]:
        """Positions: all of them, or those of nodes and of the strongest inputs."""
        count = len(self.graph.positions)
        if count <= COLUMNS:
            return list(range(count))
        with_nodes = {node.position for node in (self.graph.output, *self.graph.inner)}
        inputs = sorted(self.graph.inputs, key=lambda node: -abs(node.relevance))
        found = dict.fromkeys([*sorted(with_nodes), *(node.position for node in inputs)])
        return sorted(list(found)[: max(COLUMNS, len(with_nodes))])

    @cached_property
    def _inner_drawn(self) -> list[Node]:
        return list(self.graph.inner)

    @cached_property
    def _cells(self) -> dict[tuple[int, int], list[Node]]:
        """(layer, position) -> its nodes, the strongest first: on top, where edges come from."""
        cells = defaultdict[tuple[int, int], list[Node]](list)
        for node in self._inner_drawn:
            assert node.layer is not None
            cells[node.layer, node.position].append(node)
        return {at: sorted(nodes, key=lambda n: -abs(n.relevance)) for at, nodes in cells.items()}

    @cached_property
    def _layers(self) -> list[int]:
        """Those that have nodes, from above to below."""
        return sorted({layer for layer, _ in self._cells}, reverse=True)

    # -- where -------------------------------------------------------------------------------------

    @cached_property
    def _slot(self) -> float:
        """Width of a node with its label."""
        longest = max((drawing.width(_label(n), SMALL) for n in self._inner_drawn), default=0.0)
        return 2 * RADIUS + 2 + longest + 6

    @cached_property
    def _left(self) -> float:
        """Where columns begin: behind the names of rows."""
        names = [self.graph.layers[layer] for layer in self._layers] + ["input"]
        return MARGIN + max(drawing.width(name, SMALL) for name in names) + 10

    @cached_property
    def _spans(self) -> dict[int, tuple[float, float]]:
        """Position -> where its column begins, and how wide it is."""
        x, found = self._left, dict[int, tuple[float, float]]()
        for position in self._columns:
            several = [len(nodes) for (_, p), nodes in self._cells.items() if p == position]
            most = max(several, default=0)
            nodes = (min(most, ABREAST) + 0.5 * (most > ABREAST)) * self._slot
            words = drawing.width(self._token(position), SIZE) + 10
            found[position] = (x, max(nodes, words, 34.0))
            x += found[position][1] + 6
        return found

    @cached_property
    def _width(self) -> float:
        start, wide = self._spans[self._columns[-1]]
        return start + wide + MARGIN

    @cached_property
    def _rows(self) -> dict[int, tuple[float, int]]:
        """Layer -> where its first line of nodes is, and how many lines it has."""
        y, found = TOP + CELL + BETWEEN, dict[int, tuple[float, int]]()
        for layer in self._layers:
            most = max(len(nodes) for (at, _), nodes in self._cells.items() if at == layer)
            found[layer] = (y, -(-most // ABREAST))
            y += (found[layer][1] - 1) * LINE + BETWEEN
        return found

    @cached_property
    def _bottom(self) -> float:
        """Where tokens begin."""
        if not self._rows:
            return TOP + CELL + BETWEEN
        y, lines = self._rows[self._layers[-1]]
        return y + (lines - 1) * LINE + BETWEEN

    def _middle(self, position: int) -> float:
        start, wide = self._spans[position]
        return start + wide / 2

    @cached_property
    def _spots(self) -> dict[str, _Spot]:
        """Of every node that is drawn, by its id."""
        output = self.graph.output
        y = TOP
        found = {output.id: _Spot(self._output_x + self._output_wide / 2, y + CELL / 2, CELL / 2)}
        for (layer, position), nodes in self._cells.items():
            (start, wide), (top, _) = self._spans[position], self._rows[layer]
            abreast = min(len(nodes), ABREAST) + 0.5 * (len(nodes) > ABREAST)
            first = start + (wide - abreast * self._slot) / 2 + RADIUS + 2
            for number, node in enumerate(nodes):
                row, column = divmod(number, ABREAST)
                x = first + (column + row % 2 / 2) * self._slot  # edges pass between
                found[node.id] = _Spot(x, top + row * LINE, RADIUS)
        for node in self.graph.inputs:
            if node.position in self._spans:
                found[node.id] = _Spot(self._middle(node.position), self._bottom, 0.0)
        return found

    # -- parts -------------------------------------------------------------------------------------

    def _rules(self) -> Iterator[Part]:
        """The names of rows, and where columns are."""
        for layer, (y, lines) in self._rows.items():
            middle = y + (lines - 1) * LINE / 2
            name = self.letters(self.graph.layers[layer])
            yield Words(MARGIN, middle + SMALL / 3, name, SMALL, GRAY)
        yield Words(MARGIN, self._bottom + CELL / 2 + SMALL / 3, "input", SMALL, GRAY)
        top = TOP + CELL + 8
        for start, wide in self._spans.values():
            yield Box(start - 3.25, top, 0.5, self._bottom - top + CELL, RULE)
            last = start + wide
        yield Box(last + 2.75, top, 0.5, self._bottom - top + CELL, RULE)

    @cached_property
    def _edges(self) -> list[tuple[_Spot, _Spot, float]]:
        spots = self._spots
        return [
            (spots[edge.above], spots[edge.below], edge.relevance)
            for edge in self.graph.strongest(PART, EDGES)
            if edge.above in spots and edge.below in spots
        ]

    def _curves(self) -> Iterator[Part]:
        """The weakest first: strong ones lie on top."""
        most = max((abs(r) for _, _, r in self._edges), default=0.0)
        for above, below, r in reversed(self._edges):
            step = level(r, most)
            color = background(max(abs(step), PALEST) * (1 if r > 0 else -1))
            thickness = max(WIDEST * abs(r) / most, 0.6)
            ends = above.x, above.y + above.reach, below.x, below.y - below.reach
            yield Curve(*ends, thickness, color, dashed=r < 0)

    @cached_property
    def _strongest(self) -> float:
        """Node: what is drawn in the strongest color."""
        return max((abs(n.relevance) for n in self.graph.nodes[1:]), default=0.0)

    def _node(self, node: Node) -> Iterator[Part]:
        at, r = self._spots[node.id], RADIUS
        back = background(level(node.relevance, self._strongest))
        if node.kind == "neuron":
            yield Disk(at.x, at.y, r + 0.6, BLACK)
            yield Disk(at.x, at.y, r - 0.1, back)
        else:
            for reach, color in ((r - 0.1, BLACK), (r - 0.8, back)):
                yield Box(at.x - reach, at.y - reach, 2 * reach, 2 * reach, color)
        yield from _sign(at, node.relevance, foreground(back))
        label = self.letters(_label(node))
        x, wide = at.x + r + 2, drawing.width(label, SMALL)
        yield Box(x - 0.5, at.y - SMALL / 2 - 0.5, wide + 1, SMALL + 1, WHITE)
        yield Words(x, at.y + SMALL / 3, label, SMALL)

    @cached_property
    def _output_words(self) -> str:
        return self.letters(shorten(visible(one_line(self.graph.output.name)), 40))

    @cached_property
    def _output_wide(self) -> float:
        return drawing.width(self._output_words, SIZE) + 8

    @cached_property
    def _output_x(self) -> float:
        """Above its position, and inside the picture."""
        x = self._middle(self.graph.output.position) - self._output_wide / 2
        return max(MARGIN, min(x, self._width - MARGIN - self._output_wide))

    def _output(self) -> Iterator[Part]:
        x, y = self._output_x, TOP
        yield Box(x, y, self._output_wide, CELL, BLACK)
        yield Words(x + 4, y + CELL - 5, self._output_words, SIZE, WHITE, bold=True)

    def _token(self, position: int) -> str:
        return self.letters(shorten(visible(self.graph.positions[position]), LONGEST))

    def _tokens(self) -> Iterator[Part]:
        inputs = {node.position: node for node in self.graph.inputs}
        for position in self._columns:
            node, words = inputs.get(position), self._token(position)
            wide = drawing.width(words, SIZE) + 6
            x, y = self._middle(position) - wide / 2, self._bottom
            back = background(level(node.relevance, self._strongest) if node else 0)
            yield Box(x, y, wide, CELL, back)
            if node is not None and level(node.relevance, self._strongest):
                yield Box(x, y + (CELL - 1.1 if node.relevance > 0 else 0), wide, 1.1, BLACK)
            yield Words(x + 3, y + CELL - 5, words, SIZE, foreground(back))
            if node is not None:
                said = f"{node.relevance:+.{self._places}f}"
                middle = self._middle(position) - drawing.width(said, SMALL) / 2
                yield Words(middle, y + CELL + SMALL + 3, said, SMALL, GRAY)

    @cached_property
    def _stacks(self) -> list[Part]:
        """Whose tokens they are, where there is a decoder."""
        e, y = self.graph.explanation, self._bottom + CELL + 2 * SMALL + 6
        if e.decoder_tokens is None:
            return []
        read = [p for p in self._columns if p < len(e.tokens)]
        firsts = (("encoder", read), ("decoder", self._columns[len(read) :]))
        return [Words(self._spans[at[0]][0], y, name, SMALL, GRAY) for name, at in firsts if at]

    # -- what is said ------------------------------------------------------------------------------

    @cached_property
    def _places(self) -> int:
        return decimals(self._strongest, 3)

    @property
    def _digits(self) -> int:
        return decimals(abs(self._whole), 4)

    def _amount(self, value: float) -> str:
        return amount(value, self._digits)

    def _said(self, y: float) -> tuple[list[Part], float]:
        """The legend and what is left out; and where the picture ends."""
        parts: list[Part] = [*self._shapes(y), *self._signs(y + 15)]
        y += 42
        room = int((max(self._width, NARROWEST) - 2 * MARGIN) / (ADVANCE * (SMALL + 1)))
        for line in chain.from_iterable(wrap(words, room) for words in self._sentences()):
            parts.append(Words(MARGIN, y, self.letters(line), SMALL + 1))
            y += 10.5
        return parts, y + MARGIN - 8

    @staticmethod
    def _shapes(y: float) -> Iterator[Part]:
        """What the shapes of nodes are."""
        x, r = MARGIN + RADIUS, RADIUS
        yield Disk(x, y, r, GRAY)
        yield Words(x + 9, y + SMALL / 2, "neuron", SMALL + 1)
        x += 60
        yield Box(x - r, y - r, 2 * r, 2 * r, GRAY)
        yield Words(x + 9, y + SMALL / 2, "attention head", SMALL + 1)

    def _signs(self, y: float) -> Iterator[Part]:
        """What colors and signs are."""
        favor, against = legend(self.graph.explanation)
        yield Box(MARGIN, y - 1.2, 24, 2.4, background(LEVELS))
        yield Words(MARGIN + 30, y + SMALL / 2, self.letters(f"{favor} (+, solid)"), SMALL + 1)
        for dash in range(3):
            yield Box(MARGIN + 9 * dash, y + 10.8, 6, 2.4, background(-LEVELS))
        words = self.letters(f"{against} (−, dashed)")
        yield Words(MARGIN + 30, y + 12 + SMALL / 2, words, SMALL + 1)

    def _sentences(self) -> Iterator[str]:
        """How much is shown."""
        g = self.graph
        parts = list(g.account.values())
        through, straight, absorbed, _, explained = adding_up(parts, self._whole, self._digits)
        yield (
            f"Of {explained}, {through} went through these nodes, {straight} straight to the "
            f"input, {absorbed} was absorbed before either."
        )
        for kind, (count, part, whole) in g.coverage.items():
            held = percent(part, whole) or "none"
            yield f"{count} {kind}s: {held} of the sum of |R| of all {kind}s."
        sizes = [abs(edge.relevance) for edge in g.edges]
        shown = math.fsum(abs(r) for _, _, r in self._edges)
        most = max(sizes, default=0.0)
        yield (
            f"{len(self._edges)} of {len(sizes)} edges are drawn: "
            f"{percent(shown, math.fsum(sizes)) or 'none'} of the sum of |relevance| on edges; the "
            f"widest is {self._amount(most)}."
        )
        if len(self._columns) < len(g.positions):
            yield f"{len(self._columns)} of {len(g.positions)} positions are drawn."


def _label(node: Node) -> str:
    """N17 of L2.N17."""
    return printable(node.name.removeprefix(f"{node.block}."))


def _sign(at: _Spot, relevance: float, color: Color) -> Iterator[Part]:
    long, thick = 2.6, 0.55
    if relevance:
        yield Box(at.x - long, at.y - thick, 2 * long, 2 * thick, color)
    if relevance > 0:
        yield Box(at.x - thick, at.y - long, 2 * thick, 2 * long, color)
