"""Graphs of what passed relevance to what: both sums at every node, edges against sweeps that only
mask and against derivatives of the surrogate, the file for viewers, the picture, the command.
"""

from __future__ import annotations

import json
import math
import re
from itertools import combinations
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jsonschema
import numpy as np
import pytest

import refl
from refl.cli import main
from refl.conditions import Conditions
from refl.errors import ReflError
from refl.latent.graph import Graph, graph, tracing
from refl.latent.graph import file as graph_file
from refl.latent.graph import picture as graph_picture
from refl.latent.graph.nodes import Node, fewest
from refl.latent.graph.sweeps import refuse_not_finite
from refl.methods import chosen, under
from refl.model import Model
from refl.question import Question
from refl.rules.published import LRP_0
from refl.show.drawing import Words
from refl.sweep import Sweep
from refl.trace import Trace, Value
from refl.verification.definitions import surrogate
from refl.verification.random_models import (
    ARCHITECTURES,
    GPT2,
    LLAMA,
    MIXTRAL,
    T5,
    VIT,
    random_model,
    with_weights,
)

TABLES = ("attnlrp", "attnlrp-gradient", "cp-lrp", "lrp-0", "relp", "lxt-explicit")
TEXT = "the keys to the cabinet"


def item_of(model: Model, length: int = 4) -> Any:
    random = np.random.default_rng(length)
    if model.takes_images:
        return random.standard_normal((3, *model.config.image))
    return [int(i) for i in random.integers(1, 17, length)]


def asked(model: Model) -> dict[str, Any]:
    """What is explained of a random model."""
    how: dict[str, Any] = {"target": 2}
    if model.task == "sequence-to-sequence":
        how["decoder"] = [0, 3]
    if model.task == "masked-token":
        how["position"] = 1
    return how


def graph_of(config: dict[str, Any], method: str = "attnlrp", **how: Any) -> Graph:
    model = random_model(config, 1)
    options: dict[str, Any] = {"fraction": 0.5, "most": 8} | asked(model)
    return graph(model, item_of(model), method, **(options | how))


# -- the sweep that stops --------------------------------------------------------------------------


@pytest.mark.parametrize("around", [False, True])
def test_what_arrives_at_a_stop_goes_no_further(around: bool) -> None:
    """LRP-0 of z = w (U x), with x added where there is a way around: neuron 1 of U x receives
    w_1 (U x)_1, and x_i what is not passed on by it.
    """
    random = np.random.default_rng(0)
    x, u, w = (random.standard_normal(s) for s in ((1, 1, 3), (3, 3), (1, 3)))
    t = Trace({"u.weight": u, "w.weight": w})
    leaf = t.scale("x", Value(x, "leaf"), 1.0)
    h = t.linear("u", leaf)
    z = t.linear("w", t.add("h", leaf, h) if around else h)
    stops = {"u": np.arange(3) == 1}
    sweep = Sweep(LRP_0, lambda names: "x" in names, audit=True, stops=stops)
    found = sweep.run(t, z, z.array)
    at = w[0, 1] * (u[1] @ x[0, 0])
    assert found.stopped["u"].tolist() == [[[0.0, pytest.approx(at, abs=1e-14), 0.0]]]
    rest = sum(w[0, j] * u[j] * x[0, 0] for j in (0, 2)) + (w[0] * x[0, 0] if around else 0.0)
    assert np.abs(found.propagated["x"][0, 0] - rest).max() <= 1e-14
    assert found.ledger["u"].absorbed["stopped"][0] == pytest.approx(at, abs=1e-14)
    assert found.ledger.rounding_bound is not None  # what came to the leaf is in no entry
    left = found.ledger.conservation_error[0] - rest.sum()
    assert abs(left) <= found.ledger.rounding_bound[0]


