"""Which library multiplies matrices, and its kernel."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from counted_cupy import CountedCupy

from refl import device

KERNEL = "import refl.device; print(refl.device.blas()['kernel'])"


def test_blas_is_named() -> None:
    about = device.blas()
    built = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    assert about["name"] == built["name"] and about["version"] == str(built["version"])
    assert about.keys() == {"name", "version", "kernel"}


@pytest.mark.skipif("openblas" not in device.blas()["name"], reason="another BLAS")
@pytest.mark.skipif(sys.platform == "win32", reason="the library cannot be asked there")
def test_the_kernel_is_the_one_in_use() -> None:
    """OpenBLAS takes the one that OPENBLAS_CORETYPE names, where the machine can run it."""
    if not device.blas()["kernel"]:
        pytest.skip("this OpenBLAS cannot be asked")
    own, prescott = (
        subprocess.run(
            [sys.executable, "-c", KERNEL],
            env=os.environ | changed,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for changed in ({}, {"OPENBLAS_CORETYPE": "Prescott"})
    )
    assert own == device.blas()["kernel"]
    assert prescott != own or "OPENBLAS_CORETYPE" in os.environ or os.uname().machine != "x86_64"


def test_a_blas_that_cannot_be_asked_has_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_KERNEL_NAMES", ("no_such_function",))
    assert device.blas()["kernel"] == ""


def test_room_for_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of what is free on a GPU, and the same as ever on the host."""
    monkeypatch.setitem(sys.modules, "cupy", CountedCupy())
    assert device.room("cuda") == 3 << 30 and device.room("cpu") == 2 << 30


@pytest.mark.needs("cupy")
def test_cupy_tells_what_is_free() -> None:
    import cupy

    assert callable(cupy.cuda.runtime.memGetInfo)
