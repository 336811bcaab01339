"""Does the smallest adapter get away with a structural mistake?

    python -m refl.verification.quality.structural_mutants [--rule PATTERN] [--seed N]
        [--naming N] [--markdown FILE]

The smallest adapter that can be written has one function for a rule, takes the default options
alone, and float64 and float32. Every structural mistake (conformance/structural.py), and every
known one (mistakes.py), is planted in such an adapter and put to those vectors that it covers. One
that none of them shows is a survivor, unless it makes no difference at all: that is believed only
where its answers are those of the right rule on numbers of every shape that are drawn for this
(wide_shapes.py). What can go wrong in an option (a mask, an axis) is planted in an adapter that
takes it. Exit 1 where one survives.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from fnmatch import fnmatchcase
from itertools import chain, islice
from typing import Any

import numpy as np

from refl.arrays import Array
from refl.io.files import atomic_write
from refl.verification.conformance.deviation import deviations
from refl.verification.conformance.mistakes import MISTAKES
from refl.verification.conformance.planting import NoDifference, changed, reference_answer
from refl.verification.conformance.reference_rules import Answer, ReferenceRules, wide
from refl.verification.conformance.results import FAILED, CaseResult, RuleResult
from refl.verification.conformance.runner import compared, rule_result
from refl.verification.markdown import command, table
from refl.verification.quality.planted_structures import Mutant, mutants, mutants_of_options
from refl.verification.quality.wide_shapes import drawn, drawn_with_options
from refl.verification.vectors.case import SIGNATURES, Case
from refl.verification.vectors.rule_vectors import fingerprint, load
from refl.version import __version__

MODULE = "refl.verification.quality.structural_mutants"

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
        except (NoDifference, ValueError, IndexError, TypeError, ZeroDivisionError):
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


def tally(rule: str, seed: int = 0, every: int = 1) -> Tally:
    """Of each `every`-th mutant of a rule, the known mistakes in it among them."""
    start = time.perf_counter()
    cases = [case for case in load(rule) if smallest(case)]
    shapes = drawn(rule, seed)
    t = Tally(rule, len(cases))
    _try_all(
        t, cases, shapes, seed, islice(chain(mutants(shapes), planted_before(rule)), 0, None, every)
    )
    more = [case for case in load(rule) if case.dtype in ("float64", "float32")]
    optional = drawn_with_options(rule, seed)
    if optional:
        _try_all(t, more, optional, seed, islice(mutants_of_options(optional), 0, None, every))
    t.seconds = time.perf_counter() - start
    return t


def _try_all(
    t: Tally, cases: list[Case], shapes: Sequence[Case], seed: int, planted: Iterable[Mutant]
) -> None:
    """Each against vectors, and then against drawn numbers."""
    probes = probed(shapes, seed)
    for mutant in planted:
        t.planted += 1
        if (found := next((case for case in cases if shows(mutant, case)), None)) is not None:
            t.caught += 1
            cases.remove(found)  # what catches one catches others: next time it comes first
            cases.insert(0, found)
        elif (on := next((p for p in probes if differs(mutant, p)), None)) is not None:
            t.survivors += ((mutant, on.case),)
        else:
            t.equal += 1


def probed(cases: Sequence[Case], seed: int) -> list[Probe]:
    """The smallest first."""
    rng = np.random.default_rng(seed)
    with np.errstate(all="ignore"):
        return sorted((probe(case, rng) for case in cases), key=lambda p: _size(p.case))


def _size(case: Case) -> int:
    return sum(np.size(a) for a in case.arguments if isinstance(a, np.ndarray))


def run_all(pattern: str = "*", seed: int = 0) -> Iterator[Tally]:
    for rule in SIGNATURES:
        if fnmatchcase(rule, pattern):
            yield tally(rule, seed)


# -- is the mistake called by its name? ------------------------------------------------------------


@dataclass
class Naming:
    """What a diagnosis says first of mutants that are caught."""

    caught: int = 0
    named: int = 0
    """By the id of what was planted, or by another that gives all the same wrong answers."""
    likely: int = 0
    """Others, of which the first explains at least half of the failing cases."""
    bare: int = 0
    """Those of which it explains fewer: it is not called the cause."""
    unnamed: int = 0
    """Those that nothing explains."""

    def count(self, id: str, result: RuleResult) -> None:
        first = result.mistakes[0] if result.mistakes else None
        explained = result.explained[first.id] if first else 0
        self.caught += 1
        if first is None:
            self.unnamed += 1
        elif first.id == id or explained == result.failing:
            self.named += 1
        elif result.cause is not None:
            self.likely += 1
        else:
            self.bare += 1


def planted_before(rule: str) -> list[Mutant]:
    """The known mistakes of a rule (mistakes.py), in all their forms."""
    return [
        Mutant(m.id, f"{m.id}, form {k}", form)
        for m in MISTAKES
        for k, form in enumerate(m.forms)
        if rule in m.rules
    ]


def naming(rule: str, some: Sequence[Mutant], tallied: Naming) -> None:
    """Every case that the smallest adapter covers, and what its failures look like."""
    cases = [case for case in load(rule) if smallest(case)]
    for mutant in some:
        if any(shows(mutant, case) for case in cases):
            results = [_result(mutant, case) for case in cases]
            tallied.count(mutant.id, rule_result(rule, results, {}))


def _result(mutant: Mutant, case: Case) -> CaseResult:
    got = dict(zip(case.returns, answered(mutant, case), strict=True))
    try:
        return compared(case, got)
    except ValueError as reason:  # another shape
        return CaseResult(case, FAILED, message=str(reason))


# -- the report ------------------------------------------------------------------------------------

COLUMNS = ("rule", "cases", "planted", "caught", "no difference", "survivors")


def cells(t: Tally) -> tuple[str, ...]:
    numbers = (t.covered, t.planted, t.caught, t.equal, len(t.survivors))
    return (t.rule, *map(str, numbers))


def line(t: Tally) -> str:
    return (
        f"{t.rule:26} {t.covered:3} cases {t.planted:5} planted {t.caught:5} caught "
        f"{t.equal:4} no difference {len(t.survivors):4} survivors  {t.seconds:.1f} s"
    )


def said(n: Naming, what: str) -> str:
    return (
        f"{what}: {n.caught} looked at; {n.named} are called by their name, or by one that gives "
        f"all the same wrong answers; of {n.likely} another explains at least half of the failing "
        f"cases; of {n.bare} the first explains fewer, and is not called the cause; "
        f"{n.unnamed} nothing explains."
    )


def markdown(tallies: Sequence[Tally], named: Sequence[str], made_by: str) -> str:
    planted, caught, equal, survivors = (
        sum(map(int, column)) for column in list(zip(*map(cells, tallies), strict=True))[2:]
    )
    head = (
        "# Structural mistakes in the smallest adapter\n\n"
        f"Written by `{made_by}` on {date.today().isoformat()} (refl {__version__}, "
        f"numpy {np.__version__}, vectors {fingerprint()}).\n\n"
        "The smallest adapter has one function for a rule, takes default options alone, and "
        "float64 and float32. `cases` are the vectors that it covers. A mutant that none of them "
        "shows is a survivor, unless its answers are those of the right rule on numbers of every "
        "shape (`wide_shapes.py`): then it makes no difference.\n\n"
        f"{planted} mutants: {caught} caught, {equal} that make no difference, {survivors} "
        "survivors.\n\n"
    )
    diagnosed = "".join(f"{each}\n\n" for each in named)
    return head + diagnosed + table(COLUMNS, map(cells, tallies)) + "\n"


def shapes(case: Case) -> str:
    def one(a: Any) -> str:
        if isinstance(a, list):
            return f"[{', '.join(map(one, a))}]"
        return "x".join(map(str, a.shape)) if isinstance(a, np.ndarray) else "-"

    return " ".join(f"{name} {one(a)}" for name, a in case.inputs.items())


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns 1 where a mutant survives."""
    parser = argparse.ArgumentParser(description="Structural mistakes in the smallest adapter.")
    parser.add_argument("--rule", default="*", metavar="PATTERN")
    parser.add_argument("--seed", type=int, default=0, help="of the numbers in every shape")
    parser.add_argument(
        "--naming", type=int, default=0, metavar="N", help="diagnose N of each rule, too"
    )
    parser.add_argument("--markdown", metavar="FILE", help="write the table there")
    options = parser.parse_args(arguments)
    tallies = []
    for t in run_all(options.rule, options.seed):
        tallies.append(t)
        print(line(t), flush=True)
        for mutant, case in t.survivors:
            print(f"    {mutant.says}    (shown by {case.note}: {shapes(case)})")
    if not tallies:
        parser.error(f"no rule is called {options.rule!r}: there are {', '.join(SIGNATURES)}")
    named = _all_named([t.rule for t in tallies], options.naming) if options.naming else []
    print("\n".join(named))
    if options.markdown:
        made_by = command(MODULE, arguments, options.markdown)
        atomic_write(options.markdown, markdown(tallies, named, made_by).encode())
    return 1 if any(t.survivors for t in tallies) else 0


def _all_named(names: Sequence[str], count: int) -> list[str]:
    """Of every rule `count` structural mutants and `count` known mistakes, drawn."""
    structural, known = Naming(), Naming()
    for rule in names:
        for some, tallied in (
            (list(mutants(drawn(rule, 0))), structural),
            (planted_before(rule), known),
        ):
            naming(rule, random.Random(rule).sample(some, min(count, len(some))), tallied)
    return [said(structural, "Structural mutants"), said(known, "Known mistakes")]


if __name__ == "__main__":
    sys.exit(main())
