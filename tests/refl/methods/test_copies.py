"""Perturbed copies: in any batch what each is on its own, on any device; tokens by what they are
for.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
from backends import Backend
from checkpoints import checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

import refl
from refl.edits import Edit, of_tokens
from refl.errors import ReflError
from refl.methods import copies
from refl.methods.copies import Copy
from refl.question import Question
from refl.seeds import Seed
from refl.verification.random_models import GPT2, LLAMA, T5, moved, random_model

MODELS = {
    "llama": random_model(LLAMA, 0),
    "one-head": random_model(GPT2 | {"n_head": 1, "n_layer": 1}, 0),
    "t5": random_model(T5, 0),
}

OPTIONS: dict[str, dict[str, Any]] = {
    "integrated-gradients": {"nodes": "gauss-legendre", "steps": 5},
    "smoothgrad": {"samples": 3},
    "occlusion": {},
    "leave-one-out": {},
    "atman": {"form": "code"},
}


@settings(max_examples=15)
@given(
    name=st.sampled_from(list(MODELS)),
    ids=st.lists(st.integers(0, 16), min_size=2, max_size=6),
    chosen=st.lists(st.sets(st.integers(0, 5), max_size=4), min_size=1, max_size=5),
    bound=st.integers(1, 40),
)
def test_copies_of_several_lengths(
    name: str, ids: list[int], chosen: Sequence[set[int]], bound: int
) -> None:
    """Deleted tokens and embeddings of zeros beside each other, padded or not."""
    model, prefix = MODELS[name], [0, 4] if name == "t5" else None
    question = Question(model, batch_tokens=bound)
    (reading,) = model.readings([ids], prefix)
    forward = question.forward([reading])
    site, made, expected = forward.embedded, [], []
    for gone in chosen:
        left = [i for t, i in enumerate(ids) if t not in gone]
        if left:
            made.append(copies.deleted(question, reading, gone))
            expected.append(model.logits(left, prefix)[-1][3])
        x = forward.leaf(site)[0].copy()
        x[[t for t in gone if t < len(ids)]] = 0
        made.append(Copy(reading, partial(dict, copies.leaves_of(forward) | {site: x})))
        rows = [t for t in gone if t < len(ids)]
        edits = {site: refl.Edit(factor=0, index=(rows,))} if rows else {}
        expected.append(model.logits(ids, prefix, edits=edits)[-1][3])
    found = copies.values(question, Seed("logit", 3), made)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("method", OPTIONS)
@pytest.mark.parametrize("ids", [[0], [0, 0, 0]])
def test_one_token_and_tokens_that_are_all_the_same(method: str, ids: list[int]) -> None:
    """With an embedding of zeros, too: nothing is divided by its length."""
    model = random_model(LLAMA, 0)
    table = model.weights["model.embed_tokens.weight"].copy()
    table[0] = 0
    model.weights = {**model.weights, "model.embed_tokens.weight": table}
    options = OPTIONS[method] | ({"kappa": 0.5} if method == "atman" else {})
    if method == "leave-one-out" and len(ids) == 1:
        with pytest.raises(ReflError, match="leaves nothing"):
            model.explain(ids, method)
        return
    e = model.explain(ids, method, options=options)
    assert np.isfinite(e.relevance).all() and e.relevance.shape == (len(ids),)
    if method in ("integrated-gradients", "occlusion"):
        assert not e.relevance.any()


@pytest.mark.parametrize("method", OPTIONS)
def test_on_any_device(method: str, backend: Backend) -> None:
    home = random_model(LLAMA, 0)
    away = moved(home, backend.place)
    here, there = (m.explain([3, 0, 5, 5], method, options=OPTIONS[method]) for m in (home, away))
    size = np.abs(here.relevance).max()
    np.testing.assert_allclose(there.relevance, here.relevance, atol=1e-10 * size)


def test_tokens_by_what_they_are_for() -> None:
    model = refl.load()
    assert model.tokens([copies.token(model, "unk"), copies.token(model, "pad")]) == (
        ["<unk>", "<pad>"]
    )
    assert copies.token(model, "are") == model.token_id("are") and copies.token(model, 5) == 5
    with pytest.raises(ReflError, match="has no mask token"):
        copies.token(model, "mask")
    encoder = refl.load(checkpoint("rxnmapper_albert"))
    names = encoder.tokens([copies.token(encoder, n) for n in copies.NAMED])
    assert names == ["[MASK]", "[UNK]", "[PAD]"]


@pytest.mark.parametrize(
    ("edit", "moves"),
    [
        (Edit(factor=0.0), False),
        (Edit(factor=0.5, index=(..., 3)), False),
        (Edit(amount=np.ones(16)), False),
        (Edit(amount=np.ones((1, 16))), False),
        (Edit(amount=np.ones(3), index=(..., [1, 2, 5])), False),
        (Edit(factor=0.0, index=(1,)), True),
        (Edit(factor=0.0, index=(-1, 3)), True),
        (Edit(factor=0.0, index=([0, 1],)), True),
        (Edit(factor=0.0, index=(slice(1, None),)), True),
        (Edit(factor=np.ones((4, 1))), True),
        (Edit(amount=np.arange(4.0), index=(..., 3)), True),
        (Edit(amount=np.ones((1, 4, 1)), index=(..., [1])), True),
        (Edit(factor=0.0, index=(np.eye(4, 16, dtype=bool),)), True),
    ],
)
def test_an_edit_of_some_tokens_is_of_others_after_a_deletion(edit: Edit, moves: bool) -> None:
    model, site = random_model(LLAMA, 1), "model.layers.0.mlp"
    assert of_tokens(site, edit) == moves
    for method in ("leave-one-out", "metagame"):
        how: dict[str, Any] = {"edits": {site: edit}, "options": {"fill": "delete"}}
        if moves:
            with pytest.raises(
                ReflError, match=f"deletion moves the tokens, and the edit of {site}"
            ):
                model.explain([3, 5, 7, 2], method, **how)
        else:
            assert model.explain([3, 5, 7, 2], method, **how).relevance.any()


def test_keys_are_tokens_inside_attention() -> None:
    site = "model.layers.0.self_attn.probabilities"
    assert of_tokens(site, Edit(factor=0.0, index=(..., 1)))
    assert not of_tokens(site, Edit(factor=0.5))
