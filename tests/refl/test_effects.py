"""Effects of switching: measured as a plain loop over edited models, predicted as relevance says,
beside random parts that are matched and never those that were chosen.
"""

from __future__ import annotations

import json
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import refl
from refl.components import names_of
from refl.errors import ReflError
from refl.evaluation.subject import Item
from refl.latent.effects import Effect, effect
from refl.latent.switching.pool import Pool
from refl.model import Model
from refl.network import CLASSIFIES
from refl.verification.random_models import ARCHITECTURES, LLAMA, MIXTRAL, VIT, random_model

FLOAT64 = 2.0**-53

CHANGES = {"off": refl.off, "value": refl.value(0.3), "scale": refl.scale(-1.5)}


def some_input(model: Model, length: int = 5) -> Any:
    random = np.random.default_rng(3)
    if model.takes_images:
        height, width = model.config.image
        return random.standard_normal((3, height, width))
    ids = [int(i) for i in random.integers(4, 17, length)]
    if model.task == "masked-token":
        model.mask_id = 3
        return [*ids, 3]
    return ids


def logits(model: Model, item: Any) -> Any:
    """Of what is explained, by a forward pass of one input."""
    position = None if model.task in CLASSIFIES else -1
    if model.takes_images:
        batch = model.batch([model.read(item)])
    else:
        batch = model.batch([model.read(item)], position)
    trace = model._unrecorded(model._edits(None))
    return model.forward(trace, batch).array.reshape(-1)


def some_parts(model: Model) -> list[str]:
    """Two neurons of the first MLP, one of the last, and a head."""
    mlps, attention = model.components.mlps, model.components.attentions[-1]
    names = [f"{mlps[0].label}.N1", f"{mlps[0].label}.N3", f"{mlps[-1].label}.N2"]
    return [*dict.fromkeys(names), f"{attention.label}.H0"]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_measured_is_a_plain_loop(name: str, change: str) -> None:
    model, parts = random_model(ARCHITECTURES[name], 5), None
    item, parts = some_input(model), some_parts(model)
    found = effect(model, item, parts, change=CHANGES[change], target=2, draws=3)
    before = logits(model, item)[2]
    edited = model.with_edits(dict.fromkeys(parts, CHANGES[change]))
    after = logits(edited, item)[2]
    assert found.before[0] == pytest.approx(before, abs=1e3 * FLOAT64 * abs(before))
    # a batch of copies rounds otherwise than one: sums of a few hundred numbers of the order of 1
    assert abs(found.measured[0] - (after - before)) < 4e3 * FLOAT64


@pytest.mark.parametrize("method", ["attnlrp", "attnlrp-gradient", "input-x-gradient"])
@pytest.mark.parametrize("change", CHANGES)
def test_predicted_is_what_the_entries_say(method: str, change: str) -> None:
    model, item = random_model(LLAMA, 5), [5, 9, 4, 8]
    e = model.explain(item, method, contrast=(2, 7), keep="*")
    expected = Fraction(0)
    for name in ("L0.N1", "L0.N3", "L1.H2"):
        part = model.components.part(name)
        r, z = e[part.site][part.index].reshape(-1), e.activation(part.site)[part.index].reshape(-1)
        for one, at in zip(r, z, strict=True):
            to = {
                "off": Fraction(0),
                "value": Fraction(0.3),
                "scale": Fraction(-1.5) * Fraction(at),
            }
            expected += Fraction(one) / Fraction(at) * (to[change] - Fraction(at))
    found = effect(
        model,
        item,
        ["L0.N1", "L0.N3", "L1.H2"],
        change=CHANGES[change],
        contrast=(2, 7),
        method=method,
        draws=0,
    )
    assert not found.undefined.any()
    assert abs(found.predicted[0] - float(expected)) < 200 * FLOAT64 * max(1, abs(expected))


