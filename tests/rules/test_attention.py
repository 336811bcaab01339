"""Attention in blocks of queries against the three plain operations: relevance and conservation
ledger.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from hand_arrays import B

from refl.ledger import Ledger
from refl.rules import (
    attention,
    matmul,
    softmax,
)
from refl.rules.composites import (
    ATTNLRP,
    CP_LRP,
    INPUT_X_GRADIENT,
    Composite,
    Rule,
)
from refl.sweep import Sweep
from refl.trace import Trace, Value

RANDOM = np.random.default_rng(14)
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


def test_blocks_may_absorb_under_different_entries() -> None:
    one, two = np.asarray([1.0]), np.asarray([2.0])
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


@pytest.mark.parametrize("causal", [True, False])
def test_attention_in_blocks(causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 2 queries give what the three plain operations give."""
    monkeypatch.setattr(attention, "ROWS", 2)
    random = np.random.default_rng(3)
    q, k, v, r = (random.normal(size=(1, 2, 5, 3)) for _ in range(4))
    mask = np.tril(np.ones((5, 5), dtype=bool))[None, None] if causal else None
    scores = q @ k.swapaxes(-1, -2)
    p = softmax.forward(scores, mask=mask)
    z = p @ v
    assert np.abs(attention.forward(q, k, v, mask=mask, causal=causal) - z).max() <= 1e-14
    to_p, to_v = matmul.uniform(p, v, z, r).inputs
    to_scores = softmax.taylor(scores, p, to_p, mask=mask).inputs[0]
    to_q, to_k = matmul.uniform(q, k.swapaxes(-1, -2), scores, to_scores).inputs
    rules = (partial(matmul.uniform), partial(softmax.taylor), partial(matmul.uniform))
    shares, _ = attention.sweep(
        q,
        k,
        v,
        z,
        r,
        mask=mask,
        causal=causal,
        rules=rules,
        measure=lambda x, c: c.sum(axis=(1, 2, 3)),
        size=None,
    )
    for got, wanted in zip(shares, (to_q, to_k.swapaxes(-1, -2), to_v), strict=True):
        assert np.abs(got - wanted).max() <= 1e-12 * np.abs(wanted).max()
