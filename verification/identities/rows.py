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
        """What does not apply cannot fail; a deviation that is no number does."""
        return self.measured is None or self.bound is None or self.measured <= self.bound

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
    """Of many deviations the one that is largest beside its bound."""

    measured: float = 0.0
    bound: float = 0.0
    where: str = ""
    count: int = 0
    of_bound: float = -1.0
    """measured / bound."""

    def compare(self, got: Any, want: Any, bound: float, where: str = "") -> None:
        """Two arrays that have to agree within `bound`, everywhere."""
        self.add(deviation(got, want), bound, where)

    def add(self, measured: float, bound: float, where: str = "") -> None:
        self.count += 1
        of_bound = _of_bound(measured, bound)
        if of_bound > self.of_bound:
            self.measured, self.bound, self.where, self.of_bound = measured, bound, where, of_bound

    def row(self, number: int, identity: str, means: str, found: str = "", **how: Any) -> Row:
        at = f"; worst at {self.where}" if self.where and self.measured != 0 else ""
        return Row(number, identity, means, self.measured, self.bound, found + at, **how)


def deviation(got: Any, want: Any) -> float:
    """The largest difference of two arrays; infinite where their shapes differ."""
    got, want = asnumpy(got), asnumpy(want)
    same = np.shape(got) == np.shape(want)
    return float(np.abs(got - want).max(initial=0.0)) if same else math.inf


def _of_bound(measured: float, bound: float) -> float:
    if measured == 0:
        return 0.0
    return measured / bound if bound > 0 and not math.isnan(measured) else math.inf