def test_in_tiles_and_in_one_piece() -> None:
    """130 tokens: attention in tiles (and, audited, in two parts), whose output is stopped as that
    of recorded operations is.
    """
    model = random_model(LLAMA, 2)
    how: dict[str, Any] = {"target": 2, "fraction": 0.3, "most": 6}
    tiled = graph(model, item_of(model, 130), **how)
    parts = graph(model, item_of(model, 130), audit=True, **how)
    assert [n.id for n in tiled.nodes] == [n.id for n in parts.nodes]
    assert "head" in {n.kind for n in tiled.inner}
    sizes = {(e.above, e.below): e.relevance for e in parts.edges}
    for edge in tiled.edges:
        assert abs(sizes[edge.above, edge.below] - edge.relevance) <= 1e-13


def test_stops_in_blocks_that_are_run_again() -> None:
    """A block's output is met twice then, inside and outside: what stops there stops once."""
    model = random_model(LLAMA, 1)
    stops = {
        "model.layers.0": np.arange(4)[:, None] == 1,
        "model.layers.1.mlp.act_fn": np.arange(20) % 3 == 0,
    }
    found = []
    for recompute in (False, True):
        forward = Question(model, recompute=recompute).forward(model.readings([[3, 5, 2, 7]]))
        sweep = Sweep(
            chosen("attnlrp").facts(), lambda names: "model.embed_tokens" in names, stops=stops
        )
        found.append(sweep.run(forward.trace, forward.explained, forward.explained.array))
    plain, again = found
    assert plain.stopped.keys() == again.stopped.keys() == stops.keys()
    for name in stops:
        assert plain.stopped[name].any()
        assert np.abs(plain.stopped[name] - again.stopped[name]).max() <= 1e-14
    at = "model.embed_tokens"
    assert np.abs(plain.propagated[at] - again.propagated[at]).max() <= 1e-14
    absorbed = [one.ledger.absorbed["stopped"][0] for one in found]
    assert absorbed[0] == pytest.approx(absorbed[1], abs=1e-14)
    assert abs(again.ledger.conservation_error[0]) <= 1e-13


# -- what adds up ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("form", [0, 1])
def test_both_sums_hold(name: str, form: int) -> None:
    """At every node, to rounding: the sum of |terms| of one sweep bounds what each misses."""
    gradient = form == 1
    table = "attnlrp-gradient" if gradient else TABLES[len(name) % len(TABLES)]
    model = random_model(ARCHITECTURES[name], 1)
    item, how = item_of(model), asked(model)
    g = graph(model, item, table, fraction=0.5, most=6, audit=True, **how)
    bound = max(n.rounding_bound or 0.0 for n in g.nodes)
    sites = [p.site for p in map(part_of(model), g.inner)]
    e = model.explain(item, table, keep=sites, **how)
    assert g.output.relevance == e.explained
    for node in g.nodes:
        incoming = math.fsum(edge.relevance for edge in g.edges if edge.below == node.id)
        outgoing = math.fsum(edge.relevance for edge in g.edges if edge.above == node.id)
        if node.kind != "output":
            assert abs(incoming - relevance_of(node, e, model)) <= bound, node
        if not node.is_input:
            assert node.rounding_bound is not None
            missing = node.relevance - outgoing - math.fsum(node.absorbed.values())
            assert abs(missing) <= node.rounding_bound, node
    assert {"neuron", "head"} & {node.kind for node in g.nodes}
    account = g.account
    assert math.fsum(account.values()) == pytest.approx(e.explained, abs=bound)


def part_of(model: Model) -> Any:
    return lambda node: model.components.part(node.name)


def relevance_of(node: Node, e: Any, model: Model) -> float:
    """In the sweep of the whole net, by a plain look-up."""
    if node.kind == "patch":
        return float(e.patches.ravel()[node.number])
    if node.kind == "token":
        number = int(node.id.partition("@")[2])
        row = e.decoder_relevance if node.id.startswith("decoder.") else e.relevance
        return float(row[number])
    part, token = part_of(model)(node), int(node.id.partition("@")[2])
    if node.kind == "head":
        return float(e[part.site][part.number, token].sum())
    if ".experts." not in part.site:
        return float(e[part.site][token, part.number])
    tokens = next(m.tokens for m in model.components.mlps if m.neurons == part.site)
    trace = model.trace([e.input_ids])[0]
    record = next(r for r in trace.records if r.output.site == tokens)
    return float(e[part.site][record.attributes["index"][0].index(token), part.number])


