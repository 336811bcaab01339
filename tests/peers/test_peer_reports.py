"""The pages on LXT, zennit and captum say what a run says today: every failure is explained by a
computation that gives its numbers, and the faults that were measured by hand before there were
vectors come out of the vectors by name."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from refl.verification.conformance.results import CaseResult
from refl.verification.peers import lxt, peer_reports
from refl.verification.peers.peer_reports import FOLDER, MEASURED_BEFORE, PEERS, ModelRow, Peer, Row

pytestmark = pytest.mark.peers
for library in ("torch", "transformers", "captum"):
    pytest.importorskip(library, reason=f"{library} is not installed (the extra 'peers')")
try:
    lxt.load("lxt.explicit.functional"), lxt.load_zennit()
except ImportError as absent:
    pytest.skip(f"LXT or zennit is not usable here: {absent}", allow_module_level=True)


@pytest.fixture(scope="module")
def runs() -> dict[str, tuple[list[Row], list[ModelRow]]]:
    """Every library once."""
    return {peer.adapter: (peer_reports.rows(peer), peer_reports.models(peer)) for peer in PEERS}


Runs = dict[str, tuple[list[Row], list[ModelRow]]]


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.adapter)
def test_every_failure_is_explained(runs: Runs, peer: Peer) -> None:
    found, models = runs[peer.adapter]
    assert [t.result.case.id for row in found for t in row.traced if not t.ids] == []
    assert [m for m in models if m.result == "failed"] == []
    assert any(row.count("passed") for row in found)


def test_faults_measured_before_are_shown_by_the_vectors(runs: Runs) -> None:
    """All of them, and four that are not in that list."""
    shown = {
        name for found, _ in runs.values() for row in found for t in row.traced for name in t.ids
    }
    assert set(MEASURED_BEFORE) <= shown
    assert {"eps-two-forms", "one-target", "logit-squared", "gamma-at-zero"} <= shown


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.adapter)
def test_page_is_of_today(runs: Runs, peer: Peer) -> None:
    """Word by word; numbers to three digits, and what is huge or no number only as such: the rest
    depends on the build of torch. A count of cases may be off by one: in half precision some pass
    or fail by a hair."""
    fresh = peer_reports.page(peer, *runs[peer.adapter], date="")
    stored = (FOLDER / peer.page).read_text(encoding="utf-8")
    assert re.search(r"\| date \| 20\d\d-\d\d-\d\d \|", stored)
    for line, kept in zip(_lines(fresh), _lines(stored), strict=True):
        assert NUMBER.sub("#", line) == NUMBER.sub("#", kept)
        for a, b in zip(_numbers(line), _numbers(kept), strict=True):
            assert a == pytest.approx(b, rel=1e-3, abs=1.0 if COUNTS.search(line) else 1e-12), line


COUNTS = re.compile(r"^\| [a-z_0-9]+ \| .*\| \d+ \||^\d+ cases? of ")
NUMBER = re.compile(r"(?<![\w.-])-?(?:\d+\.?\d*(?:e[+-]?\d+)?|inf|nan)(?![\w.])")


def _lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if not line.startswith("| date ")]


def _numbers(line: str) -> Iterator[float]:
    for found in NUMBER.findall(line):
        x = float(found)
        yield math.inf if math.isnan(x) or abs(x) > 1e6 else x


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.adapter)
def test_an_explanation_explains_nothing_else(runs: Runs, peer: Peer) -> None:
    """The same failures, one number of each changed by a hundredth: nothing gives those."""
    explained = [
        t.result
        for row in runs[peer.adapter][0]
        for t in row.traced
        if t.result.case.dtype == "float64" and t.result.got and not t.result.message
    ]
    finite = list(filter(_finite, explained))
    assert finite
    for v in finite:
        assert peer_reports.trace(peer.adapter, {}, _changed(v)).ids == (), v.case.id


def _changed(v: CaseResult) -> CaseResult:
    """Its largest entry moved by about a hundredth, and by more than float32 could;
    zeros by one.
    """
    name, a = next(
        (name, a) for name, a in v.got.items() if name != "z" and a is not None and a.size
    )
    moved, condition = a.copy(), v.case.condition[name]
    moved.flat[abs(moved).argmax()] += (
        0.0137 * abs(moved).max() + 1e-3 * (0.0 if condition is None else condition.max()) or 1.0
    )
    return replace(v, got={**v.got, name: moved}, diagnoses=())


def _finite(v: CaseResult) -> bool:
    return all(bool((abs(a) < math.inf).all()) for a in v.got.values() if a is not None)


def test_the_bridge_is_undone() -> None:
    """zennit is as before after LXT's patch was in force."""
    from refl.verification.peers import lxt_gradient

    hook: Any = lxt.load_zennit("zennit.core").BasicHook
    before = hook.forward, hook.backward
    with lxt_gradient.bridge():
        assert (hook.forward, hook.backward) != before
    assert (hook.forward, hook.backward) == before
