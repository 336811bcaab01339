"""Adapters that would fool the runner or break it: whatever somebody's code raises, prints, changes
or gives back, the result is that of its numbers, or there is none.
"""

from __future__ import annotations

import json
import os
import random
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refl.cli import main
from refl.errors import ReflError
from refl.verification.conformance import results, runner
from refl.verification.conformance.adapter import Adapter
from refl.verification.conformance.deviation import refuse_blind_comparison
from refl.verification.conformance.guarded import NoResult
from refl.verification.conformance.results import CaseResult
from refl.verification.vectors import rule_vectors
from refl.verification.vectors.case import Case

RULE = "scale_pass_through"
CASE = next(c for c in rule_vectors.load(RULE) if c.dtype == "float64" and c.batch > 1)


def answered(function: Callable[..., Any], case: Case = CASE, **more: Any) -> CaseResult:
    return runner.run_case(Adapter({case.rule: function, **more}), case)


def correct(x: Any, r: Any, *, factor: float) -> Any:
    return r


# -- what it raises --------------------------------------------------------------------------------


class Mute(Exception):
    def __str__(self) -> str:
        raise SystemExit(0)


class Quiet(NotImplementedError):
    def __str__(self) -> str:
        raise ValueError


def raising(reason: BaseException | type[BaseException]) -> Callable[..., Any]:
    def scale_pass_through(x: Any, r: Any, *, factor: float) -> Any:
        raise reason

    return scale_pass_through


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        (SystemExit(0), "raised SystemExit: 0"),
        (BaseException("bare"), "raised BaseException: bare"),
        (GeneratorExit(), "raised GeneratorExit"),
        (StopIteration(), "raised StopIteration"),
        (BaseExceptionGroup("two", [SystemExit(0)]), "raised BaseExceptionGroup"),
        (Mute(), "raised Mute: its text cannot be had"),
        (MemoryError(), "raised MemoryError"),
        (ValueError("a\nb\x1b[31m" + 9999 * "c"), r"raised ValueError: a b\x1b[31mcc"),
    ],
    ids=lambda reason: type(reason).__name__ if isinstance(reason, BaseException) else "",
)
def test_whatever_a_rule_raises_is_its_answer(reason: BaseException, said: str) -> None:
    found = answered(raising(reason))
    assert found.status == results.FAILED
    assert found.message.startswith(said) and len(found.message) < 700


def test_what_is_not_implemented_may_have_no_words() -> None:
    found = answered(raising(Quiet()))
    assert found.status == results.NOT_COVERED and "cannot be had" in found.message


def test_ctrl_c_goes_through() -> None:
    with pytest.raises(KeyboardInterrupt):
        answered(raising(KeyboardInterrupt()))


def test_a_model_that_exits_fails(capsys: pytest.CaptureFixture[str]) -> None:
    def leaves(folder: str) -> Any:
        sys.exit(0)

    def leaves_later(folder: str) -> Any:
        if not folder.endswith("gpt2"):
            raise NotImplementedError
        return lambda ids, targets, method: sys.exit(0)

    for model in (leaves, leaves_later):
        tried = [
            m
            for m in runner.run({"model": model}, "model").models
            if m.status != results.NOT_COVERED
        ]
        assert tried and all(m.message == "raised SystemExit: 0" for m in tried)


# -- what it gives back ----------------------------------------------------------------------------


class Agreeable(np.ndarray[Any, Any]):
    """Equal to everything, and near to it."""

    def __eq__(self, other: object) -> Any:
        return True

    def __sub__(self, other: Any) -> Any:
        return np.zeros_like(other)

    __rsub__ = __sub__

    def __array_ufunc__(self, ufunc: Any, method: str, *arrays: Any, **how: Any) -> Any:
        return np.zeros(3)

    @property
    def shape(self) -> Any:
        return (1, 2, 3)