@pytest.mark.parametrize("fraction", [0.05, 1.0])
def test_any_choice_of_nodes_accounts_for_all(fraction: float) -> None:
    g = graph_of(GPT2, "attnlrp", fraction=fraction, most=10_000 if fraction < 1 else 60)
    assert g.linearity_error <= 1e-13
    assert max(abs(n.conservation_error) for n in g.nodes) <= 1e-13
    absorbed = math.fsum(math.fsum(n.absorbed.values()) for n in g.nodes)
    reached = math.fsum(n.relevance for n in g.inputs)
    assert absorbed + reached == pytest.approx(g.output.relevance, abs=1e-12)


@pytest.mark.parametrize("seed", ["log-probability", "probability"])
@pytest.mark.parametrize("method", ["attnlrp", "attnlrp-gradient"])
def test_other_seeds(seed: str, method: str) -> None:
    g = graph_of(LLAMA, method, seed=seed)
    assert g.linearity_error <= 1e-14
    assert max(abs(n.conservation_error) for n in g.nodes) <= 1e-14


def test_a_logit_of_zero_passes_nothing_on() -> None:
    """In gradient x input form its part of a probability is the output's own, absorbed there."""
    model = random_model(LLAMA, 1)
    head = model.weights["lm_head.weight"].copy()
    head[5] = 0
    model = with_weights(model, **{"lm_head.weight": head})
    g = graph(model, item_of(model), "attnlrp-gradient", seed="probability", target=2)
    p = np.exp(model.logits(item_of(model))[-1])
    p /= p.sum()
    assert abs(g.output.conservation_error) <= 1e-15
    assert g.output.absorbed["stabilizer"] == pytest.approx(-p[2] * p[5], rel=1e-9)


def test_a_neuron_in_place_of_an_output() -> None:
    """What is computed after it, and beside it, is no node."""
    model = random_model(LLAMA, 1)
    at = ("model.layers.1.mlp.down_proj.input", (2, 7))
    g = graph(model, item_of(model), at=at, fraction=0.5)
    e = model.explain(item_of(model), at=at)
    assert g.output.relevance == e.explained == pytest.approx(e.activation(at[0])[at[1]])
    assert g.output.position == 2
    blocks = {n.block for n in g.inner}
    assert blocks == {"L0", "L1"} and "neuron" not in {n.kind for n in g.inner if n.block == "L1"}
    assert max(abs(n.conservation_error) for n in g.nodes) <= 1e-14


def test_a_neuron_of_an_expert_or_a_decoder_stands_at_its_token() -> None:
    """Row 0 of an expert is its first token; what a decoder puts out is behind the encoder's."""
    model, ids = random_model(MIXTRAL, 1), [3, 1, 4, 1, 5]
    expert = "model.layers.1.block_sparse_moe.experts.2"
    (trace, _) = model.trace([ids])
    (chosen_by,) = (r for r in trace.records if r.output.site == f"{expert}.tokens")
    (tokens,) = chosen_by.attributes["index"]
    assert tokens[0] != 0
    for row, token in enumerate(tokens):
        assert (
            graph(model, ids, at=(f"{expert}.w2.input", (row, 3)), most=1).output.position == token
        )
    t5 = random_model(T5, 1)
    for site, position in (("lm_head", 5), ("decoder.block.0", 5), ("encoder.block.0", 1)):
        g = graph(t5, [3, 5, 2, 4], decoder=[0, 3, 7], at=(site, (1, 3)), most=1)
        assert g.output.position == position


