"""`refl generate`: the tokens of Model.generate, once as the model is and once as it is edited."""

from __future__ import annotations

import json

import pytest

import refl
from refl.cli import main

TEXT = "the keys to the cabinet"


def said(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["generate", *arguments]) == 0
    return capsys.readouterr().out


def test_twice_with_edits(capsys: pytest.CaptureFixture[str]) -> None:
    edits = {"L3.H1": refl.scale(-9.0)}
    how = [TEXT, "--tokens", "5", "--edit", "L3.H1=x-9"]
    model, found = refl.load(), json.loads(said([*how, "--json"], capsys))
    for name, one in (("as it is", model), ("edited", model.with_edits(edits))):
        parts = found[name]
        ids = one.generate(TEXT, 5)
        assert parts["before"]["ids"] + parts["new"]["ids"] == ids
        assert parts["before"]["text"] == TEXT
        assert parts["before"]["text"] + parts["new"]["text"] == model.text.decode(ids)
    assert found["as it is"] != found["edited"]
    first, second = said(how, capsys).splitlines()
    assert first.startswith("as it is  the keys to the cabinet are")
    assert second.startswith("edited    the keys to the cabinet")


def test_once_without(capsys: pytest.CaptureFixture[str]) -> None:
    assert said([TEXT, "--tokens", "1"], capsys) == f"{TEXT} are\n"
    assert said([TEXT, "--tokens", "0"], capsys) == f"{TEXT} (nothing)\n"
    assert said(["--ids", "2", "151", "87", "--tokens", "1"], capsys) == "the keys are\n"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "give a TEXT (or - for standard input) or --ids"),
        ([TEXT, "--ids", "3"], "not both"),
        ([TEXT, "--tokens", "-1"], "--tokens is -1: expected a whole number of at least 0"),
        ([TEXT, "--edit", "L9.N1=off"], "L9.N1 names no neuron, head or block"),
        ([TEXT, "--decoder", "a"], "has no decoder"),
    ],
)
def test_bad_input(arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main(["generate", *arguments])
    except SystemExit as ended:
        code = int(ended.code or 0)
    assert code == 2 and sentence in (errors := capsys.readouterr().err) and errors.count("\n") == 1
