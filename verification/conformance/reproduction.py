"""Whether a known mistake gives the numbers of a wrong answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

import numpy as np

from refl.verification.conformance.answers import Array
from refl.verification.conformance.deviation import Answer, furthest
from refl.verification.conformance.planting import Mistake, NoDifference
from refl.verification.vectors.case import UNDERFLOW, Case

Diagnosis: TypeAlias = tuple[Mistake, int]
"""A mistake, and the number of the form in which it is met."""

CLEARLY = 64
"""A mistake changes an answer clearly where it moves it by this many times what rounding may."""


def answers(mistake: Mistake, case: Case) -> Iterator[tuple[int, dict[str, Array | None]]]:
    """What implementations with this mistake answer, by its forms;
    none where it makes no difference.
    """
    for k in range(len(mistake.forms)):
        if (wrong := form_answer((mistake, k), case)) is not None:
            yield k, wrong


def form_answer(diagnosis: Diagnosis, case: Case) -> dict[str, Array | None] | None:
    """What one form of a mistake answers; None where it makes no difference."""
    mistake, k = diagnosis
    if case.rule not in mistake.rules or not 0 <= k < len(mistake.forms):
        return None
    try:
        with np.errstate(all="ignore"):
            return dict(zip(case.returns, mistake.forms[k](case), strict=True))
    except (NoDifference, ValueError, IndexError):  # not to be made in these shapes
        return None


def distinguishes(case: Case, wrong: Answer) -> bool:
    """Whether a case tells a wrong answer from the right one clearly, by shape or by numbers."""
    names = [name for name in case.expected if name in wrong]
    if any(_shapes_differ(wrong[name], case.expected[name]) for name in names):
        return True
    found = [
        furthest(case, name, wrong[name], case.expected[name], case.condition[name])
        for name in names
    ]
    return any(d is not None and not d.excess <= CLEARLY for d in found)


def _shapes_differ(wrong: Array | None, expected: Array | None) -> bool:
    return wrong is not None and expected is not None and wrong.shape != expected.shape


def reproduces(wrong: Answer, case: Case, got: Answer) -> bool:
    return (
        got.keys() <= wrong.keys()
        and bool(got)
        and all(alike(case, name, wrong[name], a) for name, a in got.items())
    )


def alike(case: Case, name: str, wrong: Array | None, got: Array | None) -> bool:
    """Whether two answers differ by rounding alone: by little, and by far less than the wrong one
    differs from the right one.
    """
    if wrong is None or got is None:
        return all(a is None or not np.any(a) for a in (wrong, got))
    if wrong.shape != got.shape:
        return False
    expected = case.expected[name]
    with np.errstate(all="ignore"):
        finite = np.isfinite(wrong)
        apart = np.max(np.abs(wrong - (0 if expected is None else expected))[finite], initial=0.0)
        rounding = 64 * case.u * np.max(np.abs(wrong[finite]), initial=0.0) + UNDERFLOW[case.dtype]
        near = rounding + np.minimum(np.sqrt(case.u) * np.abs(wrong), apart / 16)
        return bool(np.all(np.where(finite, np.abs(got - wrong) <= near, ~np.isfinite(got))))
