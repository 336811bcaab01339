"""How far two lists of scores agree: three correlations, exact, with ties

    Pearson    sum (a - mean a)(b - mean b) / sqrt(sum (a - mean a)^2 sum (b - mean b)^2)
    Spearman   Pearson of the ranks; of equal scores each has the mean of their ranks
    Kendall    tau-b = (concordant - discordant pairs) / sqrt((n0 - ties in a) (n0 - ties in b)),
               n0 = n (n - 1) / 2                                      (Kendall 1945, Biometrika 33)

Each is nan where it is undefined: fewer than two scores, all scores of one side equal, a score that
is infinite or no number.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np


def pearson(a: Any, b: Any) -> float:  # (N,), (N,)
    """Raises ValueError for two lengths."""
    a, b = _pair(a, b)
    if _is_undefined(a, b):
        return math.nan
    a, b = _direction(a), _direction(b)
    return float(np.clip(a @ b / math.sqrt((a @ a) * (b @ b)), -1, 1))


def spearman(a: Any, b: Any) -> float:  # (N,), (N,)
    """Raises ValueError for two lengths."""
    a, b = _pair(a, b)
    return math.nan if _is_undefined(a, b) else pearson(ranks(a), ranks(b))


def kendall(a: Any, b: Any) -> float:  # (N,), (N,)
    """Raises ValueError for two lengths."""
    a, b = _pair(a, b)
    if _is_undefined(a, b):
        return math.nan
    order = tied_a = tied_b = 0
    for i in range(len(a) - 1):  # row by row: no N x N matrix for the pixels of a picture
        x, y = np.sign(a[i] - a[i + 1 :]), np.sign(b[i] - b[i + 1 :])
        order += int((x * y).sum())
        tied_a += int((x == 0).sum())
        tied_b += int((y == 0).sum())
    pairs = len(a) * (len(a) - 1) // 2
    return order / math.sqrt((pairs - tied_a) * (pairs - tied_b))


CORRELATIONS: dict[str, Callable[[Any, Any], float]] = {
    "pearson": pearson,
    "spearman": spearman,
    "kendall": kendall,
}


def agreement(a: Any, b: Any) -> dict[str, float]:  # (N,), (N,)
    """Every correlation by its name, of the scores as they are and of their sizes (`_absolute`).
    Raises ValueError for two lengths.
    """
    a, b = _pair(a, b)
    sides = {"": (a, b), "_absolute": (abs(a), abs(b))}
    return {f"{name}{end}": c(*s) for name, c in CORRELATIONS.items() for end, s in sides.items()}


def ranks(x: Any) -> Any:  # (N,) -> (N,)
    """1 for the smallest; equal ones have the mean of theirs."""
    _, group, counts = np.unique(x, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[group]


def _pair(a: Any, b: Any) -> tuple[Any, Any]:
    a, b = (np.asarray(x, dtype=np.float64).ravel() for x in (a, b))
    if a.shape != b.shape:
        raise ValueError(f"{len(a)} scores beside {len(b)}: expected as many")
    return a, b


def _is_undefined(a: Any, b: Any) -> bool:
    if len(a) < 2 or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return True
    return bool((a == a[0]).all() or (b == b[0]).all())


def _direction(x: Any) -> Any:
    """x less its mean, scaled so that no square is infinite or lost."""
    x = x / np.abs(x).max()
    x = x - x.mean()
    return x / np.abs(x).max()
