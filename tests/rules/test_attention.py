"""Attention in parts of its queries against the three plain operations:
relevance and conservation ledger.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hand_arrays import B

from refl import trace
from refl.ledger import Entry, Ledger
from refl.rules import matmul, softmax
from refl.rules.composites import Composite, Rule
from refl.rules.published import ATTNLRP, ATTNLRP_GRADIENT, CP_LRP, INPUT_X_GRADIENT
from refl.sweep import Sweep, Swept
from refl.trace import Part, Trace, Value

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
    sweep = Sweep(composite, audit=audit, keep=lambda names: names[0][-2:] in (".q", ".k", ".v"))
    swept = sweep.run(t, z, np.cos(z.array))
    return swept.ledger, swept.propagated


@pytest.mark.parametrize(
    "composite",
    [ATTNLRP, OTHER_OPTIONS, CONSTANT, IDENTITY, CP_LRP, INPUT_X_GRADIENT],
    ids=lambda c: str(c.name),
)
@pytest.mark.parametrize("mask", MASKS)
def test_attention_in_parts_has_the_ledger_of_the_plain_operations(
    composite: Composite, mask: str, monkeypatch: Any
) -> None:
    """The same sites, rules and numbers as three records: what each received, passed on and
    absorbed, and its terms.
    """
    monkeypatch.setattr(trace, "QUERIES", 2)
    (plain, propagated), (fast, fast_propagated) = (
        attended(composite, MASKS[mask], how, mask == "causal") for how in (True, False)
    )
    sites = [entry.site for entry in fast]
    assert set(sites) == {entry.site for entry in plain}
    assert sites[0] == "layer.0.attn.context"
    for entry in fast:
        wanted = plain[entry.site]
        assert (entry.operation, entry.rule) == (wanted.operation, wanted.rule)
        passed = wanted.passed
        assert entry.passed.keys() == passed.keys()
        assert entry.absorbed.keys() == wanted.absorbed.keys()
        for got, want in (
            (entry.received, wanted.received),
            *((entry.passed[name], passed[name]) for name in passed),
            *((entry.absorbed[name], wanted.absorbed[name]) for name in wanted.absorbed),
        ):
            assert np.abs(got - want).max() <= 1e-12 * (1 + np.abs(want).max()), entry.site
        assert entry.rounding_scale is not None and wanted.rounding_scale is not None
        more = entry.rounding_scale - wanted.rounding_scale
        if entry.operation == "movement":  # of keys that several parts read: sums of more terms
            assert (more >= -1e-12).all()
        else:
            assert np.abs(more).max() <= 1e-12 * wanted.rounding_scale.max(), entry.site
    for site, relevance in propagated.items():
        assert np.abs(fast_propagated[site] - relevance).max() <= 1e-12 * (
            1 + np.abs(relevance).max()
        )


def test_attention_in_parts_is_audited_only_on_demand() -> None:
    assert [
        entry.rounding_scale for entry in attended(ATTNLRP, None, False, False, audit=False)[0]
    ] == [None] * 7


def with_a_residual(composite: Composite, plain: bool) -> tuple[Trace, Swept, int]:
    """A trace whose queries are read once more behind the attention, its sweep, and how often that
    reported.
    """
    t, visits = Trace({}, plain=plain), []
    q = t.scale("q", Value(Q, "Q"), 1.0)
    z = t.attention(q, Value(K, "K"), Value(V, "V"), None, causal=False)
    y = t.add("y", z, q)
    sweep = Sweep(composite, keep=lambda names: True, progress=lambda: visits.append(1))
    return t, sweep.run(t, y, np.cos(y.array)), len(visits)


@pytest.mark.parametrize("composite", [ATTNLRP, ATTNLRP_GRADIENT], ids=lambda c: str(c.name))
def test_what_was_passed_on_before_stays_as_it_is(
    composite: Composite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts add nothing in place to what the sum behind them passed on to the queries, which in
    gradient x input form is the array that it passed on to the attention.
    """
    monkeypatch.setattr(trace, "QUERIES", 2)
    (_, plain, _), (_, fast, _) = (with_a_residual(composite, how) for how in (True, False))
    for site, wanted in plain.propagated.items():
        if site in fast.propagated:
            assert np.abs(fast.propagated[site] - wanted).max() <= 1e-12 * np.abs(wanted).max()
    assert {"q", "context", "y"} <= plain.propagated.keys() & fast.propagated.keys()


