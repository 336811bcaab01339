"""Edits of activations: against nets whose weights say the same, against the surrogate's gradient,
against finite differences, and one way of running against every other.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from backends import BESIDE_NUMPY, Backend

from refl import Edit, ReflError
from refl.arrays import asnumpy
from refl.explanation import Explanation
from refl.model import Model
from refl.question import Question
from refl.rules.composites import Composite
from refl.rules.published import METHODS
from refl.trace import Trace
from refl.verification.compare.compare import compare
from refl.verification.compare.oracle import read
from refl.verification.definitions import surrogate
from refl.verification.random_models import (
    ALBERT,
    BERT,
    GPT2,
    LLAMA,
    MIXTRAL,
    T5,
    VIT,
    moved,
    random_model,
    with_weights,
)

IDS = [3, 1, 4, 1, 5]
LONG = [(7 * t * t + 3 * t) % 17 for t in range(70)]
"""More pairs of a query and a key than are held."""

LAYER = "model.layers.0"
ATTENTION = f"{LAYER}.self_attn"


@pytest.fixture(scope="module")
def llama() -> Model:
    return random_model(LLAMA, 1)


def scaled(model: Model, factor: float, *names: str) -> Model:
    return with_weights(
        model, **{f"{n}.weight": factor * model.weights[f"{n}.weight"] for n in names}
    )


# -- another net, whose weights say the same -------------------------------------------------------

QKV = [f"{ATTENTION}.{name}" for name in ("q_proj", "k_proj", "v_proj")]

SAME: dict[str, tuple[str, list[str]]] = {
    "the input of attention": (f"{ATTENTION}.input", QKV),
    "that of the queries alone": (f"{QKV[0]}.input", QKV[:1]),
    "queries": (f"{ATTENTION}.query", QKV[:1]),
    "scores": (f"{ATTENTION}.scores", QKV[:1]),
    "scores before": (f"{ATTENTION}.key.transposed", QKV[1:2]),
    "probabilities": (f"{ATTENTION}.probabilities", QKV[2:]),
    "context": (f"{ATTENTION}.context", [f"{ATTENTION}.o_proj"]),
    "a module": (ATTENTION, [f"{ATTENTION}.o_proj"]),
    "the input of a norm's reader": (
        f"{LAYER}.mlp.input",
        [f"{LAYER}.mlp.gate_proj", f"{LAYER}.mlp.up_proj"],
    ),
    "a product": (f"{LAYER}.mlp.gated", [f"{LAYER}.mlp.down_proj"]),
    "embeddings": ("model.embed_tokens", ["model.embed_tokens"]),
    "the first block's input": (f"{LAYER}.input", ["model.embed_tokens"]),
    "the head": ("lm_head", ["lm_head"]),
}


@pytest.mark.parametrize("ids", [IDS, LONG], ids=["few", "many"])
@pytest.mark.parametrize(("site", "tensors"), SAME.values(), ids=SAME)
def test_twice_an_activation_is_twice_the_weights(
    site: str, tensors: list[str], ids: list[int], llama: Model
) -> None:
    """Times 2 rounds nothing: as many digits agree as sums in another order leave."""
    other = scaled(llama, 2.0, *tensors).logits(ids)
    edited = llama.logits(ids, edits={site: Edit(factor=2)})
    recorded = Question(llama, edits={site: Edit(factor=2)}).forward(llama.readings([ids])).rows
    np.testing.assert_allclose(edited, other, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(recorded[0], other[-1], rtol=1e-11, atol=1e-11)
    assert np.abs(edited[-1] - llama.logits(ids)[-1]).max() > 1e-6


def test_a_neuron_is_a_row_of_the_weights(llama: Model) -> None:
    name = f"{LAYER}.mlp.down_proj.weight"
    without = np.array(llama.weights[name])
    without[:, 3] = 0
    off = llama.logits(IDS, edits={f"{LAYER}.mlp.gated": Edit(factor=0, index=(..., 3))})
    np.testing.assert_allclose(off, with_weights(llama, **{name: without}).logits(IDS), atol=1e-12)


def test_a_bias_is_an_amount() -> None:
    net = random_model(GPT2, 2)
    name, more = "transformer.h.0.mlp.c_fc.bias", np.linspace(-1, 1, 24)
    other = with_weights(net, **{name: net.weights[name] + more})
    edited = net.logits(IDS, edits={"transformer.h.0.mlp.c_fc": Edit(amount=more)})
    np.testing.assert_allclose(edited, other.logits(IDS), atol=1e-12)


def test_a_token_in_place_of_another(llama: Model) -> None:
    rows = llama.weights["model.embed_tokens.weight"]
    edit = {"model.embed_tokens": Edit(0, rows[9], (2,))}
    np.testing.assert_allclose(
        llama.logits(IDS, edits=edit), llama.logits([3, 1, 9, 1, 5]), atol=1e-12
    )


# -- one way of running against another ------------------------------------------------------------


def _inputs(model: Model) -> dict[str, Any]:
    if model.takes_images:
        shape = (model.config.num_channels, *model.config.image)
        return {"items": [np.random.default_rng(0).normal(size=shape)]}
    return {"items": [IDS], "decoder": [0, 2, 1] if model.task == "sequence-to-sequence" else None}


@pytest.mark.parametrize(
    "config", [LLAMA, GPT2, ALBERT, BERT, T5, VIT, MIXTRAL], ids=lambda c: c["model_type"]
)
def test_every_site_in_every_run(config: dict[str, Any]) -> None:
    """Recorded, unrecorded, block by block: the same bits, and the site is met once."""
    model = random_model(config, 3)
    readings = model.readings(**_inputs(model))
    position = 1 if model.task == "masked-token" else None
    sites = Question(model, position=position).forward(readings, plain=True).trace.values
    outside = Question(model, position=position, recompute=True).forward(readings).trace.values
    edit = Edit(0.5, 0.1, (..., 0))
    for site in {*outside, *list(sites)[:: 4 if len(sites) > 70 else 2]}:
        question = Question(model, edits={site: edit}, position=position)
        again = Question(model, edits={site: edit}, position=position, recompute=True)
        forward = question.forward(readings)
        np.testing.assert_array_equal(forward.rows, question.rows(readings), err_msg=site)
        np.testing.assert_array_equal(forward.rows, again.forward(readings).rows, err_msg=site)
        names = {site, f"{site}.edited"}
        assert names <= set(forward.trace.values), site
        before, after = (
            asnumpy(forward.trace.values[name].array) for name in sorted(names, key=len)
        )
        np.testing.assert_array_equal(after, edit(before), err_msg=site)


@pytest.mark.parametrize("parts", [False, True], ids=["tiles", "parts"])
@pytest.mark.parametrize(
    "site", [f"{ATTENTION}.context", f"{ATTENTION}.scores", f"{ATTENTION}.probabilities"]
)
def test_long_attention(
    site: str, parts: bool, llama: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As recorded operations, in tiles, and some queries at a time."""
    if parts:
        monkeypatch.setattr(Trace, "_tiled", lambda *_: None)
        monkeypatch.setattr("refl.trace.QUERIES", 32)
    edits = {site: Edit(0.5, 0.2, (1, slice(60, None)))}
    plain = llama.explain(LONG, edits=edits, keep="*")
    for how in ({}, {"recompute": True}):
        e = llama.explain(LONG, edits=edits, keep=(), **how)
        np.testing.assert_allclose(e.relevance, plain.relevance, rtol=0, atol=1e-12)
        assert math.isclose(e.ledger.absorbed["edit"], plain.ledger.absorbed["edit"], abs_tol=1e-12)


