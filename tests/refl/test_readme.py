"""What the README and the guide show is what happens: their Python runs, the method in TOML loads,
commands are understood, links lead somewhere, output and pictures are the program's own.
"""

from __future__ import annotations

import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest
from checkpoints import ROOT
from pages import GUIDE, PAGES, blocks, coarse, commands, prose, read

import refl
from refl.cli import _parser, main
from refl.cli.command import Said
from refl.evaluation.known_evidence import sentences
from refl.latent.graph import graph
from refl.lessons.lesson import lessons
from refl.show.terminal import text

TEXT = "the keys to the cabinet"
Capture = pytest.CaptureFixture[str]
names = pytest.mark.parametrize("name", [path.name for path in PAGES])


def test_the_readme_is_short() -> None:
    lines = read("README.md").splitlines()
    assert len(lines) < 200
    first = "\n".join(lines[:40])
    for said in ("refl learn", "refl walk", "refl verify", "refl conform", "(refl/guide/"):
        assert said in first


def test_the_two_commands_are_those_of_the_build() -> None:
    build = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    shown = [line for line in commands("README.md") if line.startswith(("python3 ", ".venv/"))]
    assert len(shown) == 2 and all(line in build for line in shown)
    assert set(shown) <= set(commands("setting_up.md"))


# -- the Python ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["README.md", "python.md"])
def test_the_python_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = blocks(name, "python")
    exec(compile(code, name, "exec"), {})  # noqa: S102  (the project's own text)
    assert "keys" in capsys.readouterr().out and (tmp_path / "oracle.safetensors").is_file()


def test_the_python_inside_the_model_runs(capsys: Capture) -> None:
    (code,) = blocks("inside_the_model.md", "python")
    assert "with_edits" in code
    exec(compile(code, "inside_the_model.md", "exec"), {})  # noqa: S102
    assert "L3.N132" in capsys.readouterr().out


def test_no_python_is_left_out() -> None:
    """Those of check_yours.md are in tests/peers and tests/verification/test_suites.py."""
    with_python = {path.name for path in PAGES if blocks(path.name, "python")}
    assert with_python == {"README.md", "python.md", "inside_the_model.md", "check_yours.md"}


def test_the_toml_is_a_method(tmp_path: Path) -> None:
    (method,) = blocks("methods.md", "toml")
    (tmp_path / "mine.toml").write_text(method)
    assert main(["explain", TEXT, "--method", str(tmp_path / "mine.toml")]) == 0


# -- commands and links ----------------------------------------------------------------------------


@names
def test_the_commands_are_understood(name: str) -> None:
    """Capital letters stand for what a reader puts in; a command's name alone is a name."""
    shown = [line for line in commands(name) if line.startswith("refl ")]
    for line in shown:
        _parser().parse_args(shlex.split(line)[1:])
    for line in re.findall(r"`(refl [a-z][^`]*)`", read(name)):
        asked = shlex.split(line)[1:]
        try:
            _parser().parse_args(asked if len(asked) > 1 else [*asked, "--help"])
        except Said as ended:
            assert ended.code == 0, line


@names
def test_modules_that_are_named_are_there(name: str) -> None:
    for module in re.findall(r"python -m (refl[\w.]+)", read(name)):
        path = ROOT / module.replace("refl.verification", "verification").replace(".", "/")
        inside = ROOT / module.replace(".", "/")
        assert any(p.is_dir() or p.with_suffix(".py").is_file() for p in (path, inside)), module


@names
def test_links_lead_somewhere(name: str) -> None:
    here = next(path for path in PAGES if path.name == name)
    links = re.findall(
        r"\]\(([^)]*)\)", re.sub(r"^```.*?^```$", "", read(name), flags=re.MULTILINE | re.DOTALL)
    )
    for link in links:
        assert not re.match(r"\w+:|/|#", link), f"{link} is not relative"
        assert (here.parent / link).resolve().exists(), f"{name}: {link}"


def test_every_page_is_in_the_index_and_every_lesson_listed() -> None:
    index = read("index.md")
    assert [path.name for path in PAGES[1:] if f"({path.name})" not in index] == ["index.md"]
    listed = re.findall(
        r"^(\d+)\. \[(.*)\]\(\.\./lessons/(.*)\.md\)$", read("learning.md"), re.MULTILINE
    )
    assert listed == [(str(one.number), one.title, one.name) for one in lessons()]


# -- what is shown ---------------------------------------------------------------------------------


def test_the_first_output_is_the_program_s_own() -> None:
    shown = coarse(blocks("reading_an_explanation.md", "")[0])
    now = coarse(text(refl.load().explain(TEXT, keep=()), width=100))
    assert shown == now
    excerpt = coarse(blocks("README.md", "")[3])
    assert excerpt == now[now.index(excerpt[0]) :][: len(excerpt)] and len(excerpt) == 15


def test_the_contrast_is_the_program_s_own() -> None:
    e = refl.load().explain(TEXT, contrast=("are", "is"), keep=())
    now = coarse(text(e, width=100))
    shown = coarse(blocks("reading_an_explanation.md", "")[1])
    assert [row for row in shown if row not in now] == []
    assert len(shown) == 9


