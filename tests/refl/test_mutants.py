"""What mutation testing found untested (`verification/mutation.py`): the scale each rule names for
its rounding, the defaults of options, the words and numbers of the conservation ledger, and how a
composite is put together. Expected values are written out from definitions.
"""

from __future__ import annotations

import inspect
import math
import re
import sys
from collections.abc import Callable
from importlib.abc import InspectLoader
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
import pytest

from refl import rules
from refl.errors import ReflError
from refl.ledger import Ledger
from refl.rules import (
    activation,
    add,
    attention,
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
    softmax,
)
from refl.rules.balance import RuleOutput, share
from refl.rules.composites import (
    ATTNLRP,
    ATTNLRP_GRADIENT,
    CP_LRP,
    GRADIENT_RULES,
    INPUT_X_GRADIENT,
    LRP_0,
    METHODS,
    RULES,
    Composite,
    Rule,
    from_dict,
    from_saved,
    from_toml,
    method,
)
from refl.sweep import Sweep
from refl.trace import Trace, Value
from refl.verification.quality import mutation

B, T, N, M = 2, 3, 4, 5
RANDOM = np.random.default_rng(11)
X, Y, G = (RANDOM.normal(size=(B, T, N)) for _ in range(3))
W, BIAS, R = RANDOM.normal(size=(M, N)), RANDOM.normal(size=M), RANDOM.normal(size=(B, T, M))
EPS = 1e-2


def size(a: Any) -> Any:  # (B, ...) -> (B,)
    """Sum of absolute values, per example."""
    return np.abs(a).reshape(len(a), -1).sum(axis=1)


def agree(got: Any, wanted: Any) -> None:
    assert got.shape == wanted.shape
    assert np.abs(got - wanted).max() <= 1e-13 * np.abs(wanted).max()


def away(z: Any, eps: float = EPS) -> Any:
    """z moved away from zero by eps."""
    return z + np.where(z >= 0, eps, -eps)


def over(r: Any, d: Any) -> Any:
    """r / d, and nothing where d is zero."""
    return np.where(d == 0, 0, r / np.where(d == 0, 1, d))


# -- the scale of a rule's rounding: the sum of |terms| of the sums it forms -----------------------


def named(passed: RuleOutput) -> Any:
    assert passed.rounding_scale is not None
    return passed.rounding_scale()


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

    agree(named(linear.epsilon(X, W, bias, z, R, eps=EPS)), twice(R / away(z)))
    agree(named(linear.gradient(X, W, bias, z, R)), twice(R))
    up, down = POSITIVE.sum(axis=-1) + np.maximum(b, 0), NEGATIVE.sum(axis=-1) + np.minimum(b, 0)
    agree(
        named(linear.gamma(X, W, bias, z, R, gamma=0.25)),
        1.25 * twice(over(R, z + 0.25 * np.where(z > 0, up, down))),
    )
    agree(named(linear.z_plus(X, W, bias, z, R)), twice(over(R, up)))
    agree(
        named(linear.alpha_beta(X, W, bias, z, R, alpha=1.5, beta=0.5)),
        twice(over(1.5 * R, up)) + twice(over(0.5 * R, down)),
    )
    agree(named(linear.flat(X, W, bias, z, R)), 2 * size(R))
    agree(named(linear.w_square(X, W, bias, z, R)), 2 * size(R))


def test_terms_of_the_z_box() -> None:
    above, below = X + 3, X - 4
    wp, wn = np.maximum(W, 0), np.minimum(W, 0)
    s = R / (above @ wp.T + below @ wn.T)
    wanted = 2 * (size(products(wp, s, above)) + size(products(wn, s, below)))
    agree(named(linear.z_box(X, W, BIAS, X @ W.T, R, low=-3.0, high=4.0)), wanted)


def test_terms_of_a_sum() -> None:
    """A broadcast operand is a term for every copy."""
    for a, b in ((X, Y), (X, Y[:, :1]), (X[:, :1], Y)):
        z = a + b
        s = G / away(z)
        agree(named(add.epsilon(a, b, z, G, eps=EPS)), 2 * (size(a * s) + size(b * s)))
        agree(named(add.gradient(a, b, z, G)), 2 * (size(a * G) + size(b * G)))


def test_terms_of_a_sum_over_experts() -> None:
    index = (((0, 2), (1, None)), ((1,), (2,)))
    ys = (RANDOM.normal(size=(B, 2, N)), RANDOM.normal(size=(B, 1, N)))
    z = combine.forward(*ys, index=index, length=T)
    wanted_epsilon, wanted_gradient = np.zeros(B), np.zeros(B)
    for y, where in zip(ys, index, strict=True):
        for b, places in enumerate(where):
            for n, t in enumerate(places):
                if t is not None:
                    wanted_epsilon[b] += 2 * np.abs(y[b, n] * G[b, t] / away(z[b, t])).sum()
                    wanted_gradient[b] += 2 * np.abs(y[b, n] * G[b, t]).sum()
    agree(named(combine.epsilon(*ys, z, G, index=index, length=T, eps=EPS)), wanted_epsilon)
    agree(named(combine.gradient(*ys, z, G, index=index, length=T)), wanted_gradient)


def test_terms_of_matmul() -> None:
    a, v, r = (
        RANDOM.normal(size=(B, M, T)),
        RANDOM.normal(size=(B, T, N)),
        RANDOM.normal(size=(B, M, N)),
    )
    z = a @ v

    def messages(s: Any) -> Any:
        return size(a[..., None] * v[:, None] * s[:, :, None])

    agree(named(matmul.uniform(a, v, z, r, eps=EPS)), 2 * messages(r / away(z, EPS / 2)))
    agree(
        named(matmul.uniform(a, v, z, r, eps=EPS, denominator="2(z+eps)")),
        2 * messages(r / away(z)),
    )
    agree(named(matmul.second(a, v, z, r, eps=EPS)), 2 * messages(r / away(z)))
    agree(named(matmul.uniform_gxi(a, v, z, r)), 2 * messages(r))
    agree(named(matmul.second_gxi(a, v, z, r)), 2 * messages(r))
    agree(named(matmul.gradient(a, v, z, r)), 6 * messages(r))