class Converted:
    """Gives something else each time that it is asked."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def broadcast(r: Any) -> Any:
    """A petabyte, by its shape."""
    return np.broadcast_to(r[:1, :1], (2**25, 2**25))


WRONG: dict[str, tuple[Callable[[Any], Any], str]] = {
    "complex": (lambda r: r + 0j, "came back as complex128"),
    "complex, imaginary": (lambda r: r + 1j, "came back as complex128"),
    "objects": (lambda r: r.astype(object), "came back as objects"),
    "strings": (lambda r: r.astype(str), "came back as strings"),
    "truth": (lambda r: r > 0, "came back as truth values"),
    "bare truth": (lambda r: True, "came back as bool"),
    "a generator": (lambda r: (row for row in r), "came back as generator"),
    "an object": (lambda r: object(), "came back as object"),
    "masked": (lambda r: np.ma.array(r, mask=r > 0), "masked array"),
    "equal to all": (lambda r: (2 * r).view(Agreeable), ""),
    "a scalar": (lambda r: float(r[0, 0]), "has the shape ()"),
    "one more axis": (lambda r: r[None], "has the shape (1, "),
    "one row": (lambda r: r[:1], "has the shape (1, "),
    "a petabyte": (broadcast, "has the shape (33554432, 33554432)"),
    "ragged": (lambda r: [[[1.0], [1.0, 2.0]]], "raised ValueError"),
    "nothing": (lambda r: None, ""),
    "not numbers": (lambda r: r * np.nan, ""),
    "infinite": (lambda r: r * np.inf, ""),
    "two": (lambda r: (r, r), "2 arrays came back, expected 1"),
    "none of it": (lambda r: (), "0 arrays came back, expected 1"),
    "a table without relevance": (lambda r: {"absorbed": {}}, "raised KeyError: 'relevance'"),
    "absorbed that is none": (
        lambda r: {"relevance": r, "absorbed": {"bias": "much"}},
        "absorbed bias came back as str",
    ),
    "absorbed for one example": (
        lambda r: {"relevance": r, "absorbed": {"bias": np.zeros(1)}},
        "absorbed bias has the shape (1,)",
    ),
    "absorbed from nowhere": (
        lambda r: {"relevance": r, "absorbed": {"bias": np.ones(len(r))}},
        "",
    ),
    "float32": (lambda r: (r * 1.1).astype(np.float32) / np.float32(1.1), ""),
    "float16": (lambda r: r.astype(np.float16), ""),
    "lies once, then not": (lambda r: Converted(2 * r, r), ""),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_no_right_answer_fails(kind: str) -> None:
    answer, said = WRONG[kind]
    found = answered(lambda x, r, *, factor: answer(r))
    assert found.status == results.FAILED
    assert said in found.message and (bool(said) or found.deviations)


RIGHT: dict[str, Callable[[Any], Any]] = {
    "itself": lambda r: r,
    "a list of rows": lambda r: [r.tolist()],
    "a subclass": lambda r: r.view(Agreeable),
    "masked nowhere": lambda r: np.ma.array(r),
    "not contiguous": lambda r: np.repeat(r, 2, axis=-1)[:, ::2],
    "wider": lambda r: r.astype(np.longdouble),
    "with what it absorbed": lambda r: {"relevance": (r,), "absorbed": {}},
    "absorbed nothing": lambda r: {"relevance": (r,), "absorbed": {"bias": None}},
    "converted": lambda r: Converted(r, 2 * r),
}


@pytest.mark.parametrize("kind", RIGHT)
def test_a_right_answer_passes_in_any_dress(kind: str) -> None:
    assert answered(lambda x, r, *, factor: RIGHT[kind](r)).status == results.PASSED


@pytest.mark.parametrize("factor", [np.nan, np.inf, 1e300, 1e-320, -1e308])
def test_no_answer_makes_the_comparison_warn(factor: float) -> None:
    """Somebody's tests may take warnings for errors."""
    case = next(c for c in rule_vectors.load("linear_epsilon") if c.dtype == "float64")
    with np.errstate(all="ignore"):
        multiple = case.expected["x"] * factor
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert runner.compared(case, {"x": multiple}).failed
        assert runner.compared(case, {"x": np.full(case.expected["x"].shape, factor)}).failed


def test_none_is_zero() -> None:
    """Right where nothing is passed on, wrong where something is."""
    silent = next(c for c in rule_vectors.cases() if any(e is None for e in c.expected.values()))
    zeros = [None if e is None else e for e in silent.expected.values()]
    assert answered(lambda *a, **o: zeros, silent, to_array=lambda a, d: a).status == results.PASSED
    given = {n: np.zeros(runner._shape(silent, n)) for n, e in silent.expected.items() if e is None}
    assert runner.compared(silent, {**silent.expected, **given}).status == results.PASSED
    assert answered(lambda x, r, *, factor: None).failed


def test_an_answer_is_what_it_was_when_it_was_given() -> None:
    """A buffer that every call writes into, and one that is right only afterwards."""
    buffer = np.zeros_like(CASE.inputs["r"])

    def scale_pass_through(x: Any, r: Any, *, factor: float) -> Any:
        buffer[...] = r
        return buffer

    found = answered(scale_pass_through)
    buffer[...] = 0
    assert found.status == results.PASSED and np.array_equal(found.got["x"], CASE.inputs["r"])


# -- what it does besides --------------------------------------------------------------------------


