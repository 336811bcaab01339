"""Somebody's code, called so that no result hangs on what else it does.

What it prints goes to standard error. What it changes of the process (the folder, the environment,
streams, error states, random numbers, warnings) is put back. Whatever it raises is its answer,
SystemExit too; only Ctrl-C goes through. A changed function of NumPy or of Python itself makes
every later comparison worthless: it is put back, and there is no result.
"""

from __future__ import annotations

import builtins
import math
import os
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from contextvars import ContextVar
from types import ModuleType

import numpy as np

from refl.errors import ReflError
from refl.show.text import one_line, shorten

LONGEST = 600
"""Characters of what somebody's exception says."""


class NotCovered(Exception):
    """The adapter does not offer what a case asks for."""


class Raised(Exception):
    """What somebody's code raised, in words."""


class WrongAnswer(Exception):
    """An answer that is no array of real numbers in its operand's shape."""


class NoResult(ReflError):
    """What answers are compared with was changed: nothing can be said of them."""


def words(reason: BaseException) -> str:
    """The text of somebody's exception, which may have none."""
    try:
        return shorten(one_line(str(reason)[: 4 * LONGEST]), LONGEST)
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001 (SystemExit too)
        return "its text cannot be had: str() of it raises"


def named(reason: BaseException) -> str:
    """The same with its kind in front."""
    kind, said = type.__getattribute__(type(reason), "__name__"), words(reason)
    return f"{kind}: {said}" if said else kind


@contextmanager
def guarded(environment: bool = True) -> Iterator[None]:
    """Around a call of somebody's code.

    environment    put back what it changed of os.environ, too

    Raises NotCovered where that or NotImplementedError was raised, WrongAnswer as it is, Raised for
    everything else but KeyboardInterrupt, and NoResult where it changed what is compared with.
    """
    if _INSIDE.get():  # the outer one will do all that
        yield
        return
    inside = _INSIDE.set(True)
    try:
        with _put_back(environment):
            yield
    except (KeyboardInterrupt, WrongAnswer):
        raise
    except (NotCovered, NotImplementedError) as reason:
        raise NotCovered(words(reason)) from None
    except BaseException as reason:  # noqa: BLE001 (whatever it raises is its answer)
        raise Raised(f"raised {named(reason)}") from None
    finally:
        _INSIDE.reset(inside)
        refuse_changed_functions()


_INSIDE: ContextVar[bool] = ContextVar("inside", default=False)


@contextmanager
def _put_back(environment: bool) -> Iterator[None]:
    undo = [_folder(), _streams(), _randomness(), *([_environment()] if environment else [])]
    try:
        with (
            warnings.catch_warnings(),
            redirect_stdout(sys.stderr),
            np.errstate(all="ignore"),
            np.printoptions(),
        ):
            yield
    finally:
        for each in undo:
            each()


Undo = Callable[[], None]


def _folder() -> Undo:
    try:
        folder = os.getcwd()
    except OSError:  # it was removed already
        return lambda: None

    def back() -> None:
        with suppress(OSError):
            os.chdir(folder)

    return back


def _environment() -> Undo:
    held = getattr(os.environ, "_data", os.environ)  # without decoding every name, each time
    before = dict(held)

    def back() -> None:
        if dict(held) != before:
            text = {os.fsdecode(name): os.fsdecode(value) for name, value in before.items()}
            os.environ.clear()
            os.environ.update(text)

    return back


def _streams() -> Undo:
    before = sys.stdin, sys.stdout, sys.stderr

    def back() -> None:
        sys.stdin, sys.stdout, sys.stderr = before

    return back


def _randomness() -> Undo:
    ours, numpys = random.getstate(), np.random.get_state()

    def back() -> None:
        if random.getstate() != ours:
            random.setstate(ours)
        np.random.set_state(numpys)

    return back


# -- what answers are compared with ----------------------------------------------------------------

_USED = "abs all any bool dict float int isinstance len list map max min sorted str sum tuple zip"
_FUNCTIONS: list[tuple[ModuleType, str, object]] = [
    *((builtins, name, vars(builtins)[name]) for name in _USED.split()),
    *((m, name, f) for m in (math, np, np.linalg) for name, f in vars(m).items() if callable(f)),
]
"""As they were when this module was imported."""
_HELD = [(each, vars(each[0])) for each in _FUNCTIONS]


def refuse_changed_functions() -> None:
    """Raises NoResult where somebody replaced a function that the comparison may need; first it is
    put back."""
    replaced = [each for each, held in _HELD if held.get(each[1]) is not each[2]]
    for module, name, function in replaced:
        setattr(module, name, function)
    if replaced:
        names = ", ".join(f"{m.__name__}.{name}" for m, name, _ in replaced[:3])
        raise NoResult(
            f"no result: the adapter replaced {names}, with which answers are compared; let it "
            "call a function of its own instead"
        )
