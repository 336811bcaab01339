"""Mutation testing of the rules, the sweep and the ledger.

    python -m refl.verification.quality.mutation FOLDER

mutmut's operators (an argument dropped or None, another operator, a number one more, a string in
other letters, an assignment of None, each side of a condition, ...) make one change at a time; the
tests that run the changed function must notice it. mutmut's own runner does not fit here: it leaves
out what stands outside functions and everything under a decorator (the tables of the composites and
of the activations, half of the ledger), and its trampolines hide the signatures from which
composites read a rule's options.

So each mutant gets a child process, forked from one that has imported everything and collected the
tests. There the module is changed in place, as its mutated source would have made it, and the tests
that run the changed function follow, those first that killed before: no file changes, and a mutant
that is killed costs some hundredths of a second. Who survives is imported anew, under more tests.

FOLDER keeps what is known (which test runs which function, each mutant's fate) and is taken up
again. With `--page` the results become mutation.md beside this file. A whole run takes about half
an hour of one core; set OPENBLAS_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import ast
import gc
import inspect
import json
import os
import platform
import resource
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.metadata import version
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any

from refl.io.files import atomic_write
from refl.verification.quality.equivalent_mutants import EQUIVALENT
from refl.verification.quality.import_graph import PROJECT

# -- what is mutated, and which tests it is shown: the only paths in this file ---------------------

MUTATED = ("rules/*.py", "refl/sweep.py", "refl/ledger.py")
"""Every rule and what stands beside the rules; the sweep and the ledger."""

LEFT_OUT = ("tests/peers", "tests/verification/test_planted_faults.py")
"""Tests that need torch, and those that plant faults themselves."""

FIRST = ("tests/rules/", "tests/refl/test_sweep.py", "tests/refl/test_ledger.py")
"""Tests of single rules and of the conservation ledger, quick and sharp: they go first."""

ALWAYS = ("tests/rules/test_composites.py::", "tests/rules/test_operations.py::")
"""Tests that every mutant is shown, also those that run no function of its file: some read
signatures and tables alone.
"""

PAGE_FILE = "verification/quality/mutation.md"


def chosen(patterns: Iterable[str] = MUTATED) -> tuple[str, ...]:
    """The files that patterns name. Raises SystemExit where one names none."""
    found: list[str] = []
    for pattern in patterns:
        matching = sorted(path.relative_to(PROJECT).as_posix() for path in PROJECT.glob(pattern))
        if not matching:
            raise SystemExit(f"there is no {pattern} in {PROJECT}")
        found += matching
    return tuple(found)


FILES = chosen()


ROUNDS = (1.5, 10.0, float("inf"))
"""Seconds of tests (as surveyed) that a mutant is shown in each round. In the first the module that
everyone has imported is changed in place; who survives is imported anew in the second, and in the
third meets every test that runs the function."""

GUARDS = {
    "library": "an argument less for `namespace`: the others are of the same library, or the call "
    "is refused anyway",
    "strict": "`zip(..., strict=True)`: a guard against slips in the engine itself; the lengths "
    "agree",
    "typing": "what a TypeAlias stands for: nothing reads it at run time",
}
"""Kinds of mutants that change nothing a caller can see;
who survives the first round is left alone.
"""


@dataclass(frozen=True)
class Mutant:
    """One change: the lines that differ, before and after."""

    file: str
    number: int
    line: int
    operator: str
    before: str
    after: str
    kind: str = ""
    """wording (of an error, of a method's source and summary), library, strict, typing: see
    `_kind`; most have none.
    """

    @property
    def id(self) -> str:
        return f"{self.file}:{self.number}"


@dataclass(frozen=True)
class Fate:
    """What became of a mutant: killed, timeout or survived;
    the test that saw it; the rounds it lasted.
    """

    mutant: Mutant
    outcome: str
    by: str = ""
    rounds: int = 1
    seconds: float = 0.0


@dataclass(frozen=True)
class Test:
    """What the survey knows of a test:
    seconds, and the functions it runs, each as file:first line.
    """

    name: str
    seconds: float
    functions: frozenset[str]

    @property
    def files(self) -> frozenset[str]:
        return frozenset(f.partition(":")[0] for f in self.functions)


# -- making mutants --------------------------------------------------------------------------------


def mutants(file: str) -> Iterator[tuple[Mutant, str]]:
    """Every mutant of a file with its source; of several that read the same, one."""
    import libcst
    from libcst.metadata import MetadataWrapper, ParentNodeProvider, PositionProvider

    source = (PROJECT / file).read_text(encoding="utf-8")
    wrapper = MetadataWrapper(libcst.parse_module(source))
    where, parents = wrapper.resolve(PositionProvider), wrapper.resolve(ParentNodeProvider)
    seen = {ast.dump(ast.parse(source))}
    for number, (operator, old, new) in enumerate(_changes(wrapper.module)):
        mutated = wrapper.module.deep_replace(old, new).code
        if (tree := ast.dump(ast.parse(mutated))) not in seen:
            seen.add(tree)
            before, after = _difference(source, mutated)
            yield (
                Mutant(
                    file,
                    number,
                    where[old].start.line,
                    operator,
                    before,
                    after,
                    _kind(old, new, parents),
                ),
                mutated,
            )


def made(folder: Path, file: str) -> list[tuple[Mutant, str]]:
    """The same, kept: it takes as long as the tests of a round.
    Raises SystemExit where what is kept was made of another source.
    """
    kept = folder / f"{file.replace('/', '-')}.json"
    source = (PROJECT / file).read_text(encoding="utf-8")
    if not kept.exists():
        changed = [(asdict(mutant), mutated) for mutant, mutated in mutants(file)]
        kept.write_text(json.dumps({"source": source, "mutants": changed}), encoding="utf-8")
    found = json.loads(kept.read_text(encoding="utf-8"))
    if found["source"] != source:
        raise SystemExit(f"{file} has changed since {folder} was begun: give a new FOLDER")
    return [(Mutant(**mutant), mutated) for mutant, mutated in found["mutants"]]


def _changes(module: Any) -> list[tuple[str, Any, Any]]:
    """(operator, node, what it becomes), as mutmut makes them; annotations, decorators, len and
    isinstance stay, as there.
    """
    from mutmut.mutation.mutators import mutation_operators

    return [
        (operator.__name__.removeprefix("operator_"), node, new)
        for node in _nodes(module)
        for kind, operator in mutation_operators
        if isinstance(node, kind)
        for new in operator(node)
    ]


def _nodes(node: Any) -> Iterator[Any]:
    import libcst

    called = (
        node.func.value
        if isinstance(node, libcst.Call) and isinstance(node.func, libcst.Name)
        else ""
    )
    if not isinstance(node, (libcst.Annotation, libcst.Decorator)) and called not in (
        "len",
        "isinstance",
    ):
        yield node
        for child in node.children:
            yield from _nodes(child)


def _kind(old: Any, new: Any, parents: Any) -> str:
    """Kinds of mutants that are judged as one.

    wording    text that nothing reads but a person: the words of an error, where a method is
               published, its summary
    library    an argument less for `namespace`: the library of the rest is the same, as long as
               operands are of one library
    strict     `zip(..., strict=True)`, a guard that never fires
    typing     what a TypeAlias stands for
    """
    import libcst
    import libcst.matchers as m

    above = [old]
    while above[-1] in parents:
        above.append(parents[above[-1]])
    if m.matches(old, m.Call(func=m.Name("namespace"))) and any(
        not m.matches(a, m.Arg(m.Name("None"))) for a in new.args
    ):
        return "library"
    if m.matches(old, m.Call(func=m.Name("zip"))) and [a.value for a in old.args[:-1]] == [
        a.value for a in new.args if not a.keyword
    ]:
        return "strict"
    if m.matches(above[min(1, len(above) - 1)], m.Arg(keyword=m.Name("strict"))):
        return "strict"
    if any(
        m.matches(node, m.AnnAssign(annotation=m.Annotation(m.Name("TypeAlias")))) for node in above
    ):
        return "typing"
    words = (
        m.Raise()
        | m.Arg(keyword=m.Name("source") | m.Name("summary"))
        | m.Assign(targets=[m.AssignTarget(m.Name("ACHTIBAT"))])
    )
    text = isinstance(old, (libcst.BaseString, libcst.FormattedStringText)) or (
        isinstance(old, libcst.Call) and parents[old] == above[1]
    )
    return "wording" if text and any(m.matches(node, words) for node in above[1:]) else ""


def _difference(source: str, mutated: str) -> tuple[str, str]:
    """The lines from the first to the last that differ, stripped and joined."""
    a, b = source.splitlines(), mutated.splitlines()
    start = next(i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
    end = next(i for i, (x, y) in enumerate(zip(reversed(a), reversed(b), strict=False)) if x != y)
    return tuple(
        " ".join(line.strip() for line in lines[start : len(lines) - end]) for lines in (a, b)
    )  # type: ignore[return-value]


def _functions(source: str) -> list[tuple[int, int]]:
    """First and last line of every function and lambda, the inner before the outer."""

    def walk(code: CodeType) -> Iterator[tuple[int, int]]:
        for inner in (c for c in code.co_consts if isinstance(c, CodeType)):
            yield from walk(inner)
        if code.co_flags & inspect.CO_OPTIMIZED:
            yield code.co_firstlineno, max(line for *_, line in code.co_lines() if line is not None)

    return sorted(walk(compile(source, "", "exec")), key=lambda lines: lines[1] - lines[0])


# -- one process per mutant ------------------------------------------------------------------------


def module_name(file: str) -> str:
    return "refl." + file.removesuffix(".py").removesuffix("/__init__").removeprefix(
        "refl/"
    ).replace("/", ".")


class Planted(MetaPathFinder):
    """Imports the mutated source under the module's name."""

    def __init__(self, mutant: Mutant, source: str) -> None:
        self.source = source
        self.module = module_name(mutant.file)

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path) if fullname == self.module else None
        if spec is not None and spec.origin is not None:
            spec.loader = _Loader(fullname, spec.origin, self.source)
        return spec