def test_what_it_changes_is_put_back(tmp_path: Path) -> None:
    def scale_pass_through(x: Any, r: Any, *, factor: float) -> Any:
        os.chdir(tmp_path)
        os.environ["REFL_TEST"] = "left"
        os.environ.pop("PATH", None)
        np.seterr(all="raise")
        np.random.seed(0)
        random.seed(0)
        np.set_printoptions(precision=1)
        warnings.simplefilter("ignore")
        sys.stdout = sys.stderr = sys.stdin = None
        kept = r.copy()
        x[...], r[...] = np.nan, np.nan
        return kept

    state = (os.getcwd(), dict(os.environ), np.geterr(), random.getstate(), sys.stdout, sys.stderr)
    numpys, options = np.random.get_state()[1].copy(), np.get_printoptions()
    filters = list(warnings.filters)
    assert answered(scale_pass_through).status == results.PASSED
    assert answered(scale_pass_through).status == results.PASSED, "the vectors are as they were"
    now = (os.getcwd(), dict(os.environ), np.geterr(), random.getstate(), sys.stdout, sys.stderr)
    assert now == state and np.array_equal(np.random.get_state()[1], numpys)
    assert np.get_printoptions() == options and list(warnings.filters) == filters


@pytest.mark.parametrize(
    ("module", "name"), [(np, "abs"), (np, "isfinite"), (np.linalg, "norm"), ("builtins", "abs")]
)
def test_replaced_functions_leave_no_verdict(module: Any, name: str) -> None:
    import builtins

    where = builtins if module == "builtins" else module
    before = getattr(where, name)

    def scale_pass_through(x: Any, r: Any, *, factor: float) -> Any:
        setattr(where, name, lambda *arrays, **how: 0.0)
        return 2 * r

    try:
        with pytest.raises(NoResult, match=f"replaced .*{name}"):
            runner.run({RULE: scale_pass_through}, RULE)
        assert getattr(where, name) is before
    finally:
        setattr(where, name, before)


def test_functions_replaced_before_leave_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_blind_comparison()
    with monkeypatch.context() as patched:
        patched.setattr("refl.verification.conformance.deviation.np.abs", lambda a: 0 * a)
        with pytest.raises(NoResult, match="cannot be told"):
            refuse_blind_comparison()


def test_prints_go_to_standard_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "talks.py"
    path.write_text(
        "import sys\nprint('on import')\n"
        f"def {RULE}(x, r, *, factor):\n    print('in a rule')\n    return r\n"
    )
    assert main(["conform", "--in-process", str(path), "--rule", RULE, "--json"]) == 0
    said = capfd.readouterr()
    assert json.loads(said.out)["passed"] and "in a rule" in said.err and "on import" in said.err


# -- what ends the process -------------------------------------------------------------------------

ENDS = {
    "leaves": ("import os", "os._exit(0)", "with exit code 0 in scale_pass_through"),
    "crashes": ("import ctypes", "ctypes.string_at(0)", "by signal 11 (SIGSEGV) in scale_pass_"),
    "killed": ("import os", "os.kill(os.getpid(), 9)", "by signal 9 (SIGKILL) in scale_pass_"),
    "leaves on import": ("import os; os._exit(0)", "", "with exit code 0 while it was imported"),
}


