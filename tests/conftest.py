"""Fixtures that every test may use, and how examples are drawn. What test files share beside
fixtures are modules in tests/support, imported by name.
"""

from __future__ import annotations

import os

os.environ.setdefault(
    "OPENBLAS_NUM_THREADS", "1"
)  # before NumPy is imported: on small matrices threads only wait for each other

import numpy as np
import pytest

pytest.register_assert_rewrite(
    "backends", "exact_rules", "surrogate_truth", "transformers_forward", "transformers_models"
)

from backends import Backend, Recorder, backend_named
from hypothesis import HealthCheck, settings

import refl.arrays

settings.register_profile(
    "refl", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("refl")


@pytest.fixture(params=["numpy", "array-api-strict", "cupy"])
def backend(request: pytest.FixtureRequest) -> Backend:
    """NumPy, array-api-strict on a second fake device, and CuPy where a GPU is present."""
    return backend_named(request.param)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    library = refl.arrays._library  # what an array that is not NumPy's answers stays its own
    monkeypatch.setattr(
        refl.arrays, "_library", lambda a: recorder if library(a) is np else library(a)
    )
    return recorder
