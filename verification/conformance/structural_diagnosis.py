"""Which change of structure (structural.py) gives the numbers of a wrong answer?

There are hundreds of them, so those of answers are made to the right answer itself, once each, and
those of operands once for all axes that are one on the case.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from refl.verification.conformance.answers import Array
from refl.verification.conformance.deviation import Answer, is_right
from refl.verification.conformance.mistakes import STRUCTURAL
from refl.verification.conformance.reproduction import Diagnosis, alike, form_answer, reproduces
from refl.verification.conformance.structural import (
    CANDIDATES,
    AtAnswer,
    AtInput,
    Change,
    applied,
)
from refl.verification.vectors.case import Case

FITTED = -1
"""In place of the number of a form: a factor that is read off the answer."""


def _forms() -> Iterator[tuple[Diagnosis, Any, bool]]:
    """Every form with what it is made of, and whether it is tried at once."""
    for mistake, candidate in zip(STRUCTURAL, CANDIDATES, strict=True):
        for k, form in enumerate((*candidate.near, *candidate.far)):
            yield (mistake, k), form, k < len(candidate.near)


def _by_change() -> dict[int, tuple[Change, list[tuple[Diagnosis, int | None]]]]:
    found: dict[int, tuple[Change, list[tuple[Diagnosis, int | None]]]] = {}
    for diagnosis, form, _ in _forms():
        if isinstance(form, AtAnswer):
            found.setdefault(id(form.change), (form.change, []))[1].append((diagnosis, form.k))
    return found


CHANGES = tuple(_by_change().values())
"""Each change of answers, with the forms that are made of it and the answer that each is of."""

OTHERS = [d for d, form, at_once in _forms() if at_once and not isinstance(form, AtAnswer)]

OF_INPUTS = [(d, form) for d, form, at_once in _forms() if not at_once]


def changes_of_answers(case: Case, got: Answer) -> list[Diagnosis]:
    """Those that turn the right answer into this one."""
    names = [name for name in case.returns if name in got]
    passed = [name == "z" or is_right(case, name, got) for name in names]
    found = []
    for change, forms in CHANGES:
        fits = [
            p if name == "z" else _fits(change, case, name, got[name], p)
            for name, p in zip(names, passed, strict=True)
        ]
        found += [diagnosis for diagnosis, k in forms if _explains(k, fits, passed)]
    found += [d for d in OTHERS if reproduces(form_answer(d, case) or {}, case, got)]
    return found or any_factor(case, got)


def _explains(k: int | None, fits: list[bool], passed: list[bool]) -> bool:
    """Whether the change of the k-th answer alone, or of all, gives every answer."""
    if k is None:
        return all(fits) and not all(passed)
    alone = all(p for j, p in enumerate(passed) if j != k)
    return len(fits) > 1 and k < len(fits) and fits[k] and not passed[k] and alone


def _fits(change: Change, case: Case, name: str, got: Array | None, passed: bool) -> bool:
    """Whether the change turns the right answer into this one: most do not by far."""
    expected = case.expected[name]
    if expected is None or got is None or got.shape != expected.shape:
        return passed
    with np.errstate(all="ignore"):
        wrong = applied(change, expected)
        if wrong is expected:
            return passed
        far = np.max(np.abs(wrong - got), initial=0.0) > 1e-2 * np.max(np.abs(wrong), initial=0.0)
    return not far and alike(case, name, wrong, got)


def any_factor(case: Case, got: Answer) -> list[Diagnosis]:
    """Where the answer is a constant times what is expected."""
    pairs = [(a, case.expected[name]) for name, a in got.items() if name in case.expected]
    held = [(a, e) for a, e in pairs if a is not None and e is not None and a.shape == e.shape]
    if len(held) < len(pairs) or not held:
        return []
    a, e = (np.concatenate([np.ravel(each) for each in one]) for one in zip(*held, strict=True))
    if np.count_nonzero(e) < 3 or not np.all(np.isfinite(a)):
        return []
    most = int(np.argmax(np.abs(e)))
    with np.errstate(all="ignore"):
        factor = a[most] / e[most]
        near = np.max(np.abs(a - factor * e)) <= 64 * case.u * np.max(np.abs(a))
    known = {m.id: m for m in STRUCTURAL}
    return [(known["constant-factor"], FITTED)] if near and factor else []


def changes_of_inputs(case: Case, got: Answer) -> list[Diagnosis]:
    """Those of an operand, or of what comes in, with which the right rule gives this answer."""
    known: dict[Any, bool] = {}
    found = []
    for diagnosis, form in OF_INPUTS:
        key = form.on(case) if isinstance(form, AtInput) else diagnosis
        if key is not None and got:
            if key not in known:
                known[key] = reproduces(form_answer(diagnosis, case) or {}, case, got)
            if known[key]:
                found.append(diagnosis)
    return found
