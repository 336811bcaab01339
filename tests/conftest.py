"""Fixtures that every test may use, how examples are drawn, and what is left out of a run. What
test files share beside fixtures are modules in tests/support, imported by name.

Hypothesis profiles (REFL_PROFILE=ci, or --hypothesis-profile=ci): quick, default, ci, nightly, and
those of the scripts that test the tests.
"""

from __future__ import annotations

import os

os.environ.setdefault(
    "OPENBLAS_NUM_THREADS", "1"
)  # before NumPy is imported: on small matrices threads only wait for each other

from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

pytest.register_assert_rewrite(
    "backends", "exact_rules", "hand_arrays", "surrogate_truth", "transformers_forward"
)

from backends import BACKENDS, Backend, Recorder, backend_named, why_no_cupy
from browsers import why_no_browser
from hypothesis import HealthCheck, Phase, settings
from selections import GONE, QUICK, RARE, SLOW, matching

import refl.arrays

# -- profiles --------------------------------------------------------------------------------------

WITHOUT_SHRINKING = (Phase.explicit, Phase.generate)
PROFILES: dict[str, dict[str, object]] = {
    "quick": {"max_examples": 10},
    "default": {"max_examples": 30},
    "ci": {"max_examples": 30},
    "nightly": {"max_examples": 2000},
    "mutants": {"max_examples": 33, "phases": WITHOUT_SHRINKING},
    "survivors": {"max_examples": 100, "phases": WITHOUT_SHRINKING},
    "planted-faults": {"max_examples": 200, "phases": WITHOUT_SHRINKING},
}
for _name, _options in PROFILES.items():
    settings.register_profile(
        _name,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
        **_options,
    )


def pytest_configure(config: pytest.Config) -> None:
    usual = "quick" if config.option.markexpr == "quick" else "default"
    settings.load_profile(os.environ.get("REFL_PROFILE", usual))


# -- workers ---------------------------------------------------------------------------------------

MOST_WORKERS = 4
"""Each holds its own models and caches, up to half a gigabyte."""


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """A run of whole folders uses the cores there are, where pytest-xdist is installed; a file or a
    single test, a debugger and `-s` stay in one process. `-n 0` switches it off.
    """
    option = config.option
    if getattr(option, "numprocesses", 0) is not None:  # said already, or no pytest-xdist
        return
    if "PYTEST_XDIST_WORKER" in os.environ:  # a worker comes here too, and starts none
        return
    folders = all(Path(argument).is_dir() for argument in config.args)
    if (
        folders
        and not (option.usepdb or option.trace or option.collectonly)
        and option.capture != "no"
    ):
        option.numprocesses = min(len(os.sched_getaffinity(0)), MOST_WORKERS)
        option.dist = "worksteal"  # neighbors stay together: what a file caches is made once


# -- what is left out, in one line each ------------------------------------------------------------

PEERS = Path(__file__).parent / "peers"


def why_no_peers(config: pytest.Config) -> str:
    """Why the tests beside other libraries are left out, or nothing."""
    missing = [name for name in ("torch", "transformers") if find_spec(name) is None]
    if missing:
        return f"{' and '.join(missing)} not installed (the extra `peers`)"
    asked = "peers" in config.option.markexpr or any(
        Path(argument.partition("::")[0]).resolve().is_relative_to(PEERS)
        for argument in config.args
    )
    return "" if asked else "run them with -m peers"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return True if collection_path == PEERS and why_no_peers(config) else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Marks what is quick and what is slow; leaves out what is marked `peers` in other folders, and
    `needs(library)` where there is none; and what needs a browser where there is none of those.
    """
    _mark(config, items)
    no_peers = bool(why_no_peers(config))

    def left_out(item: pytest.Item) -> bool:
        needed = [mark.args[0] for mark in item.iter_markers("needs")]
        lacking = any(find_spec(library) is None for library in needed)
        lacking = lacking or ("playwright" in needed and bool(why_no_browser()))
        return lacking or (no_peers and item.get_closest_marker("peers") is not None)

    config.hook.pytest_deselected(items=[item for item in items if left_out(item)])
    items[:] = [item for item in items if not left_out(item)]


def _mark(config: pytest.Config, items: list[pytest.Item]) -> None:
    """By the lists of tests/support/selections.py; what they name in vain, test_selections says."""
    found: set[str] = set()
    for item in items:
        marks: set[str] = set()
        for mark, patterns in (("quick", QUICK), ("slow", SLOW), ("rare", RARE)):
            if named := matching(item.nodeid, patterns):
                marks.add(mark)
                found.update(named)
        for mark in marks - {"slow"} if "rare" in marks else marks:
            item.add_marker(mark)
    if config.args == config.getini("testpaths"):
        every = {pattern for pattern in (*QUICK, *SLOW, *RARE) if not _left_out(pattern, config)}
        config.stash[GONE] = every - found


def _left_out(pattern: str, config: pytest.Config) -> bool:
    return pattern.startswith("tests/peers/") and bool(why_no_peers(config))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reasons = Counter(
        str(report.longrepr[2]).removeprefix("Skipped: ")
        for report in terminalreporter.stats.get("skipped", [])
    )
    lines = [f"{reason}: {count} tests skipped" for reason, count in reasons.items()]
    for what, why in (
        ("CuPy", why_no_cupy()),
        ("other libraries (tests/peers)", why_no_peers(terminalreporter.config)),
        ("a browser (tests/refl/walk/test_page.py)", why_no_browser()),
    ):
        lines += [f"{what}: {why}; its tests are left out"] if why else []
    for line in lines:
        terminalreporter.write_line(line)


# -- fixtures --------------------------------------------------------------------------------------


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    """NumPy, array-api-strict on a second fake device, and CuPy where a GPU is present."""
    return backend_named(request.param)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """Calls on arrays of NumPy go to a namespace by CuPy's name, which writes them down."""
    recorder = Recorder()
    library = refl.arrays._library  # what an array that is not NumPy's answers stays its own
    monkeypatch.setattr(
        refl.arrays, "_library", lambda a: recorder if library(a) is np else library(a)
    )
    return recorder
