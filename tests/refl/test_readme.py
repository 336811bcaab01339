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
from refl.evaluation.known_evidence import sentences
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


def test_the_python_inside_the_model_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = (block for block in blocks("python") if "with_edits" in block)
    exec(compile(code, "README.md", "exec"), {})  # noqa: S102  (the project's own text)
    assert "L3.N132" in capsys.readouterr().out


def test_the_ranking_is_the_program_s_own(capsys: pytest.CaptureFixture[str]) -> None:
    """To two decimals."""
    shown = next(block for block in blocks("") if block.startswith("6 of 704 neurons"))
    asked = ["neurons", "the keys to the cabinet", "--contrast", "are", "is", "--top", "6"]
    assert main(asked) == 0
    now = coarse(capsys.readouterr().out)
    assert [row for row in coarse(shown) if row not in now] == [] and len(coarse(shown)) == 8


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


def test_the_contrast_is_the_program_s_own() -> None:
    e = refl.load().explain("the keys to the cabinet", contrast=("are", "is"), keep=())
    now = coarse(text(e, width=100))
    assert [row for row in coarse(blocks("")[1]) if row not in now] == []
    assert len(coarse(blocks("")[1])) == 9


def test_what_is_said_of_the_evidence_is_what_the_table_says() -> None:
    table = next(block for block in blocks("") if block.startswith("contrast "))
    rows = [line.split() for line in table.splitlines()]
    contrast, logit = ({row[0]: row[1:] for row in rows if row} for rows in (rows[:8], rows[8:]))
    said = re.findall(r"(\d+\.\d) %", README.partition("What this shows, and what not")[2])[:4]
    assert [f"{number}%" for number in said] == [
        figures[method][0] for figures in (contrast, logit) for method in ("gradient", "attnlrp")
    ]


def test_the_misses_are_as_said() -> None:
    """Whose strongest token is not the subject: how many there are, with a singular subject, on a
    `the`.
    """
    model, misses = refl.load(), []
    for s in sentences(200)["agreement"]:
        contrast = (s["target"], s["foil"])
        e = model.explain(s["prefix"], contrast=contrast, keep=())
        strongest = int(e.relevance.argmax())
        if strongest not in s["evidence_tokens"]:
            plural = e.tokens[s["evidence_tokens"][0]].endswith(("s", "children"))
            misses.append((plural, e.tokens[strongest] == "the"))
    said = re.search(
        r"of its (\d+) misses (\d+) have a singular.*?and (\d+) give", README, re.DOTALL
    )
    counts = len(misses), sum(not plural for plural, _ in misses), sum(the for _, the in misses)
    assert said and tuple(map(int, said.groups())) == counts


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
