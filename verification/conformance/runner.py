"""Holds anyone's rules against the conformance vectors.

    from refl.verification import conformance

    @pytest.mark.parametrize("case", conformance.cases("linear_epsilon"), ids=str)
    def test_my_rule(case):
        conformance.check(my_linear_epsilon, case)

    print(conformance.run("my_adapter.py"))     # all rules at once: `refl conform my_adapter.py`

An adapter is a Python file, a module, a class instance or a dict with functions named like the
rules (`refl conform --list` says how each is called); what it lacks is not covered. It takes and
gives NumPy arrays, or those of its framework:

    to_array(values, dtype)     a NumPy array -> the framework's; dtype is "float64", "float32",
                                "float16", "bfloat16" or "bool"
    to_numpy(x)                 and back; needed only where the framework's arrays offer neither
                                DLPack nor __array__
    CONVENTIONS                 {mistake: where it is documented}: deviations that are meant, named
                                as conventions and not as failures
    NAME, VERSION               for the report

A function gives the relevance (or gradient) of each operand in `returns`: an array, a tuple of
arrays, None where nothing is passed on; or {"relevance": that, "absorbed": {entry: (B,)}}, and then
the conservation ledger is held against the vectors as well. Raising NotImplementedError says that a
case is not covered.

An answer is right where  |answer - expected| <= units * u * condition  (plus what underflows), u
the unit roundoff of the case's format and condition the sum of what one rounding of every factor
can move. For a wrong one the runner works the case out again with every known mistake and names
those that give the same wrong numbers (diagnosis.py).
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from refl.errors import ReflError
from refl.verification.conformance import report, whole_models
from refl.verification.conformance.adapter import Adapter, Array, NotCovered
from refl.verification.conformance.deviation import Answer, deviations, refuse_blind_comparison
from refl.verification.conformance.diagnosis import (
    diagnoses,
    most_telling,
    searched,
    shown_by,
)
from refl.verification.conformance.guarded import Raised, WrongAnswer, guarded
from refl.verification.conformance.planting import Mistake
from refl.verification.conformance.report import Report
from refl.verification.conformance.results import (
    CONVENTION,
    FAILED,
    INCOMPLETE,
    NOT_COVERED,
    PARTLY,
    PASSED,
    CaseResult,
    RuleResult,
)
from refl.verification.vectors import FORMAT
from refl.verification.vectors.case import Case
from refl.verification.vectors.rule_vectors import fingerprint, load, rules
from refl.version import __version__

Progress = Callable[[str, int, int], object]
"""What is run, how many are done, of how many."""

# -- all cases -------------------------------------------------------------------------------------


def run(
    adapter: Any, pattern: str = "*", *, progress: Progress = lambda what, done, of: None
) -> Report:
    """All cases of the rules that the pattern names (and the whole models, named `model`). adapter:
    an Adapter, or what makes one.
    """
    adapter, names = asked(adapter, pattern)
    found = []
    for k, rule in enumerate(name for name in names if name != "model"):
        progress(rule, k, len(names))
        results = [run_case(adapter, case) for case in load(rule)]
        found.append(rule_result(rule, results, adapter.conventions))
    models = whole_models.run_models(adapter, progress) if "model" in names else ()
    return Report(adapter.name, adapter.version, tuple(found), tuple(models), about())


def asked(adapter: Any, pattern: str) -> tuple[Adapter, list[str]]:
    """The adapter, and the rules that the pattern names. Raises ReflError where it has none of
    them, and where one of its functions is called almost like a rule that it lacks.
    """
    adapter = adapter if isinstance(adapter, Adapter) else Adapter(adapter)
    names = [rule for rule in [*rules(), "model"] if fnmatchcase(rule, pattern)]
    if not names:
        raise ReflError(f"no rule is called {pattern!r}: there are {', '.join(rules())} and model")
    for name, rule in adapter.misspelled().items():
        raise ReflError(
            f"{adapter.name} has a function {name}, which is no rule, and lacks {rule}: rename "
            "it, or start its name with an underscore where it is something else"
        )
    if not any(callable(adapter.find(name)) for name in names):
        raise ReflError(
            f"{adapter.name} has no function named like a rule: expected some of "
            f"{', '.join(names[:4])} ... (see refl conform --help)"
        )
    return adapter, names


def about() -> dict[str, str]:
    return {
        "refl": __version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "vectors": f"format {FORMAT}, {fingerprint()}",
    }


def rule_result(
    rule: str, results: Sequence[CaseResult], conventions: Mapping[str, str]
) -> RuleResult:
    """With the mistakes that explain a rule's failures."""
    failed = searched({c.case.id: (c.case, c.got, c.diagnoses) for c in results if c.failed})
    results = [replace(c, diagnoses=failed.get(c.case.id, ())) for c in results]
    mistakes = most_telling(
        failed,
        (c.case for c in results if c.status == PASSED),
        conventions,
    )
    documented = {m.id: conventions[m.id] for m in mistakes if m.id in conventions}
    settled = tuple(_settled(c, set(mistakes), conventions) for c in results)
    return RuleResult(rule, settled, tuple(mistakes), documented)


