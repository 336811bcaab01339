"""The conformance vectors in anyone's own test suite, in one line.

    test_lrp = conformance.suite("my_adapter")                # pytest: a test for each case
    test_models = conformance.suite_models("my_adapter")      # whole models
    TestLRP = conformance.suite_unittest("my_adapter")        # the same for unittest

A test is named by its case, linear_epsilon-79d23d0b, so that `-k linear_epsilon` and `-k 79d23d0b`
choose. What the adapter does not cover is skipped. One test more for each rule, named
linear_epsilon-coverage, is skipped with a count where some of its cases are, and the last,
`coverage`, with that of all: something that must be answered and is not is no pass. With
complete=True it is a failure. A documented convention is an expected failure.

An adapter is whatever `refl conform` takes: a name, a path (looked for beside the calling file,
too), a module, an object, a dict. pytest is imported by what needs it, once it is called.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
import unittest
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from refl.errors import ReflError
from refl.verification.conformance import report
from refl.verification.conformance.adapter import Adapter
from refl.verification.conformance.results import (
    CONVENTION,
    FAILED,
    INCOMPLETE,
    NOT_COVERED,
    PARTLY,
    PASSED,
    CaseResult,
    ModelResult,
    RuleResult,
)
from refl.verification.conformance.runner import asked, documented, run_case
from refl.verification.conformance.whole_models import run_architecture
from refl.verification.vectors import model_vectors
from refl.verification.vectors.case import Case
from refl.verification.vectors.rule_vectors import load

COVERAGE = "coverage"
"""What a test is called that says how much is covered."""


class Outcome(NamedTuple):
    """What comes of one test."""

    status: str
    """PASSED, FAILED, CONVENTION or NOT_COVERED."""
    words: str = ""


Tests = Mapping[str, Callable[[], Outcome]]
"""Name of a test -> what runs it."""


# -- in a test suite -------------------------------------------------------------------------------


def suite(adapter: Any, pattern: str = "*", *, complete: bool = False) -> Callable[[str], None]:
    """A test function for pytest: one test for each case of the rules that the pattern names.

    complete    fail, and do not skip, where a required case is not covered

    Raises ReflError for an adapter that has none of the rules, and a pattern that names none.
    """
    return _for_pytest(rule_tests(_found(adapter), pattern, complete))


def suite_models(
    adapter: Any, pattern: str = "*", *, complete: bool = False
) -> Callable[[str], None]:
    """The same for whole models; the pattern names architectures."""
    return _for_pytest(model_tests(_found(adapter), pattern, complete))


def suite_unittest(
    adapter: Any, pattern: str = "*", *, models: bool = False, complete: bool = False
) -> type[unittest.TestCase]:
    """The same for unittest: a class of tests, test_linear_epsilon_79d23d0b and so on; those of
    rules, or of whole models."""
    make = model_tests if models else rule_tests
    tests = make(_found(adapter), pattern, complete)
    methods = {f"test_{name.replace('-', '_')}": _method(run) for name, run in tests.items()}
    module = sys._getframe(1).f_globals.get("__name__", __name__)
    return type("Conformance", (unittest.TestCase,), {"__module__": module, **methods})


def _for_pytest(tests: Tests) -> Callable[[str], None]:
    import pytest

    def test(case: str) -> None:
        __tracebackhide__ = True
        status, words = tests[case]()
        if status == FAILED:
            pytest.fail(words, pytrace=False)
        if status == CONVENTION:
            pytest.xfail(words)
        if status == NOT_COVERED:
            pytest.skip(words)

    return pytest.mark.parametrize("case", list(tests))(test)


def _method(run: Callable[[], Outcome]) -> Callable[[unittest.TestCase], None]:
    def test(self: unittest.TestCase) -> None:
        status, words = run()
        if status == FAILED:
            self.fail(words)
        if status in (CONVENTION, NOT_COVERED):
            self.skipTest(words)

    return test


def _found(adapter: Any) -> Any:
    """A name or a path that leads nowhere from here may lead to a file beside the caller's."""
    if not isinstance(adapter, (str, Path)):
        return adapter
    beside = Path(sys._getframe(2).f_globals.get("__file__") or ".").absolute().parent
    path = beside / (str(adapter) if str(adapter).endswith(".py") else f"{adapter}.py")
    return path if path.is_file() and not _is_there(adapter) else adapter


def _is_there(adapter: str | Path) -> bool:
    if str(adapter).endswith(".py"):
        return Path(adapter).is_file()
    try:
        return importlib.util.find_spec(str(adapter)) is not None
    except (ImportError, ValueError):
        return False


# -- rules -----------------------------------------------------------------------------------------


