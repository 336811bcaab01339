"""What counts as masked in a softmax, and what its rules do with it."""

from __future__ import annotations

import numpy as np
import pytest

from refl.rules import softmax


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_half_the_lowest_number_is_a_mask(dtype: str) -> None:
    """At half the dtype's minimum an entry is masked, right above it is not."""
    half = np.finfo(dtype).min / np.asarray(2, dtype=dtype)
    for lowest, hidden in (
        (half, True),
        (np.nextafter(half, np.asarray(0, dtype=dtype)), False),
        (half * np.asarray(0.75, dtype), False),
    ):
        for beside in ([], [-np.inf]):
            x = np.asarray([[0.0, lowest, *beside]], dtype=dtype)
            r = np.asarray([[0.0, 2.0**-100, *(4.0 for _ in beside)]], dtype=dtype)
            p, absorbed = softmax.forward(x), 2.0**-100 * hidden + 4.0 * len(beside)
            output = softmax.taylor(x, p, r)
            assert p[0, :2].tolist() == [1.0, 0.0] and output.inputs[0] is not None
            assert output.inputs[0][0, :2].tolist() == [
                0.0,
                0.0 if hidden else float(lowest) * 2.0**-100,
            ]
            assert {k: list(v) for k, v in output.absorbed.items() if k == "mask"} == (
                {"mask": [absorbed]} if absorbed else {}
            )


def test_two_kinds_of_mask_at_once() -> None:
    """One entry hidden by -inf, another by the mask:
    both pass on nothing, and what stood there is recorded.
    """
    x, r = np.asarray([[1.0, -np.inf, 2.0, 3.0]]), np.asarray([[1.0, 4.0, 8.0, 2.0]])
    mask = np.asarray([[True, True, False, True]])
    p = softmax.forward(x, mask=mask)
    e = np.exp(-2.0)
    assert np.abs(p - np.asarray([[e, 0, 0, 1]]) / (1 + e)).max() <= 1e-15
    for rule in (softmax.taylor, softmax.identity, softmax.z_plus, softmax.spread):
        output = rule(x, p, r, mask=mask)
        assert output.inputs[0] is not None and output.inputs[0][0, 1:3].tolist() == [0.0, 0.0]
        assert output.absorbed["mask"].tolist() == [12.0]
