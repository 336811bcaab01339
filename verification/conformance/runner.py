"""Holds anyone's rules against the conformance vectors.

    from refl.verification import conformance

    @pytest.mark.parametrize("case", conformance.cases("linear_epsilon"), ids=str)
    def test_my_rule(case):
        conformance.check(my_linear_epsilon, case)

    report = conformance.run("my_adapter.py")            # all rules at once; `refl conform
                                                         my_adapter.py` on the command line
    print(report)

An adapter is a Python file, a module, a class instance or a dict with functions named like the
rules (`conformance.signatures()` says how each is called); what it lacks is not covered. It takes
and gives NumPy arrays, or those of its framework:

    to_array(values, dtype)     a NumPy array -> the framework's; dtype is "float64", "float32",
                                "float16", "bfloat16" or "bool"
    to_numpy(x)                 and back; needed only where the framework's arrays offer neither
                                DLPack nor __array__
    CONVENTIONS                 {mistake: where it is documented}: deviations that are meant, named
                                as conventions and not as failures
    NAME, VERSION               for the report

A function gives the relevance (or gradient) of each operand in `returns`: an array, a tuple of
arrays, None where nothing is passed on; or {"relevance": that, "absorbed": {entry: (B,)}}, and then
the conservation ledger are held against the vectors as well. Raising NotImplementedError says that
a case is not covered.

An answer is right where  |answer - expected| <= units * u * condition
                          (plus what underflows), u the unit roundoff of the case's
format and condition the sum of what one rounding of every factor can move. For a wrong one the
runner works the case out again with every known mistake and names those that give the same wrong
numbers.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np

from refl.errors import ReflError
from refl.verification.vectors.case import NETWORK, SIGNATURES, Case, Signature
from refl.verification.conformance.mistakes import MISTAKES, Inapplicable, Mistake

Array: TypeAlias = np.ndarray[Any, Any]

FOLDER = Path(__file__).parents[1] / "vectors" / "rules"
FORMAT = 2

UNDERFLOW = {
    "float64": 2.0**-1020,
    "float32": 2.0**-124,
    "float16": 2.0**-22,
    "bfloat16": 2.0**-124,
}
"""What is lost when a number leaves the format at its small end, a few times over; where half
precision is kept between the steps of a rule it is lost there, too."""

PASSED, FAILED, CONVENTION, NOT_COVERED = "passed", "failed", "convention", "not covered"


Suspect: TypeAlias = tuple[Mistake, int]
"""A mistake, and in which of the forms it is met in."""


class NotCovered(Exception):
    """The adapter does not offer what a case asks for."""


# -- the vectors -----------------------------------------------------------------------------------


def rules() -> list[str]:
    """The rules there are vectors for, in their order."""
    return [*SIGNATURES, "network"]


def signatures() -> Mapping[str, Signature]:
    """Rule -> how it is called: operands, options with their defaults, what is returned, the
    equation and its source.
    """
    return {**SIGNATURES, "network": NETWORK}


@cache
def load(rule: str) -> tuple[Case, ...]:
    """A rule's cases. Raises ReflError for a rule there are no vectors for, and for a file that is
    damaged.
    """
    path = FOLDER / f"{rule}.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["format"] != FORMAT or data["rule"] != rule or data["count"] != len(data["cases"]):
            raise ReflError(
                f"{path.name} says format {data['format']}, rule {data['rule']}, "
                f"{data['count']} cases: it was changed by hand"
            )
        return tuple(Case.from_json(each, rule) for each in data["cases"])
    except FileNotFoundError as missing:
        raise ReflError(
            f"there are no vectors for {rule!r}: there are {', '.join(rules())}"
        ) from missing
    except (KeyError, TypeError, ValueError) as reason:
        raise ReflError(
            f"{path.name} is no file of vectors: {type(reason).__name__} {reason}"
        ) from reason


def cases(pattern: str = "*", *, flags: str | None = None) -> list[Case]:
    """The cases of all rules that the pattern names (* and ?); with `flags`, those aimed at that
    mistake.
    """
    found = [case for rule in rules() if fnmatchcase(rule, pattern) for case in load(rule)]
    if not found:
        raise ReflError(f"no rule is called {pattern!r}: there are {', '.join(rules())}")
    return [case for case in found if flags is None or flags in case.flags]


# -- the adapter -----------------------------------------------------------------------------------


class Adapter:
    """Somebody's functions, called as the vectors ask."""

    def __init__(self, source: Any) -> None:
        """source: the path of a Python file, the name of a module, a module, an object or a dict.
        Raises ReflError where it cannot be had.
        """
        self.source = _imported(source) if isinstance(source, (str, Path)) else source
        self.name = str(
            self.find("NAME")
            or (
                Path(str(source)).name if isinstance(source, (str, Path)) else type(source).__name__
            )
        )
        self.version = str(self.find("VERSION") or "")
        self.conventions: Mapping[str, str] = self.find("CONVENTIONS") or {}

    def find(self, name: str) -> Any:
        return (
            self.source.get(name)
            if isinstance(self.source, Mapping)
            else getattr(self.source, name, None)
        )

    def covers(self) -> list[str]:
        return [rule for rule in rules() if callable(self.find(rule))]

    def function(self, rule: str) -> Callable[..., Any]:
        found = self.find(rule)
        if not callable(found):
            raise NotCovered(f"there is no function {rule}")
        return found  # type: ignore[no-any-return]

    def to_array(self, value: Any, dtype: str) -> Any:
        """What the adapter's functions take: arrays in its framework, within lists and dicts
        too.
        """
        if isinstance(value, Mapping):
            return {key: self.to_array(each, dtype) for key, each in value.items()}
        if isinstance(value, list):
            return [self.to_array(each, dtype) for each in value]
        if not isinstance(value, np.ndarray):
            return value
        hook = self.find("to_array")
        if hook is None and dtype == "bfloat16":
            raise NotCovered("NumPy has no bfloat16: a function to_array(values, dtype) is needed")
        return (
            value.copy()
            if hook is None
            else hook(value.copy(), "bool" if value.dtype == bool else dtype)
        )

    def to_numpy(self, x: Any) -> Array | None:  # -> float64
        if x is None:
            return None
        if isinstance(x, (float, int)):
            return np.asarray(float(x))
        hook = self.find("to_numpy")
        if hook is not None:
            return np.asarray(hook(x), dtype=np.float64)
        x = x.detach() if hasattr(x, "detach") else x
        return np.asarray(
            np.from_dlpack(x) if hasattr(x, "__dlpack__") and not hasattr(x, "__array__") else x,
            dtype=np.float64,
        )

    def options(self, case: Case, function: Callable[..., Any]) -> dict[str, Any]:
        """The case's options that the function takes. One it lacks must be at its default."""
        taken = _keywords(function)
        for name in case.options:
            if taken is not None and name not in taken and not case.at_default(name):
                raise NotCovered(f"{case.rule} takes no option {name}")
        return {
            name: self.to_array(value, case.dtype)
            for name, value in case.options.items()
            if taken is None or name in taken
        }


