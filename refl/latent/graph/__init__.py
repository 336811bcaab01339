"""The graph of what passed relevance to what: from the explained output, through neurons of MLPs
and heads of attention, to the tokens, or to the patches of a picture.

    g = refl.latent.graph.graph(model, "the keys to the cabinet", contrast=("are", "is"))
    print(g)                      the strongest nodes and edges, and what adds up
    g.nodes, g.edges              refl.latent.graph.nodes says what they are and what they satisfy
    g.json()                      for viewers of attribution graphs (refl.latent.graph.file)
    g.svg(), g.pdf()              a picture (refl.latent.graph.picture)

Relevance that flows through neurons and heads is that of Achtibat et al. 2023 (concept relevance
propagation, arXiv 2206.03208, with section 4.3 of AttnLRP, arXiv 2402.05602); graphs of what passed
what to what, pruned, are those of Ameisen et al. 2025 (Circuit tracing, transformer-circuits.pub)
and Lindsey et al. 2025, whose nodes are features of transcoders and whose edges are direct effects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from refl import arguments
from refl.errors import ReflError, argument
from refl.latent.graph import file, picture, table
from refl.latent.graph.nodes import INNER, Edge, Node, Nodes
from refl.latent.graph.sweeps import Tracing
from refl.methods import Method, Table, chosen
from refl.model import Model
from refl.rules.composites import Composite

__all__ = ["Edge", "Graph", "Node", "graph", "tracing"]

FRACTION, MOST = 0.8, 50
ASKED = {
    *("target", "contrast", "position", "seed", "at", "decoder", "types", "pair"),
    *("edits", "progress"),
}
"""What is asked of a model as Model.explain has it."""


class Graph(Nodes):
    """A graph, with its views."""

    def __str__(self) -> str:
        return table.text(self)

    def json(self) -> str:
        """For Neuronpedia and other viewers of attribution graphs: a file of their schema."""
        return file.text(self)

    def svg(self) -> str:
        """A picture: tokens at the bottom, the output on top."""
        return picture.svg(self)

    def pdf(self) -> bytes:
        """The same as PDF. Raises ReflError where matplotlib (the extra `figures`) is not there."""
        return picture.pdf(self)


def graph(
    model: Model,
    item: Any,
    method: str | Composite | Method = "attnlrp",
    *,
    fraction: float = FRACTION,
    most: int = MOST,
    kinds: Sequence[str] = INNER,
    audit: bool = False,
    eps: float | None = None,
    stabilizer: str | None = None,
    options: Any = None,
    **asked: Any,
) -> Graph:
    """The graph of one explained output.

    item        one text, list of token ids, or picture, as Model.explain takes it
    method      a table of rules: its sweep is linear in R, and methods that are none have no sweep
    fraction    above 0, at most 1: of the neurons of each MLP, and of the heads of each attention,
                the fewest nodes are chosen whose |R| make up so much of the sum of |R| there
    most        and of those over the whole net so many with the largest |R|, a sweep each
    kinds       which kinds there are among them: neuron, head, or both (of a large net a single
                neuron has little relevance beside a head, which has that of many numbers)
    audit       also bound every node's conservation error by its rounding (slower)
    asked       what is explained, as in Model.explain: target, contrast, position, seed, at,
                decoder, types, pair, edits; progress, which is told ("graph", nodes done, nodes)

    Raises ReflError as Model.explain does, for a method that is no table of rules, and for scores
    that are lengths, which do not add up.
    """
    arguments.refuse_unknown("graph", asked, sorted(ASKED))
    table = chosen(method, eps, stabilizer, options)
    found = model.explain(item, tracing(table, fraction, most, kinds, audit), **asked)
    return shown(found)


def tracing(
    method: Method,
    fraction: float = FRACTION,
    most: int = MOST,
    kinds: Sequence[str] = INNER,
    audit: bool = False,
) -> Tracing:
    """What Model.explain may ask as a method, for a graph. Raises ReflError as `graph`."""
    if not isinstance(method, Table):
        raise ReflError(
            f"method {method.name} is no table of rules: relevance goes from neuron to neuron only "
            f"in a sweep, so take a {argument('method')} such as attnlrp"
        )
    if method.conditions:
        raise ReflError(
            f"the method {method.name} is under {argument('conditions')}, and a graph has all "
            "paths: take the table of rules alone"
        )
    if method.composite.score != "sum":
        raise ReflError(
            f"the scores of method {method.name} are lengths, which do not add up over edges: take "
            f"a {argument('method')} such as attnlrp"
        )
    if arguments.between("fraction", fraction, 0, 1) == 0:
        raise arguments.expected("fraction", "a number above 0, at most 1", fraction)
    named = arguments.names(kinds)
    if not named or not set(INNER).issuperset(named):
        raise arguments.expected("kinds", f"a list of {' and '.join(INNER)}, or of one", kinds)
    return Tracing(
        method,
        float(fraction),
        arguments.positive("most", most),
        tuple(named),
        arguments.flag("audit", audit),
    )


def shown(found: Nodes) -> Graph:
    """A graph with its views."""
    return Graph(**{field.name: getattr(found, field.name) for field in fields(found)})