def test_terms_of_softmax() -> None:
    """Messages x R and x p sum R; the offset's R, R x and sum R sum p x. Three times: p's own
    rounding, the message, the sum.
    """
    p = np.exp(X) / np.exp(X).sum(axis=-1, keepdims=True)

    def thrice(r: Any) -> Any:
        row, px = np.abs(r).sum(axis=-1, keepdims=True), (p * np.abs(X)).sum(axis=-1, keepdims=True)
        return 3 * (size(X * r) + size(X * p * row) + size(r) + size(r * X) + size(row * px))

    agree(named(softmax.taylor(X, p, G)), thrice(G))
    agree(named(softmax.gradient(X, p, G)), thrice(p * G))
    agree(named(softmax.spread(X, p, G)), 2 * thrice(G))
    own, cross = (1 - p) * np.maximum(X, 0), p * np.maximum(-X, 0)
    others = cross @ (1 - np.eye(N))
    s = np.abs(over(G, own + others))
    messages = (
        size(own * s)
        + size(cross * s.sum(axis=-1, keepdims=True))
        + size(s * cross.sum(axis=-1, keepdims=True))
    )
    agree(named(softmax.z_plus(X, p, G)), 3 * messages + size(G))


def test_terms_of_norms() -> None:
    w, b, norm_eps = RANDOM.normal(size=N), RANDOM.normal(size=N), 0.1
    z = rms_norm.forward(X, w, norm_eps=norm_eps)
    agree(named(rms_norm.gradient(X, w, z, G, norm_eps=norm_eps)), 4 * size(z * G))
    std = np.sqrt(X.var(axis=-1, keepdims=True) + norm_eps)
    for bias in (b, None):
        z = w * (X - X.mean(axis=-1, keepdims=True)) / std + (0 if bias is None else bias)

        def terms(s: Any, bias: Any = bias) -> Any:
            c = np.abs(w * s / std)
            return 4 * (size(c * X) + size(c * np.abs(X).mean(axis=-1, keepdims=True))) + (
                0 if bias is None else 2 * size(bias * s)
            )

        agree(
            named(layer_norm.epsilon(X, w, bias, z, G, norm_eps=norm_eps, eps=EPS)),
            terms(G / away(z)),
        )
        agree(named(layer_norm.epsilon_gxi(X, w, bias, z, G, norm_eps=norm_eps)), terms(G))
        agree(named(layer_norm.gradient(X, w, bias, z, G, norm_eps=norm_eps)), 2 * terms(G))


def test_terms_of_an_activation() -> None:
    for kind, z, slope in (
        ("tanh", np.tanh(X), 1 - np.tanh(X) ** 2),
        ("relu", np.maximum(X, 0), np.where(X > 0, 1.0, 0.0)),
    ):
        agree(
            named(activation.gradient(X, z, G, kind=kind)), 3 * (size(z * G) + size(X * slope * G))
        )


