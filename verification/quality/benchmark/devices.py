"""Where the work is done: when it is done, and what memory it took.

On the CPU memory is what is resident, as the operating system counts it (VmHWM of /proc on Linux,
ru_maxrss elsewhere). On a GPU it is what each side's allocator holds of the device, CuPy's pool and
torch's cache alike: both keep what they have had, so the most they held is the peak.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from refl.verification.quality.benchmark.spec import Spec

Peak = dict[str, float]
"""MiB: the `peak` of a run, and the `rise` above what was held before."""


@dataclass(frozen=True)
class Device:
    """`name`: as `refl.load` and the command line call it; `torch`: as torch does."""

    name: str
    torch: str
    synchronize: Callable[[], object]
    peak_of: Callable[[str, Callable[[], Any]], Peak]
    """(side, run) -> its peak."""
    why_no_torch: Callable[[], str | None] = lambda: None
    """Why torch cannot run there."""

    def why_no_peer(self, peer: str) -> str | None:
        """Why a peer cannot be run beside refl; None where it can."""
        wanted = ("torch", "transformers", *(("lxt",) if peer == "LXT" else ()))
        missing = [name for name in wanted if find_spec(name) is None]
        return f"{', '.join(missing)} not installed" if missing else self.why_no_torch()


def chosen(name: str) -> Device:
    """Raises ReflError, in one sentence, where there is no such device."""
    return _cuda() if name == "cuda" else CPU


# -- CPU -------------------------------------------------------------------------------------------


def _resident_peak(side: str, run: Callable[[], Any]) -> Peak:
    before = _forget_peak()
    run()
    peak = _resident("VmHWM")
    return {"peak": peak, "rise": peak - before}


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


CPU = Device("cpu", "cpu", lambda: None, _resident_peak)


# -- GPU -------------------------------------------------------------------------------------------


def _cuda() -> Device:
    from refl.device import placer

    placer("cuda")  # says what is missing
    cupy = import_module("cupy")
    torch = import_module("torch") if _torch_lacks_cuda() is None else None

    def synchronize() -> None:
        cupy.cuda.get_current_stream().synchronize()
        if torch is not None:
            torch.cuda.synchronize()

    def peak_of(side: str, run: Callable[[], Any]) -> Peak:
        count = partial(_pool_peak, cupy) if side == "refl" else partial(_cache_peak, torch)
        return count(run, synchronize)

    return Device("cuda", "cuda", synchronize, peak_of, _torch_lacks_cuda)


def _torch_lacks_cuda() -> str | None:
    if find_spec("torch") is None:
        return "torch not installed"
    torch = import_module("torch")
    if torch.cuda.is_available():
        return None
    return f"torch {torch.__version__} sees no GPU"


def _pool_peak(cupy: Any, run: Callable[[], Any], synchronize: Callable[[], object]) -> Peak:
    pool = cupy.get_default_memory_pool()
    synchronize()
    pool.free_all_blocks()
    before = pool.used_bytes()
    run()
    synchronize()
    return _bytes(pool.total_bytes(), before)


def _cache_peak(torch: Any, run: Callable[[], Any], synchronize: Callable[[], object]) -> Peak:
    synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    synchronize()
    found = _bytes(torch.cuda.max_memory_reserved(), before)
    return found | {"allocated": torch.cuda.max_memory_allocated() / 2**20}


def _bytes(peak: float, before: float) -> Peak:
    return {"peak": peak / 2**20, "rise": (peak - before) / 2**20}


# -- in a process of its own -----------------------------------------------------------------------


def peak_in_a_process(spec: Spec) -> Peak | str:
    """What the side takes, or why that is not known."""
    package = "refl.verification.quality.benchmark"
    command = [sys.executable, "-m", package, "--peak", spec.to_json()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode < 0:
        return f"ended by signal {-done.returncode}: out of memory?"
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["?"])[-1]
    found: Peak = json.loads(done.stdout.splitlines()[-1])
    return found


def available() -> float:  # MiB
    """Memory of the host that is free, by the lower of what the system and the container say."""
    found = [_meminfo(), _cgroup()]
    return min((f for f in found if f is not None), default=float("inf"))


def _meminfo() -> float | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(s.split()[1]) / 1024 for s in lines if s.startswith("MemAvailable")), None)


def _cgroup() -> float | None:
    folder = Path("/sys/fs/cgroup")
    try:
        most, used = ((folder / f"memory.{name}").read_text() for name in ("max", "current"))
        return (int(most) - int(used)) / 2**20
    except (OSError, ValueError):  # none, or no limit: "max"
        return None
