"""A picture's patches: sums over them, and scores spread over them."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from refl import patches


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