def test_terms_of_rotary() -> None:
    x, r = RANDOM.normal(size=(B, 2, T, N)), RANDOM.normal(size=(B, 2, T, N))
    cos, sin = RANDOM.normal(size=(1, 1, T, N)), RANDOM.normal(size=(1, 1, T, N))
    other = np.concatenate([x[..., N // 2 :], x[..., : N // 2]], axis=-1)
    z = rotary.forward(x, cos=cos, sin=sin)
    s = r / away(z)
    agree(
        named(rotary.epsilon(x, z, r, cos=cos, sin=sin, eps=EPS)),
        2 * (size(x * cos * s) + size(other * sin * s)),
    )
    agree(
        named(rotary.gradient(x, z, r, cos=cos, sin=sin)),
        2 * (size(x * cos * r) + size(other * sin * r)),
    )


def test_terms_of_pooling() -> None:
    counted = np.asarray([[[1.0], [0.0], [1.0]], [[1.0], [1.0], [1.0]]])
    r, whole = RANDOM.normal(size=(B, 1, N)), (X * counted).sum(axis=1, keepdims=True)
    z = whole / counted.sum(axis=1, keepdims=True)
    agree(
        named(pooling.epsilon(X, z, r, counted=counted, eps=EPS)),
        2 * size(X * counted * r / away(whole)),
    )
    agree(
        named(pooling.gradient(X, z, r, counted=counted)),
        2 * size(X * counted * r / counted.sum(axis=1, keepdims=True)),
    )


def test_terms_of_renormalization() -> None:
    x = np.abs(X)
    z = x / x.sum(axis=-1, keepdims=True)
    agree(named(renormalize.epsilon(x, z, G, eps=EPS)), 4 * size(z * G / away(z)))
    agree(named(renormalize.gradient(x, z, G)), 4 * size(z * G))


# -- defaults --------------------------------------------------------------------------------------

PAPER = {"eps": 1e-6, "stabilizer": "sign"}
DEFAULTS: dict[Callable[..., RuleOutput], dict[str, Any]] = {
    add.epsilon: PAPER,
    combine.epsilon: PAPER,
    layer_norm.epsilon: PAPER,
    linear.epsilon: PAPER,
    linear.gamma: {"gamma": 0.05, "eps": 0.0},
    linear.z_plus: {"eps": 0.0},
    linear.alpha_beta: {"alpha": 2.0, "beta": 1.0, "eps": 0.0},
    linear.z_box: {"low": 0.0, "high": 1.0},
    matmul.uniform: PAPER | {"denominator": "2z+eps"},
    matmul.second: PAPER,
    pooling.epsilon: PAPER,
    renormalize.epsilon: PAPER,
    rotary.epsilon: PAPER,
    multiply.uniform: {},
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


# -- the sweep -------------------------------------------------------------------------------------


def tripled(dtype: str = "float64") -> tuple[Trace, Value, Value]:
    """z = 3 x, and the values x and z."""
    t = Trace({})
    x = t.scale("x", Value(np.asarray([[1.0, -2.0], [4.0, 0.5]], dtype=dtype), "given"), 1.0)
    return t, x, t.scale("z", x, 3.0)


def test_a_sweep_keeps_and_audits_only_what_it_is_asked_to() -> None:
    t, x, z = tripled()
    swept = Sweep(ATTNLRP).run(t, z, z.array)
    assert swept.propagated == swept.activations == swept.aliases == {}
    assert x.array is not None and z.array is not None, "nothing is released"
    assert [entry.rounding_scale for entry in swept.ledger] == [None, None]


def test_a_sweep_that_releases_leaves_no_activation() -> None:
    t, _, z = tripled()
    Sweep(ATTNLRP, release=True).run(t, z, z.array)
    assert [record.output.array for record in t.records] == [None, None]


def test_a_sweep_reports_each_record() -> None:
    t, _, z = tripled()
    seen: list[int] = []
    Sweep(ATTNLRP, progress=lambda: seen.append(1)).run(t, z, z.array)
    assert len(seen) == len(t.records) == 2


@pytest.mark.parametrize(("dtype", "u"), [("float64", 2.0**-53), ("float32", 2.0**-24)])
def test_the_books_know_the_unit_roundoff(dtype: str, u: float) -> None:
    t, _, z = tripled(dtype)
    assert Sweep(ATTNLRP).run(t, z, z.array).ledger.roundoff == u


@pytest.mark.parametrize(
    ("composite", "explained"), [(ATTNLRP, [5.0, 7.0]), (ATTNLRP_GRADIENT, [-1.0, 20.5])]
)
def test_what_is_explained_is_what_is_carried(composite: Composite, explained: list[float]) -> None:
    """Relevance is summed; a gradient g stands for z g. Audited, a rule that only hands on has the
    sum of absolute values.
    """
    t, _, z = tripled()
    z.array = np.asarray([[1.0, -2.0], [4.0, 0.5]])
    seed = (
        np.asarray([[3.0, 2.0], [4.0, 3.0]])
        if composite is ATTNLRP
        else np.asarray([[3.0, 2.0], [5.0, 1.0]])
    )
    swept = Sweep(composite, audit=True).run(t, z, seed)
    assert list(swept.ledger.explained) == explained
    assert list(swept.ledger["z"].rounding_scale) == (
        [5.0, 7.0] if composite is ATTNLRP else [7.0, 20.5]
    )


@pytest.mark.parametrize("recompute", [False, True])
def test_shares_meet_in_one_order_with_blocks_and_without(recompute: bool) -> None:
    """h is read twice by either block. One by one, 1 + 2^-24 + 2^-24 is 1 in float32; block by
    block it would be 1 + 2^-23.
    """

    def block(t: Trace, x: Value, h: Value, first: float, second: float) -> Value:
        return t.add("y", t.add("u", x, t.scale("one", h, first)), t.scale("two", h, second))

    t = Trace({}, recompute=recompute)
    x, h = (t.scale(name, Value(np.ones((1, 1), dtype="float32"), "given"), 1.0) for name in "xh")
    y = t.block("b", block, t.block("a", block, x, h, 2.0**-24, 2.0**-24), h, 1.0, 2.0**-40)
    swept = Sweep(ATTNLRP_GRADIENT, keep=lambda names: "h" in names).run(
        t, y, np.ones((1, 1), dtype="float32")
    )
    assert swept.propagated["h"].dtype == np.float32 and swept.propagated["h"].tolist() == [[1.0]]


Q, K, V = (RANDOM.normal(size=(B, 2, 5, 3)) for _ in range(3))
OTHER_OPTIONS = ATTNLRP.override(
    Rule("matmul", "uniform", "*.context", (("eps", 0.5),)),
    Rule("matmul", "uniform", "*.scores", (("eps", 0.25), ("stabilizer", "plain"))),
    Rule("softmax", "spread", "*.probabilities"),
)
CONSTANT = ATTNLRP.override(Rule("softmax", "constant"), name="constant")
IDENTITY = ATTNLRP.override(Rule("softmax", "identity"), name="identity")
MASKS = {
    "none": None,
    "causal": np.tril(np.ones((5, 5), dtype=bool))[None, None],
    "in the first block": np.arange(25).reshape(1, 1, 5, 5) != 3,
    "in the last block": np.arange(25).reshape(1, 1, 5, 5) != 22,
}


def attended(
    composite: Composite, mask: Any, plain: bool, causal: bool, audit: bool = True
) -> tuple[Ledger, dict[str, Any]]:
    t = Trace({}, plain=plain)
    with t.inside("layer.0"), t.inside("attn"):
        q, k, v = (
            t.scale(name, Value(a, name.upper()), 1.0) for name, a in (("q", Q), ("k", K), ("v", V))
        )
        z = t.attention(q, k, v, mask, causal=causal)
        swept = Sweep(
            composite, audit=audit, keep=lambda names: names[0][-2:] in (".q", ".k", ".v")
        ).run(t, z, np.cos(z.array))
    return swept.ledger, swept.propagated


@pytest.mark.parametrize(
    "composite",
    [ATTNLRP, OTHER_OPTIONS, CONSTANT, IDENTITY, CP_LRP, INPUT_X_GRADIENT],
    ids=lambda c: str(c.name),
)
@pytest.mark.parametrize("mask", MASKS)
def test_attention_in_blocks_keeps_the_books_of_the_three_operations(
    composite: Composite, mask: str, monkeypatch: Any
) -> None:
    """The same sites, rules and numbers as three records: what each received, passed on and
    absorbed, and its terms.
    """
    monkeypatch.setattr(attention, "ROWS", 2)
    (plain, propagated), (fast, fast_carried) = (
        attended(composite, MASKS[mask], how, mask == "causal") for how in (True, False)
    )
    sites = [entry.site for entry in fast]
    assert set(sites) == {entry.site for entry in plain} - {"layer.0.attn.key.transposed"}
    assert sites[0] == "layer.0.attn.context"
    for entry in fast:
        wanted = plain[entry.site]
        assert (entry.operation, entry.rule) == (wanted.operation, wanted.rule)
        passed = {
            name.replace("key.transposed", "k"): amount for name, amount in wanted.passed.items()
        }
        assert (
            entry.passed.keys() == passed.keys() and entry.absorbed.keys() == wanted.absorbed.keys()
        )
        for got, want in (
            (entry.received, wanted.received),
            (entry.rounding_scale, wanted.rounding_scale),
            *((entry.passed[name], passed[name]) for name in passed),
            *((entry.absorbed[name], wanted.absorbed[name]) for name in wanted.absorbed),
        ):
            assert np.abs(got - want).max() <= 1e-12 * (1 + np.abs(want).max()), entry.site
    for site, relevance in propagated.items():
        assert np.abs(fast_carried[site] - relevance).max() <= 1e-12 * (1 + np.abs(relevance).max())


def test_attention_in_blocks_is_audited_only_on_demand() -> None:
    assert [
        entry.rounding_scale for entry in attended(ATTNLRP, None, False, False, audit=False)[0]
    ] == [None] * 6


def test_blocks_of_queries(monkeypatch: Any) -> None:
    monkeypatch.setattr(attention, "ROWS", 2)
    every = [slice(0, 2), slice(2, 4), slice(4, 5)]
    assert list(attention._blocks(Q, K, True)) == list(zip(every, (2, 4, 5), strict=True))
    assert list(attention._blocks(Q, np.zeros((B, 2, 7, 3)), False)) == [
        (rows, 7) for rows in every
    ]


def test_a_causal_block_never_looks_at_later_keys(monkeypatch: Any) -> None:
    """The last key and value are no numbers: what the first block of queries gives and gets is
    untouched by them.
    """
    monkeypatch.setattr(attention, "ROWS", 4)
    k, v = K.copy(), V.copy()
    k[..., 4, :] = v[..., 4, :] = np.nan
    z = attention.forward(Q, k, v, mask=MASKS["causal"], causal=True)
    assert np.isfinite(z[..., :4, :]).all() and np.isnan(z[..., 4, :]).all()
    rules = (matmul.uniform, softmax.taylor, matmul.uniform)
    shares, _ = attention.sweep(
        Q,
        k,
        v,
        z,
        np.ones_like(z),
        mask=MASKS["causal"],
        causal=True,
        rules=rules,
        measure=lambda x, r: r.sum(axis=(1, 2, 3)),
        size=None,
    )
    assert shares[0] is not None and np.isfinite(shares[0][..., :4, :]).all()


def test_terms_are_the_rules_own_where_it_names_them() -> None:
    t, x, z = tripled()
    y = t.add("y", x, z)
    swept = Sweep(LRP_0, audit=True).run(t, y, y.array)
    assert list(swept.ledger["y"].rounding_scale) == [
        2 * 4 * 3,
        2 * 4 * 4.5,
    ]  # s = 1: twice |x| + |z| = 4 |x|
    assert list(swept.ledger["z"].rounding_scale) == [3 * 3, 3 * 4.5]  # hands on: what arrived


# -- dividing --------------------------------------------------------------------------------------


def test_the_unsigned_stabilizer_may_meet_its_own_zero() -> None:
    """z = -eps: nothing can be passed on, and what arrived is taken."""
    s, taken = share(np.asarray([[-0.5, 1.0]]), np.asarray([[3.0, 6.0]]), 0.5, "plain")
    assert s.tolist() == [[0.0, 4.0]] and taken.tolist() == [3.0 + 0.5 * 4.0]


def test_the_words_of_the_books() -> None:
    """What each rule ledger what it absorbs under."""
    z, w, sums = X @ W.T + BIAS, RANDOM.normal(size=N), X + Y
    a, v, r = (
        RANDOM.normal(size=(B, M, T)),
        RANDOM.normal(size=(B, T, N)),
        RANDOM.normal(size=(B, M, N)),
    )
    p, o = softmax.forward(X), a @ v
    hidden = X.copy()
    hidden[..., 0] = -np.inf
    q = softmax.forward(hidden)
    stabilized = {"stabilizer"}
    for passed, words in (
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
        (pooling.epsilon(X, X[:, :1], G[:, :1], counted=np.ones((B, T, 1))), stabilized),
        (renormalize.epsilon(X, X, G), {"renormalization_offset", "stabilizer"}),
        (renormalize.gradient(X, X, G), {"renormalization_offset"}),
        (combine.epsilon(X, Y, sums, G, index=((range(T),) * B,) * 2, length=T), stabilized),
    ):  # fmt: skip
        assert set(passed.absorbed) == words


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_half_the_lowest_number_is_a_mask(dtype: str) -> None:
    """At half the dtype's minimum an entry is masked, right above it is not."""
    half = np.finfo(dtype).min / np.asarray(2, dtype=dtype)
    for lowest, hidden in (
        (half, True),
        (np.nextafter(half, np.asarray(0, dtype=dtype)), False),
        (half * np.asarray(0.75, dtype), False),
    ):
        for beside in ([], [-np.inf]):
            x = np.asarray([[0.0, lowest, *beside]], dtype=dtype)
            r = np.asarray([[0.0, 2.0**-100, *(4.0 for _ in beside)]], dtype=dtype)
            p, taken = softmax.forward(x), 2.0**-100 * hidden + 4.0 * len(beside)
            passed = softmax.taylor(x, p, r)
            assert p[0, :2].tolist() == [1.0, 0.0] and passed.inputs[0] is not None
            assert passed.inputs[0][0, :2].tolist() == [
                0.0,
                0.0 if hidden else float(lowest) * 2.0**-100,
            ]
            assert {k: list(v) for k, v in passed.absorbed.items() if k == "mask"} == (
                {"mask": [taken]} if taken else {}
            )


def test_two_kinds_of_mask_at_once() -> None:
    """One entry hidden by -inf, another by the mask: both pass on nothing, and what stood there is
    recorded.
    """
    x, r = np.asarray([[1.0, -np.inf, 2.0, 3.0]]), np.asarray([[1.0, 4.0, 8.0, 2.0]])
    mask = np.asarray([[True, True, False, True]])
    p = softmax.forward(x, mask=mask)
    e = np.exp(-2.0)
    assert np.abs(p - np.asarray([[e, 0, 0, 1]]) / (1 + e)).max() <= 1e-15
    for rule in (softmax.taylor, softmax.identity, softmax.z_plus, softmax.spread):
        passed = rule(x, p, r, mask=mask)
        assert passed.inputs[0] is not None and passed.inputs[0][0, 1:3].tolist() == [0.0, 0.0]
        assert passed.absorbed["mask"].tolist() == [12.0]


def test_blocks_may_absorb_under_different_entries() -> None:
    one, two = numbers(1.0), numbers(2.0)
    first, second = (
        attention.Account((one,), {"a": one, "b": one}, one),
        attention.Account((two,), {"b": two, "c": two}, two),
    )
    whole = attention._sum(first, second)
    assert {k: list(v) for k, v in whole.absorbed.items()} == {"a": [1], "b": [3], "c": [2]}
    assert (
        list(whole.passed[0]) == [3]
        and whole.rounding_scale is not None
        and list(whole.rounding_scale) == [3]
    )


# -- the conservation ledger -----------------------------------------------------------------------


def numbers(*values: float) -> Any:
    return np.asarray(values)


def account() -> Ledger:
    """Two sites of a batch of three."""
    ledger = Ledger(numbers(10, 20, 30), 2.0**-53)
    ledger.book(
        "head",
        "linear",
        "epsilon",
        numbers(10, 20, 30),
        {"body": numbers(7, 15, 31)},
        {"bias": numbers(2, 5, -1)},
        numbers(11, 21, 31),
    )
    ledger.book(
        "body",
        "embedding",
        "leaf",
        numbers(7, 15, 31),
        {},
        {"tokens": numbers(6, 9, 40), "position": numbers(1, 6, -9)},
        None,
    )
    return ledger


def test_one_example_of_the_books() -> None:
    one = account().example(1)
    assert list(one.explained) == [20] and one.roundoff == 2.0**-53
    head, body = one
    assert (head.site, head.operation, head.rule) == ("head", "linear", "epsilon")
    assert (
        list(head.received) == [20]
        and list(head.passed["body"]) == [15]
        and list(head.absorbed["bias"]) == [5]
    )
    assert (
        head.rounding_scale is not None
        and list(head.rounding_scale) == [21]
        and body.rounding_scale is None
    )
    assert list(body.absorbed["tokens"]) == [9]


def test_the_whole_account() -> None:
    ledger = account()
    assert list(ledger["head"].conservation_error) == [1, 0, 0]
    assert list(ledger.tokens) == [6, 9, 40] and ledger.destination == "tokens"
    assert {cause: list(amount) for cause, amount in ledger.absorbed.items()} == {
        "position": [1, 6, -9],
        "bias": [2, 5, -1],
    }
    assert list(ledger.conservation_error) == [1, 0, 0]
    with pytest.raises(KeyError, match="tail"):
        ledger["tail"]


def test_absorbed_stands_in_order_of_size() -> None:
    """The largest of any example counts, of either sign; what is zero everywhere is left out."""
    ledger = Ledger(numbers(0, 0), 0.0)
    absorbed = {
        "a": numbers(1, -2),
        "b": numbers(-5, 0),
        "none": numbers(0, 0),
        "c": numbers(3, 3),
        "pixels": numbers(9, 9),
    }
    ledger.book("x", "linear", "epsilon", numbers(0, 0), {}, absorbed, None)
    assert list(ledger.absorbed) == ["b", "c", "a"]
    assert ledger.destination == "pixels" and list(ledger.tokens) == [9, 9]


def test_an_account_in_which_nothing_arrives() -> None:
    ledger = Ledger(numbers(4, 5), 0.0)
    assert (
        ledger.destination == "tokens"
        and list(ledger.tokens) == [0, 0]
        and list(ledger.conservation_error) == [4, 5]
    )


def test_causes_are_summed_over_sites() -> None:
    ledger = account()
    ledger.book("tail", "linear", "epsilon", numbers(0, 0, 0), {}, {"bias": numbers(1, 1, 1)}, None)
    assert list(ledger.absorbed["bias"]) == [3, 6, 0]


def test_closing_brings_every_sum_to_the_host() -> None:
    """From a library whose arrays are not NumPy's."""
    strict = pytest.importorskip("array_api_strict")
    put = strict.asarray
    ledger = Ledger(put([1.0]), 0.0)
    ledger.book(
        "x", "linear", "epsilon", put([2.0]), {"y": put([3.0])}, {"bias": put([4.0])}, put([5.0])
    )
    assert ledger.close() is ledger
    (entry,) = ledger
    sums = [
        ledger.explained,
        entry.received,
        entry.passed["y"],
        entry.absorbed["bias"],
        entry.rounding_scale,
    ]
    assert all(isinstance(s, np.ndarray) for s in sums) and [s[0] for s in sums] == [1, 2, 3, 4, 5]
    assert (entry.site, entry.operation, entry.rule) == ("x", "linear", "epsilon")


def test_the_books_as_plain_numbers() -> None:
    said = account().as_dict()
    assert said == {
        "explained": [10, 20, 30],
        "roundoff": 2.0**-53,
        "tokens": [6, 9, 40],
        "absorbed": {"position": [1, 6, -9], "bias": [2, 5, -1]},
        "conservation_error": [1, 0, 0],
        "sites": [
            {
                "site": "head",
                "operation": "linear",
                "rule": "epsilon",
                "received": [10, 20, 30],
                "passed": {"body": [7, 15, 31]},
                "absorbed": {"bias": [2, 5, -1]},
                "conservation_error": [1, 0, 0],
            },
            {
                "site": "body",
                "operation": "embedding",
                "rule": "leaf",
                "received": [7, 15, 31],
                "passed": {},
                "absorbed": {"tokens": [6, 9, 40], "position": [1, 6, -9]},
                "conservation_error": [0, 0, 0],
            },
        ],
    }
    one = account().example(2).as_dict()
    assert (
        one["explained"] == 30
        and one["sites"][0]["passed"] == {"body": 31}
        and one["conservation_error"] == 0
    )
    assert all(
        type(number) is float
        for number in (said["explained"][0], one["explained"], one["sites"][0]["received"])
    )


def test_the_books_of_one_example_come_back() -> None:
    one = account().example(0)
    assert Ledger.from_dict(one.as_dict()).as_dict() == one.as_dict()
    head, _ = Ledger.from_dict(one.as_dict())
    assert (
        head.received.shape == head.passed["body"].shape == head.absorbed["bias"].shape == (1,)
        and head.rounding_scale is None
    )


# -- composites ------------------------------------------------------------------------------------

PAPER_RULES = {
    "linear": "epsilon",
    "add": "epsilon",
    "multiply": "uniform",
    "matmul": "uniform",
    "softmax": "taylor",
    "rms_norm": "identity",
    "layer_norm": "epsilon",
    "activation": "identity",
    "rotary": "epsilon",
    "pooling": "epsilon",
    "top_k": "pass_through",
    "renormalize": "identity",
    "gather": "pass_through",
    "combine": "epsilon",
    "scale": "pass_through",
    "movement": "pass_through",
    "embedding": "leaf",
    "learned": "leaf",
    "source": "leaf",
}
CONSTANTS = {"softmax": "constant", "multiply": "second"}
DERIVATIVES = {
    op: rule if rule in ("pass_through", "leaf") else "gradient" for op, rule in PAPER_RULES.items()
}
STABILIZED = ("linear", "add", "matmul", "layer_norm", "rotary", "pooling", "combine")
VISION = {"linear": "gamma", "softmax": "z_plus"}
EXPECTED = {
    "attnlrp": (PAPER_RULES, "relevance", "sum"),
    "attnlrp-gradient": (PAPER_RULES, "gradient", "sum"),
    "cp-lrp": (PAPER_RULES | CONSTANTS, "gradient", "sum"),
    "lrp-0": (PAPER_RULES, "relevance", "sum"),
    "gradient": (DERIVATIVES, "gradient", "norm"),
    "input-x-gradient": (DERIVATIVES, "gradient", "sum"),
    "lxt-explicit": (PAPER_RULES, "relevance", "sum"),
    "attnlrp-vit": (PAPER_RULES | VISION, "relevance", "sum"),
    "attnlrp-vit-box": (PAPER_RULES | VISION, "relevance", "sum"),
    "cp-lrp-vit": (PAPER_RULES | VISION | CONSTANTS, "relevance", "sum"),
}


def test_the_published_methods() -> None:
    """Each gives every operation a rule, at an ordinary site the one of its paper."""
    assert list(METHODS) == list(EXPECTED)
    for name, (table, formulation, score) in EXPECTED.items():
        composite = method(name)
        assert (composite.name, composite.formulation, composite.score) == (
            name,
            formulation,
            score,
        )
        chosen = {op: composite.rule(op, ["h.3.some"]) for op in table}
        assert {op: rule.name for op, rule in chosen.items()} == table
        known = GRADIENT_RULES if formulation == "gradient_x_input" else RULES
        assert all(rule.function is known[op][rule.name] for op, rule in chosen.items())
        assert set(table) == set(known)


ACHTIBAT = (
    "Achtibat et al. 2024, AttnLRP: Attention-Aware Layer-Wise Relevance Propagation for "
    "Transformers, arXiv 2402.05602"
)
SOURCES = {
    "attnlrp": f"{ACHTIBAT}, eqs.",
    "attnlrp-gradient": f"{ACHTIBAT};",
    "cp-lrp": "Ali et al. 2022, XAI for Transformers: Better Explanations through Conservative "
    "Propagation, ICML, arXiv 2202.07304",
    "lrp-0": "Bach et al. 2015, PLoS ONE 10(7)",
    "gradient": "Simonyan et al. 2014, Deep Inside Convolutional Networks, arXiv 1312.6034",
    "input-x-gradient": "Shrikumar et al. 2016, Not Just a Black Box, arXiv 1605.01713",
    "lxt-explicit": "LXT 2.1, lxt.explicit",
    "attnlrp-vit": f"{ACHTIBAT}, captions of figures 12 to 16",
    "attnlrp-vit-box": f"{ACHTIBAT}, captions of figures 12 to 16; Montavon et "
    "al. 2017, Pattern Recognition "
    "65",
    "cp-lrp-vit": "Ali et al. 2022, ICML, arXiv 2202.07304",
}


@pytest.mark.parametrize("name", SOURCES)
def test_a_method_says_where_it_is_published_and_what_it_is(name: str) -> None:
    composite = method(name)
    assert composite.source.startswith(SOURCES[name])
    assert isinstance(composite.summary, str) and len(composite.summary.split()) > 5


def test_no_two_methods_say_the_same_of_themselves() -> None:
    assert len({composite.summary for composite in METHODS.values()}) == len(METHODS)


def options(name: str, operation: str, site: str = "h.3.some") -> tuple[str, dict[str, Any]]:
    rule = method(name).rule(operation, [site])
    return rule.name, rule.options


def test_the_published_options() -> None:
    """LRP-0 has no stabilizer anywhere; LXT's is unsigned, 1e-8 or 1e-6; elsewhere the rules' own
    defaults stand.
    """
    for op in PAPER_RULES:
        assert (
            options("attnlrp", op)[1]
            == options("attnlrp-gradient", op)[1]
            == options("input-x-gradient", op)[1]
            == {}
        )
        assert options("lrp-0", op)[1] == ({"stabilizer": "none"} if op in STABILIZED else {})
    eps = {
        "linear": 1e-8,
        "add": 1e-8,
        "matmul": 1e-8,
        "layer_norm": 1e-6,
        "rotary": 1e-8,
        "pooling": 1e-6,
    }
    for op in PAPER_RULES:
        assert options("lxt-explicit", op)[1] == (
            {"eps": eps[op], "stabilizer": "plain"} if op in eps else {}
        )
    of_context = {"eps": 1e-6, "stabilizer": "plain", "denominator": "2(z+eps)"}
    assert options("lxt-explicit", "matmul", "h.0.context") == ("uniform", of_context)


def test_the_published_sites() -> None:
    """CP-LRP passes on through p v alone; vision transformers: gamma 0.25 on patches, 0.05 outside
    attention, epsilon inside.
    """
    for name in ("cp-lrp", "cp-lrp-vit"):
        assert options(name, "matmul", "h.0.context") == ("second", {})
        assert options(name, "matmul", "h.0.scores") == ("uniform", {})
    patches, within = "vit.embeddings.patch_embeddings.projection", "vit.encoder.layer.0.attention."
    for name in ("attnlrp-vit", "attnlrp-vit-box", "cp-lrp-vit"):
        for site in ("attention.query", "attention.key", "attention.value", "output.dense"):
            assert options(name, "linear", within + site) == ("epsilon", {})
        assert options(name, "linear", "vit.encoder.layer.0.output.dense") == (
            "gamma",
            {"gamma": 0.05},
        )
        assert options(name, "linear", "classifier") == ("gamma", {"gamma": 0.05})
        assert options(name, "linear", patches) == (
            ("z_box", {}) if name == "attnlrp-vit-box" else ("gamma", {"gamma": 0.25})
        )


def test_every_rule_goes_by_its_name() -> None:
    assert {op: set(rules) for op, rules in RULES.items()} == {
        op: {rule} for op, rule in PAPER_RULES.items()
    } | {
        "linear": {"epsilon", "gamma", "z_plus", "alpha_beta", "flat", "w_square", "z_box"},
        "layer_norm": {"epsilon", "identity"},
        "matmul": {"uniform", "second"},
        "multiply": {"uniform", "second"},
        "renormalize": {"identity", "epsilon"},
        "softmax": {"taylor", "spread", "z_plus", "identity", "constant"},
    }  # fmt: skip
    assert all(
        function.__name__ == name for rules in RULES.values() for name, function in rules.items()
    )
    in_gradient_form = {op: {PAPER_RULES[op], DERIVATIVES[op]} for op in PAPER_RULES} | {
        "scale": {"pass_through"}
    }
    more = {
        "matmul": {"second"},
        "multiply": {"second"},
        "softmax": {"constant"},
        "renormalize": {"epsilon"},
    }
    assert {op: set(rules) for op, rules in GRADIENT_RULES.items()} == {
        op: names | more.get(op, set()) for op, names in in_gradient_form.items()
    }


def test_the_names_of_activations() -> None:
    """What config.json files say, and the function that stands for it."""
    assert activation.NAMES == {
        "gelu": "gelu",
        "gelu_new": "gelu_tanh",
        "gelu_pytorch_tanh": "gelu_tanh",
        "silu": "silu",
        "swish": "silu",
        "quick_gelu": "quick_gelu",
        "relu": "relu",
        "tanh": "tanh",
    }


MINE = Composite(
    "mine",
    (
        Rule("linear", "gamma", "*.mlp", (("gamma", 0.5),)),
        Rule("*_norm", "identity"),
        Rule("linear", "epsilon"),
        Rule("softmax", "constant"),
    ),
    source="a book",
    summary="a try",
    score="norm",
)


def test_a_table_is_read_from_the_top() -> None:
    assert (
        MINE.rule("linear", ["x", "h.mlp"]).options == {"gamma": 0.5}
        and MINE.rule("linear", ["h.mlp"]).function is linear.gamma
    )
    assert (
        MINE.rule("linear", ["h.mlp.x"]).name == "epsilon"
        and MINE.rule("linear", ["h.mlp.x"]).options == {}
    )
    assert (
        MINE.rule("rms_norm", ["n"]).function is rms_norm.identity
        and MINE.rule("layer_norm", ["n"]).function is layer_norm.identity
    )
    sentence = "composite mine has no rule for add at h.0: add a line for it to its table"
    with pytest.raises(ReflError, match=exactly(sentence)):
        MINE.rule("add", ["h.0", "other"])


def exactly(sentence: str) -> str:
    return f"^{re.escape(sentence)}$"


def test_a_composite_by_itself_has_defaults() -> None:
    bare = Composite("bare", ())
    assert (bare.formulation, bare.source, bare.summary, bare.score) == ("relevance", "", "", "sum")
    assert Rule("linear", "epsilon") == Rule("linear", "epsilon", "*", ())


def test_lines_on_top_win() -> None:
    line = Rule("linear", "z_plus", "h.*")
    changed = MINE.override(line, Rule("add", "epsilon"))
    assert changed.name == "mine (changed)" and changed.rules == (
        line,
        Rule("add", "epsilon"),
        *MINE.rules,
    )
    assert (changed.source, changed.summary, changed.score) == ("a book", "a try", "norm")
    assert MINE.override(line, name="yours").name == "yours"


def test_options_reach_the_lines_that_take_them() -> None:
    changed = MINE.with_options(eps=0.5)
    assert [dict(line.options) for line in changed.rules] == [
        {"gamma": 0.5, "eps": 0.5},
        {},
        {"eps": 0.5},
        {},
    ]
    assert [dict(line.options) for line in MINE.with_options(gamma=2.0).rules] == [
        {"gamma": 2.0},
        {},
        {},
        {},
    ]
    assert changed.name == "mine"
    with pytest.raises(
        ReflError,
        match=exactly(
            "no rule of composite mine takes the option 'alpha'; it knows eps, gamma, stabilizer"
        ),
    ):
        MINE.with_options(eps=1.0, alpha=2.0)
    with pytest.raises(
        ReflError, match=exactly("no rule of composite bare takes the option 'eps'; it knows none")
    ):
        Composite("bare", (Rule("softmax", "taylor"),)).with_options(eps=1.0)
    sentence = (
        "composite cp-lrp is in gradient x input form, in which every eps cancels: leave eps "
        "out, or take another method"
    )
    with pytest.raises(ReflError, match=exactly(sentence)):
        CP_LRP.with_options(eps=1.0)


def test_a_table_spelled_out() -> None:
    assert MINE.as_dict() == {
        "name": "mine",
        "formulation": "relevance",
        "source": "a book",
        "summary": "a try",
        "score": "norm",
        "rules": [
            {
                "operation": "linear",
                "site": "*.mlp",
                "rule": "gamma",
                "options": {"gamma": 0.5, "eps": 0.0},
            },
            {"operation": "*_norm", "site": "*", "rule": "identity", "options": {}},
            {
                "operation": "linear",
                "site": "*",
                "rule": "epsilon",
                "options": {"eps": 1e-6, "stabilizer": "sign"},
            },
            {"operation": "softmax", "site": "*", "rule": "constant", "options": {}},
        ],
    }


def test_a_line_for_several_operations_has_the_options_of_each() -> None:
    several = Composite("several", (Rule("m*", "uniform"),))  # matmul and multiply
    assert several.as_dict()["rules"][0]["options"] == {
        "eps": 1e-6,
        "stabilizer": "sign",
        "denominator": "2z+eps",
    }
    assert several.with_options(eps=0.5).rules == (Rule("m*", "uniform", "*", (("eps", 0.5),)),)


@pytest.mark.parametrize("composite", [*METHODS.values(), MINE], ids=lambda c: str(c.name))
def test_a_table_comes_back(composite: Composite) -> None:
    again = from_saved(composite.as_dict())
    assert again.as_dict() == composite.as_dict()
    if not composite.name.endswith(
        ("explicit", "vit", "box")
    ):  # which state some defaults, and these are left out
        assert again == composite


def refused(sentence: str, *lines: Rule, formulation: str = "relevance") -> None:
    with pytest.raises(ReflError, match=exactly(sentence)):
        Composite("mine", lines, formulation)


def test_what_a_table_may_not_say() -> None:
    operations = ", ".join(RULES)
    refused("composite mine carries 'both': expected 'relevance' or 'gradient'", formulation="both")
    refused(
        f"composite mine names the operation 'conv'; there are {operations}",
        Rule("conv", "epsilon"),
    )
    linear_rules = "alpha_beta, epsilon, flat, gamma, w_square, z_box, z_plus"
    refused(
        "composite mine names the rule 'gama' for linear, which is in relevance form only "
        f"under: {linear_rules}",
        Rule("linear", "gama"),
    )
    refused(
        "composite mine names the rule 'gamma' for linear, which carries gradient only "
        "under: epsilon, gradient",
        Rule("linear", "gamma"),
        formulation="gradient_x_input",
    )
    refused(
        "composite mine names the rule 'gamma' for *_norm, which is in relevance form only "
        "under: epsilon, identity",
        Rule("*_norm", "gamma"),
    )


def test_what_an_option_may_not_be() -> None:
    def line(rule: str, operation: str = "linear", **options: Any) -> Rule:
        return Rule(operation, rule, options=tuple(options.items()))

    refused(
        "rule gamma for linear has no option 'gama'; it takes gamma, eps", line("gamma", gama=1.0)
    )
    refused(
        "rule taylor for softmax has no option 'mask'; it takes none",
        line("taylor", "softmax", mask=None),
    )
    refused(
        "stabilizer is 'signed': expected one of sign, plain, none",
        line("epsilon", stabilizer="signed"),
    )
    refused(
        "denominator is '2z': expected one of 2z+eps, 2(z+eps)",
        line("uniform", "matmul", denominator="2z"),
    )
    for value in (True, "1", math.inf, math.nan):
        refused(f"gamma is {value!r}: expected a finite number", line("gamma", gamma=value))
    for value in (0, -1.0, 0.0):
        refused(
            f"eps is {value!r}: expected a number above 0; for no stabilizer at all set "
            "stabilizer='none'",
            line("epsilon", eps=value),
        )
    for key in ("alpha", "beta"):
        refused(
            f"{key} is -0.5: expected a number of at least 0", line("alpha_beta", **{key: -0.5})
        )
    refused("gamma is -0.5: expected a number of at least 0", line("gamma", gamma=-0.5))
    for key in ("low", "high"):
        for value in ([], "0", True, [0.0, False], math.inf, [math.nan], [0.0, "1"], None):
            refused(
                f"{key} is {value!r}: expected a finite number, or a list of them",
                line("z_box", **{key: value}),
            )
    refused(
        "alpha_beta needs alpha - beta = 1, got alpha=2.0, beta=0.5", line("alpha_beta", beta=0.5)
    )
    refused(
        "alpha_beta needs alpha - beta = 1, got alpha=1.0, beta=1.0", line("alpha_beta", alpha=1.0)
    )
    refused(
        "alpha_beta needs alpha - beta = 1, got alpha=1.5, beta=0.50000000001",
        line("alpha_beta", alpha=1.5, beta=0.50000000001),
    )


def test_what_an_option_may_be() -> None:
    for rule, operation, chosen in (
        ("epsilon", "linear", {"eps": 1, "stabilizer": "plain"}),
        ("uniform", "matmul", {"denominator": "2(z+eps)", "eps": 1e-30}),
        ("gamma", "linear", {"gamma": 0}),
        ("alpha_beta", "linear", {"alpha": 1, "beta": 0}),
        ("alpha_beta", "linear", {"alpha": 1.1, "beta": 1.1 - 1}),  # 1e-16 off
        ("z_box", "linear", {"low": [-1, -2.5], "high": (0.0, 1)}),
        ("z_box", "linear", {"low": -3, "high": 0}),
    ):
        composite = Composite("mine", (Rule(operation, rule, options=tuple(chosen.items())),))
        assert composite.rule(operation, ["x"]).options == chosen


def test_an_unknown_method() -> None:
    sentence = (
        f"unknown method 'lrp': expected one of {', '.join(EXPECTED)}, or a .toml file with a "
        "composite"
    )
    with pytest.raises(ReflError, match=exactly(sentence)):
        method("lrp")


def test_a_composite_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(
        'name = "mine"\nbase = "gradient"\nsource = "a book"\n[[rule]]\noperation = '
        '"softmax"\nsite = "h.*"\nrule = "constant"\n',
        "utf-8",
    )
    mine, base = from_toml(file), METHODS["gradient"]
    assert mine.rules == (Rule("softmax", "constant", "h.*"), *base.rules)
    assert (mine.name, mine.formulation, mine.source, mine.summary, mine.score) == (
        "mine",
        "gradient",
        "a book",
        base.summary,
        "norm",
    )
    file.write_text(
        'carries = "gradient"\nsummary = "é"\n[[rule]]\noperation = "linear"\nrule = "epsilon"\n',
        "utf-8",
    )
    bare = from_toml(str(file))
    assert bare == Composite(str(file), (Rule("linear", "epsilon"),), "gradient", "", "é")
    file.write_text(
        '[[rule]]\noperation = "linear"\nrule = "gamma"\ngamma = 0.5\neps = 0.25\n', "utf-8"
    )
    assert from_toml(file).rules == (Rule("linear", "gamma", "*", (("gamma", 0.5), ("eps", 0.25))),)


def test_a_composite_without_lines() -> None:
    assert from_dict({}, "here") == Composite("here", ())
    assert from_dict({"base": "cp-lrp", "summary": 3}, "here") == Composite(
        "here", CP_LRP.rules, "gradient", CP_LRP.source, "3"
    )


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"nam": 1, "z": 2}, "here has the unknown key 'nam'; a composite has name, base, carries, source, " "summary, [[rule]]"),
        ({"rule": 3}, "here: expected [[rule]] tables, got 3"),
        ({"rule": [3]}, "here: expected [[rule]] tables, got [3]"),
        ({"rule": [{"operation": "linear"}]}, "here: every [[rule]] needs an operation and a rule, got {'operation': 'linear'}"),
        ({"rule": [{"rule": "flat"}]}, "here: every [[rule]] needs an operation and a rule, got {'rule': 'flat'}"),
        ({"rule": [{"operation": "linear", "rule": 1}]}, "here: every [[rule]] needs an operation and a rule, got {'operation': 'linear', " "'rule': 1}"),
    ],
)  # fmt: skip
def test_what_a_file_may_not_say(content: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ReflError, match=exactly(sentence)):
        from_dict(content, "here")


