"""The sweeps that a graph is made of (refl.latent.graph.nodes says what it is).

One sweep of the whole net has the relevance of every neuron, head and input, and nodes are chosen
by it. Then from the output and from each chosen node, from above to below, a sweep that starts with
exactly what the node received (of a head a vector of d numbers; in gradient x input form the g) and
in which what arrives at another node is kept and goes no further (Sweep.stops).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from refl import patches
from refl.anatomy import components
from refl.arrays import asnumpy
from refl.components import Attention, Mlp, site_of
from refl.errors import ReflError, argument
from refl.explainer import Explainer
from refl.explanation import Explanation, Sites
from refl.latent.graph.nodes import INNER, Edge, Node, Nodes, fewest
from refl.methods import Table
from refl.network import Reading
from refl.question import Forward, Question, Target
from refl.rules.composites import Composite
from refl.sweep import STOPPED, Sweep, Swept
from refl.trace import Record, Value


@dataclass(frozen=True)
class Tracing:
    """What `Model.explain` may ask as it asks a method, whose answer is a graph."""

    table: Table
    fraction: float
    most: int
    kinds: tuple[str, ...] = INNER
    audit: bool = False

    @property
    def name(self) -> str:
        return self.table.name

    @property
    def summary(self) -> str:
        return self.table.summary

    @property
    def source(self) -> str:
        return self.table.source

    @property
    def passes(self) -> str:
        return "1 forward, 2 sweeps and one for each node"

    @property
    def conserved(self) -> str:
        return self.table.conserved

    def facts(self) -> Composite:
        return self.table.facts()

    def refuse(self, network: Any) -> None:
        self.table.refuse(network)

    def explain(
        self,
        question: Question,
        readings: Sequence[Reading],
        targets: Sequence[Target],
        keep: Any = None,
        audit: bool = False,
    ) -> list[Any]:
        if len(readings) != 1:
            raise ReflError(f"a graph is of one input, got {len(readings)}: give them one by one")
        if question.recompute:
            raise ReflError(
                f"a graph sweeps one recorded run many times: leave {argument('recompute')} out"
            )
        question.refuse([targets])
        return [_Graph(self, question, readings[0], targets[0]).found()]


@dataclass(frozen=True)
class _Place:
    """A chosen neuron or head: where it is in a site's activation, without the batch axis."""

    node: Node
    site: str
    index: tuple[int, ...]


