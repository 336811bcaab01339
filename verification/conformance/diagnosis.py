"""Which known mistake is behind a wrong answer to a rule?

Every mistake's own answer is worked out on the same case (mistakes.py); those that give the same
wrong numbers are named. Over all cases of a rule, a mistake that would also have changed answers
which are right is not it, and of the others those that explain the most failures come first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import TypeAlias

import numpy as np

from refl.verification.conformance.answers import Array
from refl.verification.conformance.deviation import Answer, deviations, furthest, is_right
from refl.verification.conformance.mistakes import MISTAKES
from refl.verification.conformance.planting import Mistake, NoDifference
from refl.verification.vectors.case import UNDERFLOW, Case

Diagnosis: TypeAlias = tuple[Mistake, int]
"""A mistake, and the number of the form in which it is met."""

CLEARLY = 64
"""A mistake changes an answer clearly where it moves it by this many times what rounding may."""


# -- one case --------------------------------------------------------------------------------------


def mistakes_behind(case: Case, got: Answer) -> list[Mistake]:
    """The known mistakes that answer this case as `got` does."""
    return list(dict.fromkeys(m for m, _ in diagnoses(case, got)))


def diagnoses(case: Case, got: Answer) -> list[Diagnosis]:
    """Those that give the same numbers; where none does, those that give them to float32's
    precision, or that precision alone.
    """
    wrong = [((m, k), answer) for m in MISTAKES for k, answer in answers(m, case)]
    found = [d for d, answer in wrong if _reproduces(answer, case, got)]
    coarse = replace(case, dtype="float32", units=4 * case.units)
    if case.dtype == "float64" and got and not deviations(coarse, got):
        found += shown_by("narrowed")
    elif case.dtype == "float64" and not found:
        found = [
            d
            for d, answer in wrong
            if distinguishes(coarse, answer) and _reproduces(answer, coarse, got)
        ]
    if "z" in got and not is_right(case, "z", got):
        found = [d for d in shown_by("forward") if d[0] not in dict(found)] + found
    return found


def shown_by(behavior: str) -> list[Diagnosis]:
    """The mistakes that a behavior shows (planting.py)."""
    return [(m, 0) for m in MISTAKES if m.behavior == behavior]


def answers(mistake: Mistake, case: Case) -> Iterator[tuple[int, dict[str, Array | None]]]:
    """What implementations with this mistake answer, by its forms;
    none where it makes no difference.
    """
    for k, form in enumerate(mistake.forms if case.rule in mistake.rules else ()):
        with suppress(NoDifference), np.errstate(all="ignore"):
            yield k, dict(zip(case.returns, form(case), strict=True))


def distinguishes(case: Case, wrong: Answer) -> bool:
    """Whether a case tells a wrong answer from the right one clearly."""
    found = [
        furthest(case, name, wrong[name], case.expected[name], case.condition[name])
        for name in case.expected
        if name in wrong
    ]
    return any(d is not None and not d.excess <= CLEARLY for d in found)


def _reproduces(wrong: Answer, case: Case, got: Answer) -> bool:
    return (
        got.keys() <= wrong.keys()
        and bool(got)
        and all(_alike(case, name, wrong[name], a) for name, a in got.items())
    )


def _alike(case: Case, name: str, wrong: Array | None, got: Array | None) -> bool:
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


# -- all cases of a rule ---------------------------------------------------------------------------


def most_telling(
    failed: Mapping[str, tuple[Diagnosis, ...]],
    passed: Iterable[Case],
    conventions: Mapping[str, str],
) -> list[Mistake]:
    """The mistakes behind a rule's failures, those that explain the most first: one that also
    changes answers which are right is not it.

    failed       id of a case -> the mistakes that give its wrong numbers
    passed       the cases that were answered right
    """
    explains: dict[Diagnosis, set[str]] = {}
    for case_id, found in failed.items():
        for each in found:
            explains.setdefault(each, set()).add(case_id)
    right = list(passed)
    believed = {
        d: ids
        for d, ids in explains.items()
        if d[0].behavior or not any(_would_fail(d, case) for case in right)
    }
    order = sorted(_fewest(believed), key=lambda m: m.id in conventions)
    explained = set().union(*believed.values())
    partly = {
        d: ids - explained for d, ids in explains.items() if d not in believed
    }  # made in some cases and not in others
    return order + [m for m in _fewest(partly) if m not in order]


def _fewest(explains: Mapping[Diagnosis, set[str]]) -> list[Mistake]:
    """Those that explain the most failures first;
    then only such as explain what none before does.
    """
    order: list[Mistake] = []
    left = set().union(*explains.values())
    while left:
        best, ids = max(
            explains.items(), key=lambda item: (len(item[1] & left), *_preference(item[0][0]))
        )
        left -= ids
        if best[0] not in order:
            order.append(best[0])
    return order


def _preference(m: Mistake) -> tuple[bool, bool, int]:
    """Between mistakes that explain equally much."""
    return m.behavior != "narrowed", m.kind == "fault", -MISTAKES.index(m)


def _would_fail(diagnosis: Diagnosis, case: Case) -> bool:
    """Whether this form of the mistake changes the answer of a case clearly."""
    mistake, form = diagnosis
    return any(k == form and distinguishes(case, wrong) for k, wrong in answers(mistake, case))
