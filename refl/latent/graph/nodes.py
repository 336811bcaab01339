"""A graph of what passed relevance to what: its nodes, its edges, and what adds up.

    R_node  =  sum of the edges into it from above                      (the output has none)
    R_node  =  sum of its edges to what lies below  +  absorbed on the way, by cause

An edge from a to b is the relevance that a passed on to b and that met no other node between them.
What meets something that is no node passes through it, so both equations hold for any choice of
nodes. The first holds because tables of rules are linear in R for a recorded forward: the relevance
of a node arrives in as many sweeps as there are nodes above it, and adds up. (Not where a
stabilizer has no sign and a ratio is beyond the dtype, whose relevance is absorbed then;
`linearity_error` says what is missed.) Inputs (tokens, or the patches of a picture) pass nothing
on: relevance has arrived.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from refl.errors import ReflError, nearest, shown
from refl.explanation import Explanation

INNER = ("neuron", "head")
INPUTS = ("token", "patch")
KINDS = ("output", *INNER, *INPUTS)


@dataclass(frozen=True)
class Node:
    """The explained output, a neuron or a head at one position, a token, or a patch.

    id             as edges name it: output, L2.N17@4, L1.H0@4, token@3, decoder.token@0, patch@5
    kind           one of KINDS
    name           L2.N17, L1.H0 (refl.components); the token itself; what is explained
    block          label of the block of a neuron or a head
    layer          which of the graph's layers it is in; None for the output and inputs
    number         which neuron of its layer, head of its attention, entry of a vocabulary or patch
    position       its token, counted in the texts that the net reads: in `Graph.positions`
    relevance      what it received in the sweep of the whole net
    activation     of a neuron
    passed         sum of its edges to what lies below
    absorbed       cause -> what was absorbed on the way to those
    rounding_bound what its conservation error is at most, where the sweeps were audited
    """

    id: str
    kind: str
    name: str
    block: str | None
    layer: int | None
    number: int
    position: int
    relevance: float
    activation: float | None = None
    passed: float = 0.0
    absorbed: dict[str, float] = field(default_factory=dict)
    rounding_bound: float | None = None

    @property
    def is_input(self) -> bool:
        return self.kind in INPUTS

    @property
    def conservation_error(self) -> float:
        """What its account misses: rounding. Inputs have no account."""
        if self.is_input:
            return 0.0
        return self.relevance - self.passed - math.fsum(self.absorbed.values())


@dataclass(frozen=True)
class Edge:
    """Relevance that a node passed on to one below it: their ids."""

    above: str
    below: str
    relevance: float


@dataclass(frozen=True, repr=False)
class Nodes:
    """What `refl.latent.graph` found, without its views.

    nodes          the output, then neurons and heads from above to below, then every input
    edges          from above to below
    layers         names of the layers from below to above: L0 attention, L0 MLP, ...
    positions      what is read at each position: tokens (then those of a decoder), patches
    explanation    of the same output, without its sites
    coverage       kind -> (number of nodes, sum of |R| of the nodes, sum of |R| of all there are)
    fraction, most as they were asked for
    """

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    layers: tuple[str, ...]
    positions: tuple[str, ...]
    explanation: Explanation
    coverage: dict[str, tuple[int, float, float]]
    fraction: float
    most: int

    def __repr__(self) -> str:
        """One line."""
        counts = ", ".join(f"{c[0]} {kind}s" for kind, c in self.coverage.items())
        return (
            f"<Graph of {self.explanation.what} = {self.output.relevance:.6g}: {counts}, "
            f"{len(self.edges)} edges>"
        )

    @cached_property
    def _by_id(self) -> dict[str, Node]:
        return {node.id: node for node in self.nodes}

    def __getitem__(self, id: str) -> Node:
        """A node by its id. Raises ReflError for an id that none has."""
        if not isinstance(id, str) or id not in self._by_id:
            near = ", ".join(nearest(str(id), self._by_id, 3)) or "none"
            raise ReflError(f"the graph has no node {shown(id)!r} (nearest: {near})")
        return self._by_id[id]

    @property
    def output(self) -> Node:
        return self.nodes[0]

    @property
    def inner(self) -> tuple[Node, ...]:
        """Neurons and heads."""
        return tuple(n for n in self.nodes if n.kind in INNER)

    @property
    def inputs(self) -> tuple[Node, ...]:
        return tuple(n for n in self.nodes if n.is_input)

    def into(self, id: str) -> list[Edge]:
        """The edges by which relevance came to a node."""
        return [edge for edge in self.edges if edge.below == self[id].id]

    def out_of(self, id: str) -> list[Edge]:
        """Those by which it went on."""
        return [edge for edge in self.edges if edge.above == self[id].id]

    @cached_property
    def received(self) -> dict[str, float]:
        """Id of each node but the output -> the sum of the edges into it."""
        sums: dict[str, list[float]] = {node.id: [] for node in self.nodes[1:]}
        for edge in self.edges:
            sums[edge.below].append(edge.relevance)
        return {id: math.fsum(several) for id, several in sums.items()}

    @property
    def linearity_error(self) -> float:
        """The most that the edges into a node miss of its relevance: rounding, where every rule is
        linear in R.
        """
        return max(abs(self[id].relevance - r) for id, r in self.received.items())

    @property
    def account(self) -> dict[str, float]:
        """What became of the explained number before it met a node: through nodes, straight to the
        input, absorbed, conservation error. It adds up.
        """
        straight = [e.relevance for e in self.out_of("output") if self[e.below].is_input]
        through = [e.relevance for e in self.out_of("output") if not self[e.below].is_input]
        return {
            "through nodes": math.fsum(through),
            "straight to the input": math.fsum(straight),
            "absorbed": math.fsum(self.output.absorbed.values()),
            "conservation error": self.output.conservation_error,
        }

    def strongest(self, part: float = 1.0, most: int | None = None) -> list[Edge]:
        """The fewest edges, the strongest first, that hold so much of the sum of |relevance|."""
        ordered = sorted(self.edges, key=lambda edge: -abs(edge.relevance))
        kept = fewest([abs(edge.relevance) for edge in ordered], part)
        return ordered[: kept if most is None else min(kept, most)]

    def as_dict(self) -> dict[str, Any]:
        """For JSON: everything, with the account of each node."""
        return {
            "explained": self.explanation.what,
            "relevance": self.output.relevance,
            "method": self.explanation.method.name,
            "fraction": self.fraction,
            "most": self.most,
            "coverage": {
                kind: {"nodes": count, "relevance": part, "of": whole}
                for kind, (count, part, whole) in self.coverage.items()
            },
            "account": self.account,
            "linearity_error": self.linearity_error,
            "layers": list(self.layers),
            "positions": list(self.positions),
            "nodes": [
                vars(n)
                | {
                    "received": self.received.get(n.id, n.relevance),
                    "conservation_error": n.conservation_error,
                }
                for n in self.nodes
            ],
            "edges": [vars(e) for e in self.edges],
        }


def fewest(sizes: Sequence[float], part: float) -> int:
    """How many of some sizes, the largest first, add up to so much of their sum."""
    wanted, so_far = part * math.fsum(sizes), 0.0
    for count, size in enumerate(sizes):
        if so_far >= wanted:
            return count
        so_far += size
    return len(sizes)
