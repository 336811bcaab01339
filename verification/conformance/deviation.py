"""Where an answer is furthest from the expected one, in units of what is allowed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from refl.verification.conformance.answers import Array
from refl.verification.conformance.guarded import NoResult
from refl.verification.vectors.case import Case

Answer: TypeAlias = Mapping[str, Array | None]
"""What is returned -> its array; None where nothing is passed on."""
Compared: TypeAlias = tuple[str, Array | None, Array | None, Array | None]
"""Name, the answer, what is expected, its condition."""


@dataclass(frozen=True)
class Deviation:
    """Where an answer is furthest from the expected one, in units of what is allowed."""

    name: str
    """Of the operand, or `absorbed <entry>`."""
    index: tuple[int, ...]
    expected: float
    got: float
    allowed: float

    @property
    def excess(self) -> float:
        distance = abs(self.got - self.expected)
        return distance / self.allowed if np.isfinite(distance) else float("inf")

    @property
    def wrong(self) -> bool:
        return not self.excess <= 1


def deviations(
    case: Case, got: Answer, absorbed: Mapping[str, Array] | None = None
) -> tuple[Deviation, ...]:
    """Of the relevance, and of what was absorbed if that is given, where it is wrong; worst first.
    Raises ValueError for an answer whose shape is not its operand's.
    """
    compared = _relevance(case, got) + ([] if absorbed is None else _absorbed(case, absorbed))
    found = (furthest(case, *each) for each in compared)
    return tuple(sorted((d for d in found if d and d.wrong), key=lambda d: -d.excess))


def is_right(case: Case, name: str, got: Answer) -> bool:
    d = furthest(case, name, got.get(name), case.expected[name], case.condition[name])
    return d is None or not d.wrong


def _relevance(case: Case, got: Answer) -> list[Compared]:
    return [
        (name, got.get(name), case.expected[name], case.condition[name]) for name in case.expected
    ]


def _absorbed(case: Case, got: Mapping[str, Array]) -> list[Compared]:
    """An entry that one side lacks is zero there."""
    zero, expected, condition = np.zeros(case.batch), case.absorbed, case.absorbed_condition
    return [
        (f"absorbed {e}", got.get(e, zero), expected.get(e, zero), condition.get(e, zero))
        for e in dict.fromkeys((*expected, *got))
    ]


def furthest(
    case: Case, name: str, got: Array | None, expected: Array | None, condition: Array | None
) -> Deviation | None:
    if got is None and expected is None:
        return None
    shape = (expected if expected is not None else got).shape  # type: ignore[union-attr]
    expected, condition = (np.zeros(shape) if a is None else a for a in (expected, condition))
    got = np.zeros(shape) if got is None else got
    if got.shape != shape:
        raise ValueError(f"{name} has the shape {got.shape}, expected {shape}")
    if not got.size:
        return None
    allowed = case.allowed(condition)
    with np.errstate(all="ignore"):
        excess = np.abs(got - expected) / allowed
    at = np.unravel_index(int(np.argmax(np.where(np.isfinite(got), excess, np.inf))), shape)
    index = tuple(int(i) for i in at)
    return Deviation(name, index, float(expected[index]), float(got[index]), float(allowed[index]))


# -- can it be trusted? ----------------------------------------------------------------------------

_TRIAL = Case(
    "trial",
    "scale_pass_through",
    "relevance",
    "float64",
    (),
    "",
    inputs={"x": np.ones((1, 2)), "r": np.array([[1.0, -2.0]])},
    options={},
    expected={"x": np.array([[1.0, -2.0]])},
    condition={"x": np.array([[1.0, 2.0]])},
)
_WRONG = ((1.0, -2.0000001), (1.0000001, -2.0), (-1.0, 2.0), (0.0, 0.0), (math.nan, -2.0),
          (1.0, -math.inf))  # fmt: skip


def refuse_blind_comparison() -> None:
    """Raises NoResult where this module does not tell wrong answers from the right one: somebody
    replaced functions of NumPy before refl was imported.
    """
    try:
        right = not deviations(_TRIAL, {"x": np.array([[1.0, -2.0]])})
        blind = [w for w in _WRONG if not deviations(_TRIAL, {"x": np.array([w])})]
    except Exception:  # noqa: BLE001 (what replaced them may raise anything)
        right, blind = False, []
    if blind or not right:
        raise NoResult(
            "no result: in this process wrong answers cannot be told from the right one; "
            "something replaced functions of NumPy before refl was imported"
        )
