"""Mistakes planted in one rule of a whole model are seen at its input alone, and the script that
plants them says so where one is not.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from refl.errors import ReflError
from refl.verification.quality import model_mutants
from refl.verification.quality.model_mutants import CHANGES, main, tally
from refl.verification.vectors import model_vectors


@pytest.mark.parametrize(
    ("architecture", "method"), [("qwen3", "attnlrp"), ("gpt2", "attnlrp-gradient")]
)
def test_none_survives(architecture: str, method: str) -> None:
    found = tally(architecture, method, every=13)
    assert found.caught > 60 and found.caught + found.equal == found.planted
    assert not found.survivors


def test_one_that_is_not_seen_survives(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    signs = tuple(change for change in CHANGES if change.id == "sign-flipped")
    monkeypatch.setattr(model_vectors, "check", lambda case, got, *dtype: [])
    monkeypatch.setattr(model_mutants, "CHANGES", signs)
    page = tmp_path / "page.md"
    asked = ["--architecture", "qwen2", "--method", "cp-lrp", "--markdown", str(page)]
    assert main(asked) == 1
    said = capsys.readouterr().out
    assert " 0 caught" in said and "with the other sign: what linear (" in said
    assert "--markdown FILE" in page.read_text() and str(tmp_path) not in page.read_text()


def test_what_is_wrong_already_says_nothing_of_mistakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_vectors, "check", lambda case, got: ["parted"])
    with pytest.raises(ReflError, match="without a mistake qwen2 under cp-lrp"):
        tally("qwen2", "cp-lrp")


def test_a_model_that_there_is_none_of() -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--architecture", "nothing"])
    assert ended.value.code == 2