class _Loader(SourceFileLoader):
    def __init__(self, fullname: str, path: str, source: str) -> None:
        super().__init__(fullname, path)
        self.mutated = source

    def get_code(self, fullname: str) -> CodeType:
        return compile(self.mutated, self.path, "exec", dont_inherit=True)


class Only:
    """A pytest plugin: the named tests in the given order, and what failed first."""

    def __init__(self, names: Iterable[str]) -> None:
        self.place = {name: i for i, name in enumerate(names)}
        self.failed = ""

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items[:] = sorted(
            (item for item in items if item.nodeid in self.place),
            key=lambda item: self.place[item.nodeid],
        )

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.failed = self.failed or "import"

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.failed = self.failed or report.nodeid


def pytest_here(plugin: Any, paths: Iterable[str], *more: str) -> int:
    import pytest

    quiet = [
        "-q",
        "-p",
        "no:cacheprovider",
        "-n0",
        "-W",
        "ignore::pytest.PytestAssertRewriteWarning",
        "--tb=no",
    ]
    left_out = [f"--ignore={path}" for path in LEFT_OUT]
    return int(pytest.main([*quiet, *left_out, *more, *paths], plugins=[plugin]))


def warm() -> None:
    """Load what mutants have in common: everything but the project itself,
    which each child imports anew.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import array_api_strict
    import hypothesis.strategies
    import libcst.metadata
    import mpmath
    import pytest

    import refl.cli
    import refl.verification.random_models

    outside = (array_api_strict, hypothesis, libcst, mpmath, pytest)
    assert all((*outside, refl.cli, refl.verification.random_models))


def forget() -> None:
    """What is the project's own is imported anew: the package, the tests, what tests share."""
    shared = {path.stem for path in (PROJECT / "tests" / "support").glob("*.py")}
    for name in [n for n in sys.modules if n.partition(".")[0] in {"refl", "tests", *shared}]:
        del sys.modules[name]