def _settled(
    result: CaseResult, mistakes: set[Mistake], conventions: Mapping[str, str]
) -> CaseResult:
    """A failure that a documented convention explains is no failure."""
    if not result.failed:
        return result
    kept = tuple(d for d in result.diagnoses if d[0] in mistakes)
    status = CONVENTION if any(m.id in conventions for m, _ in kept) else FAILED
    return replace(result, status=status, diagnoses=kept)


# -- one case --------------------------------------------------------------------------------------


def run_case(adapter: Adapter, case: Case) -> CaseResult:
    """Calls the adapter's function on a case. Raises ReflError where the adapter replaced functions
    that answers are compared with.
    """
    try:
        if case.rule == "network":
            return _run_network(adapter, case)
        with guarded():
            got, absorbed = _answered(adapter, case)
        refuse_blind_comparison()
        return compared(case, got, absorbed)
    except NotCovered as reason:
        return CaseResult(case, NOT_COVERED, message=str(reason))
    except (Raised, WrongAnswer) as reason:
        return _diagnosed(CaseResult(case, FAILED, message=str(reason)))


def _answered(
    adapter: Adapter, case: Case
) -> tuple[dict[str, Array | None], dict[str, Array] | None]:
    function = adapter.function(case.rule)
    arguments = [adapter.to_array(a, case.dtype) for a in case.arguments]
    return _read(adapter, case, function(*arguments, **adapter.options(case, function)))


@np.errstate(all="ignore")
def compared(case: Case, got: Answer, absorbed: Mapping[str, Array] | None = None) -> CaseResult:
    """Holds an answer against what is expected.
    Raises ValueError for one whose shape is not its operand's.
    """
    wrong = deviations(case, got, absorbed)
    return _diagnosed(CaseResult(case, FAILED if wrong else PASSED, got, absorbed or {}, wrong))


@np.errstate(all="ignore")
def _diagnosed(result: CaseResult) -> CaseResult:
    if not result.failed:
        return result
    return replace(result, diagnoses=tuple(diagnoses(result.case, result.got)))


def _read(
    adapter: Adapter, case: Case, answer: Any
) -> tuple[dict[str, Array | None], dict[str, Array] | None]:
    """Relevance, and what was absorbed where the function says it."""
    if not isinstance(answer, Mapping):
        return _pieces(adapter, case, case.returns, answer), None
    relevance = _pieces(adapter, case, case.returns, answer["relevance"])
    if "absorbed" not in answer:
        return relevance, None
    entries = dict(answer["absorbed"] or {}).items()
    return relevance, {str(name): _entry(adapter, case, name, a) for name, a in entries}


def _entry(adapter: Adapter, case: Case, name: str, a: Any) -> Array:
    found = adapter.to_numpy(a, f"absorbed {name}", (case.batch,))
    return np.zeros(case.batch) if found is None else found


def _pieces(
    adapter: Adapter, case: Case, names: Sequence[str], answer: Any
) -> dict[str, Array | None]:
    pieces = list(answer) if isinstance(answer, (tuple, list)) else [answer]
    if len(pieces) != len(names):
        raise WrongAnswer(
            f"{len(pieces)} arrays came back, expected {len(names)}: {', '.join(names)}"
        )
    return {
        name: adapter.to_numpy(piece, name, _shape(case, name))
        for name, piece in zip(names, pieces, strict=True)
    }


