"""The runner in a process of its own, for what an adapter can do that no `except` stops: os._exit,
a crash, prints of libraries in C, a loop without end. Then there is no report, and it is said which
rule it was.

The child's standard output has one line of JSON for each rule that is begun, and one for the
whole report, written out as lines, JSON, HTML and JUnit XML; what the adapter prints goes to
standard error.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import refl
from refl.errors import ReflError

Progress = Callable[[str, int, int], object]

_PROGRAM = (
    "import json, sys; asked = json.loads(sys.stdin.readline()); "
    "sys.path[:] = [asked['home'], *asked['path']]; import refl; sys.path[:] = asked['path']; "
    "from refl.verification.conformance import child; child.serve(asked)"
)
"""The refl of the parent comes first: a clone in the folder at hand is called so, too."""


# -- the parent ------------------------------------------------------------------------------------


def run(asked: dict[str, Any], progress: Progress, seconds: float) -> dict[str, Any]:
    """The report in every form. asked: adapter, rule, width, all. Raises ReflError for
    what the runner refuses, and where the adapter ended the process or took too long.

    seconds    for the import, and for each rule or model
    """
    at = "while it was imported"
    with _process(asked) as process, _Limit(process.kill, seconds) as limit:
        for line in process.stdout or ():
            limit.start_again()
            said = json.loads(line)
            if "refused" in said:
                raise ReflError(said["refused"])
            if "report" in said:
                return dict(said["report"])
            at = f"in {said['at'][0]}"
            progress(*said["at"])
        code = process.wait()
    if limit.passed:
        raise ReflError(
            f"the adapter took more than {seconds:g} s {at}: there is no report; --seconds allows "
            "more"
        )
    raise ReflError(f"the adapter ended the process {_how(code)} {at}: there is no report")


class _Limit:
    """Calls `end` once so many seconds have passed since it was started (again)."""

    def __init__(self, end: Callable[[], None], seconds: float) -> None:
        self.passed = False
        self._end, self._seconds = end, seconds
        self._timer: threading.Timer | None = None

    def __enter__(self) -> Self:
        self.start_again()
        return self

    def __exit__(self, *_: object) -> None:
        self._cancel()

    def start_again(self) -> None:
        self._cancel()
        self._timer = threading.Timer(self._seconds, self._pass)
        self._timer.daemon = True
        self._timer.start()

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _pass(self) -> None:
        self.passed = True
        self._end()


@contextmanager
def _process(asked: dict[str, Any]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", _PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=_errors(),
        text=True,
        encoding="utf-8",
    )
    try:
        assert process.stdin is not None
        with process.stdin as requests:
            home = str(Path(refl.__file__).parent.parent)
            requests.write(json.dumps({"home": home, "path": sys.path, **asked}) + "\n")
        yield process
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _errors() -> int | None:
    """Nowhere, where standard error is closed: a file that is opened would get its number."""
    try:
        os.fstat(2)
    except OSError:
        return subprocess.DEVNULL
    return None


def _how(code: int) -> str:
    if code >= 0:
        return f"with exit code {code}"
    known = {s.value: s.name for s in signal.Signals}
    return f"by signal {-code} ({known.get(-code, 'unknown')})"


# -- the child -------------------------------------------------------------------------------------


def serve(asked: dict[str, Any]) -> None:
    """Answers the parent, and ends at once: nothing that the adapter left running is waited for."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)

        def say(**what: Any) -> None:
            answers.write(json.dumps(what) + "\n")
            answers.flush()

        try:
            say(report=_report(asked, lambda *at: say(at=at)))
        except ReflError as reason:
            say(refused=str(reason))
        except KeyboardInterrupt:
            os._exit(130)
    sys.stderr.flush()
    os._exit(0)


def _report(asked: dict[str, Any], progress: Progress) -> dict[str, Any]:
    from refl.verification.conformance import runner

    found = runner.run(asked["adapter"], asked["rule"], progress=progress)
    return in_every_form(found, asked["width"], asked["all"])


def in_every_form(found: Any, width: int, every: bool) -> dict[str, Any]:
    """A report in every form."""
    from refl.verification.conformance import formats, report

    return {
        "failed": found.failed,
        "partly": found.partly,
        "lines": report.lines(found, width, every),
        "json": formats.as_dict(found),
        "html": formats.html(found),
        "junit": formats.junit(found).decode("utf-8"),
    }
