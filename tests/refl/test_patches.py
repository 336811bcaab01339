"""A picture's patches: sums over them, and scores spread over them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refl import patches
from refl.explanation import Explanation
from refl.methods import METHODS
from refl.verification.random_models import VIT, random_model


def test_sums_and_spread_by_hand() -> None:
    pixels = np.arange(15.0).reshape(3, 5)  # beyond the last whole patch: a row and a column
    assert patches.grid(pixels.shape, (2, 2)) == (1, 2)
    assert patches.sums(pixels, (2, 2)).tolist() == [[12, 20]]
    expected = [[3, 3, 5, 5, 0], [3, 3, 5, 5, 0], [0] * 5]
    assert patches.spread(np.asarray([12.0, 20.0]), (3, 5), (2, 2)).tolist() == expected


@given(st.tuples(*[st.integers(1, 9)] * 2), st.tuples(*[st.integers(1, 4)] * 2))
def test_spread_gives_each_patch_its_score(image: patches.Size, patch: patches.Size) -> None:
    rows, columns = patches.grid(image, patch)
    scores = np.arange(1.0, rows * columns + 1).reshape(rows, columns) * patch[0] * patch[1]
    found = patches.spread(scores.ravel(), image, patch)
    assert found.shape == image
    np.testing.assert_array_equal(patches.sums(found, patch), scores)
    inside = np.zeros(image, dtype=bool)
    inside[: rows * patch[0], : columns * patch[1]] = True
    np.testing.assert_array_equal(found != 0, inside)


def explain(method: str, **asked: Any) -> Explanation:
    model = random_model(VIT | {"image_size": [9, 13], "patch_size": [4, 3]}, seed=1)
    return model.explain(np.random.default_rng(0).normal(size=(3, 9, 13)), method, **asked)


OTHERS = ("random", "metagame", "alti-logit", "attnlrp-vit-box")
"""Random scores are on every pixel; the others are for text, or need the bounds of a pixel."""


@pytest.mark.parametrize("method", [name for name in METHODS if name not in OTHERS])
def test_pixels_left_over_have_no_score(method: str) -> None:
    """Whichever method: the net never reads them."""
    e = explain(method, options={"fill": "zero"} if method == "leave-one-out" else None)
    assert e.relevance.shape == (9, 13)
    assert not e.relevance[8:].any() and not e.relevance[:, 12:].any()
    assert e.patches.shape == (2, 4) and e.patches.any()


def test_decompx_has_them_where_cp_lrp_does() -> None:
    found, swept = explain("decompx", target=0), explain("cp-lrp", target=0)
    assert abs(found.patches - swept.patches).max() <= 1e-10 * abs(swept.patches).max()


def test_pa_lrp_adds_the_same_to_every_pixel_of_a_patch() -> None:
    found, swept = explain("pa-lrp", target=0), explain("attnlrp-gradient", target=0)
    added = found.relevance - swept.relevance
    even = patches.spread(patches.sums(added, (4, 3)).ravel(), (9, 13), (4, 3))
    assert added.any() and abs(added - even).max() <= 1e-12
