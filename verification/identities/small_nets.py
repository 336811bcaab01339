"""Identities of the rules themselves, on small nets that need no checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np

from refl.mask import Mask
from refl.rules.published import LRP_0
from refl.trace import Trace
from refl.verification.identities.conservation import norm_jacobian
from refl.verification.identities.graph import Graph
from refl.verification.identities.products import PARTS, product, triple_product
from refl.verification.identities.relu_and_linear import (
    GROUPS,
    linear_model,
    relu_net,
    value_attention,
)
from refl.verification.identities.rows import Row, WorstDeviation
from refl.verification.identities.small_traces import input_value


def small_relu_net(worst: WorstDeviation) -> str:
    """Identity 4."""
    random, sizes = np.random.default_rng(1), (6, 9, 8, 3)
    layers = [
        (random.standard_normal((o, i)), random.standard_normal(o)) for i, o in pairwise(sizes)
    ]
    x, onehot = random.standard_normal((4, sizes[0])), np.zeros((4, sizes[-1]))
    onehot[:, 1] = 1
    relu_net(layers, x, worst, seed=onehot)
    return "three layers with biases, four inputs"


def small_product(worst: WorstDeviation) -> str:
    """Identity 5, with three operands."""
    random = np.random.default_rng(2)
    operands = [random.standard_normal((2, 5)) for _ in range(3)]
    product(LRP_0.rule("multiply", ["*"]), operands, worst)
    return "a product of three operands, all eight coalitions"


def small_linear_model(worst: WorstDeviation) -> str:
    """Identity 6: every feature a player of its own."""
    random = np.random.default_rng(2)
    linear_model(random.standard_normal(GROUPS), random.standard_normal(GROUPS), worst)
    return f"{GROUPS} features, each a player: all {2**GROUPS} coalitions"


def small_attention(worst: WorstDeviation) -> str:
    """Identity 6: one attention without biases and a linear head on its last token."""
    random = np.random.default_rng(3)
    weights = {f"{name}.weight": random.standard_normal((4, 4)) for name in "qkv"}
    t = Trace(weights | {"head.weight": random.standard_normal((3, 4))})
    h = input_value(t, "x", random.standard_normal((1, 5, 4)))
    q, k, v = (t.move(f"{name}.heads", "split_heads", t.linear(name, h), heads=1) for name in "qkv")
    with t.inside("attn"):
        context = t.attention(q, k, v, Mask(h.array, 5, 5, causal=True))
    t.linear("head", t.move("merged", "merge_heads", context))
    graph = Graph(t.records)
    value_attention(graph, next(graph.attentions()), worst)
    return "one head, five tokens, causal"


def small_triple_products(worst: WorstDeviation) -> str:
    """Identity 10."""
    random = np.random.default_rng(4)
    q, kt, v = (random.standard_normal((1, 6, 6)) for _ in "qkv")
    for order in PARTS:
        triple_product(q, kt, v, order, worst, order)
    return f"matrices of 6 x 6; {' and '.join(PARTS)}"


def small_norms(worst: WorstDeviation) -> str:
    """Identity 12: eps so large that it shows."""
    random = np.random.default_rng(5)
    x, w, b = (random.standard_normal(shape) for shape in ((2, 3, 7), 7, 7))
    norm_jacobian("layer_norm", (x, w, b), {"norm_eps": 0.5}, worst, "LayerNorm")
    norm_jacobian("rms_norm", (x, w), {"norm_eps": 0.5}, worst, "RMSNorm")
    return "LayerNorm and RMSNorm of 7 features, eps = 0.5"


Measure = Callable[[WorstDeviation], str]

SMALL: dict[int, list[tuple[str, str, Measure]]] = {
    4: [
        (
            "LRP-0 of a ReLU net = gradient * input",
            "what is missing from the output are the biases",
            small_relu_net,
        )
    ],
    5: [
        (
            "uniform rule = Shapley = integrated gradients",
            "each operand gets what is fair",
            small_product,
        )
    ],
    6: [
        (
            "linear: LRP-0 = leave-one-out = Shapley = w x",
            "where there is one right answer, it is given",
            small_linear_model,
        ),
        (
            "one attention layer: CP-LRP = leave-one-out",
            "a token counts what is missing without it",
            small_attention,
        ),
    ],
    10: [
        (
            "parts of a triple product",
            "they depend on the order of the products, as published",
            small_triple_products,
        )
    ],
    12: [
        (
            "Jacobians of LayerNorm and RMSNorm",
            "the true derivative hands on next to nothing",
            small_norms,
        )
    ],
}
"""Number -> name, what it means, a function that measures and says on what."""


def on_small_nets(only: Sequence[int]) -> Iterator[Row]:
    for number in sorted(SMALL.keys() & set(only)):
        for name, means, measure in SMALL[number]:
            worst = WorstDeviation()
            found = measure(worst)
            yield worst.row(number, name, means, found, small=True)
