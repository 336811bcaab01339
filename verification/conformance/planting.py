"""Ways to be wrong: the rules of reference_rules.py with one part replaced, called with something
other than what was asked, or with their answer changed afterwards.

mistakes.py is the table of those that are known; wrong_parts.py has the parts that take more than a
line.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np

from refl.arrays import Array
from refl.verification.conformance.reference_rules import GREATEST, Answer, ReferenceRules, wide
from refl.verification.vectors.case import SIGNATURES, Case
from refl.verification.vectors.catalogue import CATALOGUE, KnownMistake

Answering: TypeAlias = Callable[[Case], Answer]
"""What an implementation, right or wrong, answers to a case."""


class NoDifference(Exception):
    """The mistake makes no difference on this case, or is not defined there."""


@dataclass(frozen=True)
class Mistake(KnownMistake):
    """A known mistake, with what shows it in a rule or a small network."""

    rules: tuple[str, ...]
    """Rules that can show it; `network` for small networks."""
    forms: tuple[Answering, ...]
    """What an implementation with this mistake answers, in each of the forms in which it is met;
    NoDifference where it is no different. None at all where only behavior shows it.
    """
    behavior: str
    """What shows it. For networks `again` (a second call differs), `targets` (several seeds),
    `forward` (z is changed); `narrowed` (right to the digits of float32) for all."""
    near: int | None = None
    """How many of the forms a diagnosis tries at once. The others are tried where no mistake
    explains a case; None for all.
    """


@lru_cache(maxsize=512)
def reference_answer(case: Case) -> Answer:
    """One case is asked about under every mistake."""
    return ReferenceRules(case.dtype).answer(case)


def planted(**parts: Any) -> Answering:
    """The right rules with some of their functions replaced."""
    kind = type("Planted", (ReferenceRules,), parts)
    return lambda case: kind(case.dtype).answer(case)


def called_with(change: Callable[[Case], dict[str, Any]]) -> Answering:
    """The right rule, called with other operands or options than it was asked for."""
    return lambda case: ReferenceRules(case.dtype).answer(changed(case, change(case)))


def changed_answer(change: Callable[[Case, Array, Array], Array | None]) -> Answering:
    """The right answer, each array changed: change(case, the operand it belongs to, the array)."""

    def form(case: Case) -> Answer:
        reference = reference_answer(case)
        return tuple(
            got if name == "z" or got is None else change(case, _operand(case, name), got)
            for name, got in zip(case.returns, reference, strict=True)
        )

    return form


def changed(case: Case, new: dict[str, Any]) -> Case:
    inputs = {name: value for name, value in new.items() if name in case.inputs}
    known = {name: value for name, value in new.items() if name in case.signature.options}
    return replace(case, inputs={**case.inputs, **inputs}, options={**case.options, **known})


def _operand(case: Case, name: str) -> Array:
    name, _, member = name.partition(".")
    held = wide(case.inputs[name])
    return held[int(member)] if member and isinstance(held, list) else held


def _checked(form: Answering, rules: tuple[str, ...]) -> Answering:
    """Without the answers that do not differ, and with numbers
    beyond the case's format as infinities.
    """

    def wrong(case: Case) -> Answer:
        if case.rule not in rules:
            raise NoDifference(f"it is not a mistake of {case.rule}")
        reference = reference_answer(case)
        with np.errstate(all="ignore"):
            got = tuple(None if a is None else _overflowed(a, case.dtype) for a in form(case))
        if any(_shapes_differ(*each) for each in zip(reference, got, strict=True)):
            raise NoDifference("it is not defined for an operand that is broadcast")
        if not any(
            _differs(case, *each) for each in zip(case.returns, reference, got, strict=True)
        ):
            raise NoDifference("it makes no difference here")
        return got

    return wrong


def _shapes_differ(reference: Array | None, got: Array | None) -> bool:
    return reference is not None and got is not None and reference.shape != got.shape


def _overflowed(a: Array, dtype: str) -> Array:
    return np.where(np.abs(a) > GREATEST[dtype], np.copysign(np.inf, a), a)


def _differs(case: Case, name: str, reference: Array | None, got: Array | None) -> bool:
    """By more than the case's tolerance where it has one, and than rounding in float64."""
    if reference is None or got is None:
        return bool(np.any(got if reference is None else reference)) and (reference is None) != (
            got is None
        )
    condition = case.condition.get(name)
    allowed = 1e-12 * np.abs(reference) + (
        0.0 if condition is None else case.units * case.u * condition
    )
    with np.errstate(all="ignore"):
        return not bool(
            np.all(
                (np.abs(got - reference) <= allowed)
                | (got == reference)
                | (np.isnan(got) & np.isnan(reference))
            )
        )


def matching(patterns: str) -> tuple[str, ...]:
    """The rules that match any of the patterns, in the order of SIGNATURES; `network` last."""
    return tuple(
        rule
        for rule in (*SIGNATURES, "network")
        if any(fnmatchcase(rule, each) for each in patterns.split())
    )


def mistake(id: str, rules: str, *forms: Answering, behavior: str = "") -> Mistake:
    """Of the catalogue, shown by the rules that match the patterns."""
    names = matching(rules)
    checked = tuple(_checked(form, names) for form in forms)
    return Mistake(**vars(CATALOGUE[id]), rules=names, forms=checked, behavior=behavior)