def test_the_ranking_is_the_program_s_own(capsys: Capture) -> None:
    (shown,) = blocks("inside_the_model.md", "")
    assert main(["neurons", TEXT, "--contrast", "are", "is", "--top", "6"]) == 0
    now = coarse(capsys.readouterr().out)
    assert shown.startswith("6 of 704 neurons")
    assert [row for row in coarse(shown) if row not in now] == [] and len(coarse(shown)) == 8


def test_the_first_screen_is_the_program_s_own(tmp_path: Path, capsys: Capture) -> None:
    """The size of the page in megabytes to 0.1."""
    listed, walked = blocks("README.md", "")[0].splitlines()
    assert main(["learn"]) == 0
    assert listed in capsys.readouterr().out.splitlines()
    assert main(["walk", TEXT, "--html", str(tmp_path / "walk.html")]) == 0
    said, now = (re.split(r"([\d.]+) MB", t) for t in (walked, capsys.readouterr().out.strip()))
    assert said[2] == now[2] and abs(float(said[1]) - float(now[1])) < 0.11
    assert blocks("learning.md", "") == [f"{walked}\n"]


def test_an_identity_holds_as_shown(capsys: Capture) -> None:
    shown = blocks("README.md", "")[1].splitlines()[0]
    assert main(["verify", "--only", "3"]) == 0
    now = next(row for row in capsys.readouterr().out.splitlines() if row.startswith("3  "))
    title, measured, allowed, holds = re.split(r"\s{2,}", shown.strip().partition("  ")[2])
    assert re.split(r"\s{2,}", now)[1] == title and now.endswith(holds)
    assert float(re.split(r"\s{2,}", now)[3]) == pytest.approx(float(allowed), rel=0.1)
    assert float(measured) < float(allowed)


def test_as_many_identities_hold_as_shown(capsys: Capture) -> None:
    assert main(["verify"]) == 0
    assert capsys.readouterr().out.rstrip().endswith(blocks("README.md", "")[1].splitlines()[1])


def test_the_wrong_adapter_of_the_readme_is_that_of_the_guide() -> None:
    """Whose output tests/peers/test_readme_adapter.py holds against the program's."""
    said = blocks("README.md", "")[2]
    assert said in next(b for b in blocks("check_yours.md", "") if b.startswith("my LRP"))


def test_the_comparison_is_the_program_s_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """In float64; the element to eight decimals, what depends on rounding as a shape."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    for file, options in (("ours", []), ("theirs", ["--eps", "3e-5"])):
        asked = ["explain", TEXT, "--dtype", "float64", "--save", f"{file}.safetensors", *options]
        assert main(asked) == 0
    capsys.readouterr()
    folder = str(Path(refl.__file__).parent / "shipped")
    assert main(["compare", "ours.safetensors", "theirs.safetensors", "--model", folder]) == 1
    (shown,) = (b for b in blocks("check_yours.md", "") if b.startswith("Relevance parts"))
    now = capsys.readouterr().out
    for row in shown.splitlines():
        assert row in now, now


def test_what_is_said_of_the_evidence_is_what_the_table_says() -> None:
    (table,) = (b for b in blocks("verification.md", "") if b.startswith("contrast "))
    rows = [line.split() for line in table.splitlines()]
    contrast, logit = ({row[0]: row[1:] for row in rows if row} for rows in (rows[:8], rows[8:]))
    text = read("verification.md")
    said = re.findall(r"(\d+\.\d) %", text.partition("What this shows, and what not")[2])[:4]
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
        r"of its (\d+) misses (\d+) have a singular.*?and (\d+) give", prose("verification.md")
    )
    counts = len(misses), sum(not plural for plural, _ in misses), sum(the for _, the in misses)
    assert said and tuple(map(int, said.groups())) == counts


# -- pictures --------------------------------------------------------------------------------------

COLOR = re.compile(r"#([0-9a-f]{6})")


def alike(a: str, b: str) -> None:
    """The same drawing: text to two decimals, places to half a unit, colors to two steps of 255."""
    parts = re.compile(r"#[0-9a-f]{6}|-?\d+\.\d+")
    assert parts.sub("N", a) == parts.sub("N", b)
    for x, y in zip(parts.findall(a), parts.findall(b), strict=True):
        if x.startswith("#"):
            assert all(
                abs(int(x[i:j], 16) - int(y[i:j], 16)) <= 2 for i, j in pairwise((1, 3, 5, 7))
            )
        else:
            assert float(x) == pytest.approx(float(y), abs=0.5 if "." in x else 0)


def test_the_pictures_are_the_program_s_own() -> None:
    model = refl.load()
    drawn = {
        "keys.svg": model.explain(TEXT).svg(),
        "graph.svg": graph(model, TEXT, contrast=("are", "is")).svg(),
    }
    assert {path.name for path in (GUIDE / "pictures").iterdir()} == set(drawn)
    for name, now in drawn.items():
        alike((GUIDE / "pictures" / name).read_text(encoding="utf-8"), now)
