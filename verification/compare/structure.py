"""Is an array another one with its structure wrong: times a factor, with the other sign, with axes
transposed, one reversed, rolled or averaged, one slice for all?

It is asked at the first site that parts, where what was handed down is still that of one rule, and
needs no model. Ids are the catalogue's (vectors/mistakes.toml), the same as for single rules.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from refl.verification.array_changes import (
    AlongAxis,
    first_for_all,
    last_for_all,
    over,
    summed_up,
    without_first,
    without_last,
)
from refl.verification.vectors.catalogue import CATALOGUE


class Structure(NamedTuple):
    """A change of structure that makes one array the other."""

    mistake: str
    """Its id."""
    how: str

    @property
    def says(self) -> str:
        known = CATALOGUE.get(self.mistake)
        return f"{self.how} ({known or self.mistake})"


def structures(a: Any, b: Any, near: float) -> list[Structure]:
    """Changes that turn a into b, to within `near` of a's largest number; none where they are equal
    to that, or where a change makes no difference. Whole-array changes come first.
    """
    a, b = (np.asarray(x, dtype=np.float64) for x in (a, b))
    close = near * float(np.abs(a).max(initial=0.0))
    if a.shape != b.shape or a.size < FEWEST or not np.isfinite(b).all() or not close:
        return []
    if np.abs(a - b).max() <= CLEARLY * close:
        return []
    return [s for s, made in _candidates(a, b) if _alike(made, a, b, close)]


FEWEST = 4
"""Of fewer numbers anything may be said."""
CLEARLY = 16


def _alike(made: Any, a: Any, b: Any, close: float) -> bool:
    return bool(np.abs(made - b).max() <= close and np.abs(made - a).max() > CLEARLY * close)


def _candidates(a: Any, b: Any) -> Iterator[tuple[Structure, Any]]:
    yield Structure("nothing-passed", "zero"), 0 * a
    k = float((a * b).sum() / (a * a).sum())
    if k == -1 or abs(k + 1) < 1e-3:
        yield Structure("sign-flipped", "with the other sign"), -a
    elif np.isfinite(k) and k:
        yield Structure("constant-factor", f"times {k:.6g}"), k * a
    for i, j in combinations(range(-a.ndim, 0), 2):
        if a.shape[i] == a.shape[j]:
            yield Structure("axes-transposed", f"transposed in {i} and {j}"), a.swapaxes(i, j)
    for axis in range(-a.ndim, 0):
        if a.shape[axis] > 1:
            for mistake, how, change in _ALONG:
                yield Structure(mistake, f"{how} axis {axis}"), change(a, axis)


_ALONG: tuple[tuple[str, str, AlongAxis], ...] = (
    ("axis-permuted", "reversed along", np.flip),
    ("axis-permuted", "rolled by one along", lambda a, axis: np.roll(a, 1, axis)),
    ("axis-permuted", "rolled back by one along", lambda a, axis: np.roll(a, -1, axis)),
    ("axis-mixed", "averaged over", over(np.mean)),
    ("axis-mixed", "summed over", over(np.sum)),
    ("axis-mixed", "summed up along", summed_up),
    ("one-slice-for-all", "the first for all along", first_for_all),
    ("one-slice-for-all", "the last for all along", last_for_all),
    ("slice-dropped", "without the first along", without_first),
    ("slice-dropped", "without the last along", without_last),
)