def test_a_list_of_texts_is_each_alone() -> None:
    """-1 is the last token of each, not padding."""
    model = random_model(MIXTRAL, 1)
    texts, edits = [IDS, [2, 7], [9, 9, 4], [5, 6, 7]], {LAYER: Edit(0, 0.5, (-1, slice(0, 5)))}
    for text, e in zip(texts, model.explain(texts, edits=edits, keep=()), strict=True):
        alone = model.explain(text, edits=edits, keep=())
        np.testing.assert_allclose(e.relevance, alone.relevance, atol=1e-12)
        assert math.isclose(
            e.logit, model.logits(text, edits=edits)[-1, e.target_id], abs_tol=1e-12
        )


def test_an_expert_that_no_token_chose() -> None:
    """Which run is decided by the text: an edit of one that does not is no slip."""
    model = random_model(MIXTRAL, 1)
    name = "model.layers.0.block_sparse_moe.experts.{}"
    ran = {s for s in model.explain([2], keep="*") if ".layers.0." in s and s.endswith("weighted")}
    chosen = [e for e in range(8) if f"{name.format(e)}.weighted" in ran]
    idle = next(e for e in range(model.config.num_local_experts) if e not in chosen)
    plain = model.logits([2])
    off = [model.logits([2], edits={name.format(e): Edit(0)}) for e in (idle, chosen[0])]
    np.testing.assert_allclose(off[0], plain, atol=1e-12)
    assert np.abs(off[1] - plain).max() > 1e-3
    with pytest.raises(ReflError, match="no site of this model"):
        model.logits([2], edits={name.format(99): Edit(0)})


