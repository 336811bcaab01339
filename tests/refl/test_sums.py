"""Sums for the ledger (refl/arrays.py): few numbers in one call, many by rows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from refl import arrays
from refl.arrays import total, total_product

SHAPES = [(2, 3, 5), (3, 4), (4,), (1, 2, 2, 3), (2, 0, 5), (0, 3, 5), (1, 1, 1)]


def numbers(shape: tuple[int, ...], dtype: str, draw: int) -> Any:
    return np.random.default_rng(draw).standard_normal(shape).astype(dtype)


@pytest.fixture(params=["few", "many"], autouse=True)
def amount(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "many":
        monkeypatch.setattr(arrays, "FEW", 0)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sums_are_those_of_exact_numbers(shape: tuple[int, ...], dtype: str) -> None:
    x, y = numbers(shape, dtype, 1), numbers(shape, dtype, 2)
    unit = float(np.finfo(dtype).eps) / 2
    for found, terms in ((total(x), x), (total_product(x, y), x.astype(object) * y)):
        assert found.shape == shape[:1] and found.dtype == np.float64
        for sums, row in zip(found, terms, strict=True):
            exact = [float(term) for term in np.ravel(row)]
            bound = (len(exact) + 1) * unit * math.fsum(map(abs, exact))
            assert abs(sums - math.fsum(exact)) <= bound


def test_rows_that_lie_apart() -> None:
    x = numbers((2, 6, 8), "float64", 0)[:, ::2, ::-1]
    near = {"rtol": 0, "atol": 24 * 2**-53 * float(np.abs(x).max()) * 24}
    np.testing.assert_allclose(total(x), [math.fsum(row.ravel()) for row in x], **near)
    y = np.swapaxes(numbers((2, 8, 3), "float64", 1), 1, 2)
    wanted = [math.fsum((a * b).ravel()) for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(total_product(x, y), wanted, **near)


def test_a_row_that_is_one_for_all() -> None:
    """A bias with what is propagated to the output."""
    bias, g = numbers((5,), "float64", 0), numbers((2, 3, 5), "float64", 1)
    wanted = [math.fsum((bias * row).ravel()) for row in g]
    np.testing.assert_allclose(total_product(bias, g), wanted, rtol=0, atol=1e-14)


def test_few_numbers_are_summed_in_float64() -> None:
    x = np.array([[1e8, 1.0, -1e8]], np.float32)
    assert not arrays.FEW or total(x)[0] == 1.0
