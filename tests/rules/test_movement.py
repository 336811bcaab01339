"""Movement: every kind moves entries, and relevance back, as its definition says."""

from __future__ import annotations

from functools import partial
from itertools import product

import numpy as np
import pytest
from backends import Backend
from exact_rules import dtypes, forward_agrees, rule_agrees

from refl.rules import linear, movement
from refl.verification.definitions.exact_vision import patch_place
from refl.verification.quality.cases import MOVES, movement_case

moves = pytest.mark.parametrize("move", MOVES)


def test_every_kind_of_movement_is_here() -> None:
    assert {name.partition(",")[0] for name in MOVES} == set(movement.MOVES)


@dtypes
@moves
def test_rule(backend: Backend, dtype: str, move: str) -> None:
    rule_agrees(backend, dtype, "movement_pass_through", partial(movement_case, move=move))


@dtypes
@moves
def test_forward(backend: Backend, dtype: str, move: str) -> None:
    """Nothing is rounded."""
    forward_agrees(backend, dtype, partial(movement_case, move=move), lambda case, call, z: 0)


# -- patches ---------------------------------------------------------------------------------------

IMAGES = [
    ((2, 3, 8, 6), (4, 3)),
    ((1, 1, 7, 5), (2, 3)),
    ((1, 2, 4, 4), (4, 4)),
    ((2, 1, 3, 9), (1, 2)),
]


@pytest.mark.parametrize(("shape", "size"), IMAGES)
def test_patches(backend: Backend, shape: tuple[int, ...], size: tuple[int, int]) -> None:
    """Pixel by pixel; those that no patch holds get nothing back."""
    (rows, columns), pixels = (shape[2] // size[0], shape[3] // size[1]), size[0] * size[1]
    x = np.random.default_rng(0).standard_normal(shape)
    z = backend.back(movement.forward(backend.place(x), kind="patches", size=size))
    assert z.shape == (shape[0], rows * columns, shape[1] * pixels)
    r = np.random.default_rng(1).standard_normal(z.shape)
    output = movement.pass_through(*map(backend.place, (x, z, r)), kind="patches", size=size)
    returned = backend.back(output.inputs[0])
    assert returned.shape == shape and output.absorbed == {}
    for index in np.ndindex(*shape):
        place = patch_place(index, size, shape)
        assert returned[index] == (0.0 if place is None else r[place])
        assert place is None or z[place] == x[index]


@pytest.mark.parametrize(("rows", "stride"), [(1, 1), (2, 2), (7, 1), (8, 2), (9, 2)])
def test_windows_and_a_matrix_are_a_convolution(rows: int, stride: int) -> None:
    """z[b, n, o] = sum over channels and rows of kernel * x, over an edge of one zero, written as
    loops; what comes back to a row is what the windows it is in have of it.
    """
    random = np.random.default_rng(rows)
    x, kernel = random.standard_normal((2, rows, 2)), random.standard_normal((3, 2, 3))
    edge = np.zeros((2, 1, 2))
    padded = movement.forward(edge, x, edge, kind="concat", axis=1)
    found = movement.forward(padded, kind="windows", size=3, stride=stride)
    z = linear.forward(found, kernel.reshape(3, -1), None)
    count = (rows - 1) // stride + 1
    assert z.shape == (2, count, 3)
    wanted, r = np.zeros_like(z), random.standard_normal(found.shape)
    back = np.zeros_like(padded)
    for b, n, c, k in product(range(2), range(count), range(2), range(3)):
        row = n * stride + k - 1
        back[b, row + 1, c] += r[b, n, 3 * c + k]
        if 0 <= row < rows:
            wanted[b, n] += kernel[:, c, k] * x[b, row, c]
    np.testing.assert_allclose(z, wanted, rtol=0, atol=1e-13)
    how = {"kind": "windows", "size": 3, "stride": stride}
    output = movement.pass_through(padded, found, r, **how)
    np.testing.assert_allclose(output.inputs[0], back, rtol=0, atol=1e-14)
    assert output.absorbed == {}


def test_patches_and_a_matrix_are_a_convolution() -> None:
    """z[b, n, o] = sum over channels and the window of kernel * pixels, written as four loops."""
    random = np.random.default_rng(2)
    x, kernel = random.standard_normal((1, 2, 5, 6)), random.standard_normal((3, 2, 2, 3))
    patches = movement.forward(x, kind="patches", size=(2, 3))
    z = linear.forward(patches, kernel.reshape(3, -1), None)
    for o, row, column in product(range(3), range(2), range(2)):
        window = x[0, :, 2 * row : 2 * row + 2, 3 * column : 3 * column + 3]
        assert z[0, 2 * row + column, o] == pytest.approx((window * kernel[o]).sum(), rel=1e-13)