@pytest.mark.parametrize("backend", BESIDE_NUMPY, indirect=True)
def test_wherever_arrays_lie(backend: Backend, llama: Model) -> None:
    edits = {
        f"{ATTENTION}.probabilities": Edit(np.full(5, 0.5), 0.1, (0,)),
        f"{LAYER}.mlp.input": Edit(0.0, np.linspace(0, 1, 16), (-1,)),
        f"{LAYER}": Edit(2),
    }
    there = moved(llama, backend.place)
    for how in ({}, {"recompute": True}):
        a, b = (m.explain(IDS, edits=edits, keep=(), **how) for m in (llama, there))
        np.testing.assert_allclose(a.relevance, b.relevance, rtol=0, atol=1e-11)
    np.testing.assert_allclose(
        llama.logits(IDS, edits=edits), there.logits(IDS, edits=edits), atol=1e-11
    )


# -- relevance -------------------------------------------------------------------------------------

CHANGES: dict[str, dict[str, Edit]] = {
    "off": {f"{LAYER}.mlp": Edit(0)},
    "a neuron in place": {f"{LAYER}.mlp.act_fn": Edit(0, 0.3, (..., 2))},
    "an input": {"model.layers.1.self_attn.input": Edit(0.5)},
    "steered": {LAYER: Edit(amount=np.linspace(-1, 1, 16), index=(1,))},
    "probabilities": {"model.layers.1.self_attn.probabilities": Edit(0.5, 0.01, (..., 1))},
    "scores": {"model.layers.1.self_attn.scores": Edit(0.3, index=(2,))},
    "a word": {"model.embed_tokens": Edit(0, 0, (2,))},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_the_account_closes_in_every_table(change: dict[str, Edit], llama: Model) -> None:
    tables = [table for table in METHODS.values() if isinstance(table, Composite)]
    for table in tables:
        e = llama.explain(IDS, table, edits=change, keep=(), audit=True)
        assert abs(e.ledger.conservation_error) <= e.ledger.rounding_bound, table.name
        met = any(entry.site.endswith(".edited") for entry in e.ledger)
        assert met or table.name.startswith("cp-lrp"), (
            table.name
        )  # it gives gates and scores nothing
    assert len(tables) >= 10


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_sites_are_the_same_block_by_block(change: dict[str, Edit], llama: Model) -> None:
    a = llama.explain(IDS, edits=change, keep="*")
    b = llama.explain(IDS, edits=change, keep="*", recompute=True)
    assert set(a) == set(b) and dict(a.sites.aliases) == dict(b.sites.aliases)
    for site in a:
        np.testing.assert_array_equal(a[site], b[site], err_msg=site)
        np.testing.assert_array_equal(a.activation(site), b.activation(site), err_msg=site)


def _as_functions(edits: dict[str, Edit]) -> dict[str, Callable[[Any], Any]]:
    return {site: edit.__call__ for site, edit in edits.items()}


@pytest.mark.parametrize("change", list(CHANGES.values())[:-1], ids=list(CHANGES)[:-1])
@pytest.mark.parametrize(
    ("method", "variant"),
    [("attnlrp-gradient", "attnlrp"), ("input-x-gradient", "gradient")],
)
def test_relevance_is_activation_times_the_surrogates_gradient(
    method: str, variant: str, change: dict[str, Edit], llama: Model
) -> None:
    """Identity 2, of an edited run: by a complex step through the frozen net."""
    t, _ = llama.trace([IDS], edits=change)
    around = {r.output.site: r for r in t.records}
    e, site = llama.explain(IDS, method, edits=change, keep=()), "model.embed_tokens"
    x = asnumpy(t.values[site].array)
    for token in range(len(IDS)):
        step = np.zeros(x.shape, dtype=complex)
        step[:, token] = 1j * surrogate.STEP * x[:, token]
        edits = _as_functions(change) | {site: lambda a, step=step: a + step}
        z = surrogate.logits(llama, IDS, around, variant=variant, edits=edits)
        expected = z[0, e.target_id].imag / surrogate.STEP
        assert math.isclose(e.relevance[token], expected, rel_tol=1e-9, abs_tol=1e-10)


@pytest.mark.parametrize("change", list(CHANGES.values())[:-1], ids=list(CHANGES)[:-1])
def test_the_gradient_is_that_of_the_edited_net(change: dict[str, Edit], llama: Model) -> None:
    """By differences: of a run that is not recorded, from leaves that are moved."""
    question, readings = Question(llama, edits=change), llama.readings([IDS])
    forward = question.forward(readings)
    seeds = question.seeds(forward, [(None, None)])
    table = METHODS["input-x-gradient"]
    gradient = question.gradients(forward, seeds, ["model.embed_tokens"], table)
    x, h = forward.leaf("model.embed_tokens"), 1e-5
    direction = np.random.default_rng(1).normal(size=x.shape)
    up, down = (
        question.rows(readings, leaves={"model.embed_tokens": x + s * h * direction})[0]
        for s in (1, -1)
    )
    target = seeds[0].target
    slope = (up[target] - down[target]) / (2 * h)
    found = float((gradient["model.embed_tokens"] * direction).sum())
    assert math.isclose(found, slope, rel_tol=1e-6, abs_tol=1e-7)


def test_what_is_put_in_place_receives_everything(llama: Model) -> None:
    """Nothing comes to the text where the last norm's output is a constant."""
    edits = {"model.norm": Edit(0, np.linspace(-1, 1, 16))}
    e = llama.explain(IDS, edits=edits, keep=())
    np.testing.assert_array_equal(e.relevance, 0)
    absorbed = dict(e.ledger.absorbed)
    assert math.isclose(absorbed.pop("edit"), e.explained - sum(absorbed.values()), rel_tol=1e-12)
    assert set(absorbed) <= {"stabilizer"} and abs(sum(absorbed.values())) < 1e-4


def test_a_factor_takes_nothing_and_an_amount_its_part(llama: Model) -> None:
    """R_a = a R / (f z + a + eps s), by hand, the rest to z."""
    amount = np.linspace(0.5, 1, 16)
    e = llama.explain(IDS, edits={LAYER: Edit(3, amount, (2,))})
    r, z = e[f"{LAYER}.edited"][2], e.activation(f"{LAYER}.edited")[2]
    np.testing.assert_allclose(z, 3 * e.activation(LAYER)[2] + amount, rtol=1e-13)
    signed = z + np.where(z >= 0, 1e-6, -1e-6)
    np.testing.assert_allclose(e[LAYER][2], (z - amount) * r / signed, rtol=1e-10)
    assert math.isclose(e.ledger.absorbed["edit"], float((amount * r / signed).sum()), rel_tol=1e-9)
    only = llama.explain(IDS, edits={LAYER: Edit(3)})
    np.testing.assert_array_equal(only[LAYER], only[f"{LAYER}.edited"])
    assert "edit" not in only.ledger.absorbed


def test_the_rule_of_what_is_edited_stays(llama: Model) -> None:
    """A pattern matches a site by every name it has, with an edit as without."""
    from refl.rules.composites import Rule

    for site, pattern in ((f"{ATTENTION}", "*.self_attn"), (f"{LAYER}.mlp.input", "*.0.mlp.input")):
        operation = "linear" if site == ATTENTION else "rms_norm"
        table = METHODS["attnlrp"].override(
            Rule(operation, "gamma" if operation == "linear" else "identity", pattern), name="own"
        )
        sites = [entry for entry in llama.explain(IDS, table, keep=()).ledger]
        edited = llama.explain(IDS, table, edits={site: Edit(0.5)}, keep=()).ledger
        rules = {entry.site: entry.rule for entry in edited}
        assert all(rules[entry.site] == entry.rule for entry in sites)
        assert site != ATTENTION or rules[f"{ATTENTION}.o_proj"] == "gamma"


# -- generate, logits ------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [LLAMA, T5], ids=["decoder", "encoder and decoder"])
def test_generate_is_a_loop_over_logits(config: dict[str, Any]) -> None:
    model = random_model(config, 2)
    both = model.task == "sequence-to-sequence"
    first = "encoder.block.1" if both else "model.layers.1.mlp"
    last = "decoder.block.0.layer.0.SelfAttention.probabilities" if both else f"{ATTENTION}.scores"
    edits: dict[str, Any] = {
        first: lambda z: z[..., ::-1] * 1.0,
        last: Edit(0.5, 0.1, (..., -1, 0)),
    }
    ids = [0] if both else list(IDS)
    for _ in range(6):
        z = model.logits(IDS, ids, edits) if both else model.logits(ids, edits=edits)
        ids = [*ids, int(z[-1].argmax())]
    assert model.generate(IDS, 6, edits=edits) == ids
    assert model.generate(IDS, 6) != ids


def test_generated_tokens_are_explained_as_they_came(llama: Model) -> None:
    edits = {f"{LAYER}.mlp": Edit(-1, 0.5, (-1,))}
    found = llama.explain_generated(IDS, 3, edits=edits, keep=())
    text = llama.generate(IDS, 3, edits=edits)
    assert [e.target_id for e in found] == text[5:]
    for end, e in zip((5, 6, 7), found, strict=True):
        alone = llama.explain(text[:end], target=text[end], edits=edits, keep=())
        np.testing.assert_array_equal(e.relevance, alone.relevance)


def test_a_function_changes_what_it_is_given_and_nothing_else(llama: Model) -> None:
    """In place, of a module's input: what else reads it, and the weights, stay as they are."""

    def zeroed(z: Any) -> Any:
        z[...] = 0
        return z

    before = {name: np.array(w) for name, w in llama.weights.items()}
    for site in ("model.embed_tokens", f"{LAYER}.mlp.gate_proj.input", f"{LAYER}.input"):
        found = llama.logits(IDS, edits={site: zeroed})
        np.testing.assert_array_equal(found, llama.logits(IDS, edits={site: Edit(0)}))
    assert all(np.array_equal(before[name], w) for name, w in llama.weights.items())
    gate = llama.logits(IDS, edits={f"{LAYER}.mlp.gate_proj.input": zeroed})
    off = scaled(llama, 0.0, f"{LAYER}.mlp.gate_proj").logits(IDS)
    np.testing.assert_allclose(gate, off, atol=1e-12)


# -- a neuron in place of an output ----------------------------------------------------------------


@pytest.mark.parametrize("at", [f"{LAYER}.mlp", f"{LAYER}.mlp.edited", "model.layers.1.mlp.act_fn"])
def test_rows_of_a_neuron(at: str, llama: Model) -> None:
    """Unrecorded, with a function, what a recorded run has with the same Edit."""
    edit, readings = Edit(0.5, 0.3, (..., 1)), llama.readings([IDS])
    recorded = Question(llama, at=(at, (1, 1)), edits={f"{LAYER}.mlp": edit}).forward(readings).rows
    question = Question(llama, at=(at, (1, 1)))
    if not at.endswith("edited"):
        found = question.rows(readings, further={f"{LAYER}.mlp": lambda z: edit(z)})
        np.testing.assert_array_equal(found, recorded)
    edited = Question(llama, at=(at, (1, 1)), edits={f"{LAYER}.mlp": edit})
    np.testing.assert_array_equal(edited.rows(readings), recorded)


def test_edits_of_the_question_come_before_those_of_a_method(llama: Model) -> None:
    readings, site = llama.readings([IDS]), f"{LAYER}.mlp"
    question = Question(llama, edits={site: Edit(0, 0.5)})
    both = question.rows(readings, further={site: lambda z: 2 * z})
    np.testing.assert_array_equal(both, Question(llama, edits={site: Edit(0, 1)}).rows(readings))
    recorded = question.forward(readings, further={site: Edit(2)}).rows
    np.testing.assert_array_equal(recorded, both)


INDICES: list[Any] = [..., (..., 3), (1, slice(None)), (-1, 3), (..., [3, 5])]


@pytest.mark.parametrize("first", INDICES, ids=str)
@pytest.mark.parametrize("second", INDICES, ids=str)
def test_edits_of_one_site_come_one_after_the_other(first: Any, second: Any, llama: Model) -> None:
    """As functions would be; recorded they are one change, f_2 f_1 z + f_2 a_1 + a_2."""
    a, b, site = Edit(-2.0, 0.5, first), Edit(3.0, -0.25, second), f"{LAYER}.mlp"
    edited = llama.with_edits({site: a}).with_edits({site: b})
    expected = llama.logits(IDS, edits={site: lambda z: b(a(z))})
    np.testing.assert_array_equal(edited.logits(IDS), expected)
    readings, plain = llama.readings([IDS]), Question(edited)
    for question in (plain, replace(plain, recompute=True), Question(edited, recompute=True)):
        rows = question.forward(readings).rows
        np.testing.assert_allclose(rows[0], expected[-1], rtol=1e-12, atol=1e-13)
    further = Question(llama.with_edits({site: a}), edits={site: b})
    again = replace(further, recompute=True).forward(readings).rows
    np.testing.assert_allclose(again[0], expected[-1], rtol=1e-12, atol=1e-13)
    ledger = edited.explain(IDS).ledger
    assert abs(ledger.conservation_error) < 1e-9 * max(abs(ledger.explained), 1.0)


@pytest.mark.parametrize("change", [Edit(2.0), np.tanh], ids=["an edit", "a function"])
def test_one_change_asked_for_twice_is_made_twice(change: Any, llama: Model) -> None:
    """Of a model and of a question, though both are one object."""
    site = f"{LAYER}.mlp"
    edited, by_hand = llama.with_edits({site: change}), {site: lambda z: change(change(z))}
    expected = llama.logits(IDS, edits=by_hand)
    np.testing.assert_array_equal(edited.with_edits({site: change}).logits(IDS), expected)
    np.testing.assert_array_equal(edited.logits(IDS, edits={site: change}), expected)
    if isinstance(change, Edit):
        e = edited.explain(IDS, target=2, edits={site: change})
        np.testing.assert_allclose(e.explained, expected[-1, 2], rtol=1e-12)
        assert edited.explain(IDS, target=2, edits={site: change})[f"{site}.edited"].any()
        written = edited.explain_generated(IDS, 2, edits={site: change})
        targets = llama.generate(IDS, 2, edits=by_hand)[len(IDS) :]
        assert [one.target_id for one in written] == targets


# -- what is kept of it ----------------------------------------------------------------------------


def test_an_explanation_says_what_was_edited(llama: Model, tmp_path: Path) -> None:
    steered = {LAYER: Edit(amount=np.arange(16.0), index=(1, slice(None, None, None)))}
    others = [
        {},
        {LAYER: Edit(amount=np.arange(16.0) + 1, index=(1, slice(None)))},
        {LAYER: Edit(amount=np.arange(16.0), index=(2, slice(None)))},
        {LAYER: Edit(2, np.arange(16.0), (1, slice(None)))},
    ]
    e = llama.explain(IDS, edits=steered, keep=())
    said = [llama.explain(IDS, edits=o, keep=()).about.get("edits") for o in others]
    assert e.about["edits"] not in said and len(set(said)) == 4
    assert e.about["edits"].startswith(f"{LAYER}: Edit(factor=1.0, amount=<float64 (16,) sha256 ")
    e.save(tmp_path / "e")
    llama.explain(IDS, keep=()).save(tmp_path / "plain")
    assert Explanation.load(tmp_path / "e").about["edits"] == e.about["edits"]
    assert f"{LAYER}: Edit" in str(e) and "The run was edited" in e.html()
    found = compare(read(tmp_path / "e"), read(tmp_path / "plain"), model=llama)
    assert any(words.startswith(f"edits: '{LAYER}") for words in found.quantity)


def test_sites_on_demand_and_pickles(llama: Model) -> None:
    edits = {f"{LAYER}.mlp": Edit(0.5, np.ones(16), (1,))}
    kept = llama.explain(IDS, edits=edits, keep="*")
    for e in (
        llama.explain(IDS, edits=edits),
        pickle.loads(pickle.dumps(llama.explain(IDS, edits=edits))),
    ):
        np.testing.assert_array_equal(e[f"{LAYER}.mlp.edited"], kept[f"{LAYER}.mlp.edited"])
        np.testing.assert_array_equal(e[f"{LAYER}.mlp"], kept[f"{LAYER}.mlp"])
    copied = pickle.loads(pickle.dumps(edits))
    np.testing.assert_array_equal(llama.logits(IDS, edits=copied), llama.logits(IDS, edits=edits))


def test_an_edit_holds_what_it_was_made_of(llama: Model) -> None:
    amount = np.ones(16)
    edit = Edit(amount=amount)
    before = llama.logits(IDS, edits={LAYER: edit})
    amount[:] = 7
    np.testing.assert_array_equal(llama.logits(IDS, edits={LAYER: edit}), before)


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"factor": math.nan}, "factor is nan: expected a finite number"),
        ({"amount": math.inf}, "amount is inf"),
        ({"factor": "2"}, "factor is '2'"),
        ({"factor": True}, "factor is True"),
        ({"amount": None}, "amount is None"),
        ({"amount": [1, [2]]}, "amount is"),
        ({"amount": 2j}, "amount is 2j"),
        ({"index": 1.5}, "index is 1.5: expected a whole number, a slice"),
        ({"index": True}, "index is True"),
        ({"index": (1, "a")}, "index is"),
        ({"index": (..., ...)}, "index is"),
        ({"index": slice(0, 4, 0)}, "index is"),
        ({"index": slice("a")}, "index is"),
        ({"index": [1.5]}, "index is"),
        ({"index": None}, "index is None"),
    ],
)
def test_what_is_no_edit(how: dict[str, Any], words: str) -> None:
    with pytest.raises(ReflError, match=words.replace("(", r"\(")):
        Edit(**how)


