"""Checks the conformance vectors as they lie in their folder:
python -m refl.verification.conformance.lint_vectors

Every file: its header is the rule's own, its count is right, its notes are the catalogue's for the
flags of its cases, ids are the digests of their cases and none occurs twice, numbers and shapes fit
together, a condition covers its number, those cases are required whose format and options say so.
And every flag holds: a mistake that a case is written for changes that case's answer clearly.
Whether the files are what make_vectors.py makes today is for the tests to see, which have its 60
digits.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator

import numpy as np

from refl.verification.conformance.diagnosis import answers, distinguishes
from refl.verification.conformance.mistakes import MISTAKES
from refl.verification.vectors import rule_vectors
from refl.verification.vectors.case import Case
from refl.verification.vectors.catalogue import CATALOGUE, notes

KNOWN = {m.id: m for m in MISTAKES}


def lint(rule: str) -> Iterator[str]:
    """What is wrong with a rule's file, in sentences."""
    header = json.loads((rule_vectors.FOLDER / f"{rule}.json").read_text(encoding="utf-8"))
    s = rule_vectors.signatures()[rule]
    said = (
        header["formulation"],
        header["operands"],
        header["returns"],
        header["equation"],
        header["source"],
    )
    if said != (s.formulation, list(s.operands), list(s.returns), s.equation, s.source):
        yield f"{rule}: the header is not the rule's signature"
    cases = rule_vectors.load(rule)
    flags = {flag for case in cases for flag in case.flags if flag in CATALOGUE}
    if header["notes"] != notes(flags):
        yield f"{rule}: the notes are not the catalogue's for the flags of the cases"
    for case_id, n in Counter(case.id for case in cases).items():
        if n > 1:
            yield f"{case_id} occurs {n} times"
    for case, held in zip(cases, header["cases"], strict=True):
        if held.get("required") is not case.required:
            yield f"{case.id}: required must be {case.required}, by its format and options"
        yield from (f"{case.id}: {what}" for what in _case(case))


def _case(case: Case) -> Iterator[str]:
    if case.identified().id != case.id:
        yield "the id is not the digest of the case"
    for name, expected in case.expected.items():
        yield from _numbers(name, expected, case.condition[name])
    for name, entry in case.absorbed.items():
        yield from _numbers(f"absorbed {name}", entry, case.absorbed_condition[name])
    for flag in case.flags:
        yield from _flag(case, flag)


def _numbers(name: str, expected: np.ndarray | None, condition: np.ndarray | None) -> Iterator[str]:
    if expected is None or condition is None:
        if expected is not condition:
            yield f"{name} has an answer without a condition, or the reverse"
    elif expected.shape != condition.shape:
        yield f"{name} has the shape {expected.shape}, its condition {condition.shape}"
    elif not np.all(np.isfinite(expected)) or not np.all(
        condition >= np.abs(expected) * (1 - 1e-9)
    ):
        yield f"{name} is not finite, or its condition is below the number itself"


def _flag(case: Case, flag: str) -> Iterator[str]:
    if flag not in KNOWN:
        yield f"the flag {flag} is no known mistake"
    elif case.rule not in KNOWN[flag].rules:
        yield f"the flag {flag} is not for this rule"
    elif not KNOWN[flag].behavior and not any(
        distinguishes(case, wrong) for _, wrong in answers(KNOWN[flag], case)
    ):
        yield f"the mistake {flag} does not change the answer"


def main() -> int:
    wrong = [line for rule in rule_vectors.rules() for line in lint(rule)]
    files = {path.stem for path in rule_vectors.FOLDER.glob("*.json")}
    wrong += [
        f"{name}.json belongs to no rule" for name in sorted(files - set(rule_vectors.rules()))
    ]
    print("\n".join(wrong) or f"{rule_vectors.fingerprint()}: nothing to complain of")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
