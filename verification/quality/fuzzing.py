"""What every fuzzer here shares: odd input by the thousand, each try under a guard.

A try is an input and what is done with it. Two ends are right: an answer (which the try may judge),
or a ReflError of one short line. Everything else is a finding: any other exception, Rust panics and
SystemExit included; more than `SECONDS`; more than `MEMORY` bytes beyond what was there before; in
a child process also its death. Try number i of a seed is always the same one.

A fuzzer is a table of kinds, each a function that draws a try from a random generator:

    KINDS = {"oracle": oracle_file, "toml": composite}

    def oracle_file(random: Random) -> Try: ...

    if __name__ == "__main__":
        sys.exit(fuzz(__doc__, KINDS))
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from types import FrameType
from typing import Any, TypeAlias

from refl.errors import ReflError

SECONDS = 20.0
"""What one try may take."""

MEMORY = 2 << 30
"""Bytes of address space that one try may add."""

LONGEST = 1000
"""Characters of a sentence that somebody reads."""

REFUSED, ANSWERED, FOUND = "refused", "answered", "found"


@dataclass(frozen=True)
class Try:
    """An input, and what is done with it."""

    what: str
    """The input, for whoever reads the finding."""
    run: Callable[[], Any]
    wrong: Callable[[Any], str] = lambda answer: ""
    """What is wrong with the answer of `run`; "" where nothing is."""
    alone: bool = False
    """In a child process: for what could kill this one, or hang outside Python."""
    seconds: float = SECONDS
    """More, for what may be answered and takes its time."""


Draw: TypeAlias = Callable[[Random], Try]


@dataclass(frozen=True)
class Finding:
    kind: str
    number: int
    what: str
    said: str

    def __str__(self) -> str:
        return f"FOUND  {self.kind}, try {self.number}: {self.what}\n       {self.said}"


@dataclass
class Result:
    """How many tries ended how, and what was found."""

    counts: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)

    @property
    def tries(self) -> int:
        return self.counts.total()

    def __str__(self) -> str:
        refused, answered = self.counts[REFUSED], self.counts[ANSWERED]
        return (
            f"{self.tries} tries: {refused} refused, {answered} answered, "
            f"{len(self.findings)} findings"
        )


def run(
    kinds: Mapping[str, Draw],
    tries: int,
    seed: int = 0,
    *,
    start: int = 0,
    seconds: float = float("inf"),
    told: Callable[[Finding], None] = lambda finding: None,
) -> Result:
    """`tries` tries from number `start` on, the kinds in turn, for at most `seconds` in all; `told`
    of each finding.
    """
    result, names, end = Result(), list(kinds), time.monotonic() + seconds
    for number in range(start, start + tries):
        if time.monotonic() > end:
            break
        kind = names[number % len(names)]
        one = kinds[kind](Random(f"{seed}/{kind}/{number}"))
        ended, said = ended_alone(one) if one.alone else ended_here(one)
        result.counts[ended] += 1
        if ended == FOUND:
            result.findings.append(Finding(kind, number, one.what, said))
            told(result.findings[-1])
    return result


# -- one try ---------------------------------------------------------------------------------------


class TooLong(BaseException):
    """A try took longer than it may."""


def ended_here(one: Try) -> tuple[str, str]:
    """How a try ended, REFUSED, ANSWERED or FOUND, and what was said; in this process."""
    try:
        with guarded(one.seconds):
            wrong = one.wrong(one.run())
    except ReflError as error:
        said = str(error)
        reason = no_sentence(said)
        return (FOUND, f"{reason}: {said[:LONGEST]!r}") if reason else (REFUSED, said)
    except TooLong:
        return FOUND, f"took more than {one.seconds:g} s"
    except KeyboardInterrupt:  # whoever runs this wants it to end
        raise
    except BaseException as error:  # noqa: BLE001 - a panic of a Rust library is no Exception
        return FOUND, f"{type(error).__name__}: {_text(error)[:300]} ({_where(error)})"
    return (FOUND, wrong) if wrong else (ANSWERED, "")


def no_sentence(said: str) -> str:
    """Why a refusal is no sentence for a terminal; "" where it is one."""
    if not said.strip():
        return "says nothing"
    if len(said) > LONGEST:
        return f"says {len(said)} characters"
    if not said.isprintable():
        return "is not one printable line"
    return ""


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as another:  # noqa: BLE001 - whatever a hostile __str__ raises
        return f"(its text raises {type(another).__name__})"


def _where(error: BaseException) -> str:
    """The line that raised it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return "nowhere"
    return f"{os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}"


