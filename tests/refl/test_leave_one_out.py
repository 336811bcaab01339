"""Leave-one-out against runs of one changed input at a time, closed forms where attention is held,
and what the agreement with it is refused for.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from small_networks import WIDTH, value_attention

from refl.edits import Edit
from refl.errors import ReflError
from refl.evaluation.leave_one_out import LeaveOneOut, by_block, by_block_agreement, without_column
from refl.evaluation.subject import Item, Subject
from refl.methods import chosen
from refl.model import Model
from refl.verification.random_models import GPT2, LLAMA, T5, VIT, random_model

IDS = [3, 5, 2, 6]


def subject(model: Model, ids: Any = IDS, **how: Any) -> Subject:
    return Subject.read(model, Item("0", ids, target=2, **how))


# -- attention that is held ------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_one_value_attention_and_a_linear_head(seed: int) -> None:
    """CP-LRP is leave-one-out with attention held, token by token."""
    model = value_attention(seed)
    scores = model.explain(IDS, "cp-lrp", target=2, keep=()).relevance
    held, live = (LeaveOneOut("zero", how).effects(subject(model)) for how in ("held", "live"))
    assert np.abs(held - scores).max() <= 1e-12
    assert np.abs(live - scores).max() > 1e-3, "attention that moves tells another story"


@pytest.mark.parametrize("seed", range(3))
def test_renormalized_attention(seed: int) -> None:
    """head . sum_j p_j / (1 - p_i) v_j over j != i, written out."""
    model = value_attention(seed)
    w = {name: model.weights[f"{name}.weight"] for name in ("embed", "q", "k", "v", "head")}
    x = w["embed"][IDS]
    scores = (x @ w["q"].T)[-1] @ (x @ w["k"].T).T
    p = np.exp(scores - scores.max())
    value = (x @ w["v"].T) @ w["head"][2]
    whole = (p @ value) / p.sum()
    without = [(p @ value - p[i] * value[i]) / (p.sum() - p[i]) for i in range(len(IDS))]
    found = LeaveOneOut("zero", "renormalized").effects(subject(model))
    assert len(w["q"]) == WIDTH
    assert np.abs(found - (whole - np.asarray(without))).max() <= 1e-12


def test_attention_is_held_as_an_edit_has_left_it() -> None:
    """Against runs in which functions put in place what the edited model attends to, and in which a
    token's embedding is set to 0.
    """
    model, site = random_model(LLAMA, 1), "model.layers.0.self_attn.probabilities"
    edited = model.with_edits({site: Edit(0.5, index=(1,))})
    sites = [f"model.layers.{n}.self_attn.probabilities" for n in range(2)]
    held: dict[str, Any] = {}
    watch = {s: partial(held.setdefault, s) for s in sites}
    whole = edited.with_edits(watch).logits(IDS)[-1, 2]
    in_place = {s: partial(lambda s, _: held[s], s) for s in sites}
    others = [
        edited.with_edits(in_place | {"model.embed_tokens": Edit(0.0, index=(i,))}).logits(IDS)
        for i in range(len(IDS))
    ]
    found = LeaveOneOut("zero", "held").effects(subject(edited))
    assert np.abs(found - [whole - z[-1, 2] for z in others]).max() <= 1e-12
    plain = LeaveOneOut("zero", "held").effects(subject(model))
    assert np.abs(found - plain).max() > 1e-3


def test_a_row_that_had_nothing_else_is_left_at_zero() -> None:
    p = np.asarray([[1.0, 0.0, 0.0], [0.25, 0.75, 0.0], [0.5, 0.25, 0.25]])
    expected = [[0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.5, 0.5]]
    assert np.array_equal(without_column(p, 0), expected)


# -- one changed input at a time -------------------------------------------------------------------


@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_each_fill_is_a_plain_loop(config: dict[str, Any]) -> None:
    model = random_model(config, 1)
    site = "model.embed_tokens" if config is LLAMA else "transformer.wte"
    whole = model.logits(IDS)[-1, 2]
    places = range(len(IDS))
    zero = [model.logits(IDS, edits={site: Edit(0.0, index=(i,))})[-1, 2] for i in places]
    token = [model.logits([*IDS[:i], 9, *IDS[i + 1 :]])[-1, 2] for i in places]
    gone = [model.logits([*IDS[:i], *IDS[i + 1 :]])[-1, 2] for i in places]
    for fill, others in (("zero", zero), (9, token), ("delete", gone)):
        found = LeaveOneOut(fill).effects(subject(model))
        assert np.abs(found - (whole - np.asarray(others))).max() <= 1e-12, fill


def test_by_block_is_a_plain_loop() -> None:
    """A row of the stream at a block's input gone; at the first block that is the embedding."""
    model = random_model(LLAMA, 1)
    s = subject(model)
    found = by_block(s)
    whole = model.logits(IDS)[-1, 2]
    for path, effects in found.items():
        edits = [{f"{path}.input": Edit(0.0, index=(i,))} for i in range(len(IDS))]
        expected = [whole - model.logits(IDS, edits=edit)[-1, 2] for edit in edits]
        assert np.abs(effects - expected).max() <= 1e-12, path
    first = LeaveOneOut().effects(s)
    assert np.abs(found["model.layers.0"] - first).max() <= 1e-12
    assert list(found) == ["model.layers.0", "model.layers.1"]
    mean = by_block(s, "mean")
    assert not np.allclose(mean["model.layers.1"], found["model.layers.1"])


