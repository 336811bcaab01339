"""Does the smallest adapter get away with a structural mistake?

    python -m refl.verification.quality.structural_mutants [--rule PATTERN] [--seed N]

The smallest adapter that can be written has one function for a rule, takes the default options
alone, and float64 and float32. Every structural mistake (conformance/structural.py) is planted in
such an adapter and put to those vectors that it covers. One that none of them shows is a survivor,
unless it makes no difference at all: that is believed only where its answers are those of the right
rule on numbers of every shape that are drawn for this (wide_shapes.py). Exit 1 where one survives.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from refl.arrays import Array
from refl.verification.conformance.deviation import deviations
from refl.verification.conformance.planting import changed, reference_answer
from refl.verification.conformance.reference_rules import Answer, ReferenceRules, wide
from refl.verification.quality.planted_structures import Mutant, mutants
from refl.verification.quality.wide_shapes import drawn
from refl.verification.vectors.case import SIGNATURES, Case
from refl.verification.vectors.rule_vectors import load

PERTURBED = 1e-12
"""The relative change of every input that says how well an answer is determined."""


@dataclass
class Tally:
    """What came of a rule's mutants."""

    rule: str
    covered: int
    """Vectors that the smallest adapter covers."""
    planted: int = 0
    caught: int = 0
    equal: int = 0
    """Mutants that make no difference on any numbers."""
    survivors: tuple[tuple[Mutant, Case], ...] = ()
    """With the drawn case that shows each."""
    seconds: float = 0.0


# -- the smallest adapter --------------------------------------------------------------------------


def smallest(case: Case) -> bool:
    """Whether it covers the case."""
    return case.dtype in ("float64", "float32") and all(
        case.at_default(name) or name in case.signature.required for name in case.options
    )


def answered(mutant: Mutant, case: Case) -> Answer:
    """In the format of the case. Where the mistake cannot be made it is not made."""
    with np.errstate(all="ignore"):
        try:
            got = mutant.form(case)
        except (ValueError, IndexError, TypeError, ZeroDivisionError):
            got = reference_answer(case)
        return tuple(None if a is None else a.astype(case.dtype).astype(float) for a in got)


def shows(mutant: Mutant, case: Case) -> bool:
    """Whether the runner finds the answer wrong."""
    got = dict(zip(case.returns, answered(mutant, case), strict=True))
    try:
        return bool(deviations(case, got))
    except ValueError:  # another shape
        return True


# -- numbers of every shape ------------------------------------------------------------------------


@dataclass
class Probe:
    """Drawn numbers, the right answer, and how far rounding may be from it."""

    case: Case
    expected: Answer
    unclear: tuple[Any, ...]


def probe(case: Case, rng: np.random.Generator) -> Probe:
    expected = reference_answer(case)
    unclear: list[Any] = [None if a is None else 1e-9 * np.abs(a) for a in expected]
    for _ in range(2):
        near = ReferenceRules(case.dtype).answer(changed(case, _perturbed(case, rng)))
        with np.errstate(all="ignore"):
            unclear = [
                None if a is None else np.maximum(u, 10 * np.abs(a - b))
                for u, a, b in zip(unclear, expected, near, strict=True)
            ]
    return Probe(case, expected, tuple(unclear))


def _perturbed(case: Case, rng: np.random.Generator) -> dict[str, Any]:
    def near(a: Any) -> Any:
        if isinstance(a, list):
            return [near(each) for each in a]
        return None if a is None else a * (1 + PERTURBED * rng.uniform(-1, 1, a.shape))

    return {name: near(a) for name, a in wide(dict(case.inputs)).items()}


def differs(mutant: Mutant, on: Probe) -> bool:
    """By more than rounding explains."""
    got = answered(mutant, on.case)
    return any(_apart(*each) for each in zip(got, on.expected, on.unclear, strict=True))


def _apart(got: Array | None, expected: Array | None, unclear: Array | None) -> bool:
    if got is None or expected is None or unclear is None:
        return (got is None) != (expected is None)
    if got.shape != expected.shape:
        return True
    with np.errstate(all="ignore"):
        same = (got == expected) | (np.isnan(got) & np.isnan(expected))
        return bool(np.any(~same & ~(np.abs(got - expected) <= unclear + 1e-290)))


# -- all of them -----------------------------------------------------------------------------------


def tally(rule: str, seed: int = 0) -> Tally:
    start = time.perf_counter()
    cases = [case for case in load(rule) if smallest(case)]
    shapes = drawn(rule, seed)
    rng = np.random.default_rng(seed)
    with np.errstate(all="ignore"):
        probes = sorted((probe(case, rng) for case in shapes), key=lambda p: _size(p.case))
    t = Tally(rule, len(cases))
    for mutant in mutants(shapes):
        t.planted += 1
        if (found := next((case for case in cases if shows(mutant, case)), None)) is not None:
            t.caught += 1
            cases.remove(found)  # what catches one catches others: next time it comes first
            cases.insert(0, found)
        elif (on := next((p for p in probes if differs(mutant, p)), None)) is not None:
            t.survivors += ((mutant, on.case),)
        else:
            t.equal += 1
    t.seconds = time.perf_counter() - start
    return t


def _size(case: Case) -> int:
    return sum(np.size(a) for a in case.arguments if isinstance(a, np.ndarray))


def run_all(pattern: str = "*", seed: int = 0) -> Iterator[Tally]:
    for rule in SIGNATURES:
        if fnmatchcase(rule, pattern):
            yield tally(rule, seed)


def line(t: Tally) -> str:
    return (
        f"{t.rule:26} {t.covered:3} cases {t.planted:5} planted {t.caught:5} caught "
        f"{t.equal:4} no difference {len(t.survivors):4} survivors  {t.seconds:.1f} s"
    )


def shapes(case: Case) -> str:
    def said(a: Any) -> str:
        if isinstance(a, list):
            return f"[{', '.join(map(said, a))}]"
        return "x".join(map(str, a.shape)) if isinstance(a, np.ndarray) else "-"

    return " ".join(f"{name} {said(a)}" for name, a in case.inputs.items())


def main() -> int:
    parser = argparse.ArgumentParser(description="Structural mistakes in the smallest adapter.")
    parser.add_argument("--rule", default="*", metavar="PATTERN")
    parser.add_argument("--seed", type=int, default=0, help="of the numbers in every shape")
    given = parser.parse_args()
    survivors = 0
    for t in run_all(given.rule, given.seed):
        print(line(t), flush=True)
        for mutant, case in t.survivors:
            print(f"    {mutant.says}    (shown by {case.note}: {shapes(case)})")
        survivors += len(t.survivors)
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