def test_the_fewest_nodes_of_each_site_and_the_most_of_all() -> None:
    """By a plain loop over every neuron and head."""
    model = random_model(LLAMA, 1)
    g = graph(model, item_of(model), target=2, fraction=0.4, most=9)
    e = model.explain(item_of(model), target=2)
    expected = []
    for mlp in model.components.mlps:
        found = e[mlp.neurons]
        each = [(abs(r), f"{mlp.label}.N{n}@{t}") for (t, n), r in np.ndenumerate(found)]
        expected += fewest_of(each, 0.4)
    for attention in model.components.attentions:
        found = e[attention.context].sum(-1)
        each = [(abs(r), f"{attention.label}.H{h}@{t}") for (h, t), r in np.ndenumerate(found)]
        expected += fewest_of(each, 0.4)
    assert {n.id for n in g.inner} == {id for _, id in sorted(expected, reverse=True)[:9]}


@pytest.mark.parametrize("kind", ["neuron", "head"])
def test_one_kind_alone(kind: str) -> None:
    """What the others have passes through them."""
    g = graph_of(GPT2, kinds=[kind])
    assert {n.kind for n in g.inner} == {kind} == set(g.coverage)
    assert g.linearity_error <= 1e-13
    assert max(abs(n.conservation_error) for n in g.nodes) <= 1e-13


def fewest_of(each: list[tuple[float, str]], fraction: float) -> list[tuple[float, str]]:
    ordered, kept = sorted(each, reverse=True), list[tuple[float, str]]()
    whole = sum(size for size, _ in ordered)
    while sum(size for size, _ in kept) < fraction * whole:
        kept.append(ordered[len(kept)])
    return kept


def test_fewest() -> None:
    assert fewest([], 0.5) == 0
    assert fewest([0.0, 0.0], 1.0) == 0
    assert [fewest([4.0, 3.0, 2.0, 1.0], p) for p in (0.3, 0.4, 0.5, 0.7, 1.0)] == [1, 1, 2, 2, 4]


# -- edges, computed in two other ways -------------------------------------------------------------


@pytest.mark.parametrize("method", ["attnlrp", "cp-lrp", "attnlrp-gradient"])
def test_edges_by_masks_alone(method: str) -> None:
    """What a passed on to b is what arrives at b less what arrives with a masked, where every other
    node below a is masked in both.
    """
    model = random_model(LLAMA, 1)
    item = item_of(model)
    g = graph(model, item, method, target=2, fraction=0.5, most=6)
    order = [n for n in g.inner]
    edges = {(edge.above, edge.below): edge.relevance for edge in g.edges}
    for (i, a), (j, b) in combinations(enumerate(order), 2):
        others = [n for k, n in enumerate(order) if k > i and k != j]
        site = part_of(model)(b).site
        arrived = [
            at_node(under_masks(model, item, method, masked, site), b, model)
            for masked in (others, [a, *others])
        ]
        expected = edges.get((a.id, b.id), 0.0)
        assert abs(arrived[0] - arrived[1] - expected) <= 1e-14, (a.id, b.id)


def under_masks(model: Model, item: Any, method: str, masked: list[Node], keep: str) -> Any:
    open_at: dict[str, Any] = {}
    trace, _ = model.trace([item])
    for node in masked:
        part, token = part_of(model)(node), int(node.id.partition("@")[2])
        shape = trace.values[part.site].array.shape[1:]
        mask = open_at.setdefault(part.site, np.ones(shape, dtype=bool))
        mask[(token, part.number) if node.kind == "neuron" else (part.number, token)] = False
    conditions = Conditions(open_at, through=False)
    return model.explain(item, under(chosen(method), conditions), target=2, keep=[keep])


def at_node(e: Any, node: Node, model: Model) -> float:
    return relevance_of(node, e, model)