@pytest.mark.parametrize("how", ENDS)
def test_what_ends_the_process_is_said(
    how: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first, then, said = ENDS[how]
    path = tmp_path / "ends.py"
    path.write_text(f"{first}\ndef {RULE}(x, r, *, factor):\n    {then or 'pass'}\n")
    assert main(["conform", str(path), "--rule", RULE]) == 2
    out, err = capfd.readouterr()
    last = err.strip().splitlines()[-1]
    assert last == f"refl: {last.removeprefix('refl: ')}" and said in last and not out


def test_what_lies_beside_the_adapter_is_not_taken_for_refl(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A clone of the project, say, or a file that is called as a module of Python's."""
    decoy = tmp_path / "refl" / "verification" / "conformance"
    decoy.mkdir(parents=True)
    for path in (decoy / "child.py", tmp_path / "json.py"):
        path.write_text("raise SystemExit(7)\n")
    (tmp_path / "mine.py").write_text(
        f"import refl\nassert refl.load\ndef {RULE}(x, r, *, factor):\n    return r\n"
    )
    monkeypatch.chdir(tmp_path)
    assert main(["conform", "mine.py", "--rule", RULE]) == 0, capfd.readouterr().err


def test_what_never_ends_is_ended(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "hangs.py"
    path.write_text(f"def {RULE}(x, r, *, factor):\n    while True:\n        pass\n")
    assert main(["conform", str(path), "--rule", RULE, "--seconds", "3"]) == 2
    out, err = capfd.readouterr()
    assert err.strip().splitlines()[-1] == (
        f"refl: the adapter took more than 3 s in {RULE}: there is no report; --seconds allows more"
    )
    assert not out


@pytest.mark.parametrize("seconds", ["0", "-1", "9" * 400])
def test_no_time_at_all(seconds: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["conform", "json", "--seconds", seconds]) == 2
    said = capfd.readouterr().err
    assert "--seconds: expected 1 to 1000000, got " in said and len(said) < 500


def test_a_report_comes_out_of_the_process_whole(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The same as without one: text, JSON, HTML, JUnit; what is written to descriptor 1 is not."""
    path, shown = tmp_path / "mine.py", []
    path.write_text(
        f"import os\ndef {RULE}(x, r, *, factor):\n    os.write(1, b'noise')\n    return 2 * r\n"
    )
    for more in ([], ["--in-process"]):
        files = [str(tmp_path / f"{len(more)}.{kind}") for kind in ("html", "xml")]
        command = ["conform", str(path), "--rule", RULE, "--html", files[0], "--junit", files[1]]
        assert main([*command, *more]) == 1
        out = capfd.readouterr().out.replace("noise", "") if more else capfd.readouterr().out
        shown.append((out, *(Path(file).read_bytes() for file in files)))
    assert shown[0] == shown[1] and "1 failed" in shown[0][0]


# -- what it says of itself ------------------------------------------------------------------------


class Unreadable:
    @property
    def NAME(self) -> str:
        raise SystemExit(0)


@pytest.mark.parametrize(
    ("adapter", "sentence"),
    [
        ({"NAME": ["mine"]}, "NAME of the adapter is of type list, expected a string"),
        ({"VERSION": 1.5}, "VERSION of the adapter is of type float"),
        ({"CONVENTIONS": ["eps-unsigned"]}, "CONVENTIONS of the adapter is no table of texts"),
        ({"CONVENTIONS": {"eps-unsigned": 3}}, "CONVENTIONS of the adapter is no table of texts"),
        ({"CONVENTIONS": {"eps-unsigne": "x"}}, "no known mistake: there is eps-unsigned"),
        ({"to_array": 3}, "to_array of dict cannot be called"),
        ({"linear_epsilom": correct, RULE: correct}, "linear_epsilom, which is no rule, and lacks"),
        (Unreadable(), "NAME of the adapter cannot be read: raised SystemExit: 0"),
        ({"nothing": correct}, "has no function named like a rule"),
    ],
)
def test_what_it_says_of_itself_is_checked(adapter: Any, sentence: str) -> None:
    with pytest.raises(ReflError) as refused:
        runner.run(adapter if isinstance(adapter, Unreadable) else {RULE: correct, **adapter}
                   if "nothing" not in adapter else adapter, RULE)  # fmt: skip
    assert sentence in str(refused.value)


def test_names_that_are_near_but_meant_are_let_pass() -> None:
    """Where the rule itself is there, and where a name begins with an underscore."""
    names = {
        "linear_flat": lambda x, w, b, r: r,
        "linear_flat2": correct,
        "_linear_epsilom": correct,
    }
    assert Adapter(names | {RULE: correct}).misspelled() == {}


# -- partly covered --------------------------------------------------------------------------------


def test_a_rule_passes_only_when_its_required_cases_are_covered() -> None:
    def one_example(x: Any, r: Any, *, factor: float) -> Any:
        if len(x) > 1:
            raise NotImplementedError("one example at a time")
        return r

    found = runner.run({RULE: one_example}, RULE)
    assert found[RULE].status == results.PARTLY and not found.passed and found.failed
    assert "one example at a time" in found[RULE].partly
    both = runner.run({RULE: one_example, "scale_gradient": lambda x, g, *, factor: g * factor},
                      "scale_*")  # fmt: skip
    assert both["scale_gradient"].status == results.PASSED
    assert both.partly and not both.failed and not both.passed
    assert "1 partly covered (which is no pass)" in str(both)
    assert runner.run({RULE: correct}, RULE)[RULE].status == results.PASSED


def test_a_model_passes_only_when_it_is_followed_to_the_input() -> None:
    from refl.verification.conformance.adapters import engine

    def model(folder: str) -> Any:
        if not folder.endswith("qwen2"):
            raise NotImplementedError
        explain = engine.model(folder)
        return lambda ids, targets, method: [
            {"lm_head": a["lm_head"], "logit": a["logit"]} for a in explain(ids, targets, method)
        ]

    found = runner.run({"model": model}, "model")
    assert {m.status for m in found.models} == {results.PARTLY, results.NOT_COVERED}
    assert found.partly and not found.passed and "model.embed_tokens was not given" in str(found)