def forked(work: Callable[[], Any], seconds: float) -> Any:
    """What `work` returns in a child process; "timeout" where that takes more of its own CPU time,
    "died" where a signal ended it.
    """
    out, into = os.pipe()
    if (child := os.fork()) == 0:
        os.close(out)
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(1, 2)
            signal.setitimer(signal.ITIMER_PROF, seconds)  # ends the process
            signal.alarm(int(20 * seconds) + 1)
            resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
            answer = json.dumps(work())
            with os.fdopen(into, "w") as pipe:
                pipe.write(answer)
        finally:
            os._exit(0)
    os.close(into)
    with os.fdopen(out) as pipe:
        answer = pipe.read()
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if answer:
        return json.loads(answer)
    if ended == 0:
        raise RuntimeError("a child ended without an answer")
    return "timeout" if -ended in (signal.SIGPROF, signal.SIGALRM) else "died"


def cpu() -> float:
    """Seconds of CPU that the children have used."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def show_to(mutant: Mutant, source: str, tests: list[Test]) -> Fate:
    """The mutant before these tests, in a child process."""

    def work() -> str:
        sys.meta_path.insert(0, Planted(mutant, source))
        plugin = Only(t.name for t in tests)
        code = pytest_here(plugin, sorted({t.name.partition("::")[0] for t in tests}), "-x")
        return plugin.failed or ("" if code == 0 else "import")

    by = forked(work, 10 + 6 * sum(t.seconds for t in tests))
    return judged(mutant, by)


# -- which test runs what --------------------------------------------------------------------------


class Watcher:
    """A pytest plugin: which functions of FILES each test calls, and how long it takes."""

    def __init__(self) -> None:
        self.tests: dict[str, dict[str, Any]] = {}
        self.called: set[str] = set()
        self.names: dict[str, str | None] = {}
        self.start = 0.0

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.called, self.start = set(), time.perf_counter()
        sys.settrace(self.trace)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        sys.settrace(None)
        if nodeid in self.tests:
            self.tests[nodeid] |= {
                "seconds": time.perf_counter() - self.start,
                "functions": sorted(self.called),
            }

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" and report.passed:
            self.tests[report.nodeid] = {}

    def trace(self, frame: FrameType, event: str, argument: Any) -> None:
        path = frame.f_code.co_filename
        if path not in self.names:
            file = os.path.relpath(os.path.realpath(path), PROJECT)
            self.names[path] = file if file in FILES else None
        if (file_ := self.names[path]) is not None:
            self.called.add(f"{file_}:{frame.f_code.co_firstlineno}")


def survey(folder: Path) -> list[Test]:
    """Every test that passes, run once; kept in FOLDER/survey.json."""
    kept = folder / "survey.json"
    said = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    seen = {*LEFT_OUT, *(name.partition("::")[0] for name in said)}
    new = [
        file
        for path in sorted((PROJECT / "tests").rglob("test_*.py"))
        if not (file := path.relative_to(PROJECT).as_posix()).startswith(tuple(seen))
    ]
    if new:

        def work() -> dict[str, Any]:
            os.environ["REFL_PROFILE"] = "mutants"
            watcher = Watcher()
            code = pytest_here(watcher, new)
            # 0: all pass, 1: some fail; anything else: it did not get as far
            return watcher.tests if code <= 1 else {}

        found = forked(work, 3600)
        if not isinstance(found, dict) or not found:
            raise SystemExit(
                f"pytest could not run the tests ({found or 'none ran'}): are the extras "
                "`test` and `mutation` installed?"
            )
        said |= found
        kept.write_text(json.dumps(said), encoding="utf-8")
    tests = [Test(name, t["seconds"], frozenset(t["functions"])) for name, t in said.items()]
    return sorted(
        (t for t in tests if t.functions or t.name.startswith(ALWAYS)), key=lambda t: t.seconds
    )


def witnesses(mutant: Mutant, functions: list[tuple[int, int]], tests: list[Test]) -> list[Test]:
    """The tests that run a function around the change; for what stands outside functions, all that
    run any of the file.
    """
    around = {f"{mutant.file}:{start}" for start, end in functions if start <= mutant.line <= end}
    named = {t.name for t in tests if around & t.functions}  # none for what runs at import alone
    return [
        t
        for t in tests
        if t.name.startswith(ALWAYS) or (t.name in named if named else mutant.file in t.files)
    ]


# -- the run ---------------------------------------------------------------------------------------


class Loop:
    """A pytest plugin that runs mutants in place of tests: everything is imported and collected
    once, and each child is a fork.
    """

    def __init__(self, loop: Callable[[Loop], None]) -> None:
        self.loop = loop
        self.items: dict[str, Any] = {}
        self.failed = ""

    def pytest_runtestloop(self, session: Any) -> bool:
        self.items = {item.nodeid: item for item in session.items}
        gc.collect()
        gc.freeze()
        self.loop(self)
        return True

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.failed = self.failed or report.nodeid

    def show_to(self, mutant: Mutant, source: str, tests: list[Test]) -> Fate:
        """The mutant before these tests: in the child the functions of the real module take over
        the mutated code.
        """

        def work() -> str:
            try:
                take_over(mutant, source)
            except Exception:  # noqa: BLE001  (whatever a mutant raises as it is loaded)
                return "import"
            items = [self.items[t.name] for t in tests if t.name in self.items]
            for item, following in zip(items, [*items[1:], None], strict=False):
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
                if self.failed:
                    break
            return self.failed

        by = forked(work, 10 + 6 * sum(t.seconds for t in tests))
        return judged(mutant, by)


def judged(mutant: Mutant, by: str) -> Fate:
    return Fate(mutant, "timeout" if by == "timeout" else "killed" if by else "survived", by)


def take_over(mutant: Mutant, source: str) -> None:
    """Make of the module that everyone has imported what the mutated source would have made of it,
    in place.

    What others took over by name and cannot be changed (a number, a tuple) keeps its value there:
    such mutants may survive here, and meet the tests again in a later round, where the module is
    imported anew.
    """
    module = sys.modules[module_name(mutant.file)]
    space = dict(vars(module))
    FunctionType(compile(source, str(module.__file__), "exec", dont_inherit=True), space)()
    classes = {
        new: vars(module)[name]
        for name, new in space.items()
        if isinstance(new, type) and new.__module__ == module.__name__
    }
    for thing in gc.get_objects():
        if type(thing) in classes:
            object.__setattr__(thing, "__class__", classes[type(thing)])
    functions = {
        new: old
        for name, new in space.items()
        if isinstance(new, FunctionType) and isinstance(old := vars(module).get(name), FunctionType)
    }
    for name, new in space.items():
        old = vars(module).get(name)
        if isinstance(new, type) and new in classes:
            for key, value in vars(new).items():
                _become(old, key, vars(old).get(key), value)
        elif name != "__builtins__":
            _become(
                module,
                name,
                old,
                new if isinstance(new, FunctionType) else _holding(functions, new),
            )


def _holding(functions: dict[FunctionType, FunctionType], new: Any) -> Any:
    """A table of the mutated module with the functions that everyone has, which are to take over
    the mutated code: a rule is looked for by its function.
    """
    if isinstance(new, FunctionType):
        return functions.get(new, new)
    if isinstance(new, dict):
        return {key: _holding(functions, value) for key, value in new.items()}
    if isinstance(new, tuple):
        parts = [_holding(functions, value) for value in new]
        return type(new)(*parts) if hasattr(new, "_fields") else type(new)(parts)
    return new


def _become(owner: Any, name: str, old: Any, new: Any) -> None:
    for part in ("fget", "__func__"):
        old, new = getattr(old, part, old), getattr(new, part, new)
    if isinstance(old, FunctionType) and isinstance(new, FunctionType):
        old.__code__, old.__defaults__, old.__kwdefaults__ = (
            new.__code__,
            new.__defaults__,
            new.__kwdefaults__,
        )
    elif isinstance(old, dict) and isinstance(new, dict):
        old.clear()
        old.update(new)
    elif (
        type(old).__name__ == type(new).__name__
        and type(old).__module__ == module_name_of(owner)
        and hasattr(old, "__dict__")
    ):
        vars(old).update(vars(new))
    elif not name.startswith("__"):
        setattr(owner, name, new)


def module_name_of(owner: Any) -> str:
    return str(getattr(owner, "__module__", None) or owner.__name__)


def upto(tests: list[Test], seconds: float, killers: Counter[str]) -> list[Test]:
    """Those that have killed before, the most successful first, then the rules' own in NumPy, then
    the cheapest, as far as time goes.
    """
    ordered = sorted(
        tests,
        key=lambda t: (
            -killers[t.name],
            not t.name.startswith(FIRST),
            "[numpy" not in t.name,
            t.seconds,
        ),
    )
    spent, some = 0.0, []
    for test in ordered:
        if spent + test.seconds <= seconds:
            spent += test.seconds
            some.append(test)
    return some


def known(folder: Path) -> dict[str, Fate]:
    kept = folder / "fates.jsonl"
    lines = kept.read_text(encoding="utf-8").splitlines() if kept.exists() else []
    fates = [json.loads(line) for line in lines]
    return {
        f"{f['mutant']['file']}:{f['mutant']['number']}": Fate(Mutant(**f.pop("mutant")), **f)
        for f in fates
    }


def _settled(mutant: Mutant, before: Fate | None, round_: int) -> bool:
    """Not to be run in this round: it has been, it is dead,
    or more tests would show nothing new.
    """
    hopeless = (round_ > 1 and reason(mutant)) or (round_ > 2 and mutant.kind == "wording")
    return bool(hopeless or (before and (before.outcome != "survived" or before.rounds >= round_)))


def run(
    folder: Path, files: Iterable[str], round_: int, show: Callable[[Mutant, str, list[Test]], Fate]
) -> None:
    """One round over every mutant not yet killed; each fate is written down at once."""
    tests, fates = survey(folder), known(folder)
    with (folder / "fates.jsonl").open("a", encoding="utf-8") as kept:
        for file in files:
            mine = {id_: fate for id_, fate in fates.items() if fate.mutant.file == file}
            for fate in _round(folder, file, round_, tests, mine, show):
                mine[fate.mutant.id] = fate
                kept.write(json.dumps(asdict(fate)) + "\n")
                kept.flush()
            done = ", ".join(
                f"{n} {what}" for what, n in Counter(f.outcome for f in mine.values()).items()
            )
            print(
                f"{time.strftime('%H:%M:%S')} round {round_} {file}: {done}",
                file=sys.stderr,
                flush=True,
            )


def _round(
    folder: Path,
    file: str,
    round_: int,
    tests: list[Test],
    fates: dict[str, Fate],
    show: Callable[[Mutant, str, list[Test]], Fate],
) -> Iterator[Fate]:
    """The fates of a file's mutants, that of the unchanged module first. Raises RuntimeError where
    that one is killed.
    """
    source = (PROJECT / file).read_text(encoding="utf-8")
    functions, killers = _functions(source), Counter(f.by for f in fates.values())
    control = Mutant(file, -1, 0, "none", "", "")
    for mutant, mutated in [(control, source), *made(folder, file)]:
        if _settled(mutant, fates.get(mutant.id), round_):
            continue
        start, seconds = cpu(), ROUNDS[0 if mutant == control else round_ - 1]
        fate = show(mutant, mutated, upto(witnesses(mutant, functions, tests), seconds, killers))
        if mutant == control and fate.outcome != "survived":
            raise RuntimeError(f"{file}, unchanged, is {fate.outcome} by {fate.by}")
        killers[fate.by] += 1
        yield replace(fate, rounds=round_, seconds=round(cpu() - start, 2))


# -- what is left ----------------------------------------------------------------------------------


def reason(mutant: Mutant) -> str:
    """Why the mutant is no mutant, or nothing."""
    for why, file, changes in EQUIVALENT:
        if file == mutant.file and any(_becomes(mutant, old, new) for old, new in changes):
            return why
    return GUARDS.get(mutant.kind, "")


def _becomes(mutant: Mutant, old: str, new: str) -> bool:
    b = mutant.before
    return any(
        b[:i] + new + b[i + len(old) :] == mutant.after
        for i in range(len(b))
        if b.startswith(old, i)
    )


PAGE = """# Mutation testing

