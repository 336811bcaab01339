"""What each rule has by default and what it absorbs relevance under;
and single values written out by hand.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hand_arrays import BIAS, B, G, M, N, R, T, W, X, Y

from refl.rules import (
    activation,
    add,
    causal_convolution,
    combine,
    gather,
    layer_norm,
    linear,
    matmul,
    multiply,
    pooling,
    renormalize,
    rms_norm,
    rotary,
    scan,
    softmax,
)
from refl.rules.conservation import RuleOutput, stabilized_ratio
from refl.rules.operations import CAUSES, FORMULATIONS, OPERATIONS

PAPER = {"eps": 1e-6, "stabilizer": "sign"}
DEFAULTS: dict[Callable[..., RuleOutput], dict[str, Any]] = {
    add.epsilon: PAPER,
    causal_convolution.epsilon: PAPER,
    scan.epsilon: PAPER,
    combine.epsilon: PAPER,
    layer_norm.epsilon: PAPER,
    linear.epsilon: PAPER,
    linear.gamma: {"gamma": 0.05, "eps": 0.0},
    linear.z_plus: {"eps": 0.0},
    linear.alpha_beta: {"alpha": 2.0, "beta": 1.0, "eps": 0.0},
    linear.z_box: {"low": 0.0, "high": 1.0},
    matmul.uniform: PAPER | {"denominator": "2z+eps"},
    matmul.flattened: PAPER | {"factors": (1, 1)},
    matmul.flattened_gxi: {"factors": (1, 1)},
    matmul.second: PAPER,
    pooling.epsilon: PAPER,
    renormalize.epsilon: PAPER,
    rotary.epsilon: PAPER,
    rotary.uniform: PAPER,
    multiply.uniform: {},
    multiply.flattened: {"factors": (1, 1)},
    multiply.flattened_gxi: {"factors": (1, 1)},
    rms_norm.identity: {"offset": 0.0},
    rms_norm.identity_gxi: {"offset": 0.0},
    rms_norm.gradient: {"offset": 0.0},
    rms_norm.forward: {"offset": 0.0},
}


@pytest.mark.parametrize(
    "function", DEFAULTS, ids=lambda f: f"{f.__module__.rpartition('.')[2]}.{f.__name__}"
)
def test_defaults(function: Callable[..., RuleOutput]) -> None:
    """The paper's: eps 1e-6 with the sign of z, 2 z + eps under a product."""
    said = {
        name: p.default
        for name, p in inspect.signature(function).parameters.items()
        if p.default is not p.empty
    }
    assert said == DEFAULTS[function]


def test_no_rule_with_an_option_is_left_out() -> None:
    found = {
        function
        for operation in OPERATIONS.values()
        for formulation in FORMULATIONS
        for function in operation.rules_in(formulation).values()
        if operation.options(function)
    }
    assert found <= set(DEFAULTS)


def test_the_words_of_the_causes() -> None:
    """Under which cause each rule records what it absorbs."""
    random = np.random.default_rng(13)
    z, w, sums = X @ W.T + BIAS, random.normal(size=N), X + Y
    a, v, r = (
        random.normal(size=(B, M, T)),
        random.normal(size=(B, T, N)),
        random.normal(size=(B, M, N)),
    )
    p, o = softmax.forward(X), a @ v
    hidden = X.copy()
    hidden[..., 0] = -np.inf
    q = softmax.forward(hidden)
    stabilized = {"stabilizer"}
    for output, words in (
        (linear.epsilon(X, W, BIAS, z, R), {"bias", "stabilizer"}),
        (linear.epsilon(X, W, None, z, R), stabilized),
        (linear.gamma(X, W, BIAS, z, R), {"bias", "stabilizer"}),
        (linear.gamma(X, W, None, z, R), stabilized),
        (linear.alpha_beta(X, W, BIAS, z, R), {"bias", "stabilizer"}),
        (linear.z_plus(X, W, None, z, R), stabilized),
        (linear.flat(X, W, BIAS, z, R), set()),
        (linear.w_square(X, W, BIAS, z, R), stabilized),
        (linear.z_box(X, W, BIAS, z, R), stabilized),
        (linear.gradient(X, W, BIAS, z, R), {"bias"}),
        (add.epsilon(X, Y, sums, G), stabilized),
        (add.gradient(X, Y, sums, G), set()),
        (matmul.uniform(a, v, o, r), stabilized),
        (matmul.flattened(a, v, o, r), stabilized),
        (matmul.flattened_gxi(a, v, o, r), set()),
        (matmul.second(a, v, o, r), stabilized),
        (matmul.gradient(a, v, o, r), {"product_offset"}),
        (multiply.gradient(X, Y, X * Y, G, constant=(False, False)), {"product_offset"}),
        (softmax.taylor(X, p, G), {"softmax_offset"}),
        (softmax.taylor(hidden, q, G), {"softmax_offset", "mask"}),
        (softmax.spread(hidden, q, G), {"mask"}),
        (softmax.z_plus(hidden, q, G), {"stabilizer", "mask"}),
        (softmax.identity(hidden, q, G), {"mask"}),
        (softmax.constant(X, p, G), {"constant"}),
        (softmax.gradient(X, p, G), {"softmax_offset"}),
        (softmax.gradient(X, p, G, mask=np.ones(X.shape, dtype=bool)), {"softmax_offset", "mask"}),
        (softmax.constant_gxi(X, p, G), {"constant"}),
        (rms_norm.gradient(X, w, X, G, norm_eps=0.1), {"norm_offset"}),
        (layer_norm.epsilon(X, w, w, X, G, norm_eps=0.1), {"norm_bias", "stabilizer"}),
        (layer_norm.epsilon(X, w, None, X, G, norm_eps=0.1), stabilized),
        (layer_norm.epsilon_gxi(X, w, w, X, G, norm_eps=0.1), {"norm_bias"}),
        (layer_norm.gradient(X, w, w, X, G, norm_eps=0.1), {"norm_bias", "norm_offset"}),
        (activation.gradient(X, X, G, kind="relu"), {"activation_offset"}),
        (rotary.epsilon(X, X, G, cos=X, sin=Y), stabilized),
        (rotary.uniform(X, X, G, cos=X, sin=Y), {"position", "stabilizer"}),
        (rotary.uniform_gxi(X, X, G, cos=X, sin=Y), {"position"}),
        (pooling.epsilon(X, X[:, :1], G[:, :1], counted=np.ones((B, T, 1))), stabilized),
        (renormalize.epsilon(X, X, G), {"renormalization_offset", "stabilizer"}),
        (renormalize.gradient(X, X, G), {"renormalization_offset"}),
        (causal_convolution.epsilon(X, W[:N], w, X, G), {"bias", "stabilizer"}),
        (causal_convolution.epsilon(X, W[:N], None, X, G), stabilized),
        (causal_convolution.gradient(X, W[:N], w, X, G), {"bias"}),
        (scan.epsilon(X, Y, X, Y, w[:, None] + w, X, G), stabilized),
        (scan.epsilon_gxi(X, Y, X, Y, w[:, None] + w, X, G), set()),
        (scan.gradient(X, Y, X, Y, w[:, None] + w, X, G), {"product_offset", "decay_offset"}),
        (activation.identity_gxi(X, X, G, kind="softplus"), {"activation_offset"}),
        (combine.epsilon(X, Y, sums, G, index=((range(T),) * B,) * 2, length=T), stabilized),
    ):  # fmt: skip
        assert set(output.absorbed) == words


