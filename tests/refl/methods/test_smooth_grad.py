"""SmoothGrad against the gradient of a cube, with the noise drawn again as its file says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tiny_nets import power

import refl
from refl.errors import ReflError
from refl.verification.random_models import ARCHITECTURES, GPT2, random_model

IDS = [3, 0, 5, 5, 1]
NAME = "smoothgrad"


def expected(noise: float, samples: int, draw: int) -> tuple[Any, Any]:
    """f = (sum_t w . x_t / T)^3: the mean of 3 s^2 w / T, and x."""
    model, _ = power(3)
    table, w = model.weights["embed.weight"], model.weights["score.weight"][0]
    x = table[IDS]
    width = noise * (x.max() - x.min())
    g = np.zeros_like(x)
    for k in range(samples):
        copy = x + width * np.random.default_rng((draw, k)).standard_normal(x.shape)
        g += 3 * ((copy @ w).sum() / len(IDS)) ** 2 * w / len(IDS) / samples
    return g, x


@pytest.mark.parametrize("times_input", [False, True])
@pytest.mark.parametrize("score", ["norm", "sum"])
def test_of_a_cube(score: str, times_input: bool) -> None:
    model, _ = power(3)
    options = {"noise": 0.2, "samples": 5, "draw": 3, "times_input": times_input, "score": score}
    e = model.explain(IDS, NAME, target=0, options=options, batch_tokens=12)
    g, x = expected(0.2, 5, 3)
    g = g * x if times_input else g
    r = np.sqrt((g**2).sum(axis=-1)) if score == "norm" else g.sum(axis=-1)
    np.testing.assert_allclose(e.relevance, r, rtol=1e-12)
    assert e.method.score == score


def test_without_noise_it_is_the_gradient() -> None:
    model = random_model(GPT2, 0)
    plain = model.explain(IDS, "gradient", target=2)
    e = model.explain(IDS, NAME, target=2, options={"noise": 0, "samples": 3})
    np.testing.assert_allclose(e.relevance, plain.relevance, rtol=1e-11)
    assert not np.allclose(model.explain(IDS, NAME, target=2).relevance, plain.relevance, rtol=1e-2)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture(name: str) -> None:
    """In batches as one by one; and a draw is a draw."""
    model = random_model(ARCHITECTURES[name], 0)
    item = np.random.default_rng(0).standard_normal((3, 8, 12)) if model.takes_images else IDS
    how: dict[str, Any] = {"position": 2} if model.task == "masked-token" else {}
    if model.task == "sequence-to-sequence":
        how = {"decoder": [0, 4, 6]}
    small = {"samples": 4}
    one, batched = (
        model.explain(item, NAME, batch_tokens=n, options=small, **how) for n in (1, 1024)
    )
    other = model.explain(item, NAME, options=small | {"draw": 1}, **how)
    np.testing.assert_allclose(one.relevance, batched.relevance, rtol=1e-8)
    assert not np.allclose(one.relevance, other.relevance, rtol=1e-3)
    if one.decoder_relevance is not None:
        np.testing.assert_allclose(one.decoder_relevance, batched.decoder_relevance, rtol=1e-8)
        assert (one.decoder_relevance > 0).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"noise": 1.5}, "from 0 to 1"),
        ({"noise": True}, "from 0 to 1"),
        ({"samples": 0}, "above 0"),
        ({"draw": -1}, "at least 0"),
        ({"score": "length"}, "norm or sum"),
        ({"times_input": 1}, "True or False"),
    ],
)
def test_what_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ReflError, match=words):
        random_model(GPT2, 0).explain(IDS, NAME, options=options)


def test_the_words_about_lengths() -> None:
    shown = " ".join(str(refl.load().explain("the keys to the cabinet", NAME)).split())
    assert (
        "Scores are lengths of the propagated gradient: they have no sign and do not add up."
        in (shown)
    )