def _keywords(function: Callable[..., Any]) -> set[str] | None:
    """The names it takes; None where it takes any."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None
    return (
        None if any(p.kind is p.VAR_KEYWORD for p in parameters) else {p.name for p in parameters}
    )


def _imported(source: str | Path) -> ModuleType:
    try:
        return (
            _from_file(Path(source))
            if str(source).endswith(".py")
            else importlib.import_module(str(source))
        )
    except ReflError:
        raise
    except (Exception, SystemExit) as reason:
        raise ReflError(
            f"the adapter {source} cannot be imported: {type(reason).__name__}: {reason}"
        ) from reason


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ReflError(
            f"there is no adapter {path}: expected a Python file with functions named like "
            "the rules, or the name of a module"
        )
    name = f"refl_adapter_{path.stem}"  # a file may be called numpy.py
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(path.parent.absolute()))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    return module


# -- one case --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Deviation:
    """Where an answer is furthest from the expected one, in units of what is allowed."""

    name: str
    """Of the operand, or `absorbed <entry>`."""
    index: tuple[int, ...]
    expected: float
    got: float
    allowed: float

    @property
    def excess(self) -> float:
        distance = abs(self.got - self.expected)
        return distance / self.allowed if np.isfinite(distance) else float("inf")


@dataclass(frozen=True)
class Verdict:
    """What came of a case."""

    case: Case
    status: str
    got: Mapping[str, Array | None] = field(default_factory=dict)
    absorbed: Mapping[str, Array] = field(default_factory=dict)
    deviations: tuple[Deviation, ...] = ()
    """The worst of each operand and entry that is wrong, worst first."""
    words: str = ""
    """What went wrong where it is not a number: an exception, a shape; or why the case is not
    covered.
    """
    behavior: str = ""
    """Of a function that kept something from call to call: the key of the mistake."""
    suspects: tuple[Suspect, ...] = ()
    """Known mistakes, in the forms that give these same wrong numbers."""

    @property
    def failed(self) -> bool:
        return self.status in (FAILED, CONVENTION)

    @property
    def mistakes(self) -> tuple[Mistake, ...]:
        return tuple(dict.fromkeys(m for m, _ in self.suspects))


def judge(adapter: Adapter, case: Case) -> Verdict:
    """Calls the adapter's function on a case."""
    try:
        function = adapter.function(case.rule)
        if case.rule == "network":
            return _judge_network(adapter, case, function)
        arguments = [adapter.to_array(a, case.dtype) for a in case.arguments]
        options = adapter.options(case, function)
        with np.errstate(all="ignore"):
            answer = function(*arguments, **options)
            return verdict(case, *_read(adapter, case, answer))
    except (NotCovered, NotImplementedError) as reason:
        return Verdict(case, NOT_COVERED, words=str(reason))
    except Exception as reason:  # noqa: BLE001 (whatever somebody's function raises is its answer)
        return _named(Verdict(case, FAILED, words=f"raised {type(reason).__name__}: {reason}"))


