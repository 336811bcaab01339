"""The guide's page for torch developers (check_yours.md):
its adapter gives the output it shows, and its repair passes.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from checkpoints import ROOT

from refl.cli import main
from refl.verification.conformance.results import PASSED
from refl.verification.conformance.runner import run

pytestmark = pytest.mark.peers

GUIDE = (ROOT / "refl" / "guide" / "check_yours.md").read_text(encoding="utf-8")
FENCED = re.findall(r"^```(\w*)\n(.*?)^```$", GUIDE, flags=re.MULTILINE | re.DOTALL)
ADAPTER = next(
    text for language, text in FENCED if language == "python" and text.startswith("# my_adapter.py")
)
SHOWN = next(text for language, text in FENCED if not language and text.startswith("my LRP"))


def adapter_file(tmp_path: Path, code: str) -> str:
    (tmp_path / "my_adapter.py").write_text(code)
    return str(tmp_path / "my_adapter.py")


def test_the_output_is_the_program_s_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert main(["conform", adapter_file(tmp_path, ADAPTER)]) == 1
    assert capsys.readouterr().out.startswith(SHOWN)


@pytest.mark.parametrize(
    ("denominator", "mistake"),
    [
        ("torch.where(z >= 0, z + eps, z - eps)", None),
        ("z + torch.where(z >= 0, eps, -eps)", "eps-in-float32"),
    ],
)
def test_the_repair_passes_and_the_other_does_not(
    tmp_path: Path, denominator: str, mistake: str | None
) -> None:
    assert "(z + eps)" in ADAPTER and denominator in GUIDE
    found = run(
        adapter_file(tmp_path, ADAPTER.replace("(z + eps)", f"({denominator})")), "linear_epsilon"
    )["linear_epsilon"]
    assert [m.id for m in found.mistakes[:1]] == ([] if mistake is None else [mistake])
    assert (found.status == PASSED) == (mistake is None)