@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_edges_are_derivatives_of_the_surrogate(config: dict[str, Any]) -> None:
    """In gradient x input form an edge from a to b is x_b (da/db) g_a, every other node held
    constant (no imaginary part goes through it); g_a is the derivative of the logit by a, nothing
    held. Complex steps, no rule and no sweep.
    """
    model = random_model(config, 1)
    item = item_of(model, 3)
    g = graph(model, item, "attnlrp-gradient", target=2, fraction=0.5, most=6)
    around, _ = surrogate.record(model, item)
    nodes = list(g.inner)
    edges = {(e.above, e.below): e.relevance for e in g.edges}
    most = max(map(abs, edges.values()))
    for below in nodes:
        for above in [g.output, *nodes]:
            expected = by_derivatives(model, item, around, above, below, nodes)
            assert abs(edges.get((above.id, below.id), 0.0) - expected) <= 1e-14 * most
    assert len(edges) > 20


OUTPUT = Node("output", "output", "", None, None, 2, 0, 0.0)


def by_derivatives(
    model: Model, item: Any, around: Any, above: Node, below: Node, nodes: list[Node]
) -> float:
    """A head is a vector of d numbers: of two, a sum over both."""
    total = 0.0
    for x, direction in components_of(model, below, around):
        others = [n for n in nodes if n.id not in (above.id, below.id)]
        seen = run(model, item, around, {below.id: direction}, others, above)
        if above.kind == "output":
            total += x * seen
            continue
        for slope, (_, along) in zip(seen, components_of(model, above, around), strict=True):
            gradient = run(model, item, around, {above.id: along}, [], OUTPUT)
            total += x * slope * gradient
    return float(total)


def place(model: Model, node: Node) -> tuple[str, tuple[Any, ...]]:
    part, token = part_of(model)(node), int(node.id.partition("@")[2])
    index = (token, part.number) if node.kind == "neuron" else (part.number, token)
    return part.site, (0, *index)


def value_of(model: Model, node: Node, around: Any) -> Any:
    site, index = place(model, node)
    found = next(r.output.array for r in around.values() if site in r.output.names)
    return np.atleast_1d(found[index])


def components_of(model: Model, node: Node, around: Any) -> list[tuple[float, Any]]:
    values = value_of(model, node, around)
    return [(float(x), np.eye(len(values))[k]) for k, x in enumerate(values)]


def run(
    model: Model, item: Any, around: Any, moved: dict[str, Any], held: list[Node], read: Node
) -> Any:
    """The derivative of the logit, or of a node's numbers, along a direction of another node."""
    found: list[Any] = []
    edits: dict[str, Any] = {}
    (id, direction), *_ = moved.items()
    kind = "head" if ".H" in id else "neuron"
    start = Node(id, kind, id.partition("@")[0], None, None, 0, 0, 0.0)
    reads = [] if read.kind == "output" else [read]

    def at(site: str) -> Any:
        def changed(z: Any) -> Any:
            z = z.astype(complex)
            for node in held:
                where, index = place(model, node)
                if where == site:
                    z[index] = z[index].real
            for node in reads:
                where, index = place(model, node)
                if where == site:
                    found.append(np.atleast_1d(z[index]).imag / surrogate.STEP)
            where, index = place(model, start)
            if where == site:
                step = 1j * surrogate.STEP * direction
                z[index] = z[index].real + (step if kind == "head" else step[0])
            return z

        return changed

    for node in (*held, *reads, start):
        edits[place(model, node)[0]] = at(place(model, node)[0])
    logits = surrogate.logits(model, item, around, edits=edits)
    return found[0] if reads else logits[0, 2].imag / surrogate.STEP


# -- the file for viewers --------------------------------------------------------------------------