UNFIT: dict[str, tuple[Any, str]] = {
    "a list": ([1], "has to map sites to edits"),
    "an array": (np.asarray([1, 2]), "has to map sites to edits"),
    "nothing": (0, "has to map sites to edits"),
    "numbers for sites": ({1: Edit()}, "has to map sites to edits"),
    "a number": ({LAYER: 0}, "expected a refl.Edit"),
    "no site": ({"model.layer.0": Edit()}, "no site of this model; nearest: model.layers.0"),
    "of what an edit makes": (
        {LAYER: Edit(), f"{LAYER}.edited": Edit()},
        "the edit of model.layers.0 makes: change that one",
    ),
    "what no edit has made": ({f"{LAYER}.edited": Edit()}, "no site of this model"),
    "too far": ({LAYER: Edit(0, index=(9,))}, "does not fit its activation of the shape"),
    "too deep": ({LAYER: Edit(0, index=(0, 0, 0, 0))}, "does not fit"),
    "of another shape": ({LAYER: Edit(np.ones(3))}, "does not fit"),
}


@pytest.mark.parametrize(("edits", "words"), UNFIT.values(), ids=UNFIT)
def test_what_does_not_fit(edits: Any, words: str, llama: Model) -> None:
    for call in (
        lambda: llama.logits(IDS, edits=edits),
        lambda: llama.generate(IDS, 1, edits=edits),
        lambda: llama.explain(IDS, edits=edits, keep=()),
        lambda: llama.explain(IDS, edits=edits, keep=(), recompute=True),
        lambda: llama.explain(IDS, "random", edits=edits),
        lambda: llama.explain_each(IDS, [1], edits=edits),
    ):
        with pytest.raises(ReflError) as found:
            call()
        assert words in str(found.value) and "\n" not in str(found.value)


