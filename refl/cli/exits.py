"""How a run ends: its exit code, whatever happens. Every exception comes to `ended`, and leaves as
one sentence and exit code 2; a crash never reads as what a check found, which is what 1 says.

    signals     SIGTERM and SIGHUP unwind as an interrupt does, so that no half file stays
    streams     closed ones are held open on the null device, or the next file that is opened would
                take their place and receive what a library prints
    warnings    a line each, after the answer; none beside a refusal

With REFL_TRACEBACK=1 in the environment the traceback stands before the sentence.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import IO, Any

from refl.cli.command import BAD_INPUT, INTERRUPTED, NOBODY_READS, Said
from refl.errors import ReflError, UnknownWords, sentence

PACKAGE = Path(__file__).parents[1]


class Terminated(SystemExit):
    """A signal asked the process to end."""


def ended(run: Callable[[], int]) -> int:
    """The exit code of `run`, or of what it raised."""
    _hold_streams_open()
    if sys.stdout is None:
        return _refuse("standard output is closed: redirect it to /dev/null where nobody reads")
    with _signals(), _warnings() as warned:
        status = _status(run)
    if status not in (BAD_INPUT, INTERRUPTED):
        for message in warned:
            _say(f"warning: {message}")
    try:
        sys.stderr.flush()
    except (OSError, ValueError):  # or Python changes the exit code
        _let_go(sys.stderr)
    return status


def _status(run: Callable[[], int]) -> int:
    try:
        status = _said_or_done(run)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        _let_go(sys.stdout)
        return NOBODY_READS
    except KeyboardInterrupt:
        return INTERRUPTED
    except Terminated as signaled:
        return int(signaled.code or 0)
    except BaseException as error:  # noqa: BLE001 - a panic of a Rust library is no Exception
        if os.environ.get("REFL_TRACEBACK"):
            traceback.print_exception(error)
        return _refuse(_words(error))


def _said_or_done(run: Callable[[], int]) -> int:
    try:
        return run()
    except Said as said:
        return int(said.code or 0)


def _refuse(words: str) -> int:
    _say(words)
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except (OSError, ValueError):  # a full disk: what is left would fail once more at exit
        _let_go(sys.stdout)
    return BAD_INPUT


def _say(words: str) -> None:
    """A line on standard error; the exit code speaks where that is closed or full."""
    try:
        print(f"refl: {sentence(words)}", file=sys.stderr)
        sys.stderr.flush()
    except (OSError, ValueError):
        _let_go(sys.stderr)


# -- in words --------------------------------------------------------------------------------------


def _words(error: BaseException) -> str:
    if isinstance(error, ReflError):
        return _text(error)
    if isinstance(error, MemoryError):
        return (
            "out of memory: try a shorter text, --dtype float32, or fewer sites with --keep "
            f"({_text(error) or 'no more is known'})"
        )
    if isinstance(error, OSError):
        where = "" if error.filename is None else f"{error.filename}: "
        return f"{where}{error.strerror or _text(error) or type(error).__name__}"
    return _fault(error)


def _fault(error: BaseException) -> str:
    """For what nothing here foresaw."""
    said = _text(error)
    kind = type(error).__name__ + (f": {sentence(said, 300)}" if said else "")
    return (
        f"{kind} ({_place(error)}): this is a fault of refl and no result; please report it with "
        "the command and its files (REFL_TRACEBACK=1 shows the way to it)"
    )


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - somebody's class whose text raises
        return ""


def _place(error: BaseException) -> str:
    """The innermost line of refl's that it came through."""
    place = "at start"
    for frame, line in traceback.walk_tb(error.__traceback__):
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(PACKAGE):
            place = f"refl/{path.relative_to(PACKAGE).as_posix()}, line {line}"
    return place


# -- streams ---------------------------------------------------------------------------------------


def _hold_streams_open() -> None:
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - for the rest of the process
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            with suppress(ValueError):  # closed from inside
                stream.reconfigure(errors="backslashreplace")


def _let_go(stream: IO[str]) -> None:
    """What is still buffered must not be flushed into a closed pipe or a full disk at exit."""
    with suppress(OSError, ValueError):  # a stream that is no file has nothing to let go of
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """What is warned of, each once, in place of lines on standard error."""
    found: list[str] = []

    def take_down(message: Any, *_: Any, **__: Any) -> None:
        if str(message) not in found:
            found.append(str(message))

    with warnings.catch_warnings():
        warnings.showwarning = take_down
        warnings.simplefilter("always", UnknownWords)  # they are for the reader, whatever python -W
        yield found


# -- signals ---------------------------------------------------------------------------------------


@contextmanager
def _signals() -> Iterator[None]:
    """Whatever is at work unwinds, and removes what it has half written."""

    def end(number: int, frame: FrameType | None) -> None:
        raise Terminated(128 + number)

    before = {number: signal.getsignal(number) for number in _ENDING}
    ours = [number for number, handler in before.items() if handler is signal.SIG_DFL]
    if threading.current_thread() is not threading.main_thread():
        ours = []  # only the main thread may
    for number in ours:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


_ENDING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