def _shape(case: Case, name: str) -> tuple[int, ...]:
    """Of what is returned: its operand's."""
    expected = case.expected[name]
    if expected is None:
        operand, _, member = name.partition(".")
        held = case.inputs[operand]
        expected = held[int(member)] if member else held
    return tuple(expected.shape)


# -- a small network -------------------------------------------------------------------------------


def _run_network(adapter: Adapter, case: Case) -> CaseResult:
    """One forward, one seed; the same again; then all seeds from one forward."""
    with guarded():
        explain = adapter.function(case.rule)(adapter.to_array(case.inputs["layers"], case.dtype))
    seeds = list(case.inputs["seeds"])

    def ask(some: list[Array]) -> dict[str, Array | None]:
        with guarded():
            z, answers = explain(
                adapter.to_array(case.inputs["x"], case.dtype), adapter.to_array(some, case.dtype)
            )
            names = ["z", *(f"x.{k}" for k in range(len(some)))]
            return _pieces(adapter, case, names, [z, *answers])

    single = _first_seeds(case, 1)
    first = compared(single, ask(seeds[:1]))
    if first.failed:
        return first
    before = "the first call is right, the same call again"
    try:
        again = compared(single, ask(seeds[:1]))
    except (Raised, WrongAnswer, NotCovered) as reason:
        return _misbehaved(CaseResult(case, FAILED), "again", _said(before, reason))
    if again.failed:
        return _misbehaved(again, "again", f"{before} is not")
    try:
        return compared(case, ask(seeds))
    except NotCovered as reason:
        said = f"right for one seed; {len(seeds)} from one forward are not covered: {reason}"
        return replace(first, case=case, status=PARTLY, message=said)
    except (Raised, WrongAnswer) as reason:
        said = _said("a second seed from one forward", reason)
        return _misbehaved(CaseResult(case, FAILED), "targets", said)


def _said(what: str, reason: Exception) -> str:
    return f"{what} {reason}" if isinstance(reason, Raised) else f"{what}: {reason}"


def _first_seeds(case: Case, count: int) -> Case:
    """The case with its first seeds alone."""
    names = ["z", *(f"x.{k}" for k in range(count))]
    inputs = {**case.inputs, "seeds": list(case.inputs["seeds"])[:count]}
    expected, condition = (
        {name: held[name] for name in names} for held in (case.expected, case.condition)
    )
    return replace(case, inputs=inputs, expected=expected, condition=condition)


def _misbehaved(result: CaseResult, behavior: str, message: str) -> CaseResult:
    """behavior: `again` or `targets`, as planting.py calls them."""
    known = tuple(shown_by(behavior))
    return replace(result, status=FAILED, message=message, behavior=behavior, diagnoses=known)


# -- in somebody's own tests -----------------------------------------------------------------------


def check(adapter: Any, case: Case) -> None:
    """Raises AssertionError, with the numbers side by side and a diagnosis, unless the adapter (or
    a bare function) answers the case right; NotCovered where it does not take what the case asks
    for."""
    if callable(adapter) and not isinstance(adapter, (type, ModuleType, Adapter)):
        adapter = {case.rule: adapter}
    adapter = _by_name(adapter) if isinstance(adapter, (str, Path)) else adapter
    adapter = adapter if isinstance(adapter, Adapter) else Adapter(adapter)
    result = run_case(adapter, case)
    if result.status in INCOMPLETE:
        raise NotCovered(result.message)
    if result.failed and not documented(adapter, result):
        raise AssertionError(report.failure(result))


@cache
def _by_name(source: str | Path) -> Adapter:
    """A loop over cases imports it once."""
    return Adapter(source)


def documented(adapter: Adapter, result: CaseResult) -> str:
    """The convention that explains a wrong answer, and where the adapter documents it."""
    known = (m.id for m in result.mistakes if m.id in adapter.conventions)
    return next((f"{id}: {adapter.conventions[id]}" for id in known), "")
