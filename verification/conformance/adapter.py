"""Somebody's implementation behind the one interface that the vectors are run against.

An adapter is a Python file, a module, an object or a dict with functions named like the rules; what
it may hold besides (to_array, to_numpy, CONVENTIONS, NAME, VERSION) is said in runner.py.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np

from refl.errors import ReflError
from refl.verification.vectors.case import Case
from refl.verification.vectors.rule_vectors import rules

Array: TypeAlias = np.ndarray[Any, Any]


class NotCovered(Exception):
    """The adapter does not offer what a case asks for."""


class Adapter:
    """Somebody's functions, called as the vectors ask."""

    def __init__(self, source: Any) -> None:
        """source: the path of a Python file, the name of a module, a module, an object or a dict.
        Raises ReflError where it cannot be had.
        """
        self.source = _imported(source) if isinstance(source, (str, Path)) else source
        self.name = str(
            self.find("NAME")
            or (
                Path(str(source)).name if isinstance(source, (str, Path)) else type(source).__name__
            )
        )
        self.version = str(self.find("VERSION") or "")
        self.conventions: Mapping[str, str] = self.find("CONVENTIONS") or {}

    def find(self, name: str) -> Any:
        return (
            self.source.get(name)
            if isinstance(self.source, Mapping)
            else getattr(self.source, name, None)
        )

    def covers(self) -> list[str]:
        return [rule for rule in rules() if callable(self.find(rule))]

    def function(self, rule: str) -> Callable[..., Any]:
        found = self.find(rule)
        if not callable(found):
            raise NotCovered(f"there is no function {rule}")
        return found  # type: ignore[no-any-return]

    def to_array(self, value: Any, dtype: str) -> Any:
        """What its functions take: arrays in its framework, within lists and dicts too."""
        if isinstance(value, Mapping):
            return {key: self.to_array(each, dtype) for key, each in value.items()}
        if isinstance(value, list):
            return [self.to_array(each, dtype) for each in value]
        if not isinstance(value, np.ndarray):
            return value
        hook = self.find("to_array")
        if hook is None and dtype == "bfloat16":
            raise NotCovered("NumPy has no bfloat16: a function to_array(values, dtype) is needed")
        return (
            value.copy()
            if hook is None
            else hook(value.copy(), "bool" if value.dtype == bool else dtype)
        )

    def to_numpy(self, x: Any) -> Array | None:  # -> float64
        if x is None:
            return None
        if isinstance(x, (float, int)):
            return np.asarray(float(x))
        hook = self.find("to_numpy")
        if hook is not None:
            return np.asarray(hook(x), dtype=np.float64)
        x = x.detach() if hasattr(x, "detach") else x
        return np.asarray(
            np.from_dlpack(x) if hasattr(x, "__dlpack__") and not hasattr(x, "__array__") else x,
            dtype=np.float64,
        )

    def options(self, case: Case, function: Callable[..., Any]) -> dict[str, Any]:
        """The case's options that the function takes. One it lacks must be at its default."""
        keywords = _keywords(function)
        for name in case.options:
            if keywords is not None and name not in keywords and not case.at_default(name):
                raise NotCovered(f"{case.rule} takes no option {name}")
        return {
            name: self.to_array(value, case.dtype)
            for name, value in case.options.items()
            if keywords is None or name in keywords
        }


def _keywords(function: Callable[..., Any]) -> set[str] | None:
    """The names it takes; None where it takes any."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None
    return (
        None if any(p.kind is p.VAR_KEYWORD for p in parameters) else {p.name for p in parameters}
    )


def _imported(source: str | Path) -> ModuleType:
    try:
        return (
            _from_file(Path(source))
            if str(source).endswith(".py")
            else importlib.import_module(str(source))
        )
    except ReflError:
        raise
    except (Exception, SystemExit) as reason:
        raise ReflError(
            f"the adapter {source} cannot be imported: {type(reason).__name__}: {reason}"
        ) from reason


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ReflError(
            f"there is no adapter {path}: expected a Python file with functions named like "
            "the rules, or the name of a module"
        )
    name = f"refl_adapter_{path.stem}"  # a file may be called numpy.py
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(path.parent.absolute()))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    return module