STRING, NUMBER, INTEGER = {"type": "string"}, {"type": "number"}, {"type": "integer"}
MAYBE = {"type": ["number", "null"]}
SCHEMA = {
    "type": "object",
    "required": ["metadata", "qParams", "nodes", "links"],
    "properties": {
        "metadata": {
            "type": "object",
            "required": ["slug", "scan", "prompt_tokens", "prompt"],
            "properties": {
                "slug": STRING,
                "scan": STRING,
                "prompt_tokens": {"type": "array", "items": STRING},
                "prompt": STRING,
                "node_threshold": NUMBER,
                "schema_version": INTEGER,
                "transcoder_list": {"type": "array", "items": STRING},
                "info": {"type": "object", "properties": {"description": STRING}},
                "generation_settings": {"type": "object"},
                "pruning_settings": {"type": "object"},
            },
        },
        "qParams": {
            "type": "object",
            "required": ["pinnedIds", "supernodes", "linkType", "clickedId", "sg_pos"],
            "properties": {
                "pinnedIds": {"type": "array", "items": STRING},
                "supernodes": {"type": "array"},
                "linkType": STRING,
                "clickedId": STRING,
                "sg_pos": STRING,
            },
        },
        "nodes": {
            "type": "array",
            "items": {
                "type": "object",
                "required": [
                    *("node_id", "feature", "layer", "ctx_idx", "feature_type", "jsNodeId"),
                    *("clerp", "token_prob", "is_target_logit", "run_idx", "reverse_ctx_idx"),
                ],
                "properties": {
                    **dict.fromkeys(("node_id", "layer", "jsNodeId", "clerp"), STRING),
                    **dict.fromkeys(("feature", "ctx_idx", "run_idx", "reverse_ctx_idx"), INTEGER),
                    **dict.fromkeys(("influence", "activation"), MAYBE),
                    "token_prob": NUMBER,
                    "is_target_logit": {"type": "boolean"},
                    "feature_type": {
                        "enum": [
                            *("embedding", "logit", "cross layer transcoder", "lorsa"),
                            *("mlp reconstruction error", "lorsa error"),
                        ]
                    },
                },
            },
        },
        "links": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["source", "target", "weight"],
                "properties": {"source": STRING, "target": STRING, "weight": NUMBER},
            },
        },
    },
}
"""What is required, and of which types: Neuronpedia's graph-schema.json (hijohnnylin/neuronpedia,
apps/webapp/app/api/graph), with what circuit-tracer's pydantic models require beyond it
(safety-research/circuit-tracer, circuit_tracer/frontend/graph_models.py) and the feature types that
Neuronpedia's graph/utils.ts knows.
"""


@pytest.mark.parametrize("config", [LLAMA, MIXTRAL, T5, VIT], ids=lambda c: str(c["model_type"]))
def test_the_file_for_viewers(config: dict[str, Any]) -> None:
    g = graph_of(config)
    told = json.loads(g.json())
    jsonschema.Draft7Validator(SCHEMA).validate(told)
    nodes = {node["node_id"]: node for node in told["nodes"]}
    assert len(nodes) == len({n["jsNodeId"] for n in told["nodes"]}) == len(g.nodes)
    tokens = told["metadata"]["prompt_tokens"]
    assert all(0 <= node["ctx_idx"] < len(tokens) for node in told["nodes"])
    # as Neuronpedia's and circuit-tracer's code take ids and labels apart
    (logit,) = (n for n in told["nodes"] if n["feature_type"] == "logit")
    p = float(logit["clerp"].split("(p=")[1].split(")")[0])
    assert abs(p - logit["token_prob"]) <= 5e-4 and logit["is_target_logit"]
    for node in told["nodes"]:
        layer, number, position = node["node_id"].split("_")
        assert (layer, int(position)) == (node["layer"], node["ctx_idx"])
        if node["feature_type"] in ("cross layer transcoder", "lorsa"):
            assert unpaired(node["feature"]) == (int(layer), int(number))
    for link in told["links"]:
        source, target = nodes[link["source"]], nodes[link["target"]]
        assert height(source) < height(target)
    influences = [n["influence"] for n in told["nodes"] if n["influence"] is not None]
    assert len(influences) == len(g.inner) and max(influences) == pytest.approx(1.0)
    assert max(influences) <= told["metadata"]["node_threshold"]


def height(node: dict[str, Any]) -> int:
    return 0 if node["layer"] == "E" else int(node["layer"])


def unpaired(z: int) -> tuple[int, int]:
    """Cantor's pair of a number, by counting diagonals."""
    diagonal = 0
    while z > diagonal:
        diagonal += 1
        z -= diagonal
    return diagonal - z, z


