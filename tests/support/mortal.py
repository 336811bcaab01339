"""Work that can be handed to another process, and workers that die of it: a process started afresh
imports this by its name.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any


def square(x: int) -> int:
    return x * x


def where(_: int) -> tuple[int, int]:
    """The process, and the threads that BLAS would use in it."""
    from threadpoolctl import threadpool_info

    import refl  # noqa: F401 - loads what there is of BLAS

    counts = [one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"]
    return os.getpid(), max(counts)


def killed_once(x: int, deadly: int, marker: str) -> int:
    """The worker that first meets `deadly` is killed."""
    if x == deadly and not Path(marker).exists():
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return x * x


def killed_always(x: int, deadly: int) -> int:
    if x == deadly:
        time.sleep(0.2)  # others finish theirs
        os.kill(os.getpid(), signal.SIGKILL)
    return x * x


def killing(opened: Any, further: Any, part: Any) -> bytes:
    """A shard of a corpus, whose worker is killed once at `line`, or always where the marker is
    never made.
    """
    from refl.evaluation import corpus

    how, line, marker, once = further
    if any(one.number == line for one in part) and not (once and Path(marker).exists()):
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return corpus.explained(opened, how, part)