@pytest.mark.parametrize("content", [b"name = ", b"\xff\xfe", None])
def test_a_file_that_cannot_be_read(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "mine.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(
        ReflError, match=f"^cannot read the composite {re.escape(str(file))}: .+"
    ) as caught:
        from_toml(file)
    assert caught.value.__cause__ is not None and str(caught.value).endswith(
        str(caught.value.__cause__)
    )


def test_a_composite_is_read_as_utf_8_in_any_locale(tmp_path: Path, monkeypatch: Any) -> None:
    """What Python would take where nothing is said depends on the machine."""
    said: list[Any] = []
    read = Path.read_text

    def spy(path: Path, encoding: str | None = None) -> str:
        said.append(encoding)
        return read(path, encoding=encoding)

    monkeypatch.setattr(Path, "read_text", spy)
    file = tmp_path / "mine.toml"
    file.write_text('summary = "é"', "utf-8")
    assert from_toml(file).summary == "é" and [str(e).lower() for e in said] == ["utf-8"]


def test_a_position_that_does_not_count_is_no_part_of_the_mean() -> None:
    counted = np.asarray([[[1.0], [0.0], [1.0]], [[0.0], [1.0], [0.0]]])
    mean = pooling.forward(X, counted=counted)
    assert np.abs(mean - np.stack([(X[0, 0] + X[0, 2]) / 2, X[1, 1]])[:, None]).max() <= 1e-15


