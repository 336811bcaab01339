"""A graph in a terminal: what is explained and what became of it, then the strongest nodes and
edges.
"""

from __future__ import annotations

import math

from refl.latent.graph.nodes import Edge, Node, Nodes
from refl.show.account import quantity
from refl.show.colors import ink
from refl.show.lines import Line, Span, grid, paragraph, plain
from refl.show.numbers import adding_up, amount, decimals, error, percent, strongest
from refl.show.terminal import about
from refl.show.text import printable, shorten, visible

ROWS = 15
"""Of nodes, and of edges."""
DIGITS = 5
NODES = ("node", "at", "relevance", "passed on", "absorbed", "activation")
EDGES = ("from", "to", "relevance")
LONGEST = 24


def text(graph: Nodes, width: int = 100) -> str:
    """The view without color."""
    return plain(lines(graph, width))


def lines(graph: Nodes, width: int, rows: int = ROWS) -> list[Line]:
    """The whole view."""
    e, places = graph.explanation, decimals(abs(graph.output.relevance), DIGITS)
    said = f"{quantity(e)} = {amount(graph.output.relevance, places)}"
    nodes = sorted(graph.inner, key=lambda node: -abs(node.relevance))[:rows]
    edges = graph.strongest(most=rows)
    return [
        *paragraph(said, width, "bold", indent=""),
        *paragraph(about(e), width, "dim", indent=""),
        [],
        *_account(graph),
        [],
        *paragraph(_said(graph), width, "dim"),
        [],
        _title("nodes", len(nodes), len(graph.inner), "what became of the relevance of each"),
        *grid([_header(NODES), *(_node(node, graph, places) for node in nodes)], "llrrrr"),
        [],
        _title("edges", len(edges), len(graph.edges), "relevance goes from above to below"),
        *grid([_header(EDGES), *(_edge(edge, graph, places) for edge in edges)], "llr"),
        [],
        *_inputs(graph, places, rows),
    ]


def _header(names: tuple[str, ...]) -> list[Span]:
    return [(name, "dim") for name in names]


def _title(what: str, shown: int, of: int, note: str) -> Line:
    some = f"the {shown} strongest of {of}" if shown < of else f"all {of}"
    return [(f"{what}  ", "bold"), (f"{some}; {note}", "dim")]


def _account(graph: Nodes) -> list[Line]:
    """It adds up as printed."""
    parts = graph.account
    whole = graph.output.relevance
    numbers = adding_up(list(parts.values()), whole, decimals(strongest([whole]), DIGITS + 2))
    numbers[-2] = error(parts["conservation error"])
    rows: list[list[Span]] = [
        [("  ", ""), (name, ""), (number, "")]
        for name, number in zip([*parts, "explained"], numbers, strict=True)
    ]
    return grid(rows, "llr")


def _said(graph: Nodes) -> str:
    """What part of relevance the nodes are, and how well the sums hold."""
    parts = [
        f"{count} {kind}s with {percent(part, whole) or 'none'} of the sum of |R| of all {kind}s"
        for kind, (count, part, whole) in graph.coverage.items()
    ]
    errors = (graph.linearity_error, max(abs(n.conservation_error) for n in graph.nodes))
    return (
        f"{', '.join(parts)}. What each node received is the sum of the edges into it to "
        f"{error(errors[0])}, and what it passed on and what was absorbed to {error(errors[1])}."
    )


def _node(node: Node, graph: Nodes, places: int) -> list[Span]:
    absorbed = math.fsum(node.absorbed.values())
    return [
        (printable(node.name), "cyan"),
        (_at(node, graph), ""),
        _number(node.relevance, places),
        (amount(node.passed, places), ""),
        (amount(absorbed, places), ""),
        ("" if node.activation is None else f"{node.activation:.4g}", "dim"),
    ]


def _edge(edge: Edge, graph: Nodes, places: int) -> list[Span]:
    above, below = graph[edge.above], graph[edge.below]
    return [(_named(above, graph), ""), (_named(below, graph), ""), _number(edge.relevance, places)]


def _inputs(graph: Nodes, places: int, rows: int) -> list[Line]:
    """Tokens in their order; of many the strongest."""
    shown = sorted(graph.inputs, key=lambda node: -abs(node.relevance))[:rows]
    ordered = sorted(shown, key=lambda node: node.position)
    header = _header(("input", "at", "relevance"))
    table: list[list[Span]] = [
        [(_token(node.name), ""), (str(node.position), "dim"), _number(node.relevance, places)]
        for node in ordered
    ]
    return grid([header, *table], "lrr")


def _number(value: float, places: int) -> Span:
    return f"{value:+z.{places}f}", ink(value)


def _token(name: str) -> str:
    return shorten(visible(name), LONGEST)


def _at(node: Node, graph: Nodes) -> str:
    return f"{node.position} {_token(graph.positions[node.position])}"


def _named(node: Node, graph: Nodes) -> str:
    if node.kind == "output":
        return "output"
    if node.is_input:
        return f"{node.kind} {_at(node, graph)}"
    return f"{printable(node.name)} at {_at(node, graph)}"