@dataclass
class _Graph:
    """The work on one graph."""

    how: Tracing
    question: Question
    reading: Reading
    target: Target
    edges: list[Edge] = field(default_factory=list)
    coverage: dict[str, tuple[int, float, float]] = field(default_factory=dict)

    def found(self) -> Nodes:
        places, inputs = self.chosen, self.inputs
        nodes = [self._traced(self.output, self.forward.explained, self._seed(), places, inputs)]
        for number, place in enumerate(places):
            self.question.tell("graph", number + 1, len(places) + 1)
            start, seed = self._start(place)
            nodes.append(self._traced(place.node, start, seed, places[number + 1 :], inputs))
        self.question.tell("graph", len(places) + 1, len(places) + 1)
        return Nodes(
            nodes=(*nodes, *inputs),
            edges=tuple(self.edges),
            layers=tuple(self.layers),
            positions=tuple(self.positions),
            explanation=replace(self.explanation, sites=Sites()),
            coverage=self.coverage,
            fraction=self.how.fraction,
            most=self.how.most,
        )

    # -- the run, and the sweep of all of it -------------------------------------------------------

    @cached_property
    def owners(self) -> list[Mlp | Attention]:
        parts = components(self.question.network)
        return [
            *(parts.mlps if "neuron" in self.how.kinds else ()),
            *(parts.attentions if "head" in self.how.kinds else ()),
        ]

    @cached_property
    def explainer(self) -> Explainer:
        return self.how.table.explainer(self.question, [site_of(o) for o in self.owners])

    @cached_property
    def forward(self) -> Forward:
        return self.explainer.forward([self.reading])

    @cached_property
    def explanation(self) -> Explanation:
        return self.explainer.of(self.forward, [self.target], release=False)[0]

    @cached_property
    def order(self) -> dict[Value, int]:
        """When each value was computed."""
        return {r.output: number for number, r in enumerate(self.forward.trace.records)}

    @cached_property
    def running(self) -> list[Mlp | Attention]:
        """Those whose site this input came to before what is explained, the last ones first."""
        values, last = self.forward.trace.values, self.order[self.forward.explained]
        found = [o for o in self.owners if site_of(o) in values]
        found = [o for o in found if self.order[values[site_of(o)]] < last]
        return sorted(found, key=lambda o: -self.order[values[site_of(o)]])

    @cached_property
    def layers(self) -> list[str]:
        """From below to above, in the order they run; experts of a mixture are one."""
        return list(dict.fromkeys(_layer(owner) for owner in reversed(self.running)))

    @cached_property
    def positions(self) -> list[str]:
        """What is read at each position: tokens, then those of a decoder; of a picture what is
        learned in front of its patches, and these.
        """
        e = self.explanation
        if e.picture is None:
            return [*e.tokens, *(e.decoder_tokens or [])]
        learned = [r.role.replace("_", " ") for r in self.forward.trace.records if _is_token(r)]
        rows, columns = e.patches.shape
        return [*learned, *(f"{row},{column}" for row in range(rows) for column in range(columns))]

    def _first_position(self, stack: str) -> int:
        """Where the tokens of an encoder, or of a decoder, are in `positions`."""
        decoder = len(self.explanation.decoder_tokens or [])
        return len(self.positions) - decoder if stack.startswith("decoder") else 0

    # -- which nodes -------------------------------------------------------------------------------

    @cached_property
    def chosen(self) -> list[_Place]:
        """Of the neurons of each MLP, and the heads of each attention, at all positions, the fewest
        that make up `fraction` of the sum of |R| there; of those the `most` strongest; from above
        to below.
        """
        found: list[_Place] = []
        for owner in self.running:
            found += self._of_site(owner)
        strongest = sorted(range(len(found)), key=lambda i: -abs(found[i].node.relevance))
        kept = [found[i] for i in sorted(strongest[: self.how.most])]
        for kind, (_, _, whole) in self.coverage.items():
            sizes = [abs(place.node.relevance) for place in kept if place.node.kind == kind]
            self.coverage[kind] = (len(sizes), math.fsum(sizes), whole)
        return kept

    def _of_site(self, owner: Mlp | Attention) -> list[_Place]:
        r = self.explanation[site_of(owner)]
        r = r.sum(axis=-1) if isinstance(owner, Attention) else r  # (H, T), or (T, width)
        sizes = np.abs(r).ravel()
        kind = "head" if isinstance(owner, Attention) else "neuron"
        whole = math.fsum(sizes.tolist())
        self.coverage[kind] = (0, 0.0, self.coverage.get(kind, (0, 0.0, 0.0))[2] + whole)
        order = np.argsort(-sizes, kind="stable")
        kept = fewest(sizes[order].tolist(), self.how.fraction)
        order = order[: min(kept, self.how.most)]
        indices = (np.unravel_index(int(i), r.shape) for i in order if sizes[i] > 0)
        return [self._place(owner, (int(a), int(b)), float(r[a, b])) for a, b in indices]

    def _place(self, owner: Mlp | Attention, index: tuple[int, int], relevance: float) -> _Place:
        site, (first, second) = site_of(owner), index
        if isinstance(owner, Attention):
            name, number, token, x, kind = f"{owner.label}.H{first}", first, second, None, "head"
        else:
            name, number, kind = f"{owner.label}.N{second}", second, "neuron"
            token, x = first, float(self.explanation.activation(site)[index])
            if owner.tokens is not None:
                token = self._token_of(owner.tokens, first)
                number += owner.width * int(owner.label.rpartition(".E")[2])
        position = self._first_position(owner.block) + token
        layer = self.layers.index(_layer(owner))
        id = f"{name}@{token}"
        node = Node(id, kind, name, owner.block, layer, number, position, relevance, x)
        return _Place(node, site, index)

    def _token_at(self, site: str, row: int) -> int:
        """Which token a row of a site is: an expert has rows for those that chose it."""
        expert = re.match(r".*\.experts\.\d+\.", site)
        return row if expert is None else self._token_of(f"{expert[0]}tokens", row)

    def _token_of(self, tokens: str, row: int) -> int:
        """Which token chose an expert, by its row there."""
        value = self.forward.trace.values[tokens]
        record = self.forward.trace.records[self.order[value]]
        token: int = record.attributes["index"][0][row]
        return token

    @cached_property
    def output(self) -> Node:
        e, position = self.explanation, self._output_position()
        what = e.target if e.against is None else f"{e.target} − {e.against}"
        return Node("output", "output", what, None, None, e.target_id, position, e.explained)

    def _output_position(self) -> int:
        """The token whose output is explained, or that of a neuron; a classifier's is the last, or
        the first of a picture.
        """
        e, asked = self.explanation, self.question.at
        if e.position is not None:
            stack = "decoder" if e.decoder_tokens is not None else ""
            return self._first_position(stack) + e.position
        if asked is not None and len(asked[1]) > 1:  # tokens are the last axis but one
            site, row = asked[0], asked[1][-2] % self.forward.explained.array.shape[-2]
            written = e.decoder_tokens is not None and not site.startswith("encoder.")
            position = self._first_position("decoder" if written else "") + self._token_at(
                site, row
            )
            return min(position, len(self.positions) - 1)
        return 0 if e.picture is not None else len(self.positions) - 1

    @cached_property
    def inputs(self) -> list[Node]:
        """Every token, or every patch."""
        e, learned = self.explanation, len(self.positions)
        if e.picture is not None:
            scores = e.patches.ravel().tolist()
            learned -= len(scores)
            return [_patch(self.positions, learned + k, k, r) for k, r in enumerate(scores)]
        tokens = list(zip(e.tokens, e.input_ids, e.relevance.tolist(), strict=True))
        found = [_token("", t, t, *one) for t, one in enumerate(tokens)]
        if e.decoder_tokens is None or e.decoder_ids is None:
            return found
        tokens = list(
            zip(e.decoder_tokens, e.decoder_ids, e.decoder_relevance.tolist(), strict=True)
        )
        return [
            *found,
            *(_token("decoder.", u, len(found) + u, *one) for u, one in enumerate(tokens)),
        ]

    # -- a sweep for each --------------------------------------------------------------------------

    def _seed(self) -> Any:  # -> NumPy, in the shape of what is explained
        seeds = self.question.seeds(self.forward, [self.target])
        return self.question.starts(self.explainer.composite, self.forward, seeds)[0]

    def _start(self, place: _Place) -> tuple[Value, Any]:
        """The value that a sweep from a neuron or a head starts at, and with what."""
        sites = self.explanation.sites
        whole = asnumpy(sites.propagated[sites.canonical(place.site)])
        seed = np.zeros_like(whole)
        seed[place.index] = whole[place.index]
        return self.forward.trace.values[place.site], seed

    @property
    def as_gradient(self) -> bool:
        return self.explainer.composite.formulation == "gradient_x_input"

    def _traced(
        self, node: Node, start: Value, seed: Any, below: Sequence[_Place], inputs: Sequence[Node]
    ) -> Node:
        """A sweep from a node to those below it: its edges, and the node with its account."""
        below = [place for place in below if not self._is_at(place, start)]
        swept = self._sweep(start, seed, below)
        edges = [
            *((place.node, r) for place, r in self._at_places(swept, below)),
            *zip(inputs, self._at_inputs(swept), strict=True),
        ]
        self.edges += [Edge(node.id, to.id, r) for to, r in edges if r != 0]
        ledger, unpropagated = swept.ledger.example(0), 0.0
        absorbed = {c: r for c, r in ledger.absorbed.items() if c != STOPPED}
        if node.kind == "output" and self.as_gradient:
            (seeded,) = self.question.seeds(self.forward, [self.target])
            unpropagated = seeded.unpropagated(self.forward.rows[0])
        if unpropagated:
            absorbed["stabilizer"] = absorbed.get("stabilizer", 0.0) + unpropagated
        passed = sum(r for _, r in edges)
        refuse_not_finite(passed, node.id, self.question.network.dtype)
        return replace(node, passed=passed, absorbed=absorbed, rounding_bound=ledger.rounding_bound)

    def _is_at(self, place: _Place, value: Value) -> bool:
        return self.forward.trace.values[place.site] is value

    def _sweep(self, start: Value, seed: Any, below: Sequence[_Place]) -> Swept:
        needed = set(self.forward.input_sites())
        sweep = Sweep(
            self.explainer.composite,
            keep=lambda names: not needed.isdisjoint(names),
            audit=self.how.audit,
            stops=self._stops(below),
        )
        rows = asnumpy(start.array).reshape(1, -1)
        forward = replace(self.forward, explained=start, rows=rows)
        return self.question.sweep(forward, sweep, seed.reshape(1, -1))

    def _stops(self, below: Sequence[_Place]) -> dict[str, Any]:
        """Site -> where the chosen are in it."""
        stops: dict[str, Any] = {}
        for place in below:
            shape = self.forward.trace.values[place.site].array.shape[1:]
            mask = stops.setdefault(place.site, np.zeros(shape, dtype=bool))
            mask[place.index] = True
        return stops

    def _at_places(self, swept: Swept, below: Sequence[_Place]) -> Iterator[tuple[_Place, float]]:
        """The relevance that arrived at each node below."""
        arrived: dict[str, Any] = {}
        for place in below:
            if place.site not in swept.stopped:
                continue
            if place.site not in arrived:
                propagated = asnumpy(swept.stopped[place.site])[0]
                arrived[place.site] = self._relevance(propagated, place.site)
            yield place, float(arrived[place.site][place.index].sum(dtype=np.float64))

    def _relevance(self, propagated: Any, site: str) -> Any:
        return propagated * self.explanation.activation(site) if self.as_gradient else propagated

    def _at_inputs(self, swept: Swept) -> list[float]:
        """What arrived at each input."""
        found: list[float] = []
        for site in self.forward.input_sites():
            name = swept.aliases.get(site, site)
            r = asnumpy(swept.propagated[name])[0]
            if self.as_gradient:
                r = r * asnumpy(swept.activations[name])[0]
            if self.explanation.patch is not None:  # (C, H, W)
                r = patches.sums(r.sum(axis=0, dtype=np.float64), self.explanation.patch)
                found += r.ravel().tolist()
            else:
                found += r.sum(axis=-1, dtype=np.float64).tolist()
        return found


def refuse_not_finite(passed: float, id: str, dtype: str) -> None:
    """Raises ReflError where what a node passed on is no number."""
    if not math.isfinite(passed):
        raise ReflError(
            f"relevance is not finite in {dtype} from {id} down: use {argument('dtype')} float64, "
            "or a larger stabilizer"
        )


def _layer(owner: Mlp | Attention) -> str:
    if isinstance(owner, Attention):
        return f"{owner.label} attention"
    return f"{owner.label.partition('.E')[0]} MLP"


def _is_token(record: Record) -> bool:
    """Whether it is a learned token in front of patches."""
    return record.operation == "learned" and record.role != "position"


def _token(stack: str, t: int, position: int, name: str, number: int, relevance: float) -> Node:
    return Node(f"{stack}token@{t}", "token", name, None, None, number, position, relevance)


def _patch(positions: Sequence[str], position: int, number: int, relevance: float) -> Node:
    name = positions[position]
    return Node(f"patch@{number}", "patch", name, None, None, number, position, relevance)