def test_the_file_has_the_account_of_every_node() -> None:
    g = graph_of(LLAMA)
    told = json.loads(g.json())
    facts = told["metadata"]["info"]["refl"]
    into: dict[str, float] = {}
    out_of: dict[str, float] = {}
    for link in told["links"]:
        into[link["source"]] = into.get(link["source"], 0.0) + link["weight"]
        out_of[link["target"]] = out_of.get(link["target"], 0.0) + link["weight"]
    for node in facts["nodes"]:
        if node["kind"] != "output":
            assert into[node["node_id"]] == pytest.approx(node["relevance"], abs=1e-14)
        if node["kind"] in ("output", "neuron", "head"):
            rest = node["relevance"] - sum(node["absorbed"].values())
            assert out_of.get(node["node_id"], 0.0) == pytest.approx(rest, abs=1e-14)
    assert facts["method"] == "attnlrp" and facts["layers"]["1"] == "L0 attention"


def test_without_inner_nodes_there_is_a_file_and_a_picture() -> None:
    """A neuron of the first block's values hangs on the embeddings alone."""
    model = random_model(LLAMA, 1)
    g = graph(model, item_of(model), at=("model.layers.0.self_attn.v_proj", (2, 3)))
    assert not g.inner and graph_file.content(g)["links"]
    ElementTree.fromstring(g.svg())
    assert "all 0" in str(g)


# -- the picture -----------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [LLAMA, MIXTRAL, T5, VIT], ids=lambda c: str(c["model_type"]))
def test_no_words_lie_on_others(config: dict[str, Any]) -> None:
    g = graph_of(config, most=40, fraction=0.9)
    drawn = graph_picture._Picture(g, str).drawn()
    words = [part for part in drawn.parts if isinstance(part, Words)]
    for a, b in combinations(words, 2):
        apart_x = a.x + a.width <= b.x or b.x + b.width <= a.x
        apart_y = a.y <= b.y - 0.8 * b.size or b.y <= a.y - 0.8 * a.size
        assert apart_x or apart_y, (a.text, b.text)
    assert all(w.x >= 0 and w.x + w.width <= drawn.width and w.y <= drawn.height for w in words)
    root = ElementTree.fromstring(g.svg())
    texts = "".join(root.itertext())
    assert all(n.name.removeprefix(f"{n.block}.") in texts for n in g.inner)


def test_signs_are_told_twice() -> None:
    """Edges against are dashed, those for are not, and as many are drawn as are said to be."""
    g = graph_of(LLAMA)
    svg = g.svg()
    paths = re.findall(r"<path [^>]*>", svg)
    drawn = g.strongest(graph_picture.PART, graph_picture.EDGES)
    assert len(paths) == len(drawn) and f"{len(drawn)} of {len(g.edges)} edges" in svg
    assert sum("dasharray" in path for path in paths) == sum(e.relevance < 0 for e in drawn) > 0


@pytest.mark.needs("matplotlib")
def test_a_pdf() -> None:
    assert graph_of(LLAMA).pdf().startswith(b"%PDF")


def test_of_long_inputs_columns_are_left_out() -> None:
    model = random_model(LLAMA, 1)
    g = graph(model, item_of(model, 60), target=2, fraction=0.1, most=5)
    assert f"{graph_picture.COLUMNS} of 60 positions are drawn" in g.svg()


# -- the command -----------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)


