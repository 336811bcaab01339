"""Would the tests notice? Every fault of `verification/quality/plant_faults.py`,
planted and looked for.
"""

from __future__ import annotations

from refl.verification.quality import plant_faults


def test_ids_are_unique_and_there_are_enough() -> None:
    ids = [fault.id for fault in plant_faults.FAULTS]
    assert len(set(ids)) == len(ids) >= 35


def test_every_planted_fault_is_caught() -> None:
    outcomes = plant_faults.run_all()
    assert all(outcome.caught for outcome in outcomes), plant_faults.show(outcomes)
