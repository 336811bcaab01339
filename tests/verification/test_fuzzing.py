"""The guard of the fuzzers: what it lets pass, and that it sees each kind of fault."""

from __future__ import annotations

import os
import signal
import sys
import time
from random import Random

import pytest

from refl.errors import ReflError
from refl.verification.quality import fuzzing
from refl.verification.quality.fuzzing import ANSWERED, FOUND, REFUSED, Try

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="address space is limited on Linux")


class Raw(ReflError):
    """One whose text is not made a sentence."""

    def __init__(self, words: str) -> None:
        Exception.__init__(self, words)


class Panic(BaseException):
    """As Rust libraries raise them."""


def fail(error: BaseException) -> Try:
    def raising() -> None:
        raise error

    return Try("a fault", raising)


def test_a_sentence_and_an_answer_are_right() -> None:
    assert fuzzing.ended_here(fail(ReflError("expected a file"))) == (REFUSED, "expected a file")
    assert fuzzing.ended_here(Try("two", lambda: 2)) == (ANSWERED, "")


@pytest.mark.parametrize(
    "error",
    [
        KeyError("a"), Panic("bad charsmap"), SystemExit(0), RecursionError(), MemoryError(),
        Raw(""), Raw("two\nlines"), Raw("\x1b[31m"), Raw("x" * 2000),
    ],
)  # fmt: skip
def test_everything_else_is_a_finding(error: BaseException) -> None:
    assert fuzzing.ended_here(fail(error))[0] == FOUND


def test_a_wrong_answer_is_a_finding() -> None:
    one = Try("two", lambda: 2, lambda answer: "" if answer == 3 else f"{answer} is not 3")
    assert fuzzing.ended_here(one) == (FOUND, "2 is not 3")


def test_what_takes_long_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def patient() -> None:
        with fuzzing.guarded(0.05):
            time.sleep(10)

    assert "took more" in fuzzing.ended_here(Try("a sleep", patient))[1]
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


@LINUX
def test_memory_beyond_the_limit_is_a_finding() -> None:
    ended, said = fuzzing.ended_here(Try("3 GiB", lambda: bytes(3 << 30)))
    assert ended == FOUND and "MemoryError" in said
    assert len(bytearray(1 << 20)) == 1 << 20  # and the limit is gone again


def test_a_child_that_dies_is_a_finding() -> None:
    killed = Try("a crash", lambda: os.kill(os.getpid(), signal.SIGKILL), alone=True)
    assert fuzzing.ended_alone(killed) == (FOUND, "the process died: SIGKILL")
    assert fuzzing.ended_alone(fail(ReflError("expected a file"))) == (REFUSED, "expected a file")
    assert fuzzing.ended_alone(Try("an exit", lambda: os._exit(0)))[0] == FOUND


def draw(random: Random) -> Try:
    number = random.randrange(10)
    return Try(str(number), lambda: 1 // number)


def test_a_run_counts_and_can_be_repeated(capsys: pytest.CaptureFixture[str]) -> None:
    first, again = (fuzzing.run({"division": draw}, 60, 7) for _ in range(2))
    assert first == again and first.tries == 60 and first.findings
    assert all(f.what == "0" and "ZeroDivisionError" in f.said for f in first.findings)
    number = first.findings[0].number
    alone = fuzzing.run({"division": draw}, 1, 7, start=number)
    assert alone.findings == first.findings[:1]
    assert fuzzing.fuzz("Divides.", {"division": draw}, ["--tries", "60", "--seed", "7"]) == 1
    out = capsys.readouterr().out
    assert f"60 tries: 0 refused, {60 - len(first.findings)} answered" in out
    assert out.count("FOUND") == len(first.findings)


def test_without_findings_the_exit_code_is_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert fuzzing.fuzz(None, {"one": lambda random: Try("1", lambda: 1)}, ["--tries", "3"]) == 0
    assert "3 tries: 0 refused, 3 answered, 0 findings" in capsys.readouterr().out