def test_the_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    files = {kind: tmp_path / f"why.{kind}" for kind in ("graph", "svg")}
    options = [word for kind, path in files.items() for word in (f"--{kind}", str(path))]
    how = ["--contrast", "are", "is", "--most", "12"]
    assert main(["graph", TEXT, *how, *options]) == 0
    out = capsys.readouterr().out
    expected = graph(refl.load(), TEXT, contrast=("are", "is"), most=12)
    assert files["graph"].read_text("utf-8") == expected.json()
    assert files["svg"].read_text("utf-8") == expected.svg()
    assert "L3.H3    5 cabinet" in out and "through nodes" in out
    assert main(["graph", TEXT, *how, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(expected.as_dict()))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--fraction", "0"], "--fraction is 0.0: expected a number above 0, at most 1"),
        (["--fraction", "1.5"], "--fraction is 1.5: expected a number from 0 to 1"),
        (["--most", "0"], "--most is 0: expected a whole number above 0"),
        (["--method", "atman"], "method atman is no table of rules: relevance goes from neuron"),
        (["--method", "nothing"], "unknown method 'nothing'"),
        (["--at", "model.layers.9.mlp", "0", "0"], "which is no site of this model"),
    ],
)
def test_what_is_refused(options: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["graph", TEXT, *options]) == 2
    captured = capsys.readouterr()
    assert said in captured.err and captured.err.count("\n") == 1 and not captured.out


def test_what_is_refused_in_python() -> None:
    model = random_model(LLAMA, 1)
    with pytest.raises(ReflError, match="scores of method gradient are lengths"):
        tracing(chosen("gradient"))
    with pytest.raises(ReflError, match="under conditions, and a graph has all paths"):
        tracing(under(chosen("attnlrp"), ["L0.H1"]))
    for kinds in ("neuron", [], ["neuron", "expert"]):
        with pytest.raises(ReflError, match="kinds is .*: expected a list of neuron and head, or"):
            graph(model, [1, 2], kinds=kinds)
    with pytest.raises(ReflError, match="a graph is of one input, got 2"):
        graph(model, [[1, 2], [3, 4]])
    with pytest.raises(ReflError, match="graph has no option recompute: expected one of"):
        graph(model, [1, 2], recompute=True)
    with pytest.raises(ReflError, match="the graph has no node 'L0.N999@1'"):
        graph(model, [1, 2], most=3)["L0.N999@1"]


def test_of_nothing_there_is_nothing() -> None:
    """An output of zeros: no node, no edge, and every view of that."""
    model = random_model(LLAMA, 1)
    still = with_weights(model, **{"lm_head.weight": np.zeros((17, 16))})
    g = graph(still, [1, 2, 3], target=2)
    assert not g.inner and not g.edges and g.linearity_error == 0
    ElementTree.fromstring(g.svg())
    assert "explained" in str(g)
    jsonschema.Draft7Validator(SCHEMA).validate(json.loads(g.json()))


def test_of_a_model_with_edits() -> None:
    """A neuron that is off passes nothing on, and the sums hold as everywhere."""
    model = random_model(GPT2, 1)
    changed = model.with_edits({"L0.N3": refl.off, "L1.H2": refl.scale(2.0)})
    g = graph(changed, [1, 2, 3, 4], target=2, fraction=1.0, most=60)
    assert g.linearity_error <= 1e-13 and "L0.N3" not in {n.name for n in g.inner}
    assert "L1.H2" in {n.name for n in g.inner}
    assert max(abs(n.conservation_error) for n in g.nodes) <= 1e-13


def test_what_overflows_is_refused() -> None:
    """Sweeps from single nodes may, where that of the whole does not."""
    with pytest.raises(ReflError, match="relevance is not finite in float64 from L0.N1@0 down"):
        refuse_not_finite(math.inf, "L0.N1@0", "float64")


def test_progress_is_told() -> None:
    told: list[tuple[str, int, int]] = []
    g = graph(random_model(LLAMA, 1), [1, 2, 3], most=4, progress=lambda *step: told.append(step))
    steps = [step for step in told if step[0] == "graph"]
    assert steps[-1] == ("graph", len(g.inner) + 1, len(g.inner) + 1)


def test_an_edited_model_says_so() -> None:
    found = graph(refl.load().with_edits({"L3.N132": refl.off}), "the keys", most=3)
    assert "edits: model.layers.3.mlp.down_proj.input: Edit(factor=0.0" in str(found)
    assert "shipped · edited · attnlrp" in found.svg()
    assert "edits" in found.json()
