"""A tokenizer of unknown origin, run in a process of its own.

The tokenizers library is Rust behind Python: a file can make it panic, overflow the stack, or take
minutes and gigabytes over a short text, and none of that can be stopped within a process. So the
file is read, and every text encoded, by a child with limits; only a file that the child could read
is read here too, for its vocabulary. The child costs a tenth of a second, once.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any

import tokenizers

from refl.errors import ReflError, shown

SECONDS = 8.0
"""For reading the file, and for each text."""

MEMORY = 1536 << 20
"""Bytes that the child may hold, beside four times the file."""

_SCRIPT = Path(__file__).with_name("tokenizer_child.py")
_QUIET = {
    "RAYON_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "MALLOC_ARENA_MAX": "1",  # an arena for each thread is address space, of which there is little
    "RUST_BACKTRACE": "0",
}


class TokenizerProcess:
    """Answers for a tokenizer.json, given as bytes: started when first asked, and again
    after a fork, a copy, or a death.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._lock = threading.Lock()
        self._child: _Child | None = None

    def start(self) -> None:
        """Raises ReflError where the file cannot be read."""
        with self._lock:
            self._running()

    def ask(self, *question: Any) -> Any:
        """The answer to a question of tokenizer_child. Raises ReflError where there is none."""
        with self._lock:
            child = self._running()
            try:
                return child.ask(json.dumps(question).encode() + b"\n")
            except _Dead:
                self._child = None
                raise

    def _running(self) -> _Child:
        if self._child is None or self._child.owner != os.getpid():
            self._child = None
            self._child = _Child(self._data)
        return self._child

    def __getstate__(self) -> dict[str, Any]:
        return {"_data": self._data}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["_data"])  # type: ignore[misc]


class _Dead(ReflError):
    """The child did not live to answer."""


class _Child:
    def __init__(self, data: bytes) -> None:
        self.owner = os.getpid()
        place = str(Path(tokenizers.__file__).resolve().parent.parent)
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_SCRIPT), place, str(MEMORY + 4 * len(data))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # where a panic tells its story
            env=os.environ | _QUIET,
        )
        self._answers: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        reading = threading.Thread(
            target=_read, args=(self._process.stdout, self._answers), daemon=True
        )
        reading.start()
        weakref.finalize(self, _end, self._process, self.owner)
        self.ask(len(data).to_bytes(8, "little") + data)

    def ask(self, question: bytes) -> Any:
        """Raises ReflError for an answer that is an error, _Dead where there is none."""
        writing = threading.Thread(
            target=_write, args=(self._process.stdin, question), daemon=True
        )  # a child that hangs reads nothing
        writing.start()
        try:
            line = self._answers.get(timeout=SECONDS)
        except queue.Empty:
            _end(self._process, self.owner)
            raise _Dead(f"it takes more than {SECONDS:g} s") from None
        if not line:
            self._process.wait()
            raise _Dead("it needs more memory or depth than it may have, or ends its process")
        kind, what = json.loads(line)
        if kind == "error":
            raise ReflError(shown(what))
        return what


def _read(stream: Any, answers: queue.SimpleQueue[bytes]) -> None:
    with suppress(OSError, ValueError):
        for line in stream:
            answers.put(line)
    answers.put(b"")


def _write(stream: Any, data: bytes) -> None:
    with suppress(OSError, ValueError):  # the reader's silence says it
        stream.write(data)
        stream.flush()


def _end(process: subprocess.Popen[bytes], owner: int) -> None:
    if os.getpid() != owner:  # a fork of the one that started it
        return
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        with suppress(OSError, ValueError):
            stream.close()  # type: ignore[union-attr]
