"""Weights randomized from the top down: which, how, and what becomes of an explanation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from refl import anatomy
from refl.errors import ReflError
from refl.evaluation import sanity
from refl.evaluation.correlation import spearman
from refl.evaluation.judging import judged
from refl.evaluation.sanity import ABOVE, BELOW, Sanity
from refl.evaluation.scores import of_arrays
from refl.evaluation.subject import Item, Subject
from refl.model import Model
from refl.verification.random_models import (
    ARCHITECTURES,
    LLAMA,
    MIXTRAL,
    random_model,
    with_weights,
)

IDS = [3, 5, 2, 6, 1, 9, 4]


def subject(model: Model) -> Subject:
    return Subject.read(model, Item("0", IDS, target=2))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_tensor_is_of_one_part(name: str) -> None:
    """From the head down to the embeddings, which are last; blocks in between, top block first."""
    model = random_model(ARCHITECTURES[name], 1)
    found = sanity.parts(model)
    blocks = [part for part in found if part not in (ABOVE, BELOW)]
    paths = anatomy.blocks(model)
    assert [p for p in paths[::-1] if p in blocks] == blocks and len(blocks) >= 2
    assert [*found][:: len(found) - 1] == [ABOVE, BELOW]
    names = [tensor for tensors in found.values() for tensor in tensors]
    assert len(names) == len(set(names))
    unread = set(model.weights) - set(names)
    assert all(".experts." in tensor for tensor in unread)
    assert any("embed" in t or "shared" in t or "wte" in t for t in found[BELOW])
    for path in blocks:
        own = [t for t in model.weights if t.startswith(f"{path}.") and t in names]
        assert set(own) <= set(found[path])


def test_one_more_part_each_time_and_each_by_its_name() -> None:
    """What is drawn stays for the depths below; the same draw gives the same weights."""
    model = random_model(LLAMA, 1)
    nets = list(sanity.randomized(model, 3))
    parts = list(sanity.parts(model).values())
    assert len(nets) == len(parts) + 1
    for depth, net in enumerate(nets):
        for n, names in enumerate(parts):
            for name in names:
                same = np.array_equal(net.weights[name], model.weights[name])
                assert same == (n >= depth), (depth, name)
                assert (
                    np.array_equal(net.weights[name], nets[max(n + 1, depth)].weights[name]) or same
                )
    w, drawn = model.weights["lm_head.weight"], nets[1].weights["lm_head.weight"]
    assert drawn.dtype == w.dtype and drawn.shape == w.shape
    assert abs(drawn.std() / w.std() - 1) < 0.2
    assert np.array_equal(drawn, list(sanity.randomized(model, 3))[1].weights["lm_head.weight"])
    assert not np.array_equal(drawn, list(sanity.randomized(model, 4))[1].weights["lm_head.weight"])
    up, gate = (sanity.drawn(name, np.eye(3), 3) for name in ("up", "gate"))
    assert not np.array_equal(up, gate)  # two tensors of one shape have numbers of their own


def test_an_expert_that_no_word_went_to_is_random_too() -> None:
    model = random_model(MIXTRAL, 1)
    *_, last = sanity.randomized(model)
    for name in model.weights:
        assert not np.array_equal(last.weights[name], model.weights[name]), name


def test_scores_that_do_not_look_at_the_weights_stay() -> None:
    """`random` reads the input alone: the correlation is 1 at every depth. AttnLRP moves away."""
    model = random_model(LLAMA, 1)
    s = subject(model)
    constant = model.explain(IDS, "random", target=2).relevance
    found = Sanity("random").judge(s, constant)
    assert found.curves["sanity"].tolist() == [1.0] * 5
    scores = model.explain(IDS, "attnlrp", target=2, keep=()).relevance
    found = Sanity("attnlrp").judge(s, scores)
    assert found.curves["sanity"][0] == found.curves["sanity_absolute"][0] == 1.0
    assert found.numbers["sanity"] == found.curves["sanity"][-1] < 0.9


def test_each_method_is_held_against_its_own_explanations() -> None:
    """In a table of several: random scores stay, whatever the weights; the others as alone."""
    model = random_model(LLAMA, 1)
    item = subject(model).item
    rows = judged(model, item, ["random", "attnlrp", "cp-lrp"], ["sanity"])
    assert {row.metric for row in rows} == {"sanity"} and rows[0].numbers["sanity"] == 1.0
    for row in rows:
        (alone,) = judged(model, item, [row.method], [f"sanity:method={row.method}"])
        assert alone.numbers == row.numbers
    with pytest.raises(ReflError, match="scores from elsewhere cannot: leave them out"):
        judged(model, item, [of_arrays("x", [np.ones(7)])], ["sanity"])


def test_the_last_depth_by_hand() -> None:
    """The net with every tensor drawn, explained for the same output."""
    model = random_model(LLAMA, 1)
    scores = model.explain(IDS, "attnlrp", target=2, keep=()).relevance
    weights: dict[str, Any] = {
        name: sanity.drawn(name, model.weights[name], 0) for name in model.weights
    }
    other = with_weights(model, **weights).explain(IDS, "attnlrp", target=2, keep=()).relevance
    found = Sanity("attnlrp").judge(subject(model), scores).numbers
    assert found["sanity"] == pytest.approx(spearman(scores, other))
    assert found["sanity_absolute"] == pytest.approx(spearman(abs(scores), abs(other)))


def test_what_is_refused() -> None:
    with pytest.raises(ReflError, match="unknown method 'nothing'"):
        Sanity("nothing")
    with pytest.raises(ReflError, match="draw.* is -1: expected a whole number of at least 0"):
        Sanity(draw=-1)
    with pytest.raises(ReflError, match=r"scores of shape \(3,\) beside an explanation of \(7,\)"):
        Sanity("attnlrp").judge(subject(random_model(LLAMA, 1)), np.ones(3))
    with pytest.raises(ReflError, match="sanity has no method"):
        Sanity().judge(subject(random_model(LLAMA, 1)), np.ones(7))
    assert Sanity("cp-lrp", 2).name == "sanity:method=cp-lrp:draw=2" and Sanity().name == "sanity"
