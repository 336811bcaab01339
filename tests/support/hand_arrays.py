"""Small random arrays, and the few sums that rules written out by hand need."""

from __future__ import annotations

from typing import Any

import numpy as np

B, T, N, M = 2, 3, 4, 5
RANDOM = np.random.default_rng(11)
X, Y, G = (RANDOM.normal(size=(B, T, N)) for _ in range(3))
W, BIAS, R = RANDOM.normal(size=(M, N)), RANDOM.normal(size=M), RANDOM.normal(size=(B, T, M))
EPS = 1e-2


def size(a: Any) -> Any:  # (B, ...) -> (B,)
    """Sum of absolute values, per example."""
    return np.abs(a).reshape(len(a), -1).sum(axis=1)


def agree(got: Any, wanted: Any) -> None:
    assert got.shape == wanted.shape
    assert np.abs(got - wanted).max() <= 1e-13 * np.abs(wanted).max()


def away(z: Any, eps: float = EPS) -> Any:
    """z moved away from zero by eps."""
    return z + np.where(z >= 0, eps, -eps)


def over(r: Any, d: Any) -> Any:
    """r / d, and nothing where d is zero."""
    return np.where(d == 0, 0, r / np.where(d == 0, 1, d))