def test_an_entry_of_0_has_no_coefficient_and_is_counted() -> None:
    """relu makes zeros: switched off they lose nothing, put at a value nothing is predicted of them
    in relevance form, where the gradient still says something.
    """
    model = random_model(ARCHITECTURES["t5"], 4)
    item, name = [4, 9, 5, 11], "encoder.L1.N5"
    e = model.explain(item, "attnlrp", target=3, keep="*")
    part = model.components.part(name)
    z, r = e.activation(part.site)[:, part.number], e[part.site][:, part.number]
    assert 0 < (z == 0).sum() < len(z)
    found = effect(model, item, name, change=refl.value(0.5), target=3, draws=0)
    expected = sum(one / at * (0.5 - at) for one, at in zip(r, z, strict=True) if at)
    assert found.undefined.tolist() == [(z == 0).sum()]
    assert abs(found.predicted[0] - expected) < 50 * FLOAT64 * max(1, np.abs(r).sum())
    assert "have no coefficient" in str(found)
    off = effect(model, item, name, target=3, draws=0)
    assert off.undefined.tolist() == [0] and off.predicted[0] == -r.sum()
    by_gradient = effect(
        model, item, name, change=refl.value(0.5), target=3, draws=0, method="input-x-gradient"
    )
    assert by_gradient.undefined.tolist() == [0]


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "vit", "t5"])
def test_small_changes_are_what_the_gradient_predicts(name: str) -> None:
    """(f(scaled by 1 + h) - f(scaled by 1 - h)) / 2h is df/ds to order h^2: halving h takes the
    error to a quarter, so the bound is the difference of two steps.
    """
    model, how = random_model(ARCHITECTURES[name], 5), {"target": 1, "draws": 0}
    item, parts = some_input(model), some_parts(model)

    def slope(h: float) -> float:
        up, down = (
            effect(model, item, parts, change=refl.scale(1 + s * h), **how).measured[0]
            for s in (1, -1)
        )
        return (up - down) / (2 * h)

    found = effect(model, item, parts, change=refl.off, method="input-x-gradient", **how)
    coarse, fine = slope(2e-3), slope(1e-3)
    rounding = 1e4 * FLOAT64 / 1e-3
    assert abs(-found.predicted[0] - fine) <= abs(coarse - fine) + rounding
    assert abs(fine) > 1e-3


@pytest.mark.parametrize("positions", [0, -1, [1, 3], slice(1, None)])
def test_at_some_positions(positions: Any) -> None:
    model, item = random_model(LLAMA, 7), [5, 9, 4, 8, 6]
    parts = ["L0.N1", "L1.H2"]
    found = effect(
        model, item, parts, target=2, positions=positions, draws=2, change=refl.value(0.4)
    )
    edits = dict.fromkeys(parts, refl.value(0.4))
    after = logits(model.with_edits(edits, positions=positions), item)[2]
    assert abs(found.measured[0] - (after - logits(model, item)[2])) < 4e3 * FLOAT64
    e = model.explain(item, target=2, keep="*")
    where = [positions] if isinstance(positions, int) else positions
    expected = 0.0
    for name in parts:
        part = model.components.part(name)
        take = (where, part.number) if part.kind == "neuron" else (part.number, where)
        r, z = (a[take].reshape(-1) for a in (e[part.site], e.activation(part.site)))
        expected += float((r / z * (0.4 - z)).sum())
    assert abs(found.predicted[0] - expected) < 200 * FLOAT64 * max(1, abs(expected))


# -- random parts ----------------------------------------------------------------------------------


def test_random_parts_are_matched_and_never_the_chosen() -> None:
    for config in (LLAMA, MIXTRAL):
        components = random_model(config, 5).components
        pool = Pool((*components.mlps, *components.attentions))
        chosen = pool.numbers(
            [
                *list(names_of(components.mlps[1]))[:6],
                "L0.H0",
                "L0.H3",
                *list(names_of(components.mlps[0]))[2:3],
            ]
        )
        counts = [len(one) for one in pool.inside(chosen)]
        drawn = pool.beside(chosen, 200, np.random.default_rng(1))
        for one in drawn:
            assert [len(inside) for inside in pool.inside(one)] == counts
            assert not set(one.tolist()) & set(chosen.tolist())
            assert len(set(one.tolist())) == len(chosen)
        others = set(range(components.mlps[1].width)) - {0, 1, 2, 3, 4, 5}
        start = pool.starts[1]
        assert {
            int(n - start) for one in drawn for n in one if start <= n < pool.starts[2]
        } == others


