"""The scale of a rule's rounding: the sum of |terms| of the sums it forms, written out from the
rule's definition; and |R| once where R is divided by z + eps s(z), for s z + s eps s(z) gives it
back rounded.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hand_arrays import BIAS, EPS, B, G, M, N, R, T, W, X, Y, agree, away, over, size
from rounding import scale_of

from refl.arrays import total
from refl.rules import (
    activation,
    add,
    combine,
    layer_norm,
    linear,
    matmul,
    pooling,
    renormalize,
    rms_norm,
    rotary,
    softmax,
)
from refl.rules.operations import OPERATIONS
from refl.rules.rounding import rounding_scale


def products(w: Any, s: Any, x: Any = X) -> Any:  # (B, T, O), -> (B, T, O, I)
    """Every W_ji x_i s_j."""
    return w * x[..., None, :] * s[..., None]


POSITIVE, NEGATIVE = np.maximum(W * X[..., None, :], 0), np.minimum(W * X[..., None, :], 0)


@pytest.mark.parametrize("bias", [BIAS, None])
def test_terms_of_linear(bias: Any) -> None:
    """Messages W x s and b s, once as messages and once in the z they are divided by."""
    b = np.zeros(M) if bias is None else bias
    z = X @ W.T + b

    def twice(s: Any) -> Any:
        return 2 * (size(products(W, s)) + size(b * s))

    agree(scale_of(linear.epsilon, X, W, bias, z, R, eps=EPS), twice(R / away(z)) + size(R))
    agree(scale_of(linear.gradient, X, W, bias, z, R), twice(R))
    up, down = POSITIVE.sum(axis=-1) + np.maximum(b, 0), NEGATIVE.sum(axis=-1) + np.minimum(b, 0)
    agree(
        scale_of(linear.gamma, X, W, bias, z, R, gamma=0.25),
        1.25 * twice(over(R, z + 0.25 * np.where(z > 0, up, down))),
    )
    lost, lost_below = size(R * (up == 0)), size(R * (down == 0))  # no contribution of that sign
    agree(scale_of(linear.z_plus, X, W, bias, z, R), twice(over(R, up)) + lost)
    agree(
        scale_of(linear.alpha_beta, X, W, bias, z, R, alpha=1.5, beta=0.5),
        twice(over(1.5 * R, up)) + twice(over(0.5 * R, down)) + 1.5 * lost + 0.5 * lost_below,
    )
    agree(scale_of(linear.flat, X, W, bias, z, R), (2 + N / 8) * size(R))
    agree(scale_of(linear.w_square, X, W, bias, z, R), 2 * size(R))


@pytest.mark.parametrize("rule", [linear.gamma, linear.z_plus, linear.alpha_beta])
def test_terms_of_signed_parts_with_an_eps(rule: Any) -> None:
    """|R| counts, alpha and beta times where it is divided twice."""
    z = X @ W.T
    up, down = POSITIVE.sum(axis=-1), NEGATIVE.sum(axis=-1)
    amplified = z + 0.25 * np.where(z > 0, up, down)

    def twice(s: Any) -> Any:
        return 2 * size(products(W, s))

    options, wanted = {
        linear.gamma: ({"gamma": 0.25}, 1.25 * twice(R / away(amplified)) + size(R)),
        linear.z_plus: ({}, twice(R / away(up)) + size(R)),
        linear.alpha_beta: (
            {"alpha": 1.5, "beta": 0.5},
            twice(1.5 * R / away(up)) + twice(0.5 * R / away(down)) + 2 * size(R),
        ),
    }[rule]
    agree(scale_of(rule, X, W, None, z, R, eps=EPS, **options), wanted)


@pytest.mark.parametrize("rule", [linear.epsilon, linear.gamma, linear.z_plus, linear.alpha_beta])
def test_what_eps_gives_back_is_within_the_bound(rule: Any) -> None:
    """Where denominators are far below eps, all of R is absorbed, but for a rounding of R."""
    x = 1e-25 * X
    z = x @ W.T
    out = rule(x, W, None, z, R, eps=EPS)
    kept = out.inputs[0].reshape(B, -1).sum(axis=1) + sum(out.absorbed.values())
    error = np.abs(R.reshape(B, -1).sum(axis=1) - kept)
    assert np.all(error <= 8 * 2.0**-53 * scale_of(rule, x, W, None, z, R, eps=EPS))


@pytest.mark.parametrize("rule", [linear.gamma, linear.z_plus, linear.alpha_beta, linear.z_box])
def test_what_stands_above_a_zero_counts(rule: Any) -> None:
    """Without an eps all of it is absorbed, and its sum is rounded like any other."""
    x, w = np.zeros((1, 1, 2)), np.eye(2)
    r = np.asarray([[[3.0, -5.0]]])
    how = {"low": 0.0, "high": 0.0} if rule is linear.z_box else {}
    parts = 3 if rule is linear.alpha_beta else 1  # alpha and beta times
    agree(scale_of(rule, x, w, None, x, r, **how), parts * np.asarray([8.0]))


def test_the_flat_rule_on_long_rows_is_within_the_bound() -> None:
    """Shares of one row are equal, and so are the errors of their sums: they do not average out."""
    u, worst = 2.0**-24, 0.0
    for seed in range(8):
        r = np.random.default_rng(seed).standard_normal((1, 1, 3)).astype("float32")
        x = np.zeros((1, 1, 50_000), dtype="float32")
        got = float(total(linear.flat(x, x[0], None, r, r).inputs[0])[0])
        error = abs(float(r.astype("float64").sum()) - got)
        assert error <= 8 * u * float(scale_of(linear.flat, x, x[0], None, r, r)[0])
        worst = max(worst, error / (16 * u * float(np.abs(r).sum())))
    assert worst > 1  # a bound that does not know the length of the row is too small


def test_terms_of_the_z_box() -> None:
    above, below = X + 3, X - 4
    wp, wn = np.maximum(W, 0), np.minimum(W, 0)
    s = R / (above @ wp.T + below @ wn.T)
    wanted = 2 * (size(products(wp, s, above)) + size(products(wn, s, below)))
    agree(scale_of(linear.z_box, X, W, BIAS, X @ W.T, R, low=-3.0, high=4.0), wanted)


def test_terms_of_a_sum() -> None:
    """A broadcast operand is a term for every copy."""
    for a, b in ((X, Y), (X, Y[:, :1]), (X[:, :1], Y)):
        z = a + b
        s = G / away(z)
        agree(scale_of(add.epsilon, a, b, z, G, eps=EPS), 2 * (size(a * s) + size(b * s)) + size(G))
        agree(scale_of(add.gradient, a, b, z, G), 2 * (size(a * G) + size(b * G)))


def test_terms_of_a_sum_over_experts() -> None:
    random = np.random.default_rng(12)
    index = (((0, 2), (1, None)), ((1,), (2,)))
    ys = (random.normal(size=(B, 2, N)), random.normal(size=(B, 1, N)))
    z = combine.forward(*ys, index=index, length=T)
    wanted_epsilon, wanted_gradient = size(G), np.zeros(B)
    for y, where in zip(ys, index, strict=True):
        for b, places in enumerate(where):
            for n, t in enumerate(places):
                if t is not None:
                    wanted_epsilon[b] += 2 * np.abs(y[b, n] * G[b, t] / away(z[b, t])).sum()
                    wanted_gradient[b] += 2 * np.abs(y[b, n] * G[b, t]).sum()
    agree(scale_of(combine.epsilon, *ys, z, G, index=index, length=T, eps=EPS), wanted_epsilon)
    agree(scale_of(combine.gradient, *ys, z, G, index=index, length=T), wanted_gradient)


def test_terms_of_matmul() -> None:
    random = np.random.default_rng(12)
    a, v, r = (
        random.normal(size=(B, M, T)),
        random.normal(size=(B, T, N)),
        random.normal(size=(B, M, N)),
    )
    z = a @ v

    def messages(s: Any) -> Any:
        return size(a[..., None] * v[:, None] * s[:, :, None])

    agree(
        scale_of(matmul.uniform, a, v, z, r, eps=EPS), 2 * messages(r / away(z, EPS / 2)) + size(r)
    )
    agree(
        scale_of(matmul.uniform, a, v, z, r, eps=EPS, denominator="2(z+eps)"),
        2 * messages(r / away(z)) + size(r),
    )
    agree(scale_of(matmul.second, a, v, z, r, eps=EPS), 2 * messages(r / away(z)) + size(r))
    agree(
        scale_of(matmul.flattened, a, v, z, r, eps=EPS, factors=(2, 1)),
        3 * 2 * messages(r / away(3 * z)) + size(r),
    )
    agree(scale_of(matmul.flattened_gxi, a, v, z, r, factors=(2, 1)), 2 * messages(r))
    agree(scale_of(matmul.uniform_gxi, a, v, z, r), 2 * messages(r))
    agree(scale_of(matmul.second_gxi, a, v, z, r), 2 * messages(r))
    agree(scale_of(matmul.gradient, a, v, z, r), 6 * messages(r))


def test_terms_of_softmax() -> None:
    """Messages x R and x p sum R; the offset's R, R x and sum R sum p x. Three times: p's own
    rounding, the message, the sum.
    """
    p = np.exp(X) / np.exp(X).sum(axis=-1, keepdims=True)

    def thrice(r: Any) -> Any:
        row, px = np.abs(r).sum(axis=-1, keepdims=True), (p * np.abs(X)).sum(axis=-1, keepdims=True)
        return 3 * (size(X * r) + size(X * p * row) + size(r) + size(r * X) + size(row * px))

    agree(scale_of(softmax.taylor, X, p, G), thrice(G))
    agree(scale_of(softmax.gradient, X, p, G), thrice(p * G))
    agree(scale_of(softmax.spread, X, p, G), 2 * thrice(G))
    own, cross = (1 - p) * np.maximum(X, 0), p * np.maximum(-X, 0)
    others = cross @ (1 - np.eye(N))
    s = np.abs(over(G, own + others))
    messages = (
        size(own * s)
        + size(cross * s.sum(axis=-1, keepdims=True))
        + size(s * cross.sum(axis=-1, keepdims=True))
    )
    agree(scale_of(softmax.z_plus, X, p, G), 3 * messages + size(G))


def test_masked_entries_are_no_terms() -> None:
    """Neither their numbers nor what arrived at them: the scale is that of the rest alone."""
    mask = np.ones(X.shape, dtype=bool)
    mask[..., -1] = False
    p = softmax.forward(X, mask=mask)
    for rule in (softmax.taylor, softmax.spread, softmax.z_plus, softmax.gradient):
        rest = scale_of(rule, X[..., :-1], p[..., :-1], G[..., :-1])
        agree(scale_of(rule, X, p, G, mask=mask), rest)


ONES = np.ones((1, 1, T, N))
DERIVATIVES: dict[str, tuple[str, tuple[Any, ...], dict[str, Any]]] = {
    "add": ("epsilon", (X, Y), {}),
    "combine": ("epsilon", (X,), {"index": ((range(T),) * B,), "length": T}),
    "linear": ("epsilon", (X, W, BIAS), {}),
    "pooling": ("epsilon", (X,), {"counted": np.ones((B, T, 1))}),
    "renormalize": ("epsilon", (np.abs(X),), {}),
    "rotary": ("epsilon", (X[:, None],), {"cos": ONES, "sin": ONES}),
    "softmax": ("taylor", (X,), {"mask": None}),
}
"""Operation -> a rule whose gradient x input form is the true derivative, operands, attributes."""


@pytest.mark.parametrize("operation", DERIVATIVES)
def test_the_true_derivative_has_the_same_terms_under_both_names(operation: str) -> None:
    rule, operands, how = DERIVATIVES[operation]
    table = OPERATIONS[operation]
    assert table.rules["gradient"].gradient_x_input is table.rules[rule].gradient_x_input
    z = table.forward(*operands, **how)
    by_name, by_rule = (
        rounding_scale(operation, name, "gradient_x_input", operands, z, z, how)
        for name in ("gradient", rule)
    )
    agree(by_name, by_rule)
    assert np.all(by_name > 1.5 * size(z * z))


def test_terms_of_norms() -> None:
    random = np.random.default_rng(12)
    w, b, norm_eps = random.normal(size=N), random.normal(size=N), 0.1
    z = rms_norm.forward(X, w, norm_eps=norm_eps)
    agree(scale_of(rms_norm.gradient, X, w, z, G, norm_eps=norm_eps), 4 * size(z * G))
    std = np.sqrt(X.var(axis=-1, keepdims=True) + norm_eps)
    for bias in (b, None):
        z = w * (X - X.mean(axis=-1, keepdims=True)) / std + (0 if bias is None else bias)

        def summed(s: Any, bias: Any = bias) -> Any:
            c = np.abs(w * s / std)
            return 4 * (size(c * X) + size(c * np.abs(X).mean(axis=-1, keepdims=True))) + (
                0 if bias is None else 2 * size(bias * s)
            )

        agree(
            scale_of(layer_norm.epsilon, X, w, bias, z, G, norm_eps=norm_eps, eps=EPS),
            summed(G / away(z)) + size(G),
        )
        agree(scale_of(layer_norm.epsilon_gxi, X, w, bias, z, G, norm_eps=norm_eps), summed(G))
        agree(scale_of(layer_norm.gradient, X, w, bias, z, G, norm_eps=norm_eps), 2 * summed(G))


def test_terms_of_an_activation() -> None:
    for kind, z, slope in (
        ("tanh", np.tanh(X), 1 - np.tanh(X) ** 2),
        ("relu", np.maximum(X, 0), np.where(X > 0, 1.0, 0.0)),
    ):
        agree(
            scale_of(activation.gradient, X, z, G, kind=kind),
            3 * (size(z * G) + size(X * slope * G)),
        )


def test_terms_of_rotary() -> None:
    random = np.random.default_rng(12)
    x, r = random.normal(size=(B, 2, T, N)), random.normal(size=(B, 2, T, N))
    cos, sin = random.normal(size=(1, 1, T, N)), random.normal(size=(1, 1, T, N))
    other = np.concatenate([x[..., N // 2 :], x[..., : N // 2]], axis=-1)
    z = rotary.forward(x, cos=cos, sin=sin)
    s = r / away(z)
    for rule in (rotary.epsilon, rotary.uniform):
        agree(
            scale_of(rule, x, z, r, cos=cos, sin=sin, eps=EPS),
            2 * (size(x * cos * s) + size(other * sin * s)) + size(r),
        )
    for rule in (rotary.uniform_gxi, rotary.gradient):
        agree(
            scale_of(rule, x, z, r, cos=cos, sin=sin),
            2 * (size(x * cos * r) + size(other * sin * r)),
        )


def test_terms_of_pooling() -> None:
    random = np.random.default_rng(12)
    counted = np.asarray([[[1.0], [0.0], [1.0]], [[1.0], [1.0], [1.0]]])
    r, whole = random.normal(size=(B, 1, N)), (X * counted).sum(axis=1, keepdims=True)
    z = whole / counted.sum(axis=1, keepdims=True)
    agree(
        scale_of(pooling.epsilon, X, z, r, counted=counted, eps=EPS),
        2 * size(X * counted * r / away(whole)) + size(r),
    )
    agree(
        scale_of(pooling.gradient, X, z, r, counted=counted),
        2 * size(X * counted * r / counted.sum(axis=1, keepdims=True)),
    )


def test_terms_of_renormalization() -> None:
    x = np.abs(X)
    z = x / x.sum(axis=-1, keepdims=True)
    agree(scale_of(renormalize.epsilon, x, z, G, eps=EPS), 4 * size(z * G / away(z)) + size(G))
    agree(scale_of(renormalize.gradient, x, z, G), 4 * size(z * G))
