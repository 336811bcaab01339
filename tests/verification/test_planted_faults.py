"""Would the tests notice? Every fault of `verification/quality/plant_faults.py`,
planted and looked for.
"""

from __future__ import annotations

import sys

import pytest

from refl.verification.quality import plant_faults


def test_ids_are_unique_and_there_are_enough() -> None:
    ids = [fault.id for fault in plant_faults.FAULTS]
    assert len(set(ids)) == len(ids) >= 35


@pytest.mark.parametrize(("option", "code"), [("--help", 0), ("no-such-fault", 2)])
def test_the_command_says_what_it_takes(
    option: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["plant_faults", option])
    with pytest.raises(SystemExit) as ended:
        plant_faults.main()
    shown = capsys.readouterr()
    assert ended.value.code == code
    assert "usage" in shown.out + shown.err
    assert code == 0 or "no fault is called no-such-fault" in shown.err


PARTS = 8


@pytest.mark.parametrize("first", range(PARTS))
def test_every_planted_fault_is_caught(first: int) -> None:
    """In parts: the build plants one, the day before a release the others as well."""
    outcomes = plant_faults.run_all(plant_faults.FAULTS[first::PARTS])
    assert all(outcome.caught for outcome in outcomes), plant_faults.show(outcomes)
