"""Mutation testing (`verification/quality/mutation.py`): what was judged equivalent is kept up."""

from __future__ import annotations

from refl.verification.quality import mutation


def test_what_is_judged_equivalent_stands_in_the_source() -> None:
    """The table is kept up: it names no line that is gone."""
    for why, file, changes in mutation.EQUIVALENT:
        source = (mutation.PROJECT / file).read_text(encoding="utf-8")
        assert all(old in source and old != new for old, new in changes), f"{file}: {why}"