Made on {date} by `python -m refl.verification.quality.mutation FOLDER --page` from the operators of
mutmut {mutmut} (Python {python}, NumPy {numpy}). Install the extras `test` and `mutation`; a run
takes about {minutes} minutes of one core and is no part of CI.

One change at a time is made to the rules, the sweep and the ledger (an argument dropped or None,
another operator, a number one more, a string in other letters, an assignment of None, each side of
a condition forced); at least one test must fail. A mutant that loops or crashes counts as killed.
What is changed, how mutants are run and why not by mutmut's own runner: see `mutation.py`.

**{killed} of {counted} mutants that are not equivalent are killed: {score:.1%}.** Were all
{equivalent} equivalent ones survivors, it would be {least:.1%} of {made}.

| file | mutants | killed | timed out | equivalent | wording | survivors |
|---|---|---|---|---|---|---|
{rows}

In every round each module is first put in place unchanged: its tests must pass, or the run breaks
off.

## Equivalent

The program does the same after these; each was judged by hand, one by one, or as a kind.

| why | where | how many | for example |
|---|---|---|---|
{equivalents}

## Wording

{wording}

## Survivors

{survivors}
"""


def page(folder: Path) -> str:
    """The page from all that is known; mutants that have not run are an error."""
    fates, made_ = known(folder), [m for file in FILES for m, _ in made(folder, file)]
    missing = [m.id for m in made_ if m.id not in fates]
    if missing:
        raise SystemExit(
            f"{len(missing)} mutants have not been run, {missing[0]} first: run without --page"
        )
    outcomes = {m.id: outcome(m, fates.get(m.id)) for m in made_}
    count = Counter(outcomes.values())
    killed = count["killed"] + count["timed out"]
    return PAGE.format(
        date=time.strftime("%Y-%m-%d"),
        mutmut=version("mutmut"),
        python=platform.python_version(),
        numpy=version("numpy"),
        minutes=round(sum(f.seconds for f in fates.values()) / 60) + 10,
        killed=killed,
        made=len(made_),
        equivalent=count["equivalent"],
        counted=len(made_) - count["equivalent"],
        score=killed / (len(made_) - count["equivalent"]),
        least=killed / len(made_),
        rows="\n".join(
            _row(file, [outcomes[m.id] for m in made_ if m.file == file]) for file in FILES
        )
        + "\n"
        + _row("all", list(outcomes.values())),
        equivalents="\n".join(_reasons([m for m in made_ if outcomes[m.id] == "equivalent"])),
        wording=_wording(count["wording"], sum(m.kind == "wording" for m in made_)),
        survivors="\n".join(
            f"- `{m.file}`, line {m.line}: {_shown(m)}"
            for m in made_
            if outcomes[m.id] == "survivors"
        )
        or "None.",
    )


COLUMNS = ("killed", "timed out", "equivalent", "wording", "survivors")


def outcome(mutant: Mutant, fate: Fate | None) -> str:
    """A column of the table. What is killed is no equivalent, whatever was thought of it."""
    if fate is not None and fate.outcome != "survived":
        return "timed out" if fate.outcome == "timeout" else "killed"
    return (
        "equivalent" if reason(mutant) else "wording" if mutant.kind == "wording" else "survivors"
    )


def _row(file: str, outcomes: list[str]) -> str:
    return (
        f"| {file} | {len(outcomes)} | "
        + " | ".join(str(outcomes.count(column)) for column in COLUMNS)
        + " |"
    )


def _reasons(mutants_: list[Mutant]) -> Iterator[str]:
    grouped: dict[tuple[str, str], list[Mutant]] = defaultdict(list)
    for m in mutants_:
        why = reason(m)
        grouped[why, "all files" if why in GUARDS.values() else m.file].append(m)
    for (why, file), some in sorted(grouped.items(), key=lambda item: -len(item[1])):
        yield f"| {why} | {file} | {len(some)} | {_shown(some[0])} |"


def _shown(mutant: Mutant) -> str:
    """The change with a little of what stands around it."""
    before, after = mutant.before, mutant.after
    start = len(os.path.commonprefix([before, after]))
    end = len(os.path.commonprefix([before[start:][::-1], after[start:][::-1]]))
    around = (
        text[max(start - 30, 0) : len(text) - max(end - 20, 0)].replace("|", "\\|")
        for text in (before, after)
    )
    return "`{}` becomes `{}`".format(*around)


def _wording(left: int, all_: int) -> str:
    return (
        f"{all_} mutants change words that only a person reads: the sentence of an error, where a "
        f"method is published, its summary. {left} of them survive, and count as not killed."
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("files", nargs="*", default=MUTATED, help="or patterns of files")
    parser.add_argument("--rounds", type=int, nargs="*", default=range(1, len(ROUNDS) + 1))
    parser.add_argument("--page", action="store_true", help=f"write {PAGE_FILE} from what is known")
    args = parser.parse_args()
    os.chdir(PROJECT)
    args.folder.mkdir(parents=True, exist_ok=True)
    if args.page:
        atomic_write(PROJECT / PAGE_FILE, page(args.folder).encode())
        return 0
    files = chosen(args.files)
    warm()
    forget()
    survey(args.folder)
    for round_ in args.rounds:
        forget()
        os.environ["REFL_PROFILE"] = "mutants" if round_ == 1 else "survivors"
        if round_ == 1:
            pytest_here(
                Loop(lambda loop: run(args.folder, files, 1, loop.show_to)), ["tests"], "-s"
            )
        else:
            run(args.folder, files, round_, show_to)
    return 0


if __name__ == "__main__":
    sys.exit(main())
