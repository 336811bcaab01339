"""The machine, its libraries and their versions, as they are when they are asked."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

from refl.version import __version__

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
LIBRARIES = ("numpy", "cupy", "torch", "transformers", "lxt")
VECTORS = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16", "asimd", "sve", "sve2")
"""Extensions of a processor that its matrix products may use."""
VENDORS = {"AuthenticAMD": "amd", "GenuineIntel": "intel", "0x41": "arm", "0x61": "apple"}


def limit_threads(threads: int) -> None:
    """Linear algebra libraries read these once, when they are loaded."""
    if "numpy" in sys.modules:
        print(
            "NumPy was imported before the number of threads was set: its own setting stands",
            file=sys.stderr,
        )
    os.environ.update({name: str(threads) for name in THREAD_VARIABLES})


def about(threads: int, device: str = "cpu") -> dict[str, Any]:
    """Everything a figure depends on."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit(),
        "processor": processor(),
        "vendor": vendor(),
        "extensions": extensions(),
        "cores": cores(),
        "governor": governor(),
        "load": round(load(), 2),
        "blas": _blas(),
        "torch computes with": _torch_blas(),
        "threads asked": threads,
        "threads": threads_in_use(threads),
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": {"refl": __version__} | {name: version(name) for name in LIBRARIES},
        **({"gpu": gpu()} if device == "cuda" else {}),
    }


def kind(found: dict[str, Any]) -> str:
    """What results are filed by: vendor and kernel, or the GPU."""
    name = found["gpu"]["name"] if "gpu" in found else f"{found['vendor']} {_kernel(found)}"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _kernel(found: dict[str, Any]) -> str:
    return found["blas"]["kernel"] or found["blas"]["name"] or "unknown"


# -- in words --------------------------------------------------------------------------------------


def words(found: dict[str, Any]) -> str:
    """One paragraph."""
    versions = ", ".join(f"{k} {v}" for k, v in found["versions"].items() if v != "absent")
    return (
        f"{_gpu_words(found)}{found['processor']} ({', '.join(found['extensions']) or 'plain'}), "
        f"{found['cores']} cores, {found['threads asked']} threads asked for, in use: "
        f"{found['threads']}; NumPy on {' '.join(filter(None, found['blas'].values()))}, torch on "
        f"{found['torch computes with']}; governor {found['governor']}; Python {found['python']}, "
        f"{versions}; commit {found['commit']}, {found['date']}"
    )


def _gpu_words(found: dict[str, Any]) -> str:
    if "gpu" not in found:
        return ""
    gpu = found["gpu"]
    return (
        f"{gpu['name']}, {gpu['memory GiB']:.0f} GiB, CUDA {gpu['runtime']}, driver "
        f"{gpu['driver']}; beside it "
    )


# -- the processor ---------------------------------------------------------------------------------


def processor() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def vendor() -> str:
    said = _cpuinfo("vendor_id") or _cpuinfo("CPU implementer")
    return VENDORS.get(said, said or platform.machine())


def extensions() -> list[str]:
    has = (_cpuinfo("flags") or _cpuinfo("Features")).split()
    return [name for name in VECTORS if name in has]


def _cpuinfo(key: str) -> str:
    """The first line of /proc/cpuinfo with this key; "" where there is none."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return next((s.partition(":")[2].strip() for s in lines if s.startswith(key)), "")


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def governor() -> str:
    path = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return "not told"


def load() -> float:
    """How many processes want a core, over the last minute."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")


QUIET = 0.3
"""Cores that others may keep busy while a row is measured."""


def is_busy(row: dict[str, Any]) -> bool:
    """Whether it was measured while others were at work."""
    return bool(row.get("others", 0) > QUIET)


@contextmanager
def others_at_work(row: dict[str, Any]) -> Iterator[None]:
    """Enters under `others` how many cores everyone else kept busy meanwhile, where it is told."""
    start, busy, own = time.perf_counter(), _busy(), time.process_time()
    yield
    passed = time.perf_counter() - start
    now = _busy()
    if busy is not None and now is not None and passed > 0.1:  # /proc counts hundredths
        used = (now - busy) - (time.process_time() - own)
        row["others"] = round(max(0.0, used / passed), 2)


def _busy() -> float | None:
    """Seconds that all cores together have been at work; None where that is not told."""
    try:
        lines = Path("/proc/stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    user, nice, system, _, _, interrupt, soft, *_ = map(int, lines[0].split()[1:])
    return (user + nice + system + interrupt + soft) / os.sysconf("SC_CLK_TCK")


def gpu() -> dict[str, Any]:
    cupy = importlib.import_module("cupy")
    runtime = cupy.cuda.runtime
    said = runtime.getDeviceProperties(0)
    name = said["name"]
    return {
        "name": name.decode() if isinstance(name, bytes) else str(name),
        "memory GiB": said["totalGlobalMem"] / 2**30,
        "runtime": runtime.runtimeGetVersion(),
        "driver": runtime.driverGetVersion(),
    }


# -- libraries -------------------------------------------------------------------------------------


def _blas() -> dict[str, str]:
    return importlib.import_module("refl.device").blas()  # type: ignore[no-any-return]


def _torch_blas() -> str:
    """The library that multiplies torch's matrices, and the instructions that torch has chosen."""
    if importlib.util.find_spec("torch") is None:
        return "nothing: absent"
    torch = importlib.import_module("torch")
    found = re.search(r"BLAS_INFO=(\w+)", torch.__config__.show())
    blas = found[1].upper() if found else "an unknown BLAS"
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{blas}, {capability}, float32 products {torch.get_float32_matmul_precision()}"


def threads_in_use(asked: int) -> str:
    found = [_blas_threads(asked)]
    if importlib.util.find_spec("torch") is not None:
        torch = importlib.import_module("torch")
        torch.set_num_threads(asked)
        found.append(f"torch {torch.get_num_threads()}")
    return ", ".join(found)


def _blas_threads(asked: int) -> str:
    if importlib.util.find_spec("threadpoolctl") is None:
        return f"BLAS {asked} (by environment; threadpoolctl is absent)"
    importlib.import_module("numpy")  # its library has to be loaded to be seen
    pools = importlib.import_module("threadpoolctl").threadpool_info()
    return ", ".join(sorted(f"{pool['internal_api']} {pool['num_threads']}" for pool in pools))


def version(library: str) -> str:
    try:
        return installed(library)
    except PackageNotFoundError:
        return _imported_version(library)


def _imported_version(library: str) -> str:
    """CuPy is distributed under several names."""
    if importlib.util.find_spec(library) is None:
        return "absent"
    return str(getattr(importlib.import_module(library), "__version__", "unknown"))


def commit() -> str:
    """Of the sources that ran, with a + where they have been changed since."""
    folder = Path(__file__).resolve().parent
    found = [_git(folder, *asked) for asked in (("rev-parse", "--short", "HEAD"), _CHANGED)]
    return "unknown" if not found[0] else found[0] + ("+" if found[1] else "")


_CHANGED = ("status", "--porcelain", "--untracked-files=no", "--", ":/refl", ":/rules", ":/nets")


def _git(folder: Path, *asked: str) -> str:
    try:
        done = subprocess.run(
            ["git", *asked], cwd=folder, capture_output=True, text=True, check=False
        )
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
