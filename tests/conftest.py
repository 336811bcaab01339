"""What every test may use: the three backends, and the folder of real checkpoints that may lie
beside the project.
"""

from __future__ import annotations

import os

os.environ.setdefault(
    "OPENBLAS_NUM_THREADS", "1"
)  # before NumPy is imported: on small matrices threads only wait for each other

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "refl", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("refl")

SHARED = Path(__file__).resolve().parents[2] / "shared"


def checkpoint(name: str) -> Path:
    """A real checkpoint beside the project, or a skip that says what is missing."""
    folder = SHARED / "checkpoints" / name
    if not folder.is_dir():
        pytest.skip(
            f"the checkpoint {name} is not beside the project (../shared/checkpoints/{name})"
        )
    return folder


@dataclass(frozen=True)
class Backend:
    """An array library: how to put a NumPy array into it, and how to get one back."""

    name: str
    place: Callable[[Any], Any]
    back: Callable[[Any], Any]


def _strict() -> Backend:
    """The array API standard and nothing beyond it, on a second device: mixing with the host
    raises.
    """
    strict = pytest.importorskip("array_api_strict")
    second = strict.Device("device1")
    here = strict.Device("CPU_DEVICE")
    return Backend(
        "array-api-strict",
        lambda array: strict.asarray(np.array(array), device=second),
        lambda array: (
            np.asarray(array.to_device(here)) if hasattr(array, "to_device") else np.asarray(array)
        ),
    )


def _cupy() -> Backend:
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    try:
        cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError:
        pytest.skip("there is no NVIDIA GPU here")
    return Backend("cupy", cupy.asarray, cupy.asnumpy)


@pytest.fixture(params=["numpy", "array-api-strict", "cupy"])
def backend(request: pytest.FixtureRequest) -> Backend:
    """NumPy, array-api-strict on a second fake device, and CuPy where a GPU is present."""
    if request.param == "numpy":
        return Backend("numpy", lambda array: array, lambda array: array)
    return _strict() if request.param == "array-api-strict" else _cupy()