def verdict(
    case: Case, got: Mapping[str, Array | None], absorbed: Mapping[str, Array] | None = None
) -> Verdict:
    """Holds an answer against what is expected. Raises ValueError for one whose shape is not its
    operand's.
    """
    pairs = [
        (name, got.get(name), case.expected[name], case.condition[name]) for name in case.expected
    ]
    if absorbed is not None:
        entries = [*case.absorbed, *(name for name in absorbed if name not in case.absorbed)]
        zero = np.zeros(case.batch)
        pairs += [
            (
                f"absorbed {n}",
                absorbed.get(n, zero),
                case.absorbed.get(n, zero),
                case.absorbed_condition.get(n, zero),
            )
            for n in entries
        ]
    wrong = _wrong(case, pairs)
    return _named(Verdict(case, FAILED if wrong else PASSED, got, absorbed or {}, wrong))


def _wrong(
    case: Case, pairs: Sequence[tuple[str, Array | None, Array | None, Array | None]]
) -> tuple[Deviation, ...]:
    found = [d for pair in pairs if (d := _furthest(case, *pair)) is not None]
    return tuple(sorted((d for d in found if not d.excess <= 1), key=lambda d: -d.excess))


def _deviations(case: Case, got: Mapping[str, Array | None]) -> tuple[Deviation, ...]:
    """Of the relevance, where it is wrong; worst first."""
    return _wrong(
        case,
        [
            (name, got.get(name), case.expected[name], case.condition[name])
            for name in case.expected
        ],
    )


def bound(case: Case, condition: Array) -> Array:
    """How far an answer may be from the expected one."""
    return np.asarray(case.units * case.u * condition + UNDERFLOW[case.dtype])


def _furthest(
    case: Case, name: str, got: Array | None, expected: Array | None, condition: Array | None
) -> Deviation | None:
    if got is None and expected is None:
        return None
    shape = (expected if expected is not None else got).shape  # type: ignore[union-attr]
    expected, condition = (np.zeros(shape) if a is None else a for a in (expected, condition))
    got = np.zeros(shape) if got is None else got
    if got.shape != shape:
        raise ValueError(f"{name} has the shape {got.shape}, expected {shape}")
    if not got.size:
        return None
    allowed = bound(case, condition)
    with np.errstate(all="ignore"):
        excess = np.abs(got - expected) / allowed
    at = np.unravel_index(int(np.argmax(np.where(np.isfinite(got), excess, np.inf))), shape)
    index = tuple(int(i) for i in at)
    return Deviation(name, index, float(expected[index]), float(got[index]), float(allowed[index]))


def _read(
    adapter: Adapter, case: Case, answer: Any
) -> tuple[dict[str, Array | None], dict[str, Array] | None]:
    absorbed = None
    if isinstance(answer, Mapping):
        absorbed = (
            {name: _numbers(adapter, a) for name, a in (answer.get("absorbed") or {}).items()}
            if "absorbed" in answer
            else None
        )
        answer = answer["relevance"]
    return _pieces(adapter, case.returns, answer), absorbed


def _numbers(adapter: Adapter, a: Any) -> Array:
    found = adapter.to_numpy(a)
    return np.zeros(()) if found is None else found


