"""Occlusion and leave-one-out: closed forms on powers of a linear net, and a plain loop that runs
one perturbed input at a time.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from checkpoints import checkpoint
from tiny_nets import power

import refl
from refl.errors import ReflError
from refl.methods import copies
from refl.verification.random_models import (
    ARCHITECTURES,
    BERT,
    GPT2,
    LLAMA,
    ROBERTA,
    T5,
    VIT,
    random_model,
)

IDS = [3, 0, 5, 5, 1]
DECODERS = ["llama", "gpt2", "gemma2", "mixtral", "phi"]


def without(ids: list[int], *gone: int) -> list[int]:
    return [i for t, i in enumerate(ids) if t not in gone]


# -- closed forms ----------------------------------------------------------------------------------


def test_of_a_linear_net_it_is_weight_times_input() -> None:
    model, parts = power(1)
    np.testing.assert_allclose(
        model.explain(IDS, "occlusion", target=0).relevance, parts(IDS), rtol=1e-10
    )


@pytest.mark.parametrize(
    ("window", "stride", "windows"),
    [
        (1, 1, [[0], [1], [2], [3], [4]]),
        (2, 1, [[0, 1], [1, 2], [2, 3], [3, 4]]),
        (2, 2, [[0, 1], [2, 3], [4]]),
        (3, 2, [[0, 1, 2], [2, 3, 4]]),
        (4, 3, [[0, 1, 2, 3], [3, 4]]),
        (9, 1, [[0, 1, 2, 3, 4]]),
        (1, 2, [[0], [2], [4]]),
    ],
)
def test_windows_of_a_cube(window: int, stride: int, windows: list[list[int]]) -> None:
    """A token's score is the mean of s^3 - (s - sum of its window's a)^3 over its windows."""
    model, parts = power(3)
    e = model.explain(IDS, "occlusion", target=0, options={"window": window, "stride": stride})
    a = parts(IDS)
    lost = [a.sum() ** 3 - (a.sum() - a[w].sum()) ** 3 for w in windows]
    expected = [
        np.mean([d for d, w in zip(lost, windows, strict=True) if t in w] or [0]) for t in range(5)
    ]
    np.testing.assert_allclose(e.relevance, expected, rtol=1e-10, atol=1e-13)


def test_deletion_from_a_mean() -> None:
    """What is left is averaged over one token less."""
    model, parts = power(2)
    e = model.explain(IDS, "leave-one-out", target=0)
    expected = [parts(IDS).sum() ** 2 - parts(without(IDS, t)).sum() ** 2 for t in range(5)]
    np.testing.assert_allclose(e.relevance, expected, rtol=1e-10)


# -- a plain loop ----------------------------------------------------------------------------------


@pytest.mark.parametrize("fill", ["zero", "mean", 4, "delete"])
@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_beside_a_plain_loop(name: str, fill: Any) -> None:
    model = random_model(ARCHITECTURES[name], 0)
    e = model.explain(IDS, "occlusion", options={"fill": fill}, batch_tokens=12)
    site = "transformer.wte" if name == "gpt2" else "model.embed_tokens"
    table = model.weights[f"{site}.weight"]
    for t in range(len(IDS)):
        if fill in ("zero", "mean"):
            row = table[IDS].mean(axis=0) if fill == "mean" else 0.0
            edit = refl.Edit(factor=0, amount=row, index=(t,))
            z = model.logits(IDS, edits={site: edit})[-1]
        else:
            left = without(IDS, t) if fill == "delete" else [*IDS[:t], 4, *IDS[t + 1 :]]
            z = model.logits(left)[-1]
        assert e.relevance[t] == pytest.approx(e.logit - z[e.target_id], rel=1e-9, abs=1e-11)


@pytest.mark.parametrize("seed", ["logit", "log-probability", "probability", "contrast"])
def test_every_seed(seed: str) -> None:
    model = random_model(LLAMA, 0)
    how: dict[str, Any] = (
        {"contrast": (4, 6)} if seed == "contrast" else {"target": 4, "seed": seed}
    )
    e = model.explain(IDS, "leave-one-out", **how)

    def value(z: Any) -> float:
        if seed == "contrast":
            return float(z[4] - z[6])
        log = z - z.max() - np.log(np.exp(z - z.max()).sum())
        return float({"logit": z, "log-probability": log, "probability": np.exp(log)}[seed][4])

    whole = value(model.logits(IDS)[-1])
    expected = [whole - value(model.logits(without(IDS, t))[-1]) for t in range(5)]
    np.testing.assert_allclose(e.relevance, expected, rtol=1e-9, atol=1e-12)
    assert e.explained == pytest.approx(whole) and e.recorded is None


def test_a_neuron_under_edits() -> None:
    model, at = random_model(LLAMA, 0), ("model.layers.1.mlp.act_fn", (3, 5))
    edits = {"model.layers.0.mlp": refl.Edit(factor=0.3)}
    e = model.explain(IDS, "occlusion", at=at, edits=edits, batch_tokens=12)
    for t in range(5):
        gone = {"model.embed_tokens": refl.Edit(factor=0, index=(t,))} | edits
        alone = model.explain(IDS, at=at, edits=gone, keep=()).logit
        assert e.relevance[t] == pytest.approx(e.logit - alone, rel=1e-9, abs=1e-12)
    assert e.relevance[4] == 0  # after the neuron's own token
    again = model.explain(IDS, "occlusion", at=at, edits=edits | {at[0]: refl.Edit(factor=2)})
    np.testing.assert_allclose(again.relevance, e.relevance, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("position", [1, -2, 3])
def test_deletion_before_at_and_behind_a_position(position: int) -> None:
    """What is read moves up with its token; where that is the one deleted, the output is read at
    the one before; what is behind changes nothing in a causal net.
    """
    model = random_model(GPT2, 0)
    e = model.explain(IDS, "leave-one-out", position=position, target=2)
    p = position % 5
    for t in range(5):
        z = model.logits(without(IDS, t))[p if t > p else p - 1]
        assert e.relevance[t] == pytest.approx(e.logit - z[2], rel=1e-9, abs=1e-12)
    assert (np.abs(e.relevance[p + 1 :]) < 1e-12).all() and (e.relevance[: p + 1] != 0).all()


@pytest.mark.parametrize("config", [BERT, ROBERTA])
def test_the_guessed_token_is_never_deleted(config: dict[str, Any]) -> None:
    model = random_model(config, 0)
    e = model.explain(IDS, "leave-one-out", position=2, target=4)
    pairs = model.explain(IDS, "leave-one-out", position=2, target=4, options={"window": 2})
    gone = {t: model.logits(without(IDS, t))[1 if t < 2 else 2][4] for t in (0, 1, 3, 4)}
    expected = [0.0 if t == 2 else e.logit - gone[t] for t in range(5)]
    np.testing.assert_allclose(e.relevance, expected, rtol=1e-9, atol=1e-12)
    d = [e.logit - model.logits(without(IDS, 0, 1))[0][4], expected[1], expected[3]]
    d.append(e.logit - model.logits(without(IDS, 3, 4))[2][4])
    mean = [d[0], (d[0] + d[1]) / 2, 0, (d[2] + d[3]) / 2, d[3]]
    np.testing.assert_allclose(pairs.relevance, mean, rtol=1e-9, atol=1e-12)


def test_a_replaced_token_keeps_the_positions_of_the_others() -> None:
    """RoBERTa counts them off the ids, and a padding token among those would not count."""
    model = random_model(ROBERTA, 0)
    e = model.explain(IDS, "occlusion", position=2, target=4, options={"fill": "pad"})
    table = model.weights["roberta.embeddings.word_embeddings.weight"]
    site = "roberta.embeddings.word_embeddings"
    edit = refl.Edit(factor=0, amount=table[1], index=(0,))
    there = model.logits(IDS, edits={site: edit})[2][4]
    assert e.relevance[0] == pytest.approx(e.logit - there, rel=1e-9)
    assert abs(model.logits([1, *IDS[1:]])[2][4] - there) > 1e-3


@pytest.mark.parametrize("fill", ["zero", "delete"])
def test_what_a_decoder_has_written(fill: str) -> None:
    model, prefix = random_model(T5, 0), [0, 4, 6]
    e = model.explain(IDS, "occlusion", decoder=prefix, options={"fill": fill}, batch_tokens=20)

    def score(ids: list[int], prefix: list[int], **edits: Any) -> float:
        return float(e.logit - model.logits(ids, prefix, **edits)[-1][e.target_id])

    def nothing_at(site: str, t: int) -> dict[str, Any]:
        return {"edits": {site: refl.Edit(factor=0, index=(t,))}}

    if fill == "delete":
        read = [score(without(IDS, t), prefix) for t in range(5)]
        written = [0.0, *(score(IDS, without(prefix, t)) for t in (1, 2))]
    else:
        sites = ("encoder.embed_tokens", "decoder.embed_tokens")
        read = [score(IDS, prefix, **nothing_at(sites[0], t)) for t in range(5)]
        written = [score(IDS, prefix, **nothing_at(sites[1], t)) for t in range(3)]
    np.testing.assert_allclose(e.relevance, read, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(e.decoder_relevance, written, rtol=1e-9, atol=1e-12)


def test_words() -> None:
    model = refl.load(checkpoint("stories260K"), dtype="float64")
    text = "The elephant was hungry"
    for fill in ("zero", "delete"):
        e = model.explain(text, "occlusion", options={"words": True, "fill": fill}, target=5)
        words = e.words()
        assert len(words) < len(e.tokens) - 1
        for word in words:
            inside = list(range(word.start, word.stop))
            if fill == "delete":
                z = model.logits(without(e.input_ids, *inside))
            else:
                edit = refl.Edit(factor=0, index=(slice(word.start, word.stop),))
                z = model.logits(e.input_ids, edits={"model.embed_tokens": edit})
            assert word.relevance == pytest.approx(e.logit - z[-1][5], rel=1e-9, abs=1e-10)
            assert len(set(e.relevance[inside])) == 1


# -- pictures --------------------------------------------------------------------------------------


def picture() -> Any:
    return np.random.default_rng(0).standard_normal((3, 8, 12))


@pytest.mark.parametrize("fill", ["zero", "mean", "blur", 0.7])
@pytest.mark.parametrize(
    ("window", "stride", "rows", "columns"),
    [
        (None, None, [(0, 4), (4, 8)], [(0, 3), (3, 6), (6, 9), (9, 12)]),
        ((3, 5), (2, 4), [(0, 3), (2, 5), (4, 7), (6, 8)], [(0, 5), (4, 9), (8, 12)]),
        (4, 3, [(0, 4), (3, 7), (6, 8)], [(0, 4), (3, 7), (6, 10), (9, 12)]),
    ],
)
def test_windows_of_pixels(window: Any, stride: Any, rows: Any, columns: Any, fill: Any) -> None:
    model, x = random_model(VIT, 0), picture()
    options = {"window": window, "stride": stride, "fill": fill}
    e = model.explain(x, "occlusion", target=1, options=options, batch_tokens=30)
    instead = {"zero": 0 * x, "mean": 0 * x + x.mean(axis=(1, 2), keepdims=True)}.get(
        fill, copies.blurred(x) if fill == "blur" else np.full_like(x, 0.7)
    )
    sums, counts = np.zeros((8, 12)), np.zeros((8, 12))
    for (top, bottom), (left, right) in product(rows, columns):
        changed, at = x.copy(), np.s_[:, top:bottom, left:right]
        changed[at] = instead[at]
        sums[at[1:]] += e.logit - model.explain(changed, target=1, keep=()).logit
        counts[at[1:]] += 1
    np.testing.assert_allclose(e.relevance, sums / counts, rtol=1e-8, atol=1e-10)


def test_a_blur() -> None:
    """Weights that sum to 1, of both axes, mirrored alike; a picture of one color stays."""
    flat = np.full((2, 40, 60), 3.0)
    np.testing.assert_allclose(copies.blurred(flat), flat, rtol=1e-14)
    dot = np.zeros((1, 41, 61))
    dot[0, 20, 30] = 1
    b = copies.blurred(dot)[0]
    np.testing.assert_allclose(b, b[::-1, ::-1], atol=1e-16)
    across = b[20] / b[20, 30]
    np.testing.assert_allclose(across[30:36], np.exp(-0.5 * (np.arange(6) / 2.05) ** 2), rtol=1e-3)


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture(name: str) -> None:
    """In batches as one by one; pictures have no tokens to delete."""
    model = random_model(ARCHITECTURES[name], 0)
    how: dict[str, Any] = {"position": 2} if model.task == "masked-token" else {}
    item: Any = picture() if model.takes_images else IDS
    for method in ("occlusion", "leave-one-out"):
        if model.takes_images and method == "leave-one-out":
            with pytest.raises(ReflError, match="cannot be deleted"):
                model.explain(item, method)
            continue
        one, batched = (model.explain(item, method, batch_tokens=n, **how) for n in (1, 1024))
        np.testing.assert_allclose(one.relevance, batched.relevance, rtol=1e-7, atol=1e-11)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"window": 0}, "window is 0"),
        ({"window": (2, 2)}, "one number each"),
        ({"stride": 1.5}, "stride is 1.5"),
        ({"words": True}, "no tokenizer"),
        ({"words": True, "window": 2}, "leave window out"),
        ({"fill": "unk"}, "no unk token"),
        ({"fill": None}, "fill is None"),
        ({"fill": True}, "fill is True"),
        ({"fill": "delete", "window": 5}, "leaves nothing"),
    ],
)
def test_what_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ReflError, match=words):
        random_model(GPT2, 0).explain(IDS, "occlusion", options=options)


def test_what_deletion_refuses() -> None:
    model = random_model(GPT2, 0)
    with pytest.raises(ReflError, match="leaves nothing"):
        model.explain([3], "leave-one-out")
    with pytest.raises(ReflError, match="none to read it at"):
        model.explain(IDS, "leave-one-out", position=0)
    with pytest.raises(ReflError, match="take another fill"):
        model.explain(IDS, "leave-one-out", at=("transformer.h.0.mlp", (1, 1)))
    with pytest.raises(ReflError, match="no words"):
        random_model(VIT, 0).explain(picture(), "occlusion", options={"words": True})
