"""What is measured: a row of the table, and of many deviations the one that counts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from refl.arrays import asnumpy


@dataclass(frozen=True)
class Row:
    """One line of the table. `measured` and `bound` are None where the identity does not apply, and
    `reason` says why.
    """

    number: int
    identity: str
    means: str
    measured: float | None = None
    bound: float | None = None
    found: str = ""
    reason: str = ""
    small: bool = False
    """Shown on a small net built for it, not on the model."""

    @property
    def holds(self) -> bool:
        """What does not apply cannot fail; a deviation or a bound that is no number does."""
        if self.measured is None or self.bound is None:
            return True
        return self.measured <= self.bound < math.inf

    @property
    def result(self) -> str:
        return "does not apply" if self.measured is None else "holds" if self.holds else "FAILS"

    def as_dict(self) -> dict[str, Any]:
        return {
            "number": self.number,
            "identity": self.identity,
            "result": self.result,
            "measured": self.measured,
            "bound": self.bound,
            "found": self.found,
            "means": self.means,
            "reason": self.reason,
            "on": "a small net" if self.small else "the model",
        }


@dataclass
class WorstDeviation:
    """Of many deviations the one that is largest beside its bound.

    A comparison decides something where what is compared is larger than what is allowed: 0 = 0, or
    1e-20 = 3e-20 within 1e-12, would hold of anything.
    """

    measured: float = 0.0
    bound: float = 0.0
    where: str = ""
    count: int = 0
    of_bound: float = -1.0
    """measured / bound."""
    deciding: int = 0
    """Comparisons that decide something."""

    def compare(
        self, got: Any, want: Any, bound: float, where: str = "", size: float | None = None
    ) -> None:
        """Two arrays that have to agree within `bound`, everywhere. `size`: of what is compared, by
        default the largest number of either.
        """
        size = max(largest(got), largest(want)) if size is None else size
        self.add(deviation(got, want), bound, where, size)

    def add(self, measured: float, bound: float, where: str = "", size: float = math.inf) -> None:
        """A bound that is no finite number allows nothing."""
        self.count += 1
        self.deciding += size > bound
        of_bound = _of_bound(measured, bound)
        if of_bound > self.of_bound:
            self.measured, self.bound, self.where, self.of_bound = measured, bound, where, of_bound

    def row(
        self, number: int, identity: str, means: str, found: str = "", nothing: str = "", **how: Any
    ) -> Row:
        """`nothing`: why there may be nothing to compare."""
        if not self.of_bound > 1 and not self.deciding:
            reason = f"nothing to compare: {nothing or self._undecided()}"
            return Row(number, identity, means, reason=reason, **how)
        blind = self.count - self.deciding
        few = f"; {blind:,} of {self.count:,} are too small to decide" if blind else ""
        at = f"; worst at {self.where}" if self.where and self.measured != 0 else ""
        return Row(number, identity, means, self.measured, self.bound, found + few + at, **how)

    def _undecided(self) -> str:
        if not self.count:
            return "the net, or this input, has no place for it"
        return "no number compared is larger than the rounding that is allowed"


def deviation(got: Any, want: Any) -> float:
    """The largest difference of two arrays; infinite where their shapes differ."""
    got, want = asnumpy(got), asnumpy(want)
    same = np.shape(got) == np.shape(want)
    return float(np.abs(got - want).max(initial=0.0)) if same else math.inf


def largest(array: Any) -> float:
    return float(np.abs(asnumpy(array)).max(initial=0.0))


def _of_bound(measured: float, bound: float) -> float:
    if not math.isfinite(bound):
        return math.inf
    if measured == 0:
        return 0.0
    return measured / bound if bound > 0 and not math.isnan(measured) else math.inf
