"""Does the conformance suite know the faults of published libraries? Each is planted in the torch
adapter, which without one passes.
"""

from __future__ import annotations

import re
from collections import Counter

import pytest
from checkpoints import SHARED

from refl.verification.conformance import results
from refl.verification.conformance.adapter import Adapter
from refl.verification.conformance.runner import run
from refl.verification.quality import false_alarms
from refl.verification.quality import plant_peer_faults as faults
from refl.verification.vectors.rule_vectors import rules

pytestmark = pytest.mark.peers


@pytest.fixture(autouse=True)
def torch_is_here() -> None:
    pytest.importorskip("torch", reason="torch is not installed (the extra 'peers')")


def test_without_a_fault_the_adapter_passes_and_leaves_no_rule_out() -> None:
    report = run(str(faults.ADAPTER))
    assert {r.rule for r in report.rules} == set(rules())
    assert Counter(v.status for r in report.rules for v in r.cases).keys() == {results.PASSED}, str(
        report
    )
    models = Counter((m.name.partition("-")[0], m.status) for m in report.models)
    assert models["llama", results.PASSED] >= 8 <= models["gpt2", results.PASSED]
    assert not any(m.status == results.FAILED for m in report.models), str(report)


def test_every_fault_of_the_peers_is_planted() -> None:
    page = SHARED / "PEERS.md"
    if not page.is_file():
        pytest.skip("the list of faults is not beside the project (../shared/PEERS.md)")
    listed = set(
        re.findall(r"^\| ([a-z0-9-]+) \| (?!where)", page.read_text(encoding="utf-8"), re.MULTILINE)
    )
    assert len(listed) == 33
    assert {plant.fault for plant in faults.PLANTS} >= listed


@pytest.mark.parametrize(
    "plant",
    faults.PLANTS,
    ids=lambda plant: f"{plant.fault}-{plant.plant.__name__}-{plant.rules[0]}",
)
def test_a_planted_fault_is_caught_and_named(plant: faults.Plant) -> None:
    outcomes = faults.try_plant(plant)
    assert outcomes
    assert all(outcome.as_expected for outcome in outcomes), faults.show(outcomes)


@pytest.mark.parametrize("rule", rules())
def test_no_false_alarm(rule: str) -> None:
    t = false_alarms.tally(Adapter(str(faults.ADAPTER)), rule, range(100, 103))
    assert t.cases and not t.uncovered
    assert not t.alarms, false_alarms.line(t)


def test_a_fault_raises_an_alarm() -> None:
    t = false_alarms.tally(faults.planted(faults.PLANTS[0]), "linear_epsilon", range(5))
    assert t.alarms and t.worst > 1
    assert all(alarm in false_alarms.line(t) for alarm in t.alarms)
