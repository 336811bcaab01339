"""Mutation testing (`verification/quality/mutation.py`): its tables of equivalent mutants, of files
and of tests are kept up.
"""

from __future__ import annotations

import pytest

from refl.verification.quality import equivalent_mutants, mutation


def test_what_is_judged_equivalent_stands_in_the_source() -> None:
    """The table of equivalent mutants names no line that is gone."""
    for why, file, changes in equivalent_mutants.EQUIVALENT:
        source = (mutation.PROJECT / file).read_text(encoding="utf-8")
        assert all(old in source and old != new for old, new in changes), f"{file}: {why}"


def test_every_path_in_the_tables_is_there() -> None:
    """Of what is mutated and of the tests that mutants are shown: an old path would fit nothing,
    and nobody would see it.
    """
    for path in (*mutation.LEFT_OUT, *mutation.FIRST, *mutation.ALWAYS):
        assert (mutation.PROJECT / path.removesuffix("::")).exists(), path
    assert {"rules/linear.py", "refl/sweep.py", "refl/ledger.py"} <= {*mutation.FILES}
    assert {file for _, file, _ in equivalent_mutants.EQUIVALENT} <= {*mutation.FILES}


def test_a_pattern_that_names_nothing_is_refused() -> None:
    with pytest.raises(SystemExit, match="there is no refl/sweeps.py"):
        mutation.chosen(["rules/*.py", "refl/sweeps.py"])
