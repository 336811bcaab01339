"""`refl answer` and `refl explain --answer`: what Model.explain_answer and Model.explain say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import refl
from refl.cli import main
from refl.io.safetensors import read_safetensors

TEXT, ANSWER = "the keys to the cabinet", " are on the table"
Capture = pytest.CaptureFixture[str]


def said(capsys: Capture, *arguments: str) -> str:
    assert main(list(arguments)) == 0
    return capsys.readouterr().out


def test_a_matrix_as_json(capsys: Capture) -> None:
    found = json.loads(said(capsys, "answer", TEXT, "--answer", ANSWER, "--json"))
    m = refl.load().explain_answer(TEXT, ANSWER)
    assert found == json.loads(json.dumps(m.as_dict()))
    ids = ["--ids", *map(str, m[0].input_ids), "--answer-ids", *map(str, m.answer_ids)]
    assert json.loads(said(capsys, "answer", *ids, "--json")) == found
    method = ("--method", "cp-lrp", "--seed", "log-probability", "--dtype", "float64")
    other = json.loads(said(capsys, "answer", TEXT, "--tokens", "2", *method, "--json"))
    assert (other["seed"], len(other["rows"])) == ("log-probability", 2)
    edited = json.loads(said(capsys, "answer", *ids, "--edit", "L3.N17=off", "--json"))
    assert edited["about"]["edits"] and edited["answer_ids"] == found["answer_ids"]


def test_a_table_and_files(capsys: Capture, tmp_path: Path) -> None:
    page, file, drawn = (tmp_path / f"a.{end}" for end in ("html", "safetensors", "svg"))
    asked = ("answer", TEXT, "--answer", ANSWER)
    out = said(capsys, *asked, "--html", str(page), "--save", str(file), "--svg", str(drawn))
    assert out.startswith("'are on the table', 4 tokens, the logit of each\n")
    assert f"wrote {file}\nwrote {page}\nwrote {drawn}\n" in out
    assert drawn.read_text(encoding="utf-8").startswith("<?xml")
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    m = refl.load().explain_answer(TEXT, ANSWER)
    np.testing.assert_array_equal(read_safetensors(file)[0]["matrix"], m.matrix)


def test_a_span(capsys: Capture) -> None:
    asked = ("explain", TEXT, "--answer", ANSWER, "--seed", "log-probability", "--json")
    found = json.loads(said(capsys, *asked))
    e = refl.load().explain(TEXT, answer=ANSWER, seed="log-probability", keep=())
    assert found["relevance"] == e.relevance.tolist()
    assert [token["token"] for token in found["answer"]] == ["are", "on", "the", "table"]
    ids = ["--answer-ids", *(str(token.id) for token in e.answer)]
    assert json.loads(said(capsys, "explain", TEXT, *ids, *asked[4:])) == found


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["answer"], "give a TEXT (or - for standard input) or --ids"),
        (["answer", TEXT, "--answer", "are", "--tokens", "3"], "leave it out with --answer"),
        (["answer", TEXT, "--answer", "are", "--answer-ids", "3"], "not both"),
        (["answer", TEXT, "--answer", ""], "the answer is empty"),
        (["answer", TEXT, "--tokens", "0"], "the model adds nothing in --tokens 0"),
        (["answer", TEXT, "--tokens", "-2"], "--tokens is -2"),
        (["answer", TEXT, "--decoder", "a"], "has no decoder"),
        (["answer", TEXT, "--answer-ids", "100000"], "outside the vocabulary"),
        (["explain", TEXT, "--answer", "are", "--target", "is"], "leave --target out"),
        (["explain", TEXT, "--answer", "are", "--contrast", "is", "are"], "explain each with"),
        (["explain", TEXT, "--answer", "are", "--seed", "probability"], "'log-probability'"),
        (["explain", TEXT, "--answer", "are", "--position", "0"], "leave --position out"),
        (["explain", TEXT, "--answer", "are", "--answer-ids", "3"], "not both"),
        (["explain", TEXT, "--answer", "are", "--method", "occlusion"], "one output at a time"),
        (["explain", "--file", "x", "--answer", "a"], "--answer is for one input"),
    ],
)
def test_bad_input(arguments: list[str], sentence: str, capsys: Capture) -> None:
    try:
        code = main(arguments)
    except SystemExit as ended:
        code = int(ended.code or 0)
    assert code == 2 and sentence in (errors := capsys.readouterr().err) and errors.count("\n") == 1
