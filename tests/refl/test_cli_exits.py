"""How a run of the command ends: 0, 1 (a check's finding only), 2 with one sentence, or by a
signal; nothing else, whatever is raised and whatever the streams are.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from refl.cli import exits, main, methods
from refl.cli.command import Said
from refl.errors import ReflError, sentence

TEXT = "the keys to the cabinet"
Capture = pytest.CaptureFixture[str]
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="streams and signals as Linux has them")


class Panic(BaseException):
    """As Rust libraries raise them."""


class Speechless(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def raising(error: BaseException) -> Callable[..., int]:
    def run(*_: Any) -> int:
        raise error

    return run


@pytest.mark.parametrize(
    "error",
    [
        KeyError("a"), ValueError("x\ny\x1b[31m"), RecursionError("deep"), OverflowError("big"),
        UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates"), AssertionError(), Panic("rust"),
        MemoryError(), OSError("odd"), PermissionError(13, "Permission denied", "x"),
        SystemExit(0), SystemExit(1), SystemExit("words"), GeneratorExit(), StopIteration(),
        Speechless(), BaseExceptionGroup("several", [KeyError("a")]), ReflError("y" * 9000),
    ],
)  # fmt: skip
def test_whatever_is_raised_is_one_sentence_and_2(
    error: BaseException, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(methods, "_lines", raising(error))
    assert main(["methods"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("refl: ") and err.count("\n") == 1
    assert err[:-1].isprintable() and 8 < len(err) < 1100


def test_what_nobody_foresaw_says_where_and_what_to_do(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(methods, "_lines", raising(KeyError("linear")))
    assert main(["methods"]) == 2
    said = capsys.readouterr().err
    for part in ("KeyError: 'linear'", "refl/cli/methods.py, line", "report it", "no result"):
        assert part in said
    monkeypatch.setenv("REFL_TRACEBACK", "1")
    assert main(["methods"]) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "code"), [("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_unwinds_and_is_the_exit_code(
    number: str, code: int, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    unwound = []
    before = signal.signal(getattr(signal, number), signal.SIG_DFL)  # nohup has SIGHUP ignored

    def run(*_: Any) -> int:
        try:
            os.kill(os.getpid(), getattr(signal, number))
            time.sleep(5)
        finally:
            unwound.append(number)
        return 0

    monkeypatch.setattr(methods, "_lines", run)
    assert main(["methods"]) == code
    assert unwound == [number] and capsys.readouterr() == ("", "")
    assert signal.signal(getattr(signal, number), before) is signal.SIG_DFL


def test_warnings_are_a_line_each_after_an_answer_and_none_beside_a_refusal(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def warn(*_: Any) -> list[Any]:
        warnings.simplefilter("always")
        for words in ("of this\nand that", "of this\nand that", "\x1b[31m"):
            warnings.warn(words, UserWarning, stacklevel=1)
        return []

    monkeypatch.setattr(methods, "_lines", warn)
    assert main(["methods"]) == 0
    said = ["refl: warning: of this and that", "refl: warning: \\x1b[31m"]
    assert capsys.readouterr().err.splitlines() == said
    monkeypatch.setattr(methods, "_lines", lambda *_: [*warn(), raising(ReflError("no"))()])
    assert main(["methods"]) == 2
    assert capsys.readouterr().err == "refl: no\n"


@pytest.mark.parametrize("length", [1, 999, 5000, 100_000])
@pytest.mark.parametrize("unit", ["x", "word ", "\x00", "é\n"])
def test_what_a_sentence_quotes_is_bounded_and_printable(unit: str, length: int) -> None:
    said = sentence(f"unknown value {unit * length}: expected another")
    assert said.isprintable() and len(said) <= 1000
    assert said.startswith("unknown value ") and said.endswith(": expected another")
    assert sentence(said) == said == str(ReflError(said))


@pytest.mark.parametrize(
    "arguments",
    [
        ["explain", TEXT, "--target", "x" * 5000],
        ["explain", TEXT, "--method", "x" * 5000],
        ["explain", TEXT, "--seed", "x" * 5000],
        ["explain", TEXT, "--keep", "x" * 5000],
        ["explain", TEXT, "--model", "x" * 5000],
        ["explain", TEXT, "--eps", "x" * 5000],
        ["x" * 5000],
    ],
)
def test_a_long_value_is_not_echoed_whole(arguments: list[str], capsys: Capture) -> None:
    assert main(arguments) == 2
    assert len(capsys.readouterr().err) < 1200


def test_only_what_the_parser_says_ends_quietly(capsys: Capture) -> None:
    with pytest.raises(Said):
        raise Said(2)
    assert exits.ended(raising(Said(2))) == 2
    assert exits.ended(raising(SystemExit(0))) == 2
    assert "SystemExit" in capsys.readouterr().err


# -- as a process ----------------------------------------------------------------------------------


def shell(line: str, **how: Any) -> subprocess.CompletedProcess[str]:
    """A line of sh, in which $refl is the command."""
    environment = os.environ | {"refl": f"{sys.executable} -m refl"}
    return subprocess.run(
        ["sh", "-c", line], check=False, capture_output=True, text=True, timeout=60,
        env=environment, **how,
    )  # fmt: skip


@LINUX
@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("$refl methods >&-", 2, "standard output is closed"),
        ("$refl explain - <&-", 2, "standard input is closed"),
        ("$refl explain --nonsense 2>&-", 2, ""),
        ("$refl methods nonsense 2>&-", 2, ""),
        ("$refl methods nonsense 2>/dev/full", 2, ""),
        ("$refl methods --nonsense 2>/dev/full", 2, ""),
        ("$refl --help >/dev/full", 2, "No space left"),
        ("$refl methods <&- >/dev/null 2>&-", 0, ""),
    ],
)
def test_streams_that_are_closed_or_full(line: str, code: int, said: str) -> None:
    done = shell(line)
    assert done.returncode == code, done
    assert said in done.stderr and done.stderr.count("\n") == bool(said)


@LINUX
@pytest.mark.parametrize("colored", ["", "FORCE_COLOR=1 "], ids=["plain", "colored"])
def test_whoever_read_went_away(colored: str) -> None:
    """Before anything is printed."""
    done = shell(f"({colored}$refl methods attnlrp; echo $? >&2) | true")
    assert done.stderr == f"{exits.NOBODY_READS}\n"


@LINUX
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT", "SIGKILL"])
def test_a_signal_leaves_no_half_file(name: str, tmp_path: Path) -> None:
    """While files of 60 MB are being written."""
    program = (
        "import sys, signal; from refl.cli import exits; from refl.io.files import atomic_write\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup has ignored, and `&` SIGINT\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "def run():\n"
        "    print('ready', flush=True)\n"
        "    while True: atomic_write(sys.argv[1], bytes(30_000_000), bytes(30_000_000))\n"
        "sys.exit(exits.ended(run))"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(0.07)
        process.send_signal(getattr(signal, name))
        try:
            code = process.wait(30)
        finally:
            process.kill()
        assert process.stderr.read() == b""
    assert code == {"SIGTERM": 143, "SIGHUP": 129, "SIGINT": 130, "SIGKILL": -9}[name]
    assert [path.name for path in tmp_path.iterdir()] in ([], ["out"])