def test_every_other_part_is_drawn_as_often() -> None:
    pool = Pool(random_model(LLAMA, 5).components.mlps)
    drawn = pool.beside(pool.numbers(["L0.N0", "L0.N7"]), 9000, np.random.default_rng(2))
    counts = np.bincount(np.concatenate(drawn), minlength=pool.count)
    others = [n for n in range(20) if n not in (0, 7)]
    assert counts[20:].sum() == counts[0] == counts[7] == 0
    expected = 9000 * 2 / 18  # five standard deviations of a binomial
    assert np.abs(counts[others] - expected).max() < 5 * np.sqrt(expected)


def test_random_effects_are_those_of_edited_models() -> None:
    model, item = random_model(LLAMA, 5), [5, 9, 4, 8]
    found = effect(model, item, ["L1.N3", "L0.N2", "L0.H1"], target=2, draws=4, seed=11)
    pool = Pool((*model.components.mlps, model.components.attentions[0]))
    drawn = pool.beside(pool.numbers(["L1.N3", "L0.N2", "L0.H1"]), 4, np.random.default_rng(11))
    before = logits(model, item)[2]
    for n, one in enumerate(drawn):
        edited = model.with_edits({pool.names[i]: refl.off for i in one})
        assert abs(found.random[0, n] - (logits(edited, item)[2] - before)) < 4e3 * FLOAT64


def test_seeded_and_the_same_draws_for_every_input() -> None:
    model, items = random_model(LLAMA, 5), [[5, 9, 4, 8], [6, 6, 4]]
    both = effect(model, items, "L1.N3", target=2, draws=5)
    for n, item in enumerate(items):
        one = effect(model, item, "L1.N3", target=2, draws=5)
        assert one.random[0].tolist() == both.random[n].tolist()
        assert one.measured[0] == both.measured[n]
    other = effect(model, items, "L1.N3", target=2, draws=5, seed=1)
    assert not (other.random == both.random).all()
    assert (other.measured == both.measured).all()


# -- what is said ----------------------------------------------------------------------------------


def test_means_and_what_intervals_are_over() -> None:
    model = random_model(LLAMA, 5)
    several = effect(model, [[5, 9, 4], [6, 6, 4], [7, 5, 5]], ["L1.N3"], target=2, draws=5)
    assert several.over == "inputs"
    assert several.means["random"].mean == pytest.approx(several.random.mean(), abs=1e-15)
    assert several.means["measured"].low <= several.means["measured"].mean
    less = (several.measured - several.random.mean(axis=1)).mean()
    assert several.means["measured less random"].mean == pytest.approx(less, abs=1e-15)
    one = effect(model, [5, 9, 4], ["L1.N3"], target=2, draws=5)
    assert one.over == "draws" and np.isnan(one.means["measured"].low)
    assert one.means["random"].low <= one.random.mean() <= one.means["random"].high
    assert one.as_large == np.mean(np.abs(one.random[0]) >= abs(one.measured[0]))
    said = json.loads(json.dumps(one.as_dict()))
    assert said["measured"] == one.measured.tolist() and said["over"] == "draws"
    without = effect(model, [[5, 9, 4], [6, 6, 4]], ["L1.N3"], target=2, draws=0)
    assert json.loads(json.dumps(without.as_dict(), allow_nan=False))["as_large"] is None
    assert without.means["measured"].mean == without.measured.mean() and "no random" in str(without)
    assert "L1.N3: off" in str(one) and "5 draws" in str(one) and "Effect: L1.N3" in repr(one)


def test_items_have_their_own_targets() -> None:
    model = random_model(LLAMA, 5)
    items = [Item("a", [5, 9, 4], contrast=(2, 3)), Item("b", [6, 6, 4], target=7)]
    found = effect(model, items, ["L1.N3"], draws=2)
    alone = effect(model, [5, 9, 4], "L1.N3", contrast=(2, 3), draws=2)
    assert found.measured[0] == alone.measured[0] and found.inputs == ("a", "b")
    with pytest.raises(ReflError, match="the items say what is explained"):
        effect(model, items, "L1.N3", target=2)


