"""Somebody's implementation behind the one interface that the vectors are run against.

An adapter is a Python file, a module, an object or a dict with functions named like the rules; what
it may hold besides (to_array, to_numpy, CONVENTIONS, NAME, VERSION) is said in runner.py.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np

from refl.errors import ReflError, nearest
from refl.show.text import one_line, shorten
from refl.verification.conformance.answers import Array, plain
from refl.verification.conformance.guarded import NotCovered, Raised, guarded
from refl.verification.vectors.case import Case
from refl.verification.vectors.catalogue import CATALOGUE
from refl.verification.vectors.rule_vectors import rules

__all__ = ["Adapter", "Array", "NotCovered"]

_FUNCTION = (FunctionType, MethodType, staticmethod, classmethod)


class Adapter:
    """Somebody's functions, called as the vectors ask."""

    def __init__(self, source: Any) -> None:
        """source: the path of a Python file, the name of a module, a module, an object or a dict.
        Raises ReflError where it cannot be had, or says of itself what cannot be read.
        """
        self.source = _imported(source) if isinstance(source, (str, Path)) else source
        self.name = self._text("NAME") or _name_of(source)
        self.version = self._text("VERSION")
        self.conventions = self._conventions()
        for hook in ("to_array", "to_numpy"):
            if not (self.find(hook) is None or callable(self.find(hook))):
                raise ReflError(f"{hook} of {self.name} cannot be called: expected a function")

    def find(self, name: str) -> Any:
        try:
            with guarded():
                return (
                    self.source.get(name)
                    if isinstance(self.source, Mapping)
                    else getattr(self.source, name, None)
                )
        except (Raised, NotCovered) as reason:
            raise ReflError(f"{name} of the adapter cannot be read: {reason}") from reason

    def _text(self, name: str) -> str:
        value = self.find(name)
        if value is None:
            return ""
        if not isinstance(value, str):
            raise ReflError(
                f"{name} of the adapter is of type {type(value).__name__}, expected a string"
            )
        return shorten(one_line("".join(value)), 200)

    def _conventions(self) -> Mapping[str, str]:
        found = self.find("CONVENTIONS")
        if found is None:
            return {}
        held: dict[Any, Any] = {"": None}
        with suppress(Raised, NotCovered), guarded():
            held = dict(found) if isinstance(found, Mapping) else held
        if not all(isinstance(each, str) for pair in held.items() for each in pair):
            raise ReflError(
                "CONVENTIONS of the adapter is no table of texts: expected {known mistake: where "
                "it is documented}, such as {'eps-unsigned': 'its manual, page 3'}"
            )
        for id in held:
            if id not in CATALOGUE:
                near = " or ".join(nearest(id, CATALOGUE, 2)) or "nothing like it"
                raise ReflError(
                    f"CONVENTIONS of the adapter names {shorten(one_line(id), 80)!r}, which is no "
                    f"known mistake: there is {near}"
                )
        return held

    def covers(self) -> list[str]:
        return [rule for rule in rules() if callable(self.find(rule))]

    def misspelled(self) -> dict[str, str]:
        """Functions of its own that are called almost like a rule which it lacks -> that rule."""
        lacked = [rule for rule in rules() if not callable(self.find(rule))]
        return {name: rule for name in self._own() for rule in _almost(name, lacked)}

    def _own(self) -> list[str]:
        """Names of functions that were written for it, as far as that can be told."""
        if isinstance(self.source, Mapping):
            held = {str(name): each for name, each in self.source.items()}
        elif isinstance(self.source, ModuleType):
            held = {n: f for n, f in vars(self.source).items() if _of_module(f, self.source)}
        else:
            held = {n: f for kind in type(self.source).__mro__[:-1] for n, f in vars(kind).items()}
            held |= getattr(self.source, "__dict__", {})
        return [n for n, f in held.items() if isinstance(f, _FUNCTION) and not n.startswith("_")]

    def function(self, rule: str) -> Callable[..., Any]:
        found = self.find(rule)
        if not callable(found):
            raise NotCovered(f"there is no function {rule}")
        return found  # type: ignore[no-any-return]

    def to_array(self, value: Any, dtype: str) -> Any:
        """What its functions take: arrays in its framework, within lists and dicts too. Each is a
        copy, whatever becomes of it."""
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

    def to_numpy(
        self, x: Any, name: str = "the answer", shape: tuple[int, ...] | None = None
    ) -> Array | None:  # -> float64, a copy
        """None where nothing is passed on. Raises WrongAnswer for what is no array of real numbers,
        and for another shape than the one that is given.
        """
        if x is None:
            return None
        hook = self.find("to_numpy")
        return plain(x if hook is None or isinstance(x, (float, int)) else hook(x), name, shape)

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


def _name_of(source: Any) -> str:
    if isinstance(source, (str, Path)):
        return Path(str(source)).name
    return source.__name__ if isinstance(source, ModuleType) else type(source).__name__


def _of_module(f: Any, module: ModuleType) -> bool:
    return isinstance(f, FunctionType) and f.__module__ == module.__name__


def _almost(name: str, rules: list[str]) -> list[str]:
    """The rule from which a name differs by a letter, or by capitals."""
    return difflib.get_close_matches(name.lower(), rules, n=1, cutoff=0.9)


def _imported(source: str | Path) -> ModuleType:
    if str(source).endswith(".py") and not Path(source).is_file():
        raise ReflError(
            f"there is no adapter {source}: expected a Python file with functions named like "
            "the rules, or the name of a module"
        )
    try:
        with guarded(environment=False):  # what it sets for its libraries is to stand
            return (
                _from_file(Path(source))
                if str(source).endswith(".py")
                else importlib.import_module(str(source))
            )
    except (Raised, NotCovered) as reason:
        said = str(reason).removeprefix("raised ")
        raise ReflError(f"the adapter {source} cannot be imported: {said}") from reason


def _from_file(path: Path) -> ModuleType:
    name = f"refl_adapter_{path.stem}"  # a file may be called numpy.py
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    folder = str(path.parent.absolute())
    sys.path.insert(0, folder)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    finally:
        if folder in sys.path:
            sys.path.remove(folder)
    return module
