"""Odd command lines: options drawn from the parser itself, with odd values, files and streams.

    python -m refl.verification.quality.fuzz_command_line --tries 3000 --seed 1

    inside      in this process, with streams of its own
    process     as a process, with closed, full and broken streams, and signals while it works

What must hold: the exit code is 0, 2, 1 from a command that checks, or that of a signal; with 2
comes one sentence on standard error, with 0 and 1 none but warnings; no file that was there before
is changed but one named as an output and read as nothing; nothing half written stays; and what is
refused takes neither long nor much memory. Exit code 1 where something is found.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random

import refl
from refl.cli import _parser, files, main
from refl.model import SHIPPED
from refl.verification.quality.fuzz_files import room
from refl.verification.quality.fuzzing import LONGEST, SECONDS, Try, fuzz
from refl.verification.vectors import __path__ as vectors

CHECKS = ("verify", "compare", "conform", "learn")
"""The commands that may end with exit code 1."""

ADAPTER = "def linear_epsilon(x, w, b, r, *, eps):\n    return x\n"
COMPOSITE = 'base = "attnlrp"\n[[rule]]\noperation = "linear"\nrule = "gamma"\ngamma = 0.25\n'


# -- a folder of inputs ----------------------------------------------------------------------------


@functools.cache
def inputs() -> Path:
    """A folder with one of each file that a command reads, and some that none can."""
    place = room() / "inputs"
    place.mkdir()
    copies = {
        "model": SHIPPED,
        "vit": _vectors("vit"),
        "t5": _vectors("t5"),
        "bert": _vectors("bert"),
    }
    for name, folder in copies.items():
        shutil.copytree(folder, place / name, ignore=shutil.ignore_patterns("expected*"))
    (place / "snapshot").mkdir()
    for file in (place / "model").iterdir():
        (place / "snapshot" / file.name).symlink_to(Path("..", "model", file.name))
    (place / "empty").mkdir()
    model = refl.load()
    model.explain("the keys", keep=("*.mlp",)).save(place / "a.safetensors")
    model.explain("the keys", "cp-lrp", keep=("*.mlp",)).save(place / "b.safetensors")
    os.link(place / "a.safetensors", place / "hard.safetensors")
    (place / "a.html").write_bytes((place / "a.safetensors").read_bytes())
    for name, words in {
        "ad.py": ADAPTER,
        "m.toml": COMPOSITE,
        "words.txt": "the keys",
        "nothing": "",
    }.items():
        (place / name).write_text(words)
    (place / "exits.py").write_text(f"import sys\nsys.exit(0)\n{ADAPTER}")
    (place / "picture.png").write_bytes(_picture())
    (place / "read-only").write_text("old")
    (place / "read-only").chmod(0o444)
    (place / "loop").symlink_to("loop")
    (place / "dangling").symlink_to("absent/out")
    os.mkfifo(place / "fifo")
    return place


def _vectors(kind: str) -> Path:
    return Path(next(iter(vectors)), "models", kind)


def _picture() -> bytes:
    from PIL import Image

    target = io.BytesIO()
    Image.new("RGB", (12, 8), (200, 10, 90)).save(target, "PNG")
    return target.getvalue()


def state(place: Path) -> dict[str, tuple[int, ...]]:
    """Every file in the folder, by what changes when it is written to."""
    found = ((path, path.stat()) for path in sorted(place.rglob("*")) if path.is_file())
    return {
        str(path.relative_to(place)): (f.st_ino, f.st_size, f.st_mtime_ns, f.st_mode)
        for path, f in found
    }


@functools.cache
def at_first() -> dict[str, bytes]:
    """What every file of the inputs holds."""
    return {name: (inputs() / name).read_bytes() for name in state(inputs())}


def restore(changed: set[str]) -> None:
    """These files as they were at first; a link stays one."""
    for path in (inputs() / name for name in sorted(changed)):
        if path.is_symlink():
            continue
        path.unlink(missing_ok=True)
        path.write_bytes(at_first()[str(path.relative_to(inputs()))])
    if changed & {"a.safetensors", "hard.safetensors"}:
        (inputs() / "hard.safetensors").unlink(missing_ok=True)
        os.link(inputs() / "a.safetensors", inputs() / "hard.safetensors")
    (inputs() / "read-only").chmod(0o444)


# -- a command line --------------------------------------------------------------------------------

TEXTS = [
    "the keys to the cabinet", "", " ", "-", "are", "is", "zzzz", "the " * 600, "\x1b[31mred\n",
    "é\u202e", "\udcff", "x" * 5000, "a\0b", "--", "picture.png", "0", "-1",
]  # fmt: skip
FILES = [
    "a.safetensors", "b.safetensors", "hard.safetensors", "model", "snapshot", "vit", "t5", "bert",
    "empty", "ad.py", "ad", "exits.py", "m.toml", "words.txt", "picture.png", "nothing", "fifo",
    "loop", "dangling", "absent", "a.safetensors/x", ".", "", "/dev/null", "/dev/zero",
    "/dev/stdin", "model/config.json", "x" * 300, "x" * 5000, "a\0b", "\udcff", "\x1b[31m", "-",
]  # fmt: skip
OUTPUTS = [
    "out", "out.html", "out.safetensors", "out.png", "out.xml", "a.html", "other", "OUT",
    "model/model.safetensors", "snapshot/model.safetensors", "snapshot/new.json", "read-only",
    "/dev/full", "/dev/stdout", *FILES,
]  # fmt: skip
NUMBERS = [
    "0", "1", "-1", "2", "5", "17", "99999", "4.7", "1e400", "nan", "x", "٣", "0x10", "1e-6",
    "inf", "-inf", "1e39", "True", "", str(10**30), "1" * 5000,
]  # fmt: skip
LIKELY = {
    "model": ["model", "model", "snapshot"], "folder": ["model"], "a": ["a.safetensors", "a.html"],
    "b": ["b.safetensors"], "adapter": ["ad.py"], "method": ["attnlrp", "cp-lrp", "m.toml"],
    "text": ["the keys", "the"], "target": ["are"], "rule": ["linear_epsilon"], "only": ["8"],
    "keep": ["*.mlp"], "at": ["model.layers.1.mlp"], "ids": ["2"], "name": ["attnlrp"],
    "number": ["1", "3"],
}  # fmt: skip
"""Values that are right, for a good part of the lines."""


def line(random: Random) -> list[str]:
    """A command with some of its options, mostly with values that are right."""
    commands = _commands()
    if random.random() < 0.03:
        return random.choice([[], ["--help"], ["--version"], ["nonsense"], [""], ["-"], ["--"]])
    name = random.choice(sorted(commands))
    words: list[str] = []
    actions = [a for a in commands[name]._actions if a.dest != "help"]
    for action in random.sample(actions, len(actions)):
        if random.random() < _wanted(action):
            words += _option(random, action)
    words += _bounded(random, name, words)
    if random.random() < 0.05:
        words.insert(
            random.randrange(len(words) + 1), random.choice(["--nonsense", "--", "-h", "--meth"])
        )
    return [name, *words]


@functools.cache
def _commands() -> dict[str, argparse.ArgumentParser]:
    several = (a for a in _parser()._actions if isinstance(a, argparse._SubParsersAction))
    return {name: parser for action in several for name, parser in action.choices.items()}


def _wanted(action: argparse.Action) -> float:
    if not action.option_strings or action.required:
        return 0.95
    return 0.3 if action.type is files.output else 0.12


def _option(random: Random, action: argparse.Action) -> list[str]:
    several = {"+": random.choice([1, 1, 2, 5]), "?": 1, None: 1}
    count = action.nargs if isinstance(action.nargs, int) else several[action.nargs]
    flag = [random.choice(action.option_strings)] if action.option_strings else []
    return flag + [_value(random, action) for _ in range(count)]


def _value(random: Random, action: argparse.Action) -> str:
    if action.dest == "only":  # the others take longer than a try may
        return random.choice(["3", "8", "12", "0", "13", "x"])
    if action.choices is not None and random.random() < 0.8:
        return str(random.choice(list(action.choices)))
    if action.type is files.output:
        return random.choice(OUTPUTS if random.random() < 0.5 else ["out", "a.html"])
    if action.dest in LIKELY and random.random() < 0.7:
        return random.choice(LIKELY[action.dest])
    if action.type in (int, float):
        return random.choice(NUMBERS)
    pool = (
        FILES if isinstance(action.type, type) and issubclass(action.type, files.Source) else TEXTS
    )
    return random.choice(pool if random.random() < 0.7 else [*TEXTS, *FILES, *NUMBERS])


def _bounded(random: Random, name: str, words: list[str]) -> list[str]:
    """What keeps a check short."""
    if name == "verify" and "--only" not in words:
        return ["--only", random.choice(["3", "8", "12"])]
    if name == "conform" and "--rule" not in words:
        return ["--rule", "linear_epsilon"]
    if name == "switch":  # 200 sentences where nobody says otherwise; what stands last counts
        return ["--limit", "2", "--draws", "1"]
    return []


# -- in this process -------------------------------------------------------------------------------


@dataclass(frozen=True)
class End:
    """How a run ended."""

    arguments: list[str]
    code: int
    out: str
    err: str
    before: dict[str, tuple[int, ...]]
    """The folder of inputs."""


def inside(random: Random) -> Try:
    arguments, stdin = line(random), random.choice([b"the keys\n", b"", b"\xff", b"the " * 9000])
    check = bool(arguments) and arguments[0] in CHECKS  # whose answer may take a minute
    seconds = 5 * SECONDS if check else SECONDS
    return Try(_told(arguments), lambda: _run(arguments, stdin), _wrong, seconds=seconds)


def _told(arguments: list[str]) -> str:
    return " ".join(repr(word[:60]) for word in arguments)[:600]


def _run(arguments: list[str], stdin: bytes) -> End:
    before, path, folder = (sys.stdin, sys.stdout, sys.stderr), list(sys.path), os.getcwd()
    streams = [io.TextIOWrapper(io.BytesIO(b), encoding="utf-8") for b in (stdin, b"", b"")]
    os.chdir(inputs())
    at_first()
    files_before = state(inputs())
    try:
        sys.stdin, sys.stdout, sys.stderr = streams
        code = main(arguments)
    finally:
        sys.stdin, sys.stdout, sys.stderr = before
        sys.path[:] = path
        os.chdir(folder)
    out, err = (_read_back(stream) for stream in streams[1:])
    return End(arguments, code, out, err, files_before)


def _read_back(stream: io.TextIOWrapper) -> str:
    stream.flush()
    data = stream.buffer.getvalue()  # type: ignore[attr-defined]
    return str(data, "utf-8", "backslashreplace")


def _wrong(end: End) -> str:
    return _wrong_end(end) or _wrong_files(end)


def _wrong_end(end: End) -> str:
    lines = end.err.splitlines()
    if end.code == 1 and (not end.arguments or end.arguments[0] not in CHECKS):
        return f"exit code 1, which says that a check found something: {end.err[:300]}"
    if end.code not in (0, 1, 2):
        return f"exit code {end.code}: {end.err[:300]}"
    if end.code == 2:
        return _wrong_refusal(end, lines)
    if any(not said.startswith("refl: warning: ") for said in lines):
        return f"exit code {end.code} and on standard error: {end.err[:300]}"
    if not all(c.isprintable() or c == "\n" for c in end.out):
        return "control characters on standard output"
    return ""


def _wrong_refusal(end: End, lines: list[str]) -> str:
    if len(lines) != 1 or not end.err.endswith("\n"):
        return f"exit code 2 and {len(lines)} lines on standard error: {end.err[:300]}"
    if not lines[0].startswith("refl") or not lines[0].isprintable():
        return f"no sentence: {end.err[:300]!r}"
    if len(lines[0]) > LONGEST + 100:
        return f"a sentence of {len(lines[0])} characters"
    if "a fault of refl" in end.err or "out of memory" in end.err:
        return end.err[:400].strip()
    return f"a refusal that prints {end.out[:100]!r}" if end.out else ""


def _wrong_files(end: End) -> str:
    """What is wrong with the folder of inputs, which is as it was afterwards."""
    now, before = state(inputs()), end.before
    changed = {name for name in before if now.get(name) != before[name]}
    left = [path.name for path in inputs().rglob(".refl-*")]
    for name in set(now) - set(before):
        (inputs() / name).unlink(missing_ok=True)
    if changed:
        wrong = _read_or_unnamed(changed, end)
        restore(changed)
        return wrong
    return f"{left[0]} stays" if left else ""


_WRITES = ("--html", "--save", "--png", "--junit", "--out")


def _read_or_unnamed(changed: set[str], end: End) -> str:
    """What of the files that changed was read, or named by no output; "" where none."""
    words = list(zip(["", *end.arguments], end.arguments, strict=False))
    outputs = {_place(word) for flag, word in words if flag in _WRITES}
    sources = {_place(word) for flag, word in words if flag not in _WRITES}
    sources |= {f"{name}.py" for name in sources}
    for name in sorted(changed):
        place = _place(name)
        if end.code == 2:
            return f"{name} changed by a command that refuses"
        if place not in outputs and name != "hard.safetensors":
            return f"{name} changed, which no output names"
        if place in sources or os.path.dirname(place) in sources:
            return f"{name} changed: an output destroyed an input"
    return ""


def _place(word: str) -> str:
    return os.path.realpath(inputs() / word) if "\0" not in word else ""


# -- as a process ----------------------------------------------------------------------------------

PROGRAM = (
    "import os, sys; sys.modules['torch'] = None; from refl.cli import main; "
    "os.write(int(sys.argv[1]), b'.'); "
    "os.close(int(sys.argv[1])); sys.exit(main(sys.argv[2:]))"
)
STREAMS = ["pipe", "pipe", "closed", "/dev/null", "/dev/full", "broken"]


def process(random: Random) -> Try:
    arguments = [word.replace("\0", "") for word in line(random)]
    streams = [random.choice(STREAMS[:4]), random.choice(STREAMS), random.choice(STREAMS)]
    number = random.choice([None, None, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
    after = random.choice([0.0, 0.05, 0.2, 0.5])
    what = f"{_told(arguments)} <{streams[0]} >{streams[1]} 2>{streams[2]}"
    how = "" if number is None else f", {signal.Signals(number).name} after {after} s"
    return Try(
        what + how,
        lambda: _spawned(arguments, streams, number, after),
        lambda end: _wrong_process(end, streams, number),
    )


def _spawned(arguments: list[str], streams: list[str], number: int | None, after: float) -> End:
    at_first()
    before = state(inputs())
    ready, tell = os.pipe()
    words = [w.encode("utf-8", "surrogateescape") for w in (PROGRAM, str(tell), *arguments)]
    with contextlib.ExitStack() as stack:
        pipes = [_stream(i, kind, stack) for i, kind in enumerate(streams)]
        closed = [i for i, kind in enumerate(streams) if kind == "closed"]
        process = subprocess.Popen(
            [sys.executable.encode(), b"-c", *words],
            stdin=pipes[0],
            stdout=pipes[1],
            stderr=pipes[2],
            pass_fds=[tell],
            cwd=inputs(),
            env=os.environ | {"PYTHONPATH": _root()},
            preexec_fn=lambda: _close(closed),  # noqa: PLW1509 - there is one thread
        )
    os.close(tell)
    select.select([ready], [], [], 20)
    os.close(ready)
    if number is not None:
        time.sleep(after)
        process.send_signal(number)
    out, err = process.communicate(timeout=60)
    return End(arguments, process.returncode, _decoded(out), _decoded(err), before)


def _close(numbers: list[int]) -> None:
    for number in numbers:
        os.close(number)


def _root() -> str:
    """Where the package that is running lies."""
    return str(Path(refl.__file__).parents[1])


def _stream(i: int, kind: str, stack: contextlib.ExitStack) -> int:
    if kind in ("pipe", "closed"):
        return subprocess.PIPE if kind == "pipe" and i else subprocess.DEVNULL
    if kind == "broken":
        read, write = os.pipe()
        os.close(read)
        stack.callback(os.close, write)
        return write
    return stack.enter_context(open(kind, "r" if i == 0 else "w")).fileno()


def _decoded(data: bytes | None) -> str:
    return "" if data is None else data.decode("utf-8", "backslashreplace")


def _wrong_process(end: End, streams: list[str], number: int | None) -> str:
    # before refl has begun and after it has ended a signal does what it does to any Python program
    ended_by = {} if number is None else {-number, 128 + number}
    if end.code in ended_by or (number is not None and "KeyboardInterrupt" in end.err):
        return _wrong_files(end)
    if end.code == 141 and "broken" in streams:
        return _wrong_files(end)
    if end.code == 2 and streams[2] != "pipe":
        return _wrong_files(end)
    return _wrong_end(end) or _wrong_files(end)


KINDS = {"inside": inside, "process": process}


if __name__ == "__main__":
    sys.modules["torch"] = None  # type: ignore[assignment]  # to load it takes longer than a try
    sys.exit(fuzz(__doc__, KINDS))
