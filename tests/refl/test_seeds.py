"""What is explained, where relevance starts: a logit, one logit against another, a log-probability,
or the softmax-weighted seed of a probability.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from refl.seeds import Seed

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