@pytest.mark.parametrize("config", [GPT2, T5, VIT], ids=["gpt2", "t5", "vit"])
def test_agreement_by_block(config: dict[str, Any]) -> None:
    """A number for each block that reads the input; a decoder's blocks beside an encoder do not."""
    model = random_model(config, 1)
    ids: Any = np.ones((3, 8, 12)) if config is VIT else IDS
    how = {"decoder": [0, 4]} if config is T5 else {}
    found = by_block_agreement(subject(model, ids, **how), chosen("cp-lrp"))
    assert len(found) == 2 and not any(path.startswith("decoder") for path in found)
    assert all(-1 <= value <= 1 for numbers in found.values() for value in numbers.values())


def test_patches_of_a_picture() -> None:
    """One patch at a time at zero; scores of pixels are summed over patches."""
    model = random_model(VIT, 1)
    picture = np.random.default_rng(0).standard_normal((3, 8, 12))
    s, metric = subject(model, picture), LeaveOneOut()
    effects = metric.effects(s)
    assert effects.shape == (2, 4)
    changed = picture.copy()
    changed[:, 4:8, 3:6] = 0
    expected = subject(model, picture).value - subject(model, changed).value
    assert effects[1, 1] == pytest.approx(expected, abs=1e-12)
    pixels = np.kron(effects, np.ones((4, 3)))
    assert metric.judge(s, pixels).numbers == pytest.approx(metric.judge(s, effects).numbers)
    assert metric.judge(s, effects).numbers["pearson"] == pytest.approx(1.0)


# -- the metric ------------------------------------------------------------------------------------


def test_a_metric_of_its_own_scores() -> None:
    """Perfect agreement, and its opposite; of many cases a subject is run once."""
    s, metric = subject(random_model(LLAMA, 1)), LeaveOneOut()
    effects = metric.effects(s)
    best = metric.judge(s, effects)
    assert set(best.numbers) == set(metric.larger_is_better)
    assert best.numbers == pytest.approx(dict.fromkeys(best.numbers, 1.0))
    worst = metric.judge(s, -effects).numbers
    assert worst["kendall"] == pytest.approx(-1.0) and worst["kendall_absolute"] == 1.0
    runs: list[Subject] = []

    class Counting(LeaveOneOut):
        def effects(self, subject: Subject) -> Any:
            runs.append(subject)
            return super().effects(subject)

    case = type("Case", (), {"subject": s, "scores": effects})
    found = Counting().judge_all([case, case])
    assert [one.numbers for one in found] == [best.numbers] * 2 and len(runs) == 1


def test_names_have_every_option_that_is_not_the_default() -> None:
    assert LeaveOneOut().name == "leave-one-out"
    assert LeaveOneOut("unk", "held").name == "leave-one-out:fill=unk:attention=held"


def test_what_is_refused() -> None:
    with pytest.raises(ReflError, match="'delete' leaves no probabilities to put in place"):
        LeaveOneOut("delete", "held")
    with pytest.raises(ReflError, match="expected one of live, held, renormalized"):
        LeaveOneOut("zero", "off")
    t5 = subject(random_model(T5, 1), decoder=[0, 4])
    with pytest.raises(ReflError, match="reads more than the tokens of one text"):
        LeaveOneOut("zero", "renormalized").effects(t5)
    assert LeaveOneOut("zero", "held").effects(t5).shape == (4,)
    s = subject(random_model(LLAMA, 1))
    with pytest.raises(ReflError, match=r"scores of shape \(3,\) for an input of \(4,\)"):
        LeaveOneOut().judge(s, np.ones(3))
    with pytest.raises(ReflError, match="expected 'zero' or 'mean', for rows of the stream"):
        by_block(s, "mask")