def test_what_is_judged_equivalent_stands_in_the_source() -> None:
    """The table is kept up: it names no line that is gone."""
    for why, file, changes in mutation.EQUIVALENT:
        source = (mutation.PROJECT / file).read_text(encoding="utf-8")
        assert all(old in source and old != new for old, new in changes), f"{file}: {why}"


# -- where code is run -----------------------------------------------------------------------------


def test_the_folder_of_rules_is_no_package_of_its_own() -> None:
    spec = rules.__spec__
    assert spec is not None and isinstance(spec.loader, InspectLoader)
    code = spec.loader.get_code(spec.name)
    assert code is not None
    FunctionType(code, {"__name__": "refl.rules"})()
    sentence = (
        "this folder is the package refl.rules; install the project (pip install -e .) and "
        "import that name"
    )
    with pytest.raises(ImportError, match=exactly(sentence)):
        FunctionType(code, {"__name__": "rules"})()


def test_rows_are_gathered_where_asarray_knows_no_device(monkeypatch: Any) -> None:
    """As CuPy's, which puts arrays on the current device."""

    class Elsewhere(np.ndarray):  # type: ignore[type-arg]
        __module__ = "cupy"

    fake = ModuleType("cupy")
    for name in ("reshape", "concat", "zeros_like", "take", "int64"):
        setattr(fake, name, getattr(np, name))
    fake.asarray = lambda values, dtype: np.asarray(values, dtype=dtype)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cupy", fake)
    index = ((2, None), (0, 1))
    got = gather.rows(X.view(Elsewhere), index)
    assert np.asarray(got).tolist() == [[X[0, 2].tolist(), [0.0] * N], X[1, :2].tolist()]