def _pieces(adapter: Adapter, names: Sequence[str], answer: Any) -> dict[str, Array | None]:
    pieces = list(answer) if isinstance(answer, (tuple, list)) else [answer]
    if len(pieces) != len(names):
        raise ValueError(
            f"{len(pieces)} arrays came back, expected {len(names)}: {', '.join(names)}"
        )
    return {name: adapter.to_numpy(piece) for name, piece in zip(names, pieces, strict=True)}


def _judge_network(adapter: Adapter, case: Case, function: Callable[..., Any]) -> Verdict:
    """One forward, one seed; the same again; then all seeds from one forward."""
    explain = function(adapter.to_array(case.inputs["layers"], case.dtype))
    seeds = list(case.inputs["seeds"])

    def ask(some: list[Array]) -> dict[str, Array | None]:
        z, answers = explain(
            adapter.to_array(case.inputs["x"], case.dtype), adapter.to_array(some, case.dtype)
        )
        return _pieces(adapter, ["z", *(f"x.{k}" for k in range(len(some)))], [z, *answers])

    single = _part(case, 1)
    first = verdict(single, ask(seeds[:1]))
    if first.failed:
        return first
    try:
        again = verdict(single, ask(seeds[:1]))
    except Exception as reason:  # noqa: BLE001
        return _behaved(
            Verdict(case, FAILED),
            "again",
            f"the first call is right, the same call again raised {type(reason).__name__}: "
            f"{reason}",
        )
    if again.failed:
        return _behaved(again, "again", "the first call is right, the same call again is not")
    try:
        return verdict(case, ask(seeds))
    except NotImplementedError:
        return first
    except Exception as reason:  # noqa: BLE001
        return _behaved(
            Verdict(case, FAILED),
            "targets",
            f"a second seed from one forward raised {type(reason).__name__}: {reason}",
        )


def _part(case: Case, seeds: int) -> Case:
    """The case with its first seeds alone."""
    names = ["z", *(f"x.{k}" for k in range(seeds))]
    inputs = {**case.inputs, "seeds": list(case.inputs["seeds"])[:seeds]}
    expected, condition = (
        {name: held[name] for name in names} for held in (case.expected, case.condition)
    )
    return replace(case, inputs=inputs, expected=expected, condition=condition)


def _behaved(v: Verdict, behavior: str, words: str) -> Verdict:
    """behavior: `again` or `targets`, as mistakes.py calls what they show."""
    known = tuple((m, 0) for m in MISTAKES if m.behavior == behavior)
    return replace(v, status=FAILED, words=words, behavior=behavior, suspects=known)


# -- diagnosis -------------------------------------------------------------------------------------

CLEARLY = 64
"""A mistake changes an answer clearly where it moves it by this many times what rounding may."""


def _named(v: Verdict) -> Verdict:
    return replace(v, suspects=tuple(suspects(v.case, v.got))) if v.failed else v


def diagnose(case: Case, got: Mapping[str, Array | None]) -> list[Mistake]:
    """The known mistakes that answer this case as `got` does."""
    return list(dict.fromkeys(m for m, _ in suspects(case, got)))


def suspects(case: Case, got: Mapping[str, Array | None]) -> list[Suspect]:
    """Those that give the same numbers; where none does, those that give them to float32's
    precision, or that precision alone.
    """
    given = [(m, k, wrong) for m in MISTAKES for k, wrong in answers(m, case)]
    found = [(m, k) for m, k, wrong in given if _reproduces(wrong, case, got)]
    coarse = replace(case, dtype="float32", units=4 * case.units)
    if case.dtype == "float64" and got and not _deviations(coarse, got):
        found += [(m, 0) for m in MISTAKES if m.behavior == "narrowed"]
    elif case.dtype == "float64" and not found:
        found = [
            (m, k)
            for m, k, wrong in given
            if tells(coarse, wrong) and _reproduces(wrong, coarse, got)
        ]
    changed = "z" in got and not _right(case, "z", got)
    return [
        (m, 0)
        for m in MISTAKES
        if changed and m.behavior == "forward" and m not in [f for f, _ in found]
    ] + found


def _reproduces(
    wrong: Mapping[str, Array | None], case: Case, got: Mapping[str, Array | None]
) -> bool:
    return (
        got.keys() <= wrong.keys()
        and bool(got)
        and all(_alike(case, name, wrong[name], a) for name, a in got.items())
    )


