"""What is explained, where relevance starts: a logit, or one logit against another."""

from __future__ import annotations

import numpy as np

from refl.seeds import Seed


def test_the_seed_of_a_logit() -> None:
    z = np.asarray([0.5, -3.0, 2.0])
    assert list(Seed("logit", 1).gradient(z)) == [0, 1, 0]
    assert list(Seed("logit", 1).relevance(z)) == [0, -3, 0]
    assert list(Seed("logit", 2, against=1).gradient(z)) == [0, -1, 1]
    assert list(Seed("logit", 2, against=1).relevance(z)) == [0, 3, 2]
