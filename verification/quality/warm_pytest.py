"""pytest many times, each run in a process of its own that starts with what every run imports.

A process of this file imports NumPy, pytest and the like once and nothing of refl. For each line on
its standard input (JSON: folder, environment, arguments, output) it forks, and the child runs
pytest there; the parent answers with its exit status, a line each.

    python warm_pytest.py
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self


class WarmPytest:
    """Runs pytest, one run at a time."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},  # threads do not survive a fork
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def run(
        self, folder: Path, environment: Mapping[str, str], arguments: Sequence[str]
    ) -> subprocess.CompletedProcess[str]:
        """pytest with these arguments in a folder whose modules come first; what it printed on both
        streams is `stdout`. Raises RuntimeError where the process is gone.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        with tempfile.NamedTemporaryFile("r", suffix=".txt", encoding="utf-8") as output:
            asked = {
                "folder": str(folder),
                "environment": dict(environment),
                "arguments": list(arguments),
                "output": output.name,
            }
            print(json.dumps(asked), file=self.process.stdin, flush=True)
            answer = self.process.stdout.readline()
            if not answer:
                raise RuntimeError("the process that runs pytest has ended")
            return subprocess.CompletedProcess(list(arguments), int(answer), output.read(), "")


# -- the process -----------------------------------------------------------------------------------


def serve() -> None:
    """A run for each line."""
    import array_api_strict  # noqa: F401
    import mpmath  # noqa: F401
    import numpy  # noqa: F401
    import pytest  # noqa: F401
    import rich.table  # noqa: F401
    import safetensors  # noqa: F401
    import threadpoolctl  # noqa: F401
    import tokenizers  # noqa: F401

    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _run(json.loads(line))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _run(asked: dict[str, object]) -> None:
    """In the child, which ends with it."""
    import pytest

    stream = os.open(str(asked["output"]), os.O_WRONLY)
    for number in (1, 2):
        os.dup2(stream, number)
    folder, environment, arguments = (asked[k] for k in ("folder", "environment", "arguments"))
    assert isinstance(environment, dict) and isinstance(arguments, list)
    os.environ.update(environment)
    os.chdir(str(folder))
    sys.path[0] = str(folder)
    sys.dont_write_bytecode = True
    status = 3
    try:
        status = int(pytest.main(arguments))
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


if __name__ == "__main__":
    serve()
