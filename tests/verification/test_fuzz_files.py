"""Fuzzers of files and of command lines find nothing; and they do find what is planted."""

from __future__ import annotations

import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest

pytest.importorskip("PIL.Image", reason="Pillow is not installed (the extra 'image')")

from refl import methods
from refl.cli import files
from refl.io import composites, images, oracle
from refl.verification.quality import fuzz_command_line, fuzz_files, fuzzing
from refl.verification.quality.fuzzing import Result, Try

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="its folder of inputs is one of Linux"),
    pytest.mark.filterwarnings("default::RuntimeWarning"),
]


@pytest.fixture(autouse=True)
def without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setenv("NO_COLOR", "1")


def nothing_found(result: Result, least: int) -> None:
    assert not result.findings, "\n".join(map(str, result.findings))
    assert result.tries >= least


def test_a_few_files() -> None:
    nothing_found(fuzzing.run(fuzz_files.KINDS, 40, 0, seconds=4), 5)


def test_a_few_command_lines() -> None:
    nothing_found(fuzzing.run({"inside": fuzz_command_line.inside}, 4, 5, seconds=2), 1)


def test_many_files() -> None:
    nothing_found(fuzzing.run(fuzz_files.KINDS, 10_000, 3, seconds=5), 20)


def test_many_command_lines() -> None:
    nothing_found(fuzzing.run({"inside": fuzz_command_line.inside}, 10_000, 3, seconds=5), 5)


def test_many_processes() -> None:
    nothing_found(fuzzing.run({"process": fuzz_command_line.process}, 10_000, 3, seconds=5), 2)


# -- what they are to find -------------------------------------------------------------------------


def found(kind: str, tries: int) -> Result:
    return fuzzing.run({kind: fuzz_files.KINDS[kind]}, tries, 0)


def test_an_oracle_file_that_is_believed_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oracle, "FACTS", lambda at, facts: None)
    monkeypatch.setattr(oracle, "check_arrays", lambda *_: None)
    assert found("oracle", 15).findings


def test_options_of_any_type_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(composites, "from_table", lambda content, where: 1 / len(content))
    assert found("toml", 20).findings


def test_pictures_that_are_enlarged_without_bounds_are_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(images, "_refuse_many_pixels", lambda *_: None)
    monkeypatch.setattr(images, "_refuse_size", lambda *_: None)
    assert found("preparation", 60).findings


def one(words: list[str]) -> Try:
    return Try(str(words), lambda: fuzz_command_line._run(words, b""), fuzz_command_line._wrong)


def test_an_output_that_destroys_an_input_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["compare", "a.html", "a.safetensors", "--html", "a.html"]
    assert fuzzing.ended_here(one(words)) == (fuzzing.ANSWERED, "")
    monkeypatch.setattr(files, "_read_as", lambda *_: "")
    assert "destroyed an input" in fuzzing.ended_here(one(words))[1]
    assert fuzzing.ended_here(one(["methods", "m.toml"])) == (fuzzing.ANSWERED, "")


@pytest.mark.parametrize(
    ("code", "said"), [(1, ""), (0, "a word\n"), (2, ""), (2, "refl: a\nrefl: b\n"), (3, "")]
)
def test_a_wrong_end_is_found(code: int, said: str) -> None:
    end = fuzz_command_line.End(["explain"], code, "", said, {})
    assert fuzz_command_line._wrong_end(end)


def test_a_fault_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise KeyError("a")

    monkeypatch.setattr(methods, "chosen", broken)
    assert "a fault of refl" in fuzzing.ended_here(one(["methods", "attnlrp"]))[1]


def test_the_same_line_again() -> None:
    lines = [fuzz_command_line.line(Random(n)) for n in range(300)]
    assert lines == [fuzz_command_line.line(Random(n)) for n in range(300)]
    assert {words[0] for words in lines if words} >= {"explain", "trace", "compare", "conform"}
    assert Path(fuzz_command_line.inputs()).is_dir()
