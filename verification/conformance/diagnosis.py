"""Which known mistake is behind a wrong answer to a rule?

Every mistake's own answer is worked out on the same case (mistakes.py); those that give the same
wrong numbers are named. Over all cases of a rule those that explain the most failures come first; a
mistake that would also have changed answers which are right counts half, for it can be made under a
condition at most. Where two explain as much, one that is made in this rule comes before one of
structure that any rule can have (structural.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

from refl.verification.conformance.deviation import Answer, deviations, is_right
from refl.verification.conformance.mistakes import MISTAKES, STRUCTURAL
from refl.verification.conformance.planting import Mistake
from refl.verification.conformance.reproduction import (
    Diagnosis,
    answers,
    distinguishes,
    form_answer,
    reproduces,
)
from refl.verification.conformance.structural_diagnosis import (
    FITTED,
    changes_of_answers,
    changes_of_inputs,
)
from refl.verification.vectors.case import Case

__all__ = [
    "Diagnosis",
    "answers",
    "diagnoses",
    "distinguishes",
    "mistakes_behind",
    "most_telling",
    "searched",
    "shown_by",
]

Failure: TypeAlias = tuple[Case, Answer, tuple[Diagnosis, ...]]

# -- one case --------------------------------------------------------------------------------------


def mistakes_behind(case: Case, got: Answer) -> list[Mistake]:
    """The known mistakes that answer this case as `got` does."""
    found = diagnoses(case, got) or changes_of_inputs(case, got)
    return list(dict.fromkeys(m for m, _ in found))


def diagnoses(case: Case, got: Answer) -> list[Diagnosis]:
    """Those that give the same numbers; where none does, float32's precision if the answer is right
    to that, or those that give it to that precision.
    """
    wrong = [((m, k), answer) for m in MISTAKES for k, answer in answers(m, case)]
    found = [d for d, answer in wrong if reproduces(answer, case, got)]
    coarse = replace(case, dtype="float32", units=4 * case.units)
    if case.dtype == "float64" and got and not deviations(coarse, got):
        found = found or shown_by("narrowed")
    elif got:
        found += changes_of_answers(case, got)
    if case.dtype == "float64" and not found:
        found = [
            d
            for d, answer in wrong
            if distinguishes(coarse, answer) and reproduces(answer, coarse, got)
        ]
    if "z" in got and not is_right(case, "z", got):
        found = [d for d in shown_by("forward") if d[0] not in dict(found)] + found
    return found


def shown_by(behavior: str) -> list[Diagnosis]:
    """The mistakes that a behavior shows (planting.py)."""
    return [(m, 0) for m in MISTAKES if m.behavior == behavior]


# -- all cases of a rule ---------------------------------------------------------------------------


SEARCHED = 6
"""Of how many cases that no mistake explains every operand is looked at."""


def searched(failed: Mapping[str, Failure]) -> dict[str, tuple[Diagnosis, ...]]:
    """Id of a case -> the mistakes that give its wrong numbers. Mistakes of structure in what goes
    into a rule take a while to look for: that is done for the smallest cases that nothing else
    explains, and what is found there is then looked for in all.
    """
    found = {id: list(diagnoses) for id, (_, _, diagnoses) in failed.items()}
    bare = sorted((id for id in found if not found[id]), key=lambda id: _size(failed[id][0]))
    for id in bare[:SEARCHED]:
        case, got, _ = failed[id]
        found[id] += changes_of_inputs(case, got)
    new = {d for id in bare[:SEARCHED] for d in found[id]}
    for id, (case, got, _) in failed.items():
        left = new.difference(found[id])
        found[id] += [d for d in left if reproduces(form_answer(d, case) or {}, case, got)]
    return {id: tuple(diagnoses) for id, diagnoses in found.items()}


def _size(case: Case) -> int:
    return sum(a.size for a in case.expected.values() if a is not None)


def most_telling(
    failed: Mapping[str, tuple[Diagnosis, ...]],
    passed: Iterable[Case],
    conventions: Mapping[str, str],
) -> list[Mistake]:
    """The mistakes behind a rule's failures, those that explain the most first: one that also
    changes answers which are right counts half.

    failed       id of a case -> the mistakes that give its wrong numbers
    passed       the cases that were answered right
    """
    explains: dict[Diagnosis, set[str]] = {}
    for case_id, found in failed.items():
        for each in found:
            explains.setdefault(each, set()).add(case_id)
    _join_factors(explains)
    right = list(passed)
    documented = {id for d, ids in explains.items() if d[0].id in conventions for id in ids}
    for d in explains:
        if d[0] in STRUCTURAL:  # a convention is the better word for what it explains
            explains[d] -= documented
    believed = {
        d for d in explains if d[0].behavior or not any(_would_fail(d, case) for case in right)
    }
    return sorted(_fewest(explains, believed), key=lambda m: m.id in conventions)


def _join_factors(explains: dict[Diagnosis, set[str]]) -> None:
    """A factor may be another in each case (a mean in place of a sum): counted together, too."""
    factors = [d for d in explains if d[0].id == "constant-factor"]
    if len(factors) > 1:
        joined = set().union(*(explains[d] for d in factors))
        explains[factors[0][0], FITTED] = joined


def _fewest(explains: Mapping[Diagnosis, set[str]], believed: set[Diagnosis]) -> list[Mistake]:
    """Those that explain the most failures first; then only such as explain what none before does.
    One that is not believed, for it changes answers that are right, may still be made under a
    condition: it has to explain more than twice as many as one that is.
    """
    order: list[Mistake] = []
    left = set().union(*explains.values())

    def weight(d: Diagnosis) -> tuple[Any, ...]:
        return len(explains[d] & left) * (1 + (d in believed)), d in believed, *_preference(d[0])

    while left:
        best = max(explains, key=weight)
        left -= explains[best]
        if best[0] not in order:
            order.append(best[0])
    return order


MANY_WAYS = ("narrowed", "vacuous-check", "batch-coupled", "forced-conservation", "zero-input")
"""Mistakes whose answers fit by chance where numbers are few."""

_ORDER = {m.id: k for k, m in enumerate((*MISTAKES, *STRUCTURAL))}


def _preference(m: Mistake) -> tuple[bool, bool, bool, int]:
    """Between mistakes that explain equally much."""
    return m.id != "narrowed", m.kind == "fault", m.id not in MANY_WAYS, -_ORDER[m.id]


def _would_fail(diagnosis: Diagnosis, case: Case) -> bool:
    """Whether this form of the mistake changes the answer of a case clearly."""
    wrong = form_answer(diagnosis, case)
    return wrong is not None and distinguishes(case, wrong)
