"""What the benchmarks share: a checkpoint of random numbers, time, peak memory in a process of its
own, and the machine in words.

Peak memory is resident memory as the operating system counts it (VmHWM of /proc on Linux, ru_maxrss
elsewhere): the peak of the run, and how far that is above what the process held before.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)

# -- the command line ------------------------------------------------------------------------------


def parser(name: str, doc: str | None, sizes: Mapping[str, int]) -> argparse.ArgumentParser:
    """For `python -m refl.verification.quality.NAME`, with options that are whole numbers."""
    p = argparse.ArgumentParser(prog=_module(name), description=(doc or "").partition("\n\n")[0])
    for size, default in sizes.items():
        p.add_argument(f"--{size}", type=int, default=default, help=f"default {default}")
    p.add_argument("--folder", help=argparse.SUPPRESS)
    return p


def _module(name: str) -> str:
    return f"python -m refl.verification.quality.{name}"


def limit_threads(threads: int) -> None:
    """Linear algebra libraries read these once, when they are loaded."""
    if "numpy" in sys.modules:
        print(
            "NumPy was imported before the number of threads was set: its own setting stands",
            file=sys.stderr,
        )
    os.environ.update({name: str(threads) for name in THREAD_VARIABLES})


def in_a_process(name: str, *options: object) -> Any:
    """What the benchmark of this name prints as JSON, run anew;
    the last line of the error where it fails.
    """
    command = [sys.executable, *_module(name).split()[1:], *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["?"])[-1]
    return json.loads(done.stdout)


# -- the model -------------------------------------------------------------------------------------


def write_checkpoint(
    folder: Path, net: Any, raw: dict[str, Any], scale: Callable[[str, tuple[int, ...]], float]
) -> int:
    """Random numbers, those of matrices times `scale(name, shape)`; how many there are."""
    import numpy as np

    from refl.io.safetensors import write_safetensors
    from refl.nets.config import parse

    (folder / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    draw = np.random.default_rng(0)

    def tensor(name: str, shape: tuple[int, ...]) -> Any:
        noise = draw.standard_normal(shape, dtype=np.float32)
        return 1 + noise / 10 if len(shape) == 1 else noise * np.float32(scale(name, shape))

    shapes = net.shapes(parse(net.Config, raw))
    tensors = {name: tensor(name, shape) for name, shape, _ in shapes}
    write_safetensors(folder / "model.safetensors", tensors, {"format": "pt"})
    return int(sum(t.size for t in tensors.values()))


def ids_of(tokens: int, vocabulary: int) -> list[int]:
    return [(7919 * i + 13) % vocabulary for i in range(tokens)]


# -- time and memory -------------------------------------------------------------------------------


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    result = run()
    return result, time.perf_counter() - start


def peak_of(run: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """What it returns, and its peak in MiB."""
    before = _forget_peak()
    result = run()
    peak = _resident("VmHWM")
    return result, {"peak": peak, "rise": peak - before}


def _forget_peak() -> float:  # MiB
    """Start counting the peak anew, where the system lets one, so that loading does not hide it;
    what is resident now.
    """
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return _resident("VmHWM")
    return _resident("VmRSS")


def _resident(which: str) -> float:  # MiB
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss of a child starts at its parent's on Linux
        lines = status.read_text(encoding="ascii", errors="replace").splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(which)) / 1024
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, others KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def peak_in_words(found: Any, width: int, held: str) -> str:
    if isinstance(found, str):
        return f"not measured: {found}"
    return f"{found['peak']:{width}.0f} MiB, {found['rise']:.0f} MiB above what the process {held}"


# -- the machine -----------------------------------------------------------------------------------


def machine() -> str:
    return f"{processor()}, {cores()} cores available"


def processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load() -> str:
    if not hasattr(os, "getloadavg"):
        return "unknown"
    busy = os.getloadavg()[0]
    others = ": others are at work here, go by the minima at best" if busy > cores() / 2 else ""
    return f"{busy:.1f}{others}"


def threads_in_use(asked: int) -> str:
    found = [_blas_threads()]
    if importlib.util.find_spec("torch") is not None:
        import torch

        torch.set_num_threads(asked)
        found.append(f"torch {torch.get_num_threads()}")
    return ", ".join(found)


def _blas_threads() -> str:
    if importlib.util.find_spec("threadpoolctl") is None:
        asked = os.environ[THREAD_VARIABLES[0]]
        return f"BLAS {asked} (by environment; threadpoolctl is absent)"
    importlib.import_module("numpy")  # its library has to be loaded to be seen
    pools = importlib.import_module("threadpoolctl").threadpool_info()
    return ", ".join(f"{pool['internal_api']} {pool['num_threads']}" for pool in pools)


def version(library: str) -> str:
    try:
        return installed(library)
    except PackageNotFoundError:
        return "absent"
