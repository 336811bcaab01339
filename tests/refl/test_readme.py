"""What the README shows is what happens: its Python runs, its method in TOML loads, its output is
the program's own.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from checkpoints import ROOT

import refl
from refl.cli import main
from refl.show.terminal import text

README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
    return [text for name, text in fenced if name == language]


def test_the_python_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code = blocks("python")[0]
    exec(compile(code, "README.md", "exec"), {})  # noqa: S102  (the project's own text)
    assert "keys" in capsys.readouterr().out and (tmp_path / "oracle.safetensors").is_file()


def test_the_toml_is_a_method(tmp_path: Path) -> None:
    (method,) = blocks("toml")
    (tmp_path / "mine.toml").write_text(method)
    assert (
        main(["explain", "the keys to the cabinet", "--method", str(tmp_path / "mine.toml")]) == 0
    )


def test_the_first_output_is_the_program_s_own() -> None:
    """To two decimals: the last digits of float32 differ between processors."""
    shown, now = (
        blocks("")[0],
        text(refl.load().explain("the keys to the cabinet", keep=()), width=100),
    )
    assert coarse(shown) == coarse(now)


def coarse(shown: str) -> list[str]:
    rows = [
        row
        for row in shown.splitlines()
        if not row.lstrip().startswith(("conservation error", "stabilizer"))
    ]
    return [
        re.sub(
            r"\d+\.\d+", lambda m: f"{float(m[0]):.2f}", re.sub(r"[█▏▎▍▌▋▊▉▐▒░]+|\s+", " ", row)
        ).strip()
        for row in rows
    ]