def test_functions_are_refused_where_a_run_is_recorded(llama: Model) -> None:
    for call in (llama.explain, llama.explain_generated):
        with pytest.raises(ReflError, match=r"the edit of model.layers.0 is a function"):
            call(IDS, edits={LAYER: lambda z: z})
    with pytest.raises(ReflError, match="is a function"):
        Question(llama).forward(llama.readings([IDS]), further={LAYER: lambda z: z})


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda z: None, "returns a NoneType"),
        (lambda z: z[..., :1], r"returns the shape \(1, 5, 1\): expected an array of the shape"),
        (lambda z: z.astype(np.float32), "returns float32: expected float64"),
    ],
)
def test_what_a_function_returns(function: Any, words: str, llama: Model) -> None:
    with pytest.raises(ReflError, match=words):
        llama.logits(IDS, edits={LAYER: function})


def test_an_edit_that_overflows_is_said() -> None:
    net = random_model(LLAMA, 1, dtype="float32")
    with pytest.raises(ReflError, match="float32 overflowed at"):
        net.explain(IDS, edits={LAYER: Edit(1e39)}, keep=())


def test_a_site_that_this_run_does_not_have(llama: Model) -> None:
    with pytest.raises(ReflError, match="which this run does not compute"):
        llama.logits(IDS, edits={"lm_head.row": Edit(0)})