def ended_alone(one: Try) -> tuple[str, str]:
    """The same in a child process, whose death or hanging is a finding too."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        _tell(write, one)
    os.close(write)
    with os.fdopen(read, "rb", buffering=0) as answer:
        said = _read_all(answer.fileno(), time.monotonic() + one.seconds + 5)
    if said is None:
        os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if said is None:
        return FOUND, f"hangs: more than {one.seconds:g} s, and deaf to its alarm"
    if status or not said:
        return FOUND, f"the process died: {_end(status)}"
    ended, words = json.loads(said)
    return ended, words


def _tell(write: int, one: Try) -> None:
    """In the child: the end of the try, into the pipe. Never returns."""
    try:
        os.write(write, json.dumps(ended_here(one)).encode())
    finally:
        os._exit(0)


def _read_all(file: int, end: float) -> bytes | None:
    """What is written until the other side closes; None where that lasts beyond `end`."""
    said = b""
    while select.select([file], [], [], max(end - time.monotonic(), 0))[0]:
        chunk = os.read(file, 1 << 16)
        if not chunk:
            return said
        said += chunk
    return None


def _end(status: int) -> str:
    return signal.Signals(-status).name if status < 0 else f"exit code {status}"


# -- the guard -------------------------------------------------------------------------------------


@contextlib.contextmanager
def guarded(seconds: float = SECONDS, memory: int = MEMORY) -> Iterator[None]:
    """Within it Python code that takes longer raises TooLong, and memory beyond the limit
    MemoryError. The limit on memory needs Linux.
    """

    def ring(number: int, frame: FrameType | None) -> None:
        raise TooLong

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        with _limited(memory):
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def _limited(memory: int) -> Iterator[None]:
    """At most `memory` bytes of address space beyond those in use."""
    used = _address_space()
    if used is None:
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = used + memory
    resource.setrlimit(resource.RLIMIT_AS, (most if hard < 0 else min(most, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _address_space() -> int | None:
    """Bytes of address space in use; None where the system does not say."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[0]) * os.sysconf("SC_PAGESIZE")
    except OSError:
        return None


# -- the command -----------------------------------------------------------------------------------


def fuzz(about: str | None, kinds: Mapping[str, Draw], argv: Sequence[str] | None = None) -> int:
    """The command line of a fuzzer: one line for each finding, one for all; exit code 1 where there
    are findings.
    """
    args = _parser(about, kinds).parse_args(argv)
    chosen = {name: kinds[name] for name in args.kind or kinds}
    began = time.monotonic()
    result = run(
        chosen,
        args.tries,
        args.seed,
        start=args.start,
        seconds=args.seconds,
        told=lambda finding: print(finding, flush=True),
    )
    print(f"{result} in {time.monotonic() - began:.1f} s (seed {args.seed})")
    return 1 if result.findings else 0


def _parser(about: str | None, kinds: Mapping[str, Draw]) -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--tries", type=int, default=1000, metavar="N", help="default: %(default)s")
    p.add_argument("--seed", type=int, default=0, metavar="S", help="default: %(default)s")
    p.add_argument(
        "--start", type=int, default=0, metavar="I", help="the number of the first try (default: 0)"
    )
    p.add_argument(
        "--seconds",
        type=float,
        default=float("inf"),
        metavar="T",
        help="end after so long (default: never)",
    )
    p.add_argument("--kind", nargs="+", choices=list(kinds), help="only these (default: all)")
    return p
