"""The lists of quick, slow and rare tests are kept up: they name no test that is gone."""

from __future__ import annotations

import pytest
from selections import GONE, QUICK, RARE, SLOW, matching


def test_every_pattern_names_a_test(pytestconfig: pytest.Config) -> None:
    """Seen where the whole suite is collected; a run of single files knows too little."""
    assert not pytestconfig.stash.get(GONE, set())


def test_patterns_mean_brackets_as_they_stand() -> None:
    one, all_ = "tests/a.py::test_b[x-y]", "tests/a.py::test_b[*"
    assert matching(one, (one, all_, "tests/a.py::test_b", "tests/c.py::*")) == [one, all_]


def test_nothing_is_quick_and_slow() -> None:
    assert not [pattern for pattern in (*SLOW, *RARE) if matching(pattern, QUICK)]
