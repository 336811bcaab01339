"""The definitions stand on Python, NumPy to hold arrays, and mpmath; and lifted to whole arrays
they are what they are on one row.
"""

from __future__ import annotations

import ast
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from refl.verification.definitions import exact, lift
from refl.verification.definitions.lift import Call, collected

FILES = sorted(Path(lift.__file__).parent.glob("*.py"))
SCALAR = {"exact", "exact_vision", "exact_experts"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_definitions_need_no_other_library(file: Path) -> None:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    modules = {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    modules |= {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    others = {m.partition(".")[0] for m in modules} - set(sys.stdlib_module_names) - {"refl"}
    assert others <= ({"mpmath"} if file.stem in SCALAR else {"mpmath", "numpy"})


def test_rows_keep_their_places_and_examples_their_amounts() -> None:
    """Two examples of two rows each, x_i W_i + b = z with W = (1, 2), b = 1, R = z."""
    x = lift.lifted(np.arange(8.0).reshape(2, 2, 2), Fraction)
    w, b = (lift.lifted(np.asarray(a), Fraction) for a in ([[1.0, 2.0]], [1.0]))
    z = lift.FORWARD["linear"](Call([x, w, b]))
    call = Call([x, w, b], z, options={"eps": Fraction(0), "stabilizer": "none"})
    found = collected(lift.RULES["linear_epsilon"](call), 3)
    assert found.received(0, x.shape).tolist() == (x * w[0]).tolist()
    assert found.amounts(2) == {"bias": [2, 2], "stabilizer": [0, 0]}
    assert found.conservation_error(z) == 0


def test_an_operand_that_is_broadcast_receives_from_all_its_copies() -> None:
    a, b = (lift.lifted(np.ones(shape), Fraction) for shape in ((2, 3), (2, 1)))
    call = Call([a, b], a + b, options={"eps": Fraction(0), "stabilizer": "none"})
    found = collected(lift.RULES["add_epsilon"](call), 2)
    assert found.received(0, (2, 3)).tolist() == [[1, 1, 1], [1, 1, 1]]
    assert found.received(1, (2, 1)).tolist() == [[3], [3]]


def test_windows_are_the_rows_of_a_matrix() -> None:
    """A kernel of one pixel is a linear layer on every pixel."""
    x = lift.lifted(np.arange(1.0, 9.0).reshape(1, 2, 2, 2), Fraction)
    kernel = lift.lifted(np.asarray([3.0, 5.0]).reshape(1, 2, 1, 1), Fraction)
    r = lift.lifted(np.ones((1, 1, 2, 2)), Fraction)
    got = collected(lift.RULES["convolution_flat"](Call([x, kernel, None], r)), 3)
    assert set(got.received(0, x.shape).flat) == {Fraction(1, 2)}
    row = exact.linear_flat([1, 5], [[3, 5]], [1])
    assert got.inputs[0][0, 0, 0, 0] == [row.received(0, 0)]
