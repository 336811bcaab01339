"""The conformance vectors as somebody's own test suite: what is run, skipped, counted, refused."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import unittest
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from checkpoints import ROOT

from refl import cli
from refl.errors import ReflError
from refl.verification import conformance
from refl.verification.conformance import results, suites
from refl.verification.vectors import rule_vectors

ADAPTER = """
NAME = "mine"
CONVENTIONS = {"pooling-sum": "its manual"}

def scale_pass_through(x, r, *, factor):
    if len(x) > 1:
        raise NotImplementedError("one example at a time")
    return r

def scale_gradient(x, g, *, factor):
    return 2 * g * factor

def add_gradient(a, b, g):
    raise NotImplementedError("not yet")
"""


class Scaling:
    """Right, in all that it has."""

    def scale_pass_through(self, x: Any, r: Any, *, factor: float) -> Any:
        return r

    def to_array(self, values: Any, dtype: str) -> Any:
        return values


def counted(tests: suites.Tests) -> Counter[str]:
    return Counter(run().status for run in tests.values())


def in_a_process(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *command],
        check=False,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
    )


def project(folder: Path, line: str, name: str = "test_it.py") -> Path:
    (folder / "my_adapter.py").write_text(ADAPTER)
    (folder / name).write_text(f"from refl.verification import conformance\n\n{line}\n")
    return folder


# -- what is run, what is skipped ------------------------------------------------------------------


def test_every_case_of_a_rule_that_is_there_and_the_coverage_of_every_rule() -> None:
    tests = suites.rule_tests(Scaling(), "scale_*", False)
    cases = [case.id for case in rule_vectors.load("scale_pass_through")]
    assert list(tests) == [*cases, "scale_pass_through-coverage", "scale_gradient-coverage",
                           "coverage"]  # fmt: skip
    assert counted(tests) == {results.PASSED: len(cases) + 1, results.NOT_COVERED: 2}
    count = len(rule_vectors.load("scale_gradient"))
    said = tests["scale_gradient-coverage"]().words
    assert said.startswith(f"scale_gradient: 0 of {count} cases, {count} not covered; there is no")
    assert "of 2 rules 1 covered, 1 not covered" in tests["coverage"]().words


def test_what_must_be_covered_and_is_not_is_seen() -> None:
    def scale_pass_through(x: Any, r: Any, *, factor: float) -> Any:
        if x.dtype == np.float32:
            raise NotImplementedError("float64 alone")
        return r

    adapter = {"scale_pass_through": scale_pass_through}
    tests = suites.rule_tests(adapter, "scale_pass_through", False)
    skipped = {n: t().words for n, t in tests.items() if t().status == results.NOT_COVERED}
    assert any("a required case is not covered: float64 alone" in w for w in skipped.values())
    assert "which is no pass" in skipped["scale_pass_through-coverage"]
    assert "1 partly covered: scale_pass_through" in skipped["coverage"]
    strict = suites.rule_tests(adapter, "scale_pass_through", True)
    failed = [n for n, t in strict.items() if t().status == results.FAILED]
    assert failed == ["scale_pass_through-coverage", "coverage"]


def test_a_wrong_answer_fails_and_a_documented_convention_is_expected() -> None:
    def linear_epsilon(x: Any, w: Any, b: Any, r: Any, *, eps: float) -> Any:
        z = x.astype(float) @ w.T + (0 if b is None else b)
        return x * ((r / (z + eps)) @ w)

    wrong = suites.rule_tests({"linear_epsilon": linear_epsilon}, "linear_epsilon", False)
    meant = suites.rule_tests(
        {"linear_epsilon": linear_epsilon, "CONVENTIONS": {"eps-unsigned": "its manual"}},
        "linear_epsilon", False)  # fmt: skip
    failed = [n for n, t in wrong.items() if t().status == results.FAILED]
    assert failed and [n for n, t in meant.items() if t().status == results.CONVENTION] == failed
    assert "eps-unsigned: its manual" in meant[failed[0]]().words
    assert "looks like eps-unsigned" in wrong[failed[0]]().words


def test_unittest_runs_them_too() -> None:
    kind = conformance.suite_unittest(Scaling(), "scale_*")
    found = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(kind).run(found)
    cases = len(rule_vectors.load("scale_pass_through"))
    assert (found.testsRun, len(found.skipped), found.failures, found.errors) == (
        cases + 3, 2, [], [])  # fmt: skip
    assert kind.__module__ == __name__


def test_a_loop_is_enough() -> None:
    for case in conformance.cases("scale_pass_through"):
        conformance.check(Scaling(), case)
        conformance.check(lambda x, r, *, factor: r, case) if case.dtype != "bfloat16" else None
        with pytest.raises(AssertionError, match="wrong"):
            conformance.check({"scale_pass_through": lambda x, r, *, factor: 2 * r + 1,
                               "to_array": lambda v, d: v}, case)  # fmt: skip


def test_whole_models() -> None:
    from refl.verification.conformance.adapters import engine

    tests = suites.model_tests(engine, "qwen*", False)
    assert counted(tests) == {results.PASSED: len(tests)} and "qwen2-0-attnlrp" in tests
    none = suites.model_tests({"model": lambda folder: None}, "qwen2", False)
    assert set(counted(none)) == {results.FAILED, results.PASSED}, "of coverage"


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("adapter", "pattern", "sentence"),
    [
        (Scaling(), "scale_pas_through", "no rule is called"),
        (Scaling(), "linear_*", "has no function named like a rule"),
        (Scaling(), "model", "has no function named like a rule"),
        ({}, "*", "has no function named like a rule"),
        ({"scale_pass_trough": Scaling().scale_pass_through}, "*", "scale_pass_trough, which is"),
        ({"model": lambda folder: None}, "*", "conformance.suite_models"),
        ("no_such_adapter", "*", "cannot be imported"),
        ("no/such/adapter.py", "*", "there is no adapter"),
    ],
)
@pytest.mark.parametrize("make", [conformance.suite, conformance.suite_unittest])
def test_nothing_to_run_is_an_error(make: Any, adapter: Any, pattern: str, sentence: str) -> None:
    with pytest.raises(ReflError, match=sentence.replace("*", r"\*")):
        make(adapter, pattern)


def test_no_model_to_run_is_an_error() -> None:
    with pytest.raises(ReflError, match="no architecture is called 'rwkv'"):
        conformance.suite_models({"model": lambda folder: None}, "rwkv")
    with pytest.raises(ReflError, match="has no function named like a rule"):
        conformance.suite_models(Scaling())


# -- as somebody has it ----------------------------------------------------------------------------


def test_one_line_in_a_test_file(tmp_path: Path) -> None:
    """An adapter beside it; a test for each case by its id, skips with their counts."""
    project(tmp_path, 'test_lrp = conformance.suite("my_adapter", "scale_*")')
    ran = in_a_process(tmp_path, "pytest", "-q", "--junit-xml=out.xml", "-p", "no:cacheprovider",
                       "--import-mode=importlib")  # fmt: skip
    assert ran.returncode == 1, ran.stdout + ran.stderr
    tests = {t.get("name"): t for t in ElementTree.parse(tmp_path / "out.xml").iter("testcase")}
    wrong = [n for n, t in tests.items() if t.find("failure") is not None]
    assert wrong and all(n and n.startswith("test_lrp[scale_gradient-") for n in wrong)
    coverage = tests["test_lrp[scale_pass_through-coverage]"].find("skipped")
    assert coverage is not None and "one example at a time" in coverage.get("message", "")


WAYS = {
    "xdist": (["pytest", "-q", "-p", "xdist", "-n", "2"], "suite"),
    "by rule": (["pytest", "-q", "-k", "scale_pass_through"], "suite"),
    "by case": (["pytest", "-q", "-k", rule_vectors.load("scale_pass_through")[0].id], "suite"),
    "unittest": (["unittest", "-q", "test_it"], "suite_unittest"),
    "unittest by rule": (["unittest", "-q", "-k", "scale_pass", "test_it"], "suite_unittest"),
    "nothing chosen": (["pytest", "-q", "-k", "softmax"], "suite"),
}


@pytest.mark.parametrize("way", WAYS)
def test_run_in_any_way(way: str, tmp_path: Path) -> None:
    command, make = WAYS[way]
    project(tmp_path, f'TestLRP = test_lrp = conformance.{make}("my_adapter.py", "scale_*")')
    ran = in_a_process(tmp_path, *command)
    fails = way in ("xdist", "unittest")
    assert ran.returncode == (1 if fails else 5 if way == "nothing chosen" else 0), ran.stdout
    assert ("scale_gradient" in ran.stdout + ran.stderr) == fails


def test_pytest_is_not_needed_for_the_others(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom refl.verification import conformance\n"
        "import unittest\n"
        "def flat(x, r, *, factor): return r\n"
        "adapter = {'scale_pass_through': flat, 'to_array': lambda v, d: v}\n"
        "for case in conformance.cases('scale_pass_through'): conformance.check(adapter, case)\n"
        "conformance.suite_unittest(adapter, 'scale_pass_through')\n"
        "assert 'pytest' not in sys.modules\n"
    )
    (tmp_path / "plain.py").write_text(code)
    assert not in_a_process(tmp_path, "plain").returncode


# -- what the text says ----------------------------------------------------------------------------

TEXT = (ROOT / "verification" / "conformance" / "README.md").read_text(encoding="utf-8")


def test_the_text_s_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_adapter.py").write_text(
        "def softmax_identity(x, r, *, mask=None, axis=-1):\n    raise NotImplementedError\n"
        "def model(folder):\n    raise NotImplementedError\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    pieces = [each.partition("```")[0] for each in TEXT.split("```python\n")[1:]]
    assert len(pieces) == 3
    for code in pieces:
        exec(compile(code, "README.md", "exec"), {"__name__": "text"})  # noqa: S102


def test_the_text_s_commands_are_understood() -> None:
    """Of the workflow, of the shell line, and of the examples."""
    parser = cli._parser()
    found = re.findall(r"refl (conform [^#\n]*)", TEXT)
    asked = [parser.parse_args(shlex.split(line)) for line in found if "--list" not in line]
    assert len(asked) == 5 and sum(a.complete for a in asked) == 3
    assert all(a.adapter == "my_adapter.py" for a in asked)
