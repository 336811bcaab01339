"""`refl neurons`: it prints what `e.top`, `e.paths` and `e.sinks` have; and what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import refl
from refl.cli import main
from refl.show.lines import plain
from refl.show.ranking import paths_lines, ranking_lines
from refl.verification.random_models import ARCHITECTURES
from tests.support.checkpoint_folders import checkpoint_of
from tests.support.parts import explained, model_of

Capture = pytest.CaptureFixture[str]
TEXT = "the keys to the cabinet"
ASKED = ("neurons", TEXT, "--contrast", "are", "is")


@pytest.fixture(autouse=True)
def columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")


def answer(capsys: Capture, *words: str) -> str:
    assert main(list(words)) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def refused(capsys: Capture, *words: str) -> str:
    """The one sentence, and exit code 2."""
    try:
        status = main(list(words))
    except SystemExit as end:
        status = int(end.code or 0)
    out, err = capsys.readouterr()
    assert (status, out) == (2, "") and err.count("\n") == 1
    return err


@pytest.fixture(scope="module")
def e() -> refl.Explanation:
    found: refl.Explanation = refl.load().explain(TEXT, contrast=("are", "is"))
    return found


@pytest.mark.parametrize(
    ("words", "how"),
    [
        ([], {}),
        (["--top", "3", "--by", "head"], {"k": 3, "by": "head"}),
        (["--over", "each", "--sign", "negative"], {"over": "each", "sign": "negative"}),
        (["--over", "-1"], {"over": -1}),
        (["--over", "2", "--by", "block"], {"over": 2, "by": "block"}),
        (["--sites", "*.self_attn", "--top", "1"], {"pattern": "*.self_attn", "k": 1}),
        (["--sites", "*.mlp", "--by", "block"], {"pattern": "*.mlp", "by": "block"}),
    ],
)
def test_it_is_what_top_finds(
    capsys: Capture, e: refl.Explanation, words: list[str], how: dict[str, Any]
) -> None:
    wanted = e.top(**how)
    found = json.loads(answer(capsys, *ASKED, *words, "--json"))
    assert found["explained"] == pytest.approx(e.explained)
    ranking = found["ranking"]
    assert [row["name"] for row in ranking["rows"]] == [row.name for row in wanted]
    assert ranking["of"] == wanted.of
    for row, other in zip(ranking["rows"], wanted, strict=True):
        assert row["relevance"] == pytest.approx(other.relevance, rel=1e-4)
        assert (row["position"], row["strongest"]) == (other.position, other.strongest)
    text = answer(capsys, *ASKED, *words)
    assert text.endswith(plain(ranking_lines(wanted, 100)) + "\n")


def test_the_table(capsys: Capture, e: refl.Explanation) -> None:
    lines = answer(capsys, *ASKED).splitlines()
    assert lines[0].startswith("logit of 'are' minus logit of 'is' = ")
    assert lines[4] == "10 of 704 neurons by the size of their relevance, summed over positions"
    assert lines[5].split() == [
        *["neuron", "relevance", "of", "it", "all", "activation", "strongest", "at"]
    ]
    row = e.top()[0]
    assert re.fullmatch(
        rf"   1  {re.escape(row.name)} +{row.relevance:.3f} +{100 * row.fraction:.1f}% +"
        rf"{row.activation:.4g}  {row.strongest} {row.token} +│█+",
        lines[6],
    )
    assert len(lines) == 16 and max(map(len, lines)) <= 100
    colored = [span for line in ranking_lines(e.top(), 100) for span in line if " on " in span[1]]
    assert colored and all(text == text.strip() for text, _ in colored)


def test_paths(capsys: Capture, e: refl.Explanation) -> None:
    found = json.loads(answer(capsys, *ASKED, "--paths", "--json"))
    for row, wanted in zip(found["paths"]["rows"], e.paths(), strict=True):
        assert row["block"] == wanted.block
        for name, value in wanted.parts.items():
            said = row[name] if name != "absorbed" else None
            assert said is None or said == pytest.approx(value, rel=1e-3, abs=1e-4)
    for row, sink in zip(found["sinks"]["rows"], e.sinks(), strict=True):
        assert row["attention"] == pytest.approx(sink.attention, rel=1e-5)
        assert row["of_sizes"] == pytest.approx(sink.of_sizes, rel=1e-3, abs=1e-6)
    text = answer(capsys, *ASKED, "--paths")
    assert text.endswith(plain(paths_lines(e.paths(), e.sinks(), 100)) + "\n")
    assert [line.split()[0] for line in text.splitlines()[4:9]] == ["block", "L3", "L2", "L1", "L0"]


def test_the_paths_printed_add_up(e: refl.Explanation) -> None:
    """To half a unit of the last place for each number."""
    for line in plain(paths_lines(e.paths(), None, 100)).splitlines()[1:5]:
        received, *parts, returned = map(float, line.split()[1:9])
        assert abs(received + returned - sum(parts)) <= 8 * 0.5e-3


def test_the_bar_of_parts_is_as_wide_as_there_are_columns() -> None:
    for name in ARCHITECTURES:
        paths = explained(name).paths()
        lines = plain(paths_lines(paths, None, 200)).splitlines()[1:]
        bars = [found[0] for line in lines if (found := re.search(r"[qkvmra]{6,}$", line))]
        assert [len(bar) for bar in bars] == [20] * len(paths)


# -- other nets ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mixtral", "t5", "albert"])
def test_other_nets(capsys: Capture, tmp_path: Path, name: str) -> None:
    asked = [
        "neurons",
        "--model",
        str(checkpoint_of(tmp_path, ARCHITECTURES[name])),
        "--ids",
        "3",
        "4",
        "5",
        "6",
        "--json",
    ]
    asked += ["--position", "1"] if name == "albert" else []
    found = json.loads(answer(capsys, *asked, "--over", "1", "--dtype", "float64"))["ranking"]
    assert {row["position"] for row in found["rows"]} == {1}
    rows = json.loads(answer(capsys, *asked, "--paths"))["paths"]["rows"]
    assert len(rows) == len(model_of(name).components.blocks)
    if name == "mixtral":
        one = found["rows"][0]["name"]
        assert re.fullmatch(r"L[01]\.E[0-5]\.N\d+", one)
        inside = [*asked, "--sites", "*.w2.input", "--over", "1", "--top", "1"]
        assert json.loads(answer(capsys, *inside))["ranking"]["rows"][0]["name"] == one


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--top", "0"], "--top is 0: expected a whole number above 0"),
        (["--over", "9"], "--over is token 9, outside the input of 6 tokens: expected -6 to 5"),
        (["--over", "position"], "--over is 'position': expected 'positions'"),
        (["--over", "1.5"], "--over is '1.5': expected 'positions'"),
        (["--by", "layer"], "invalid choice: 'layer'"),
        (["--sites", "*.mpl"], "--sites '*.mpl' names no site of this model; nearest: *.mlp"),
        (["--sites", "*.scores"], "--by 'neuron' ranks sites of two axes"),
        (["--sites", "\x1b[31m"], "--sites '\\x1b[31m' names no site"),
        (["--paths", "--top", "3"], "--top is of a ranking, and --paths shows every block"),
        (["--paths", "--by", "head"], "--by is of a ranking"),
        (["--method", "occlusion"], "method occlusion is no table of rules"),
        (["--ids", "1"], "give a TEXT (or - for standard input) or --ids, not both"),
    ],
)
def test_bad_options(capsys: Capture, words: list[str], sentence: str) -> None:
    said = refused(capsys, "neurons", TEXT, *words)
    assert sentence in said
    assert "\x1b" not in said


def test_help_teaches(capsys: Capture) -> None:
    said = answer(capsys, "neurons", "--help")
    for words in ("examples:", "--paths", "L3.N17", "received + returned  =", "attention sink"):
        assert words in said


def test_of_a_model_with_edits(capsys: Capture) -> None:
    edited = refl.load().with_edits({"L3.N132": refl.off})
    found = json.loads(answer(capsys, *ASKED, "--edit", "L3.N132=off", "--top", "2", "--json"))
    rows = edited.explain(TEXT, contrast=("are", "is")).top(k=2)
    assert [row["name"] for row in found["ranking"]["rows"]] == [row.name for row in rows]
    assert "L3.N132" not in [row.name for row in rows]


def test_of_each_position_neurons_are_not_counted_as_more_than_there_are(
    capsys: Capture, e: refl.Explanation
) -> None:
    out = answer(capsys, *ASKED, "--over", "each", "--top", "1")
    assert f"1 of {704 * len(e.tokens)} pairs of neuron and token by the size" in out
