"""AtMan: the three keys of METHODS, and suppression written out as edits of the scores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tiny_nets import attention

import refl
from refl.errors import ReflError
from refl.verification.random_models import ARCHITECTURES, GPT2, T5, VIT, random_model

IDS = [3, 0, 5, 5, 1]
SCORES = (-3.0, -1.0, -2.0)


def softmax(s: Any) -> Any:
    e = np.exp(s - s.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


# -- three keys ------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["paper", "code"])
def test_a_negative_score_rises_in_the_paper_s_form(form: str) -> None:
    before = softmax(np.asarray(SCORES))
    shifted = np.asarray(SCORES) - (min(SCORES) if form == "code" else 0)
    after = [softmax(np.where(np.arange(3) == i, 0.1, 1) * shifted) for i in range(3)]
    assert [round(float(p), 2) for p in (before[0], after[0][0])] == (
        [0.09, 0.60] if form == "paper" else [0.09, 0.09]
    )
    options = {"p": 0.9, "form": form}
    for target in range(3):
        e = attention(SCORES).explain([0, 1, 2], "atman", target=target, options=options)
        cross_entropy = [-np.log(softmax(z)[target]) for z in (before, *after)]
        rise = np.asarray(cross_entropy[1:]) - cross_entropy[0]
        np.testing.assert_allclose(e.relevance, rise, rtol=1e-9, atol=1e-14)
        fall = attention(SCORES).explain(
            [0, 1, 2], "atman", target=target, options=options | {"score": "explained"}
        )
        np.testing.assert_allclose(
            fall.relevance, [before[target] - p[target] for p in after], rtol=1e-9, atol=1e-14
        )


def test_tokens_that_are_alike_are_suppressed_together() -> None:
    """Token 0 twice, and a token whose embedding has a cosine of 0.6 with it."""
    model = attention(SCORES)
    table = np.asarray([[1.0, 0, 0], [0, 1, 0], [0.6, 0, 0.8]])
    model.weights = model.weights | {"embed.weight": table}
    s = table[[0, 0, 2]] @ np.asarray(SCORES) * np.asarray(table[2].sum())
    v = table[[0, 0, 2]]
    before = softmax(s) @ v

    def rise(factors: Any) -> float:
        after = softmax(s * np.asarray(factors)) @ v
        return float(np.log(softmax(before)[0]) - np.log(softmax(after)[0]))

    for kappa, rows in (
        (0.7, [[0.5, 0.5, 1], [0.5, 0.5, 1], [1, 1, 0.5]]),
        (0.5, [[0.5, 0.5, 0.7], [0.5, 0.5, 0.7], [0.7, 0.7, 0.5]]),
        (None, [[0.5, 1, 1], [1, 0.5, 1], [1, 1, 0.5]]),
    ):
        options = {"p": 0.5, "kappa": kappa}
        e = model.explain([0, 0, 2], "atman", target=0, options=options)
        np.testing.assert_allclose(e.relevance, [rise(f) for f in rows], rtol=1e-9)


# -- written out as edits --------------------------------------------------------------------------

ENDS = {"gemma2": "scores.capped", "t5": "scores.biased"}


def suppressed(i: int, p: float, form: str, mask: Any) -> Callable[[Any], Any]:
    def change(s: Any) -> Any:
        if form == "code":
            s = s - np.where(mask, s, np.inf).min(axis=-1, keepdims=True)
        s = s.copy()
        s[..., i] *= 1 - p
        return s

    return change


def attentions(model: Any) -> list[str]:
    end = ENDS.get(model.net.MODEL_TYPE, "scores")
    return [site for site in model.sites() if site.endswith(f".{end}")]


def loss(z: Any, target: int) -> float:
    return float(-np.log(softmax(z)[target]))


@pytest.mark.parametrize("form", ["paper", "code"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "mixtral", "phi", "bert", "albert"])
def test_beside_edits_one_token_at_a_time(name: str, form: str) -> None:
    """Rotated queries, keys that heads share, soft-capped scores, blocks that share weights."""
    model = random_model(ARCHITECTURES[name], 0)
    masked = model.task == "masked-token"
    p, j = 0.7, np.arange(5)
    causal = (j[None, :] <= j[:, None]) | masked
    where = 2 if masked else -1
    e = model.explain(
        IDS,
        "atman",
        position=2 if masked else None,
        batch_tokens=12,
        options={"p": p, "form": form},
    )
    for i in range(5):
        edits = {site: suppressed(i, p, form, causal) for site in attentions(model)}
        if name == "gemma2":  # a window of three in the first block
            near = causal & (j[None, :] > j[:, None] - 3)
            edits[attentions(model)[0]] = suppressed(i, p, form, near)
        z = [model.logits(IDS)[where], model.logits(IDS, edits=edits)[where]]
        rise = loss(z[1], e.target_id) - loss(z[0], e.target_id)
        assert e.relevance[i] == pytest.approx(rise, rel=1e-8, abs=1e-12)
    assert np.abs(e.relevance).max() > 1e-3 and e.recorded is None


@pytest.mark.parametrize("form", ["paper", "code"])
def test_an_encoder_and_a_decoder(form: str) -> None:
    """What was read is suppressed in the encoder and in the attention to it; what was written, in
    the decoder's attention to itself.
    """
    model, prefix, p = random_model(T5, 0), [0, 4, 6], 0.7
    e = model.explain(IDS, "atman", decoder=prefix, options={"p": p, "form": form}, batch_tokens=20)
    sites = [s for s in model.sites() if s.endswith((".SelfAttention.scores.biased",))]
    cross = [s for s in model.sites() if s.endswith(".EncDecAttention.scores")]
    assert len(cross) == 3 and len(sites) == 5
    everything, causal = np.ones((1, 5), bool), np.tril(np.ones((3, 3), bool))
    for relevance, own, mask in (
        (e.relevance, [s for s in sites if s.startswith("encoder.")] + cross, everything),
        (e.decoder_relevance, [s for s in sites if s.startswith("decoder.")], causal),
    ):
        for i in range(len(relevance)):
            edits = {site: suppressed(i, p, form, mask) for site in own}
            z = [model.logits(IDS, prefix, **how)[-1] for how in ({}, {"edits": edits})]
            rise = loss(z[1], e.target_id) - loss(z[0], e.target_id)
            assert relevance[i] == pytest.approx(rise, rel=1e-8, abs=1e-12)


@pytest.mark.parametrize("name", ["vit", "deit"])
def test_patches(name: str) -> None:
    """The learned tokens in front are no part of the picture."""
    model = random_model(ARCHITECTURES[name], 0)
    x, first = np.random.default_rng(0).standard_normal((3, 8, 12)), 1 + (name == "deit")
    e = model.explain(x, "atman", target=1, options={"p": 0.7})
    assert e.patches.shape == (2, 4)
    for i, found in enumerate(e.patches.reshape(-1)):
        edits = {s: suppressed(first + i, 0.7, "paper", None) for s in attentions(model)}
        z = [model.logits(x)[0], model.logits(x, edits=edits)[0]]
        assert found == pytest.approx(loss(z[1], 1) - loss(z[0], 1), rel=1e-8, abs=1e-12)
    assert len(set(np.round(e.relevance[:4, :3].reshape(-1), 15))) == 1


def test_edits_of_scores_come_first() -> None:
    model = random_model(GPT2, 0)
    sites = attentions(model)
    own = {sites[0]: refl.Edit(factor=0.5, amount=0.2), "transformer.h.0.mlp": refl.Edit(factor=2)}
    e = model.explain(IDS, "atman", edits=own, target=3, options={"p": 0.7})
    for i in range(5):
        second = suppressed(i, 0.7, "paper", None)
        edits: dict[str, Any] = own | {sites[0]: lambda s, f=second: f(0.5 * s + 0.2)}
        edits |= {sites[1]: second}
        z = [model.logits(IDS, edits=c)[-1] for c in (own, edits)]
        assert e.relevance[i] == pytest.approx(loss(z[1], 3) - loss(z[0], 3), rel=1e-8, abs=1e-12)


def test_a_neuron_and_no_recomputed_blocks() -> None:
    model, at = random_model(ARCHITECTURES["llama"], 0), ("model.layers.1", (3, 5))
    options = {"score": "explained", "form": "code"}
    e = model.explain(IDS, "atman", at=at, options=options)
    assert abs(e.relevance[4]) < 1e-14 and (np.abs(e.relevance[:4]) > 1e-6).all()
    with pytest.raises(ReflError, match="atman changes the attention scores of every block, which"):
        model.explain(IDS, "atman", recompute=True)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture(name: str) -> None:
    """In batches as one by one, and p = 0 changes nothing."""
    model = random_model(ARCHITECTURES[name], 0)
    how: dict[str, Any] = {"position": 2} if model.task == "masked-token" else {}
    x = np.random.default_rng(0).standard_normal((3, 8, 12))
    item: Any = x if model.takes_images else IDS
    options = {"form": "code", "kappa": 0.2}
    one, batched = (
        model.explain(item, "atman", batch_tokens=n, options=options, **how) for n in (1, 1024)
    )
    np.testing.assert_allclose(one.relevance, batched.relevance, rtol=1e-7, atol=1e-11)
    nothing = model.explain(item, "atman", options={"p": 0}, **how)
    assert np.abs(nothing.relevance).max() < 1e-12 < np.abs(one.relevance).max()


@pytest.mark.parametrize(
    ("options", "how", "words"),
    [
        ({"p": 1.2}, {}, "from 0 to 1"),
        ({"p": "all"}, {}, "from 0 to 1"),
        ({"kappa": 2}, {}, "from -1 to 1"),
        ({"form": "raw"}, {}, "paper or code"),
        ({"score": "logit"}, {}, "cross-entropy or explained"),
        ({}, {"contrast": (1, 2)}, "a difference of logits has no cross-entropy"),
        ({}, {"at": ("transformer.h.0.mlp", (1, 1))}, "a neuron has no cross-entropy"),
    ],
)
def test_what_is_refused(options: Any, how: Any, words: str) -> None:
    with pytest.raises(ReflError, match=words):
        random_model(GPT2, 0).explain(IDS, "atman", options=options, **how)


def test_outputs_that_are_no_alternatives() -> None:
    model = random_model(VIT, 0)
    model.probability = "none"
    x = np.random.default_rng(0).standard_normal((3, 8, 12))
    with pytest.raises(ReflError, match="are no alternatives"):
        model.explain(x, "atman")
    assert model.explain(x, "atman", options={"score": "explained"}).relevance.any()
