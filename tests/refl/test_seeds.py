"""What is explained, where relevance starts: a logit, one logit against another, a log-probability,
or the softmax-weighted seed of a probability.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from mpmath import mp

from refl.model import Model
from refl.seeds import KINDS, Seed
from refl.verification.random_models import GPT2, random_model, with_weights

EIGHTHS = np.log([1.0, 2.0, 5.0])
"""Logits whose probabilities are 1/8, 2/8 and 5/8."""


def test_the_seed_of_a_logit() -> None:
    z = np.asarray([0.5, -3.0, 2.0])
    assert list(Seed("logit", 1).gradient(z)) == [0, 1, 0]
    assert list(Seed("logit", 1).relevance(z)) == [0, -3, 0]
    assert list(Seed("logit", 2, against=1).gradient(z)) == [0, -1, 1]
    assert list(Seed("logit", 2, against=1).relevance(z)) == [0, 3, 2]


def test_the_seed_of_a_log_probability() -> None:
    """s = e_a - p, and z s."""
    seed = Seed("log-probability", 1)
    assert list(seed.gradient(EIGHTHS)) == pytest.approx([-1 / 8, 6 / 8, -5 / 8])
    expected = [0, 6 / 8 * math.log(2), -5 / 8 * math.log(5)]
    assert list(seed.relevance(EIGHTHS)) == pytest.approx(expected)


def test_the_softmax_weighted_seed() -> None:
    """p_a (1 - p_a) at a, -p_a p_k elsewhere; the gradient x input form divides by the logit, where
    that is not zero.
    """
    seed = Seed("probability", 1)
    assert list(seed.relevance(EIGHTHS)) == pytest.approx([-2 / 64, 12 / 64, -10 / 64])
    expected = [0, 12 / 64 / math.log(2), -10 / 64 / math.log(5)]
    assert list(seed.gradient(EIGHTHS)) == pytest.approx(expected)


def exact_seed(kind: str, z: Any, a: int) -> list[Any]:
    """s of a log-probability, z s of a probability: in 60 digits, from these very logits."""
    with mp.workdps(60):
        e = [mp.exp(mp.mpf(float(x))) for x in z]
        p = [x / mp.fsum(e) for x in e]
        if kind == "log-probability":
            return [(k == a) - p_k for k, p_k in enumerate(p)]
        return [p[a] * ((k == a) - p_k) for k, p_k in enumerate(p)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("lead", [-60, -3, 0, 1e-3, 5, 20, 40, 60])
@pytest.mark.parametrize("kind", ["log-probability", "probability"])
def test_no_digit_of_a_seed_cancels(kind: str, lead: float, dtype: str) -> None:
    """Every entry to a few units of roundoff of itself, times how far exp feels its argument."""
    z = np.asarray([lead + 0.125, 0.0, 0.5, -1.25, -0.375], dtype=dtype)
    seed = Seed(kind, 0)
    got = seed.gradient(z) if kind == "log-probability" else seed.relevance(z)
    assert got.dtype == z.dtype
    felt = 8 * (1 + abs(lead)) * 2.0**-53 + 2 * float(np.finfo(dtype).eps)
    for one, wanted in zip(got, exact_seed(kind, z, 0), strict=True):
        assert abs(mp.mpf(float(one)) - wanted) <= felt * abs(wanted)


def test_a_certain_target_keeps_its_seed() -> None:
    """A lead of 20 in float32: 1 - p is 2.06e-9, and not 0."""
    z = np.asarray([20, 0], dtype="float32")
    assert Seed("log-probability", 0).gradient(z)[0] == pytest.approx(2.0611536e-9, rel=1e-6)


def model_with_logits_of_zero(dtype: str) -> Model:
    """GPT-2 whose last three tokens have rows of zeros, as the padding of a vocabulary does."""
    model = random_model(GPT2 | {"tie_word_embeddings": False}, 3, dtype)
    head = np.array(model.weights["lm_head.weight"])
    head[-3:] = 0
    return with_weights(model, **{"lm_head.weight": head})


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_no_gradient_can_carry_is_absorbed(dtype: str) -> None:
    """At a logit of 0 there is no g with z g = -p_a p_k: it is in the ledger, and the seed adds up
    to 0 as the relevance form's does.
    """
    model, ids = model_with_logits_of_zero(dtype), [3, 1, 5]
    z = model.logits(ids)[-1]
    assert not z[-3:].any()
    e = model.explain(ids, "attnlrp-gradient", seed="probability")
    p = exact_seed("probability", z, e.target_id)
    lost, u = float(mp.fsum(p[-3:])), float(np.finfo(dtype).eps)
    assert lost < -1e-6
    assert e.ledger["lm_head"].absorbed["stabilizer"] == pytest.approx(lost, rel=4 * u)
    assert e.ledger.absorbed["stabilizer"] == pytest.approx(lost, rel=4 * u)
    assert abs(e.explained) <= 8 * u
    for entry in e.ledger:
        assert abs(entry.conservation_error) <= 1e3 * u, entry.site
    relevance = model.explain(ids, "lrp-0", seed="probability")
    assert relevance.ledger["lm_head"].absorbed["stabilizer"] == pytest.approx(lost, rel=4 * u)


@pytest.mark.parametrize("kind", sorted({*KINDS} - {"probability"}))
def test_other_seeds_lose_nothing_at_a_logit_of_zero(kind: str) -> None:
    e = model_with_logits_of_zero("float64").explain([3, 1, 5], "cp-lrp", seed=kind)
    assert "stabilizer" not in e.ledger.absorbed


def test_a_logit_so_small_that_the_quotient_overflows() -> None:
    z = np.asarray([1.0, 1e-40, -2.0], dtype="float32")
    seed = Seed("probability", 0)
    assert np.isfinite(seed.gradient(z)).all()
    assert seed.unpropagated(z) == seed.relevance(z)[1] != 0