def test_an_expert_that_does_not_run_changes_nothing() -> None:
    model, item = random_model(MIXTRAL, 5), [5]
    chose = {m.label: m.neurons for m in model.components.mlps}
    e = model.explain(item, target=2, keep="*")
    idle = [label for label, site in chose.items() if site not in e.sites.aliases]
    found: Effect = effect(model, item, f"{idle[0]}.N2", target=2, draws=2)
    assert found.predicted[0] == found.measured[0] == 0
    assert (found.random == 0).all()


def test_a_model_with_edits_of_its_own() -> None:
    model, item = random_model(LLAMA, 5), [5, 9, 4, 8]
    edited = model.with_edits({"L0.N2": refl.off})
    found = effect(edited, item, "L1.N3", target=2, draws=0)
    both = model.with_edits({"L0.N2": refl.off, "L1.N3": refl.off})
    expected = logits(both, item)[2] - logits(edited, item)[2]
    assert abs(found.measured[0] - expected) < 4e3 * FLOAT64


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"parts": ["L9.N0"]}, "names no neuron"),
        ({"parts": ["L0.N99"]}, "L0 has 20 neurons"),
        ({"parts": []}, "expected the name of a neuron or a head"),
        ({"parts": [3]}, "expected the name of a neuron or a head"),
        ({"parts": ["L0"]}, "is a block"),
        ({"parts": ["L0.N1", "L0.N1"]}, "twice"),
        (
            {"parts": ["L0.H0", "L0.H1", "L0.H2"]},
            "expected at least 3 others to draw from, found 1",
        ),
        ({"change": 3}, "expected refl.off"),
        ({"change": lambda z: z}, "expected refl.off"),
        ({"change": refl.Edit(0.0, index=(..., 3))}, "expected refl.off"),
        ({"change": refl.scale(np.ones(4))}, "expected refl.off"),
        ({"method": "random"}, "is no table of rules"),
        ({"method": "attnlrpp"}, "unknown method"),
        ({"kind": "probability"}, "weighted by the softmax"),
        ({"kind": "odds"}, "expected one of logit, log-probability"),
        ({"draws": -1}, "expected a whole number, 0 or more"),
        ({"draws": True}, "expected a whole number, 0 or more"),
        ({"seed": "a"}, "expected a whole number"),
        ({"seed": -3}, "expected a whole number"),
        ({"positions": 9}, "does not fit"),
        ({"positions": "all"}, "positions"),
        ({"items": []}, "the input is empty"),
        ({"target": 99}, "99"),
    ],
)
def test_bad_input_is_one_sentence(how: dict[str, Any], words: str) -> None:
    asked = {"items": [5, 9, 4], "parts": ["L0.N1"], "target": 2} | how
    with pytest.raises(ReflError, match=words):
        effect(random_model(LLAMA, 5), asked.pop("items"), asked.pop("parts"), **asked)


def test_pictures() -> None:
    model = random_model(VIT, 5)
    item = some_input(model)
    found = effect(model, [item, item], ["L1.N3", "L0.H1"], contrast=(1, 0), draws=3)
    edited = model.with_edits({"L1.N3": refl.off, "L0.H1": refl.off})
    before, after = logits(model, item), logits(edited, item)
    expected = (after[1] - after[0]) - (before[1] - before[0])
    assert np.abs(found.measured - expected).max() < 4e3 * FLOAT64


def test_of_inputs_that_explain_different_things_one_is_named_as_an_example() -> None:
    model = random_model(LLAMA, 0)
    found = effect(model, [[1, 2, 3], [4, 5, 6, 7]], "L0.N2", target=[1, 2], draws=0)
    assert f"f, what each input explains, such as {found.what[0]}, is" in str(found)
    alike = effect(model, [[1, 2, 3], [4, 5, 6, 7]], "L0.N2", target=[1, 1], draws=0)
    assert f"f, {alike.what[0]}, is" in str(alike)
