"""Conditional relevance: closed forms on nets of two operations, partitions on every architecture,
one answer in whatever way the net is run, and what is refused.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

import refl
from refl import anatomy
from refl.cli import main
from refl.components import Mlp, names_of, site_of
from refl.conditions import Conditions
from refl.errors import ReflError
from refl.explanation import Explanation
from refl.methods import chosen, under
from refl.model import Model
from refl.question import Question
from refl.rules.published import LRP_0
from refl.sweep import Sweep, Swept
from refl.trace import Trace, Value
from refl.verification.random_models import (
    ARCHITECTURES,
    GPT2,
    LLAMA,
    MIXTRAL,
    T5,
    VIT,
    random_model,
)

METHODS = ("attnlrp", "attnlrp-gradient")


def explained(
    model: Model, item: Any, method: str, conditions: Any = None, *, keep: Any = (), **how: Any
) -> Explanation:
    """What model.explain gives under conditions, audited."""
    asked = under(chosen(method), conditions)
    position = None if model.task in ("class", "image-class") else 1
    question = Question(model, position=position, **how)
    decoder = [0, 3] if model.task == "sequence-to-sequence" else None
    readings = model.readings([item], decoder)
    return asked.explain(question, readings, [(2, None)], keep, True)[0]


def item_of(model: Model, length: int = 5) -> Any:
    random = np.random.default_rng(length)
    if model.takes_images:
        return random.standard_normal((3, *model.config.image))
    return [int(i) for i in random.integers(1, 17, length)]


# -- closed forms ----------------------------------------------------------------------------------


def two_layers(around: bool) -> tuple[Trace, Value, Any, Any, Any]:
    """z = w (U x), with x added where there is a way around; and x, U, w."""
    random = np.random.default_rng(0)
    x, u, w = (random.standard_normal(s) for s in ((1, 1, 3), (3, 3), (1, 3)))
    t = Trace({"u.weight": u, "w.weight": w})
    leaf = t.scale("x", Value(x, "leaf"), 1.0)
    h = t.linear("u", leaf)
    z = t.linear("w", t.add("h", leaf, h) if around else h)
    return t, z, x, u, w


def swept(t: Trace, z: Value, conditions: Conditions) -> Swept:
    return Sweep(LRP_0, lambda names: "x" in names, audit=True, conditions=conditions).run(
        t, z, z.array
    )


@pytest.mark.parametrize("around", [False, True])
@pytest.mark.parametrize("through", [False, True])
def test_one_neuron_of_two_layers(around: bool, through: bool) -> None:
    """LRP-0: x_i receives u_1i x_i w_1 by neuron 1, and w_i x_i by the way around."""
    t, z, x, u, w = two_layers(around)
    found = swept(t, z, Conditions({"u": (..., 1)}, through))
    by_neuron = (u[1] * x * w[0, 1])[0, 0]
    by_stream = (w * x[0])[0] if around and not through else 0.0
    assert np.abs(found.propagated["x"][0, 0] - (by_neuron + by_stream)).max() <= 1e-14
    hidden = (u @ x[0, 0]) * w[0]
    removed = hidden.sum() - hidden[1] + (float((w * x[0]).sum()) if around and through else 0.0)
    entry = found.ledger["u"]
    assert entry.absorbed["condition"][0] == pytest.approx(removed, abs=1e-13)
    assert entry.received[0] == pytest.approx(removed + hidden[1], abs=1e-13)


def test_what_arrives_at_nothing_chosen_is_nothing() -> None:
    """Every number is absorbed at the site, and the account closes."""
    t, z, *_ = two_layers(around=True)
    found = swept(t, z, Conditions({"u": []}, through=True))
    assert not found.propagated["x"].any()
    assert found.ledger.absorbed["condition"][0] == pytest.approx(float(z.array.sum()), abs=1e-13)


def test_through_a_site_that_nothing_reaches() -> None:
    """The first operand of a product under a rule that gives it nothing: all went around."""
    random = np.random.default_rng(1)
    t = Trace({})
    a, b = (t.scale(n, Value(random.standard_normal((1, 2, 2)), f"{n}.leaf"), 1.0) for n in "ab")
    z = t.matmul("z", t.scale("p", a, 2.0), b, role="attention.context")
    table = chosen("cp-lrp").facts()
    sweep = Sweep(table, lambda names: "b" in names, conditions=Conditions({"p": ...}, True))
    found = sweep.run(t, z, np.ones_like(z.array))
    assert not found.propagated["b"].any()
    assert found.ledger["p"].absorbed["condition"][0] == pytest.approx(z.array.sum())


# -- partitions, on every architecture -------------------------------------------------------------


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_partitions_add_up(name: str) -> None:
    """Over the tokens of a block's output to the whole; over neurons and heads of a site with a way
    around to what comes through it, and with the way around once to the whole.
    """
    model = random_model(ARCHITECTURES[name], 1)
    item, method = item_of(model), METHODS[len(name) % 2]
    whole = explained(model, item, method)
    for site, axis, cut in sites_of(model, item):
        count = whole_shape(model, item, site)[axis]
        one = [np.arange(count) == k for k in range(count)]
        masks = [m.reshape((-1, *(1,) * (-axis - 1))) for m in (one[0], one[1], ~(one[0] | one[1]))]
        inside = [explained(model, item, method, {site: m}) for m in masks]
        all_of_it = explained(model, item, method, {site: ...})
        whole_is(all_of_it, [e.relevance for e in inside], whole)
        assert all(closes(e) for e in (*inside, all_of_it))
        if cut:
            whole_is(whole, [e.relevance for e in inside], whole)
            continue
        kept = [explained(model, item, method, Conditions({site: m}, False)) for m in masks]
        bypass = explained(model, item, method, Conditions({site: []}, False)).relevance
        whole_is(whole, [bypass, *(e.relevance - bypass for e in kept)], whole)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_partitions_by_name_add_up(name: str) -> None:
    """Of the neurons of an MLP, and of the heads of an attention: to the map of what came through
    any of them; with what goes around once, to the whole. And names choose what masks choose.
    """
    model = random_model(ARCHITECTURES[name], 1)
    item, method = item_of(model), METHODS[len(name) % 2]
    whole = explained(model, item, method)
    for owner in (ran_of(model, item)[-1], model.components.attentions[0]):
        names, site = list(names_of(owner)), site_of(owner)
        thirds = [names[k::3] for k in range(3)]
        inside = [explained(model, item, method, third) for third in thirds]
        all_of_it = explained(model, item, method, {site: ...})
        whole_is(all_of_it, [e.relevance for e in inside], whole)
        assert all(closes(e) for e in inside)
        kept = [
            explained(model, item, method, Conditions(dict.fromkeys(t, ...), through=False))
            for t in thirds
        ]
        bypass = explained(model, item, method, Conditions({site: []}, False)).relevance
        whole_is(whole, [bypass, *(e.relevance - bypass for e in kept)], whole)
        mask = np.arange(len(names)) % 3 == 1
        mask = mask if isinstance(owner, Mlp) else mask[:, None, None]
        by_mask = explained(model, item, method, {site: mask})
        assert np.array_equal(inside[1].relevance, by_mask.relevance)


def ran_of(model: Model, item: Any) -> list[Mlp]:
    """The MLPs that run: of a mixture those experts that some token chose."""
    decoder = [0, 3] if model.task == "sequence-to-sequence" else None
    position = None if model.task in ("class", "image-class") else 1
    sites = Question(model, position=position).forward(model.readings([item], decoder)).trace.values
    return [mlp for mlp in model.components.mlps if mlp.neurons in sites]


def sites_of(model: Model, item: Any) -> list[tuple[str, int, bool]]:
    """(site, axis that is partitioned, whether it has no way around)"""
    trace = (
        Question(model, position=None if model.task in ("class", "image-class") else 1)
        .forward(model.readings([item], [0, 3] if model.task == "sequence-to-sequence" else None))
        .trace
    )
    sites = {r.role: r.output.site for r in trace.records if ".experts." not in r.output.site}
    neurons = sites.get("mlp.activation") or sites["expert.sum"]
    cut = anatomy.blocks(model)[-1]
    return [(cut, -2, True), (neurons, -1, False), (sites["attention.context"], -3, False)]


def whole_shape(model: Model, item: Any, site: str) -> tuple[int, ...]:
    return explained(model, item, "attnlrp", keep=[site]).activation(site).shape


def whole_is(e: Explanation, maps: list[Any], size_of: Explanation) -> None:
    bound = 1e-12 * max(1.0, float(np.abs(size_of.relevance).max()))
    assert np.abs(sum(maps) - e.relevance).max() <= bound


def closes(e: Explanation) -> bool:
    assert e.ledger.rounding_bound is not None
    return abs(e.ledger.conservation_error) <= e.ledger.rounding_bound


@pytest.mark.parametrize("method", METHODS)
def test_the_decoders_tokens_are_around_every_site_of_the_encoder(method: str) -> None:
    """The sweep reaches them before it comes to the encoder: what they had is called back."""
    model = random_model(T5, 5)
    kept = explained(model, item_of(model), method, keep="encoder.*.wo")
    for site in (name for name in kept if name.startswith("encoder.block")):
        maps = [explained(model, item_of(model), method, {site: m}) for m in (..., 0, [])]
        assert maps[0].relevance.any() and not maps[2].relevance.any(), site
        for e in maps:
            assert not e.decoder_relevance.any() and closes(e)
            assert e.ledger.tokens == pytest.approx(e.relevance.sum(), abs=1e-12)


def test_positions_alone_are_no_tokens() -> None:
    """Of two operands of a sum the tokens come before or after the positions, as the net has it."""
    model = random_model(GPT2, 1)
    e = explained(model, item_of(model), "attnlrp", {"transformer.wpe": ...})
    assert not e.relevance.any() and closes(e)


# -- however it is run -----------------------------------------------------------------------------

HEADS = {"LLAMA": "model.layers.0.self_attn.context", "GPT2": "transformer.h.0.attn.context"}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("through", [False, True])
@pytest.mark.parametrize("name", HEADS)
def test_one_map_in_parts_and_in_one_piece(name: str, through: bool, method: str) -> None:
    """Recomputed, attention by tiles, and as recorded operations: 80 tokens are more than are held
    otherwise.
    """
    model = random_model({"LLAMA": LLAMA, "GPT2": GPT2}[name], 2)
    item, conditions = item_of(model, 80), Conditions({HEADS[name]: (2,)}, through)
    e = explained(model, item, method, conditions)
    others = [
        explained(model, item, method, conditions, recompute=True),
        explained(model, item, method, conditions, keep="*.probabilities"),
        explained(model, item, method, conditions, keep="*.probabilities", recompute=True),
    ]
    for other in others:
        assert np.abs(other.relevance - e.relevance).max() <= 1e-12 * np.abs(e.relevance).max()
        amounts = [x.ledger.absorbed["condition"] for x in (other, e)]
        assert amounts[0] == pytest.approx(amounts[1], rel=1e-9)
        assert closes(other)


def test_inside_attention_the_plain_form_runs() -> None:
    """Relevance through the attention to the first token alone, of 80."""
    model = random_model(LLAMA, 2)
    site = "model.layers.1.self_attn.probabilities"
    e = explained(model, item_of(model, 80), "attnlrp", {site: (..., 0)}, keep=[site])
    assert e[site][..., 0].any() and not e[site][..., 1:].any()
    assert closes(e) and e.ledger[site].absorbed["condition"] != 0


@pytest.mark.parametrize("through", [False, True])
def test_any_name_of_a_value_will_do(through: bool) -> None:
    """A block's output is the next one's input, also where the block is run again; two names of one
    value meet.
    """
    model = random_model(LLAMA, 1)
    item = item_of(model)
    a, b = "model.layers.0", "model.layers.1.input"
    by_site, *others = (
        explained(model, item, "attnlrp", Conditions({name: (1,)}, through), recompute=again)
        for name in (a, b)
        for again in (False, True)
    )
    for other in others:
        assert np.array_equal(by_site.relevance, other.relevance)
        assert other.ledger.as_dict() == by_site.ledger.as_dict()
    both = explained(model, item, "attnlrp", {a: (0,), b: (1,)})
    assert not both.relevance.any()


def test_a_site_has_what_goes_on() -> None:
    model = random_model(LLAMA, 1)
    site = "model.layers.0.mlp.act_fn"
    e = explained(model, item_of(model), "attnlrp", {site: (..., 3)}, keep=[site])
    assert e[site][:, 3].any() and not np.delete(e[site], 3, axis=1).any()
    assert e.about["conditions"] == f"{site}: (..., 3)"


def test_names_are_sites_and_indices() -> None:
    """Any of those of one site, at some tokens or at all; through each of several sites."""
    model = random_model(LLAMA, 1)
    item = item_of(model)
    neurons, heads = "model.layers.1.mlp.down_proj.input", "model.layers.0.self_attn.context"
    mask = np.zeros((5, 20), dtype=bool)
    mask[[1, 3], 7] = mask[2, 4] = mask[:, 9] = True
    by_name = {"L1.N7": [1, 3], "L1.N4": 2, "L1.N9": ..., "L0.H2": slice(1, 3), "L0": (1,)}
    at_heads = np.zeros((4, 5, 1), dtype=bool)
    at_heads[2, 1:3] = True
    e = explained(model, item, "attnlrp", by_name)
    by_site = {neurons: mask, heads: at_heads, "model.layers.0": (1,)}
    assert np.array_equal(e.relevance, explained(model, item, "attnlrp", by_site).relevance)
    assert e.relevance.any()
    said = f"{neurons}: ([1, 3], 7) or (2, 4) or (..., 9); {heads}: (2, slice(1, 3, None))"
    assert said in e.about["conditions"]


def test_through_names_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    text = "the keys to the cabinet"
    assert main(["explain", text, "--through", "L3.N132", "L3.N88", "L1.H2", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    names = ["L3.N132", "L3.N88", "L1.H2"]
    assert told["relevance"] == refl.load().explain(text, conditions=names).relevance.tolist()
    assert main(["explain", text, "--through", "L9.N1"]) == 2
    assert "L9.N1 names no neuron, head or block of this model" in capsys.readouterr().err
    assert main(["explain", text, "--through", "nowhere"]) == 2
    assert capsys.readouterr().err.startswith("refl: --through names 'nowhere'")
    assert main(["explain", text, "--through", "L1.H0", "--method", "atman"]) == 2
    assert "is no table of rules and has no sweep: leave --through out" in capsys.readouterr().err


def test_each_example_of_a_batch_meets_the_same_conditions() -> None:
    """Counted in its own tokens: -1 is its last one, and no padding behind it."""
    model = random_model(LLAMA, 1)
    items = [item_of(model, 4), item_of(model, 4)[::-1], item_of(model, 7)]
    asked = under(chosen("attnlrp"), {"model.layers.0": (-1, slice(0, 7))})
    question, readings = Question(model), model.readings(items)
    found = asked.explain(question, readings, [(2, None)] * 3, ())
    for reading, e in zip(readings, found, strict=True):
        (alone,) = asked.explain(question, [reading], [(2, None)], ())
        assert np.abs(alone.relevance - e.relevance).max() <= 1e-13
        assert alone.relevance.any()


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("conditions", "said"),
    [
        ({"model.layers.7": (1,)}, "names 'model.layers.7', which is no site of this model"),
        ({"model.layers.0": (..., 99)}, r"index into the activation of one example, whose shape"),
        ({"model.layers.0": np.ones(3, dtype=bool)}, r"mask of shape \(3,\), which does not broad"),
        ({"model.layers.0": [0.5]}, "expected an array of True and False, or an index"),
        ({"model.layers.0": None}, "expected an array of True and False, or an index"),
        ([("model.layers.0", 1)], "has to map sites to what is chosen there"),
        ("L0.H1", "has to map sites to what is chosen there"),
        (["L0.H9"], "L0.H9 is not there: L0 has 4 heads, L0.H0 to L0.H3"),
        (["L0"], "L0 is a block, whose output nothing goes around: choose tokens of it"),
        ({"L0.H1": (0, 1)}, "condition at L0.H1 is .*: expected ... or the numbers of some tokens"),
        ({"L0.N3": True}, "condition at L0.N3 is True: expected ... or the numbers of some tokens"),
        ({"L0.H1": (np.True_,)}, "condition at L0.H1 is .*: expected ... or the numbers of some"),
        ({"L0.H1": 0.5}, "expected an array of True and False, or an index"),
        (["L0.H1", "model.layers.0.self_attn.context"], "as a site and a neuron or a head of it"),
    ],
)
def test_conditions_that_are_none(conditions: Any, said: str) -> None:
    with pytest.raises(ReflError, match=said):
        explained(random_model(LLAMA, 1), [1, 2, 3, 4], "attnlrp", conditions)


def test_tokens_of_an_experts_neuron() -> None:
    with pytest.raises(ReflError, match="L0.E1.N2 is a neuron of an expert, which has rows for"):
        explained(random_model(MIXTRAL, 1), [1, 2, 3], "attnlrp", {"L0.E1.N2": 1})


def test_a_method_without_a_sweep_refuses() -> None:
    with pytest.raises(ReflError, match="method random is no table of rules and has no sweep"):
        under(chosen("random"), {"model.layers.0": (1,)})


def test_a_list_of_true_and_false_is_a_mask() -> None:
    model = random_model(VIT, 1)
    item = item_of(model)
    site = "vit.encoder.layer.0"
    mask = [[True], *[[False]] * 8]
    by_list, by_index = (explained(model, item, "attnlrp", {site: c}) for c in (mask, (0,)))
    assert np.array_equal(by_list.relevance, by_index.relevance)


def test_a_table_keeps_its_conditions() -> None:
    """Also where it is chosen again: by a metric, or as the inner method of another."""
    table = under(chosen("attnlrp"), {"model.layers.0": (1,)})
    assert chosen(table) == table and under(table, None) is table
    assert chosen(table, eps=1e-3).conditions == table.conditions  # type: ignore[attr-defined]


def test_by_the_public_door() -> None:
    """explain, explain_each and explain_generated; other methods refuse."""
    model, conditions = random_model(LLAMA, 1), {"model.layers.0": (1,)}
    e = model.explain([3, 5, 2], target=2, conditions=conditions)
    expected = under(chosen("attnlrp"), conditions).explain(
        Question(model), model.readings([[3, 5, 2]]), [(2, None)], ()
    )[0]
    assert np.array_equal(e.relevance, expected.relevance) and e.relevance.any()
    (each,) = model.explain_each([3, 5, 2], [2], conditions=conditions)
    assert np.array_equal(each.relevance, expected.relevance)
    (first, *_) = model.explain_generated([3, 5, 2], 2, conditions=conditions)
    asked = model.explain([3, 5, 2], target=first.target_id, conditions=conditions)
    assert np.array_equal(first.relevance, asked.relevance)
    with pytest.raises(ReflError, match="leave conditions= out|leave conditions out"):
        model.explain([3, 5, 2], "random", conditions=conditions)