def test_the_causes_in_words() -> None:
    """As accounts and tables print them."""
    assert CAUSES == {
        "stabilizer": "the eps in the denominators",
        "condition": "what conditions did not choose",
        "edge": "zeros at the ends of what a convolution reaches over",
        "edit": "what an edit added or put in place",
        "activation_offset": "what an activation's slope at x does not account for",
        "position": "position embeddings",
        "token_type": "token type embeddings",
        "norm_bias": "biases of norms",
        "norm_offset": "the part of a norm that its rule hands to no input",
        "class_token": "the learned token that stands for the class",
        "distillation_token": "the learned token that stands for the teacher's class",
        "register_token": "learned tokens that stand for no part of the picture",
        "bias": "biases of linear maps",
        "decay_offset": "how step sizes set what a scan keeps",
        "product_offset": "a product counted once for each factor",
        "renormalization_offset": "weights that are made to sum to one, whose rule hands on "
        "nothing",
        "softmax_offset": "the constant part of softmax's Taylor expansion",
        "mask": "positions hidden by the mask",
        "constant": "what arrived at something treated as a constant",
    }


def test_without_a_stabilizer_a_zero_absorbs_what_arrived() -> None:
    s, absorbed = stabilized_ratio(
        np.asarray([[0.0, 2.0], [-4.0, -0.0]]), np.asarray([[3.0, 6.0], [2.0, 5.0]]), 0.0, "none"
    )
    assert s.tolist() == [[0.0, 3.0], [-0.5, 0.0]] and absorbed.tolist() == [3.0, 5.0]


def test_the_unsigned_stabilizer_may_meet_its_own_zero() -> None:
    """z = -eps: nothing can be passed on, and what arrived is absorbed."""
    s, absorbed = stabilized_ratio(
        np.asarray([[-0.5, 1.0]]), np.asarray([[3.0, 6.0]]), 0.5, "plain"
    )
    assert s.tolist() == [[0.0, 4.0]] and absorbed.tolist() == [3.0 + 0.5 * 4.0]


def test_a_position_that_does_not_count_is_no_part_of_the_mean() -> None:
    counted = np.asarray([[[1.0], [0.0], [1.0]], [[0.0], [1.0], [0.0]]])
    mean = pooling.forward(X, counted=counted)
    assert np.abs(mean - np.stack([(X[0, 0] + X[0, 2]) / 2, X[1, 1]])[:, None]).max() <= 1e-15


def test_rows_are_gathered_where_asarray_knows_no_device(monkeypatch: Any) -> None:
    """As CuPy's, which puts arrays on the current device."""

    class Elsewhere(np.ndarray):  # type: ignore[type-arg]
        __module__ = "cupy"

    fake = ModuleType("cupy")
    for name in ("reshape", "concat", "zeros_like", "take", "int64"):
        setattr(fake, name, getattr(np, name))
    fake.asarray = lambda values, dtype: np.asarray(values, dtype=dtype)
    monkeypatch.setitem(sys.modules, "cupy", fake)
    index = ((2, None), (0, 1))
    got = gather.rows(X.view(Elsewhere), index)
    assert np.asarray(got).tolist() == [[X[0, 2].tolist(), [0.0] * N], X[1, :2].tolist()]
