"""A graph as a file that viewers of attribution graphs open: Neuronpedia, and the frontend of
Anthropic's and of circuit-tracer's graphs.

    metadata   slug, scan, prompt, prompt_tokens, node_threshold, schema_version; info, settings
    qParams    the state of a viewer: nothing is pinned
    nodes      node_id, feature, layer, ctx_idx, feature_type, jsNodeId, clerp, influence, ...
    links      source, target, weight: from the node below to the one above

The schema is Neuronpedia's (github.com/hijohnnylin/neuronpedia, apps/webapp/app/api/graph/
graph-schema.json, "Anthropic Attribution Graph" 1.0.0); fields beyond it, and how ids are put
together, are those that circuit-tracer writes (github.com/safety-research/circuit-tracer,
circuit_tracer/frontend/graph_models.py). It knows features of transcoders, and of refl:

    a neuron      is a `cross layer transcoder` feature, the type of anything in an MLP there
    a head        is a `lorsa` feature, the type that Neuronpedia has for what attention computes
                  (drawn as a triangle); viewers that know of none draw it as any other feature
    a layer       is a half-block, counted from 1 in the order they run, so that every link leads
                  upward and a head and a neuron of one number have two ids; `clerp` has the name
                  that refl knows, L2.N17, and metadata.info.refl.layers the names of all layers
    feature       is Cantor's pairing of layer and number, as schema_version 1 has it
    ctx_idx       counts the tokens of an encoder and then those of its decoder; of a picture what
                  is learned in front of the patches, and these
    influence     is what viewers prune by: the part of the sum of |R| that a node and all stronger
                  ones make up, so that those up to a threshold are the strongest
    weight        is relevance: the weights into a node add up to its relevance less what was
                  absorbed on the way, which `metadata.info.refl` says exactly, with the method and
                  the account of every node
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

from refl.latent.graph.nodes import Node, Nodes
from refl.show.account import joiner
from refl.version import __version__

TYPES = {
    "output": "logit",
    "neuron": "cross layer transcoder",
    "head": "lorsa",
    "token": "embedding",
    "patch": "embedding",
}
"""Kind of a node -> feature_type."""
SCHEMA_VERSION = 1


def text(graph: Nodes) -> str:
    """The file's text."""
    return json.dumps(content(graph), indent=1, allow_nan=False) + "\n"


def content(graph: Nodes) -> dict[str, Any]:
    """What it holds."""
    influence = _influence(graph)
    ids = {node.id: _id(node, graph) for node in graph.nodes}
    return {
        "metadata": _metadata(graph, ids),
        "qParams": {
            "pinnedIds": [],
            "supernodes": [],
            "linkType": "both",
            "clickedId": "",
            "sg_pos": "",
        },
        "nodes": [_node(node, graph, ids[node.id], influence) for node in graph.nodes],
        "links": [
            {"source": ids[e.below], "target": ids[e.above], "weight": e.relevance}
            for e in graph.edges
        ],
    }


# -- nodes -----------------------------------------------------------------------------------------


def _layer(node: Node, graph: Nodes) -> str:
    if node.layer is not None:
        return str(node.layer + 1)
    return "E" if node.is_input else str(len(graph.layers) + 1)


def _id(node: Node, graph: Nodes) -> str:
    return f"{_layer(node, graph)}_{node.number}_{node.position}"


def _feature(node: Node) -> int:
    if node.layer is not None:
        return paired(node.layer + 1, node.number)
    return node.position if node.is_input else node.number


def paired(x: int, y: int) -> int:
    """Cantor's number of a pair."""
    return (x + y) * (x + y + 1) // 2 + y


def _node(node: Node, graph: Nodes, id: str, influence: dict[str, float]) -> dict[str, Any]:
    is_output = node.kind == "output"
    end = f"{node.number}-{node.position}"
    return {
        "node_id": id,
        "feature": _feature(node),
        "layer": _layer(node, graph),
        "ctx_idx": node.position,
        "feature_type": TYPES[node.kind],
        "token_prob": _probability(graph) if is_output else 0.0,
        "is_target_logit": is_output,
        "run_idx": 0,
        "reverse_ctx_idx": 0,
        "jsNodeId": f"{'L' if is_output else _layer(node, graph)}_{end}",
        "clerp": _words(node, graph),
        "influence": influence.get(node.id),
        "activation": node.activation,
    }


def _words(node: Node, graph: Nodes) -> str:
    """Neuronpedia reads the number between `(p=` and the next bracket of a logit's."""
    if node.kind == "output":
        return f'Output "{node.name}" (p={_probability(graph):.3f})'
    if node.is_input:
        return f'Emb: "{node.name}"'
    return f"{node.kind} {node.name}, relevance {node.relevance:.4g}"


def _probability(graph: Nodes) -> float:
    """0 where there is none: of a neuron, of an output that is no class."""
    p = graph.explanation.probability
    return p if math.isfinite(p) else 0.0


def _influence(graph: Nodes) -> dict[str, float]:
    ordered = sorted(graph.inner, key=lambda node: -abs(node.relevance))
    whole, so_far, found = math.fsum(abs(n.relevance) for n in ordered), 0.0, dict[str, float]()
    for node in ordered:
        so_far += abs(node.relevance)
        found[node.id] = min(so_far / whole, 1.0)
    return found


# -- metadata --------------------------------------------------------------------------------------


def _metadata(graph: Nodes, ids: dict[str, str]) -> dict[str, Any]:
    e = graph.explanation
    model = e.about.get("model") or "model"
    prompt = joiner(e.tokens).join(e.tokens)
    return {
        "slug": _slug(f"refl {graph.output.name} {prompt}"),
        "scan": model,
        "transcoder_list": [],
        "prompt_tokens": list(graph.positions),
        "prompt": prompt if e.picture is None else "a picture",
        "node_threshold": 1.0,
        "schema_version": SCHEMA_VERSION,
        "info": {
            "description": (
                f"What passed relevance to what, by {e.method.title}: {e.what} = "
                f"{graph.output.relevance:.6g}. A node is a neuron or a head; the weight of a link "
                "is relevance."
            ),
            "generator": {"name": "refl", "version": __version__},
            "refl": _facts(graph, ids),
        },
        "generation_settings": {
            "method": e.method.name,
            "max_feature_nodes": graph.most,
            "explained": e.what,
        },
        "pruning_settings": {"fraction": graph.fraction, "most": graph.most},
    }


def _slug(words: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")[:60]


def _facts(graph: Nodes, ids: dict[str, str]) -> dict[str, Any]:
    """refl's own, ids and layers as the file has them."""
    facts = graph.as_dict()
    del facts["edges"], facts["positions"]
    facts["layers"] = {str(n + 1): name for n, name in enumerate(graph.layers)}
    facts["nodes"] = [{"node_id": ids[node["id"]]} | node for node in facts["nodes"]]
    return facts | {
        "composite": graph.explanation.method.as_dict(),
        "about": graph.explanation.about,
    }