def answers(mistake: Mistake, case: Case) -> Iterator[tuple[int, dict[str, Array | None]]]:
    """What implementations with this mistake answer, by its forms; none where it makes no
    difference.
    """
    for k, way in enumerate(mistake.ways if case.rule in mistake.rules else ()):
        with suppress(Inapplicable), np.errstate(all="ignore"):
            yield k, dict(zip(case.returns, way(case), strict=True))


def _right(case: Case, name: str, got: Mapping[str, Array | None]) -> bool:
    d = _furthest(case, name, got.get(name), case.expected[name], case.condition[name])
    return d is None or d.excess <= 1


def _alike(case: Case, name: str, wrong: Array | None, got: Array | None) -> bool:
    """Whether two answers differ by rounding alone: by little, and by far less than the wrong one
    differs from the right one.
    """
    if wrong is None or got is None:
        return all(a is None or not np.any(a) for a in (wrong, got))
    if wrong.shape != got.shape:
        return False
    expected = case.expected[name]
    with np.errstate(all="ignore"):
        finite = np.isfinite(wrong)
        apart = np.max(np.abs(wrong - (0 if expected is None else expected))[finite], initial=0.0)
        rounding = 64 * case.u * np.max(np.abs(wrong[finite]), initial=0.0) + UNDERFLOW[case.dtype]
        near = rounding + np.minimum(np.sqrt(case.u) * np.abs(wrong), apart / 16)
        return bool(np.all(np.where(finite, np.abs(got - wrong) <= near, ~np.isfinite(got))))


# -- all cases -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RuleReport:
    """What came of a rule's cases."""

    rule: str
    verdicts: tuple[Verdict, ...]
    mistakes: tuple[Mistake, ...] = ()
    """Known mistakes, those that explain the most failures first."""
    conventions: Mapping[str, str] = field(default_factory=dict)

    def count(self, status: str) -> int:
        return sum(v.status == status for v in self.verdicts)

    @property
    def status(self) -> str:
        for status in (FAILED, CONVENTION, PASSED):
            if self.count(status):
                return status
        return NOT_COVERED

    @property
    def smallest(self) -> Verdict | None:
        """The failing case with the fewest numbers; one aimed at the mistake that is named comes
        before others.
        """
        failed = [v for v in self.verdicts if v.status == FAILED] or [
            v for v in self.verdicts if v.status == CONVENTION
        ]
        best = self.mistakes[0] if self.mistakes else None

        def rank(v: Verdict) -> tuple[bool, bool, bool, int]:
            aimed = best is not None and best.id in v.case.flags
            return best not in v.mistakes, not v.deviations, not aimed, size(v.case)

        return min(failed, key=rank, default=None)


def size(case: Case) -> int:
    """How many numbers a case is made of."""

    def count(value: Any) -> int:
        if isinstance(value, np.ndarray):
            return int(value.size)
        each = (
            value.values()
            if isinstance(value, Mapping)
            else value
            if isinstance(value, list)
            else ()
        )
        return sum(map(count, each))

    return count(dict(case.inputs))


