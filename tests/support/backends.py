"""The array libraries that tests run under, and CuPy's signatures,
which can be checked without a GPU.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import array_api_strict as strict
import numpy as np


@dataclass(frozen=True)
class Backend:
    """An array library: how to put a NumPy array into it, and how to get one back."""

    name: str
    place: Callable[[Any], Any]
    back: Callable[[Any], Any]


def why_no_cupy() -> str:
    """Why nothing can run under CuPy here, or nothing."""
    if find_spec("cupy") is None:
        return "not installed"
    import cupy

    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError:
        count = 0
    return "" if count else "no NVIDIA GPU here"


BACKENDS = ("numpy", "array-api-strict", *(() if why_no_cupy() else ("cupy",)))
BESIDE_NUMPY = BACKENDS[1:]


def backend_named(name: str) -> Backend:
    if name == "numpy":
        return Backend(name, lambda array: array, lambda array: array)
    if name == "cupy":
        import cupy

        return Backend(name, cupy.asarray, cupy.asnumpy)
    return _strict(name)


def _strict(name: str) -> Backend:
    """The array API standard and nothing beyond it, on a second device:
    mixing with the host raises.
    """
    second, host = strict.Device("device1"), strict.Device("CPU_DEVICE")
    return Backend(
        name,
        lambda array: strict.asarray(np.array(array), device=second),
        lambda array: np.asarray(array.to_device(host) if hasattr(array, "to_device") else array),
    )


# -- CuPy's signatures, without a GPU --------------------------------------------------------------


class Recorder:
    """NumPy under CuPy's name, so that the lines meant for CuPy are the ones that run, with a list
    of what was called.
    """

    __name__ = "cupy"

    def __init__(self) -> None:
        self.calls: set[tuple[str, int, tuple[str, ...]]] = set()

    def __getattr__(self, name: str) -> Any:
        found = getattr(np, name)
        if not callable(found) or (isinstance(found, type) and issubclass(found, np.generic)):
            return found

        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls.add((name, len(args), tuple(sorted(kwargs))))
            return found(*args, **kwargs)

        return call


def refusal(cupy: Any, name: str, positional: int, keywords: tuple[str, ...]) -> str | None:
    """Why CuPy would not take the call, or None."""
    function = getattr(cupy, name, None)
    if function is None:
        return f"cupy has no {name}"
    if hasattr(
        function, "nin"
    ):  # a ufunc: its keywords stand in the first line of its docstring only
        return _ufunc_refusal(function, name, positional, keywords)
    try:
        inspect.signature(function).bind(*range(positional), **dict.fromkeys(keywords))
    except TypeError as reason:
        return f"cupy.{name}{inspect.signature(function)}: {reason}"
    return None


def _ufunc_refusal(
    function: Any, name: str, positional: int, keywords: tuple[str, ...]
) -> str | None:
    signature = (function.__doc__ or "").partition("\n")[0]
    if not function.nin <= positional <= function.nin + function.nout:
        return f"cupy.{name} takes {function.nin} arrays, is called with {positional}"
    unknown = [key for key in keywords if f"{key}=" not in signature]
    return f"cupy.{signature or name} has no {unknown[0]}" if unknown else None