def rule_tests(adapter: Any, pattern: str, complete: bool) -> Tests:
    """Every case of the rules that the adapter has; the coverage of each rule, and of all."""
    adapter, names = asked(adapter, pattern)
    rules = [name for name in names if name != "model"]
    offered = [rule for rule in rules if callable(adapter.find(rule))]
    if not offered:
        raise ReflError(
            f"{adapter.name} has no function named like a rule that {pattern!r} names: whole "
            "models have a suite of their own, conformance.suite_models"
        )

    @functools.cache
    def result(case: Case) -> CaseResult:
        return run_case(adapter, case)

    def whole(rule: str) -> RuleResult:
        cases = load(rule)
        if rule in offered:
            return RuleResult(rule, tuple(map(result, cases)))
        said = f"there is no function {rule}"
        return RuleResult(rule, tuple(CaseResult(c, NOT_COVERED, message=said) for c in cases))

    tests: dict[str, Callable[[], Outcome]] = {}
    for rule in rules:
        for case in load(rule) if rule in offered else ():
            tests[case.id] = functools.partial(_tried, result, case, adapter)
        tests[f"{rule}-{COVERAGE}"] = functools.partial(_counted, whole, rule, complete)
    return tests | {COVERAGE: lambda: _of_all([whole(rule) for rule in rules], complete)}


def _tried(result: Callable[[Case], CaseResult], case: Case, adapter: Adapter) -> Outcome:
    return _of_case(adapter, result(case))


def _counted(whole: Callable[[str], RuleResult], rule: str, complete: bool) -> Outcome:
    return _of_rule(whole(rule), complete)


def _of_case(adapter: Adapter, v: CaseResult) -> Outcome:
    if v.status in INCOMPLETE:
        required = f"a required case is {v.status}: " if v.case.required else ""
        return Outcome(NOT_COVERED, f"{v.case.rule}: {required}{v.message}")
    if not v.failed:
        return Outcome(PASSED)
    if found := documented(adapter, v):
        return Outcome(CONVENTION, f"a documented convention: {found}")
    return Outcome(FAILED, report.failure(v).strip())


def _of_rule(r: RuleResult, complete: bool) -> Outcome:
    """How much of a rule is covered; wrong answers fail in tests of their own."""
    if not r.count(*INCOMPLETE):
        return Outcome(PASSED)
    why = f"; {r.partly}, which is no pass" if r.missing and r.tried else ""
    why = why or ("" if r.tried else f"; {r.cases[0].message}")
    return Outcome(
        FAILED if complete and r.missing and r.tried else NOT_COVERED,
        f"{r.rule}: {r.coverage}{why}",
    )


def _of_all(rules: Sequence[RuleResult], complete: bool) -> Outcome:
    cases = Counter(v.status for r in rules for v in r.cases)
    if not (missing := sum(cases[s] for s in INCOMPLETE)):
        return Outcome(PASSED)
    count = Counter(_extent(r) for r in rules)
    partly = [r.rule for r in rules if r.missing and r.tried]
    said = (
        f"{missing} of {cases.total()} cases not covered; of {len(rules)} rules "
        + ", ".join(f"{n} {extent}" for extent, n in count.items())
        + (f": {', '.join(partly)}" if partly else "")
    )
    return Outcome(FAILED if complete and partly else NOT_COVERED, said)


def _extent(r: RuleResult) -> str:
    return NOT_COVERED if not r.tried else PARTLY if r.missing else "covered"


# -- whole models ----------------------------------------------------------------------------------


def model_tests(adapter: Any, pattern: str, complete: bool) -> Tests:
    """Every input and method of the architectures that the pattern names; the coverage of all."""
    adapter, _ = asked(adapter, "model")
    known = model_vectors.architectures()
    chosen = [name for name in known if fnmatchcase(name, pattern)]
    if not chosen:
        raise ReflError(f"no architecture is called {pattern!r}: there are {', '.join(known)}")

    @functools.cache
    def results(architecture: str) -> dict[str, ModelResult]:
        return {m.name: m for m in run_architecture(adapter, model_vectors.load(architecture))}

    def test(architecture: str, id: str) -> Outcome:
        return _of_model(results(architecture)[id], complete)

    tests: dict[str, Callable[[], Outcome]] = {
        case.id: functools.partial(test, name, case.id)
        for name in chosen
        for case in model_vectors.load(name)
    }
    return tests | {COVERAGE: lambda: _of_models([m for n in chosen for m in results(n).values()])}


def _of_model(m: ModelResult, complete: bool) -> Outcome:
    if m.status == PARTLY:
        return Outcome(
            FAILED if complete else NOT_COVERED, f"{PARTLY}, which is no pass: {m.message}"
        )
    return Outcome(m.status, m.message)


def _of_models(models: Sequence[ModelResult]) -> Outcome:
    missing = sum(m.status in INCOMPLETE for m in models)
    if not missing:
        return Outcome(PASSED)
    return Outcome(NOT_COVERED, f"{missing} of {len(models)} not covered, or in part alone")