@dataclass(frozen=True)
class Report:
    """What came of everything."""

    name: str
    version: str
    rules: tuple[RuleReport, ...]
    models: tuple[Any, ...] = ()
    about: Mapping[str, str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Nothing failed, and something was tried."""
        tried = [r for r in (*self.rules, *self.models) if r.status != NOT_COVERED]
        return bool(tried) and all(r.status != FAILED for r in tried)

    def __getitem__(self, rule: str) -> RuleReport:
        return next(r for r in self.rules if r.rule == rule)

    def __str__(self) -> str:
        from refl.verification.conformance import report

        return report.text(self)


def run(
    adapter: Any,
    pattern: str = "*",
    *,
    progress: Callable[[str, int, int], object] = lambda what, done, of: None,
) -> Report:
    """All cases of the rules that the pattern names (and the whole models, named `model`). adapter:
    an Adapter, or what makes one.
    """
    adapter = adapter if isinstance(adapter, Adapter) else Adapter(adapter)
    names = [rule for rule in [*rules(), "model"] if fnmatchcase(rule, pattern)]
    if not names:
        raise ReflError(f"no rule is called {pattern!r}: there are {', '.join(rules())} and model")
    if not any(callable(adapter.find(name)) for name in names):
        raise ReflError(
            f"{adapter.name} has no function named like a rule: expected some of "
            f"{', '.join(names[:4])} ... (see refl conform --help)"
        )
    found = []
    for k, rule in enumerate(name for name in names if name != "model"):
        progress(rule, k, len(names))
        found.append(
            weigh(rule, [judge(adapter, case) for case in load(rule)], adapter.conventions)
        )
    models = tuple(_models(adapter, progress)) if "model" in names else ()
    return Report(adapter.name, adapter.version, tuple(found), models, about())


def _models(adapter: Adapter, progress: Callable[[str, int, int], object]) -> Iterator[Any]:
    from refl.verification.conformance import whole_models

    yield from whole_models.judge(adapter, progress)


def about() -> dict[str, str]:
    import refl

    return {
        "refl": refl.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "vectors": f"format {FORMAT}, {fingerprint()}",
    }


@cache
def fingerprint() -> str:
    """Of all rule vectors: how many cases, and a digest of their files."""
    import hashlib

    digest = hashlib.sha256()
    for rule in rules():
        digest.update((FOLDER / f"{rule}.json").read_bytes())
    return f"{sum(len(load(rule)) for rule in rules())} cases, {digest.hexdigest()[:12]}"


def weigh(rule: str, verdicts: Sequence[Verdict], conventions: Mapping[str, str]) -> RuleReport:
    """Which mistakes explain a rule's failures: one that also changes answers which are right is
    not it.
    """
    failed = [v for v in verdicts if v.failed]
    passed = [v.case for v in verdicts if v.status == PASSED]
    explains: dict[Suspect, set[str]] = {}
    for v in failed:
        for suspect in v.suspects:
            explains.setdefault(suspect, set()).add(v.case.id)
    believed = {
        s: ids
        for s, ids in explains.items()
        if s[0].behavior or not any(_would_fail(s, case) for case in passed)
    }
    order = sorted(_fewest(believed), key=lambda m: m.id in conventions)
    explained = set().union(*believed.values()) if believed else set()
    partly = {
        s: ids - explained for s, ids in explains.items() if s not in believed
    }  # made in some cases and not in others
    order += [m for m in _fewest(partly) if m not in order]
    settled = tuple(_settled(v, set(order), conventions) for v in verdicts)
    return RuleReport(
        rule, settled, tuple(order), {m.id: conventions[m.id] for m in order if m.id in conventions}
    )


def _fewest(explains: Mapping[Suspect, set[str]]) -> list[Mistake]:
    """Those that explain the most failures first; then only such as explain what none before
    does.
    """
    order: list[Mistake] = []
    left = set().union(*explains.values()) if explains else set()
    while left:
        best, ids = max(
            explains.items(), key=lambda item: (len(item[1] & left), *_preference(item[0][0]))
        )
        left -= ids
        if best[0] not in order:
            order.append(best[0])
    return order


def _preference(m: Mistake) -> tuple[bool, bool, int]:
    """Between mistakes that explain equally much."""
    return m.behavior != "narrowed", m.kind == "fault", -MISTAKES.index(m)


def _settled(v: Verdict, believed: set[Mistake], conventions: Mapping[str, str]) -> Verdict:
    """A failure that a documented convention explains is no failure."""
    if not v.failed:
        return v
    named = tuple(s for s in v.suspects if s[0] in believed)
    return replace(
        v,
        status=CONVENTION if any(m.id in conventions for m, _ in named) else FAILED,
        suspects=named,
    )


def _would_fail(suspect: Suspect, case: Case) -> bool:
    """Whether this form of the mistake changes the answer of a case clearly."""
    mistake, form = suspect
    return any(k == form and tells(case, wrong) for k, wrong in answers(mistake, case))


def tells(case: Case, wrong: Mapping[str, Array | None]) -> bool:
    """Whether a case tells a wrong answer from the right one clearly."""
    worst = [
        _furthest(case, name, wrong[name], case.expected[name], case.condition[name])
        for name in case.expected
        if name in wrong
    ]
    return any(d is not None and not d.excess <= CLEARLY for d in worst)


# -- in somebody's own tests -----------------------------------------------------------------------


def check(adapter: Any, case: Case) -> None:
    """Raises AssertionError, with the numbers side by side and a diagnosis, unless the adapter (or
    a bare function) answers the case right; NotCovered where it does not take what the case asks
    for."""
    if callable(adapter) and not isinstance(adapter, (type, ModuleType)):
        adapter = {case.rule: adapter}
    adapter = adapter if isinstance(adapter, Adapter) else Adapter(adapter)
    v = judge(adapter, case)
    if v.status == NOT_COVERED:
        raise NotCovered(v.words)
    if v.failed and not any(m.id in adapter.conventions for m in v.mistakes):
        from refl.verification.conformance import report

        raise AssertionError(report.failure(v))
