"""Attention in parts of its queries, and by tiles, against the plain operations: relevance and
conservation ledger. More of tiles is in test_tiles.py.
"""

from __future__ import annotations

import numpy as np
import pytest
from attentions import FAST, Given, Operands, attended, counted, in_form, same_ledger
from hand_arrays import B

from refl import trace
from refl.ledger import Entry
from refl.mask import Mask
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
OPERANDS = Operands(Q, K, V)
CAUSAL = Mask(Q, 5, 5, causal=True)
MASKS = {
    "none": None,
    "causal": CAUSAL,
    "in the first block": Given(np.arange(25).reshape(1, 1, 5, 5) != 3),
    "in the last block": Given(np.arange(25).reshape(1, 1, 5, 5) != 22),
}


@pytest.mark.parametrize(
    "composite",
    [ATTNLRP, OTHER_OPTIONS, CONSTANT, IDENTITY, CP_LRP, INPUT_X_GRADIENT],
    ids=lambda c: str(c.name),
)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("form", FAST)
def test_each_form_has_the_ledger_of_the_plain_operations(
    composite: Composite, mask: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same sites, rules and numbers as three records: what each received, passed on and
    absorbed, and where the sweep is audited its terms. An audit runs in parts in either form.
    """
    in_form(monkeypatch, form)
    for audit in (False, True):
        plain, fast = (
            attended(composite, OPERANDS, MASKS[mask], plain=how, audit=audit)
            for how in (True, False)
        )
        assert fast.swept.ledger.entries[0].site == "layer.0.attn.context"
        terms = max(1.0, *(np.abs(e.received).max() for e in plain.swept.ledger))
        same_ledger(fast.swept, plain.swept, 1e-12 * terms)
        for site, relevance in plain.swept.propagated.items():
            deviation = np.abs(fast.swept.propagated[site] - relevance).max()
            assert deviation <= 1e-12 * (1 + np.abs(relevance).max())
        for entry in fast.swept.ledger:
            same_terms(entry, plain.swept.entries[entry.site])


def same_terms(entry: Entry, wanted: Entry) -> None:
    if entry.rounding_scale is None or wanted.rounding_scale is None:
        assert entry.rounding_scale is wanted.rounding_scale
        return
    more = entry.rounding_scale - wanted.rounding_scale
    if entry.operation == "movement":  # of keys that several parts read: sums of more terms
        assert (more >= -1e-12).all()
    else:
        assert np.abs(more).max() <= 1e-12 * wanted.rounding_scale.max(), entry.site


@pytest.mark.parametrize("form", FAST)
def test_attention_is_audited_only_on_demand(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    in_form(monkeypatch, form)
    for audit in (False, True):
        ledger = attended(ATTNLRP, OPERANDS, plain=False, audit=audit).swept.ledger
        assert [entry.rounding_scale is not None for entry in ledger] == [audit] * 7


def with_a_residual(composite: Composite, plain: bool) -> tuple[Trace, Swept, int]:
    """A trace whose queries are read once more behind the attention, its sweep, and how often that
    reported.
    """
    t, visits = Trace({}, plain=plain), []
    q = t.scale("q", Value(Q, "Q"), 1.0)
    z = t.attention(q, Value(K, "K"), Value(V, "V"), None)
    y = t.add("y", z, q)
    sweep = Sweep(composite, keep=lambda names: True, progress=lambda: visits.append(1))
    return t, sweep.run(t, y, np.cos(y.array)), len(visits)


@pytest.mark.parametrize("composite", [ATTNLRP, ATTNLRP_GRADIENT], ids=lambda c: str(c.name))
@pytest.mark.parametrize("form", FAST)
def test_what_was_passed_on_before_stays_as_it_is(
    form: str, composite: Composite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is added in place to what the sum behind passed on to the queries, which in gradient
    x input form is the array that it passed on to the attention.
    """
    in_form(monkeypatch, form)
    (_, plain, _), (_, fast, _) = (with_a_residual(composite, how) for how in (True, False))
    for site, wanted in plain.propagated.items():
        if site in fast.propagated:
            assert np.abs(fast.propagated[site] - wanted).max() <= 1e-12 * np.abs(wanted).max()
    assert {"q", "context", "y"} <= plain.propagated.keys() & fast.propagated.keys()


@pytest.mark.parametrize("form", FAST)
def test_attention_keeps_and_reports_whole_records(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing inside of it is kept or reported."""
    in_form(monkeypatch, form)
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
    t.attention(q, k, v, CAUSAL if causal else None)
    return list(t.records[-1].parts)


@pytest.mark.parametrize("form", FAST)
def test_parts_of_attention(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some queries after others, with the keys that they can see."""
    in_form(monkeypatch, form)
    every = [slice(0, 2), slice(2, 4), slice(4, 5)]
    for found, seen in ((parts(True), (2, 4, 5)), (parts(False, 7), (7, 7, 7))):
        assert [part.output[1] for part in found] == every
        assert [part.inputs[0] for part in found] == [part.output for part in found]
        assert [part.inputs[1][1].stop for part in found] == list(seen)
        assert all(part.inputs[1] == part.inputs[2] and not part.whole for part in found)


def test_few_pairs_are_plain_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to FEW pairs of a query and a key; beyond, none of the scores has a record."""
    for few, wanted in ((25, ["movement", "matmul", "softmax", "matmul"]), (24, ["attention"])):
        monkeypatch.setattr(trace, "FEW", few)
        t = Trace({}, plain=False)
        t.attention(Value(Q, "q"), Value(K, "k"), Value(V, "v"), CAUSAL)
        assert [record.operation for record in t.records] == wanted


def test_a_causal_part_never_looks_at_later_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last key and value are no numbers:
    what the first queries give and get is untouched by them.
    """
    in_form(monkeypatch, "parts", 4)
    k, v = K.copy(), V.copy()
    k[..., 4, :] = v[..., 4, :] = np.nan
    fast = attended(ATTNLRP, Operands(Q, k, v), CAUSAL, plain=False, seed=np.ones_like)
    assert np.isfinite(fast.z[..., :4, :]).all() and np.isnan(fast.z[..., 4, :]).all()
    assert np.isfinite(fast.to("q")[..., :4, :]).all()


def test_a_causal_tile_never_looks_at_later_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever they are: the first queries, none of which shares a tile with the last key, give and
    get the same to the last bit.
    """
    in_form(monkeypatch, "tiles", 4, 4)
    ran = counted(monkeypatch, "sweep")
    k, v = K.copy(), V.copy()
    k[..., 4, :] = v[..., 4, :] = 7.0
    one, other = (
        attended(ATTNLRP, Operands(Q, *kv), CAUSAL, plain=False, seed=np.ones_like)
        for kv in ((K, V), (k, v))
    )
    assert len(ran) == 2 and not np.array_equal(one.z[..., 4, :], other.z[..., 4, :])
    assert np.array_equal(one.z[..., :4, :], other.z[..., :4, :])
    assert np.array_equal(one.to("q")[..., :4, :], other.to("q")[..., :4, :])


def test_parts_may_absorb_under_different_causes() -> None:
    one, two = np.asarray([1.0]), np.asarray([2.0])
    first = Entry("z", "matmul", "uniform", one, {"a": one}, {"a": one, "b": one}, one)
    second = Entry("z", "matmul", "uniform", two, {"a": two}, {"b": two, "c": two}, two)
    whole = first + second
    assert {k: list(v) for k, v in whole.absorbed.items()} == {"a": [1], "b": [3], "c": [2]}
    assert list(whole.received) == list(whole.passed["a"]) == [3]
    assert whole.rounding_scale is not None and list(whole.rounding_scale) == [3]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("form", FAST)
def test_each_form_against_the_rules(
    form: str, causal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the rules of the three plain operations give, one by one."""
    in_form(monkeypatch, form)
    mask = np.tril(np.ones((5, 5), dtype=bool))[None, None] if causal else None
    scores = Q @ K.swapaxes(-1, -2)
    p = softmax.forward(scores, mask=mask)
    z = p @ V
    r = np.cos(z)
    to_p, to_v = matmul.uniform(p, V, z, r).inputs
    to_scores = softmax.taylor(scores, p, to_p, mask=mask).inputs[0]
    to_q, to_k = matmul.uniform(Q, K.swapaxes(-1, -2), scores, to_scores).inputs
    fast = attended(ATTNLRP, OPERANDS, CAUSAL if causal else None, plain=False)
    assert np.abs(fast.z - z).max() <= 1e-12
    for name, wanted in (("q", to_q), ("k", to_k.swapaxes(-1, -2)), ("v", to_v)):
        assert np.abs(fast.to(name) - wanted).max() <= 1e-12 * np.abs(wanted).max()