def test_parts_keep_nothing_and_report_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept, and what is reported, is whole records."""
    monkeypatch.setattr(trace, "QUERIES", 2)
    t, swept, visits = with_a_residual(ATTNLRP, False)
    assert visits == len(t.records) == 3
    assert set(swept.propagated) == {"q", "context", "y"}


def parts(causal: bool, keys: int = 5) -> list[Part]:
    t, (q, k, v) = (
        Trace({}, plain=False),
        (Value(a, name) for a, name in ((Q, "q"), (K, "k"), (V, "v"))),
    )
    other = np.zeros((B, 2, keys, 3))
    k, v = (k, v) if keys == 5 else (Value(other, "k"), Value(other, "v"))
    t.attention(q, k, v, None, causal=causal)
    return list(t.records[-1].parts)


def test_parts_of_attention(monkeypatch: Any) -> None:
    """Some queries after others, with the keys that they can see."""
    monkeypatch.setattr(trace, "QUERIES", 2)
    every = [slice(0, 2), slice(2, 4), slice(4, 5)]
    for found, seen in ((parts(True), (2, 4, 5)), (parts(False, 7), (7, 7, 7))):
        assert [part.output[1] for part in found] == every
        assert [part.inputs[0] for part in found] == [part.output for part in found]
        assert [part.inputs[1][1].stop for part in found] == list(seen)
        assert all(part.inputs[1] == part.inputs[2] and not part.whole for part in found)


def test_a_causal_part_never_looks_at_later_keys(monkeypatch: Any) -> None:
    """The last key and value are no numbers:
    what the first queries give and get is untouched by them.
    """
    monkeypatch.setattr(trace, "QUERIES", 4)
    k, v = K.copy(), V.copy()
    k[..., 4, :] = v[..., 4, :] = np.nan
    t = Trace({}, plain=False)
    q = t.scale("q", Value(Q, "Q"), 1.0)
    z = t.attention(q, Value(k, "k"), Value(v, "v"), MASKS["causal"], causal=True)
    assert np.isfinite(z.array[..., :4, :]).all() and np.isnan(z.array[..., 4, :]).all()
    swept = Sweep(ATTNLRP, keep=lambda names: "q" in names).run(t, z, np.ones_like(z.array))
    assert np.isfinite(swept.propagated["q"][..., :4, :]).all()


def test_parts_may_absorb_under_different_causes() -> None:
    one, two = np.asarray([1.0]), np.asarray([2.0])
    first = Entry("z", "matmul", "uniform", one, {"a": one}, {"a": one, "b": one}, one)
    second = Entry("z", "matmul", "uniform", two, {"a": two}, {"b": two, "c": two}, two)
    whole = first + second
    assert {k: list(v) for k, v in whole.absorbed.items()} == {"a": [1], "b": [3], "c": [2]}
    assert list(whole.received) == list(whole.passed["a"]) == [3]
    assert whole.rounding_scale is not None and list(whole.rounding_scale) == [3]


@pytest.mark.parametrize("causal", [True, False])
def test_attention_in_parts_against_the_rules(
    causal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts of 2 queries give what the rules of the three plain operations give, one by one."""
    monkeypatch.setattr(trace, "QUERIES", 2)
    mask = MASKS["causal" if causal else "none"]
    scores = Q @ K.swapaxes(-1, -2)
    p = softmax.forward(scores, mask=mask)
    z = p @ V
    r = np.cos(z)
    to_p, to_v = matmul.uniform(p, V, z, r).inputs
    to_scores = softmax.taylor(scores, p, to_p, mask=mask).inputs[0]
    to_q, to_k = matmul.uniform(Q, K.swapaxes(-1, -2), scores, to_scores).inputs
    _, propagated = attended(ATTNLRP, mask, False, causal)
    for name, wanted in (("q", to_q), ("k", to_k.swapaxes(-1, -2)), ("v", to_v)):
        got = propagated[f"layer.0.attn.{name}"]
        assert np.abs(got - wanted).max() <= 1e-12 * np.abs(wanted).max()
