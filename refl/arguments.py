"""What a caller gives, checked before anything is computed: an argument is understood as it stands
or refused in one sentence, never bent and never ignored.

Integers are those of any library, NumPy's and an array of none dimensions included. True is no
number, 4.0 is no integer, bytes are no text and no ids.
"""

from __future__ import annotations

import hashlib
import operator
import reprlib
import sys
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from refl.errors import ReflError, argument, shown

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 120


def received(value: Any) -> str:
    """A value for a message: its repr, cut; its type where it has none that can be shown."""
    try:
        return shown(" ".join(_REPR.repr(value).split()))
    except Exception:  # noqa: BLE001 - an object of the caller's, whose repr may do anything
        return f"a value of type {shown(type(value).__name__)}"


def array_said(array: Any) -> str:
    """A NumPy array by its dtype, shape and a hash of its bytes: what it can be told apart by."""
    digest = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]
    return f"<{array.dtype} {array.shape} sha256 {digest}>"


def expected(name: str, what: str, value: Any) -> ReflError:
    """For an argument that is none of what it can be."""
    return ReflError(f"{argument(name)} is {received(value)}: expected {what}")


def refuse_unknown(function: str, options: Iterable[str], known: Iterable[str]) -> None:
    """Raises ReflError for an option that a function has not."""
    there = list(known)
    for name in options:
        if name not in there:
            raise ReflError(
                f"{function} has no option {shown(name)}: expected one of {', '.join(there)}"
            )


# -- numbers ---------------------------------------------------------------------------------------

LARGEST = sys.float_info.max
"""Of a float: an integer may be larger."""


def as_whole(value: Any) -> int | None:
    """An integer of any library as Python's; None for anything else, True among it."""
    is_boolean = isinstance(value, (bool, np.bool_)) or "bool" in str(getattr(value, "dtype", ""))
    if is_boolean or getattr(value, "ndim", None) not in (None, 0):
        return None
    try:
        return operator.index(value)
    except Exception:  # noqa: BLE001 - no integer; libraries raise their own kinds
        return None


def whole(name: str, value: Any) -> int:
    """An integer of any library as Python's. Raises ReflError for anything else."""
    number = as_whole(value)
    if number is None:
        raise expected(name, "a whole number", value)
    return number


def positive(name: str, value: Any) -> int:
    """A whole number above 0. Raises ReflError for anything else."""
    number = as_whole(value)
    if number is None or number < 1:
        raise expected(name, "a whole number above 0", value)
    return number


def count(name: str, value: Any, most: int | None = None) -> int:
    """A whole number from 0 on, and no more than `most`. Raises ReflError for anything else."""
    number = as_whole(value)
    if number is None or number < 0 or (most is not None and number > most):
        limit = "" if most is None else f" and at most {most}"
        raise expected(name, f"a whole number, 0 or more{limit}", value)
    return number


def token_id(value: Any) -> int:
    """The number of a token. Raises ReflError for anything else: 1.5 names no token."""
    number = as_whole(value)
    if number is None:
        raise ReflError(
            f"{received(value)} is no token id: expected a whole number, or a text"
        ) from None
    return number


def number_or_none(value: Any) -> Any:
    """A float of NumPy, or an array of no dimensions, as Python's; anything else as it is."""
    kind = getattr(getattr(value, "dtype", None), "kind", "")
    if kind in ("f", "i", "u") and getattr(value, "ndim", 1) == 0:
        return value.item()
    return value


def number(name: str, value: Any) -> float:
    """A finite number of any library as Python's. Raises ReflError for anything else, True among
    it.
    """
    plain = number_or_none(value)
    if isinstance(plain, bool) or not isinstance(plain, (int, float)) or not abs(plain) <= LARGEST:
        raise expected(name, "a finite number", value)
    return float(plain)


def one_of(name: str, value: Any, known: Collection[str]) -> str:
    """One of some names. Raises ReflError for anything else."""
    if not isinstance(value, str) or value not in known:
        raise expected(name, f"one of {', '.join(known)}", value)
    return value


def between(name: str, value: Any, least: float, largest: float) -> float:
    """A number from least to largest. Raises ReflError for anything else, True among it."""
    plain = number_or_none(value)
    is_number = isinstance(plain, (int, float)) and not isinstance(plain, bool)
    if not is_number or not least <= plain <= largest:
        raise expected(name, f"a number from {least:g} to {largest:g}", value)
    return float(plain)


def flag(name: str, value: Any) -> bool:
    """Yes or no. Raises ReflError for anything that is neither: "no" is true in Python."""
    if not isinstance(value, (bool, np.bool_)):
        raise expected(name, "True or False", value)
    return bool(value)


def progress(value: Any) -> Any:
    """A function that is told how far the work is, or None. Raises ReflError for anything else."""
    if value is not None and not callable(value):
        raise expected("progress", "a function (phase, done, of)", value)
    return value


# -- text and lists --------------------------------------------------------------------------------

MOST = 10_000_000
"""Members of a list: far more than anything here can be asked for at once."""


def path(name: str, value: Any) -> Path:
    """The path of a file or a folder. Raises ReflError for anything else, an empty one among it."""
    if not isinstance(value, (str, Path)) or not str(value) or "\0" in str(value):
        raise expected(name, "the path of a file or a folder", value)
    return Path(value)


def names(value: Any) -> list[str] | None:
    """A list of strings; None for anything else, one string among it."""
    found = sorted(value) if _is_set_of_text(value) else members(value)
    return found if found is not None and all(isinstance(one, str) for one in found) else None


def _is_set_of_text(value: Any) -> bool:
    return isinstance(value, (set, frozenset)) and all(isinstance(one, str) for one in value)


def text(name: str, value: Any) -> str:
    """A string. Raises ReflError for anything else, bytes and paths among it."""
    if not isinstance(value, str):
        raise expected(name, "a string", value)
    return str.__str__(value)


def members(value: Any) -> list[Any] | None:
    """What a list, a tuple or an array holds; None for anything that is no such sequence.

    Texts are one thing, bytes are neither text nor numbers, and what can be read once only, or in
    no order (a generator, a set, a dict), is no list of inputs.
    """
    if isinstance(value, (str, bytes, bytearray, memoryview, Path)):
        return None
    if hasattr(value, "tolist"):
        try:
            value = value.tolist()
        except Exception:  # noqa: BLE001 - an array that cannot be read
            return None
    if not isinstance(value, Sequence) or isinstance(value, str):
        return None
    if len(value) > MOST:
        raise ReflError(f"{received(value)} holds {len(value)} entries: expected at most {MOST}")
    return list(value)


def listed(name: str, value: Any, what: str) -> list[Any]:
    """The members of a sequence. Raises ReflError for anything else."""
    found = members(value)
    if found is None:
        raise expected(name, what, value)
    return found


def is_single(item: Any) -> bool:
    """Whether it is one text or one list of token ids, not a batch of them. Raises ReflError for
    what is neither.
    """
    if isinstance(item, str):
        return True
    inside = input_members(item)
    if not inside:
        raise ReflError("the input is empty: expected a text, or at least one token id")
    nested = {isinstance(one, str) or members(one) is not None for one in inside}
    if len(nested) > 1:
        raise ReflError(
            f"the input {received(item)} mixes token ids with texts or lists: expected a text, "
            "token ids, or a list of these"
        )
    return not nested.pop()


def input_members(item: Any) -> list[Any]:
    """The token ids of an input, or the inputs of a batch. Raises ReflError for what is neither."""
    inside = members(item)
    if inside is None:
        hint = _HINTS.get(type(item).__name__, "")
        raise ReflError(f"the input is {received(item)}: expected a text, or token ids{hint}")
    return inside


_HINTS = {
    "generator": "; make a list of it",
    "set": "; make a list of it",
    "bytes": "; decode it to text",
    "bytearray": "; decode it to text",
    "PosixPath": "; read the file",
    "WindowsPath": "; read the file",
}


def patterns(keep: Any) -> tuple[str, ...]:
    """Patterns of sites. Raises ReflError for anything but a string, or a list of them."""
    if isinstance(keep, str):
        return (keep,)
    found = list(keep) if isinstance(keep, (set, frozenset)) else members(keep)
    if found is None or not all(isinstance(pattern, str) for pattern in found):
        raise expected("keep", "a pattern of sites, a list of them, or () for none", keep)
    return tuple(found)


def neuron(at: Any) -> tuple[str, tuple[int, ...]]:
    """A site and the index of a neuron there. Raises ReflError for anything else."""
    pair = members(at)
    index = members(pair[1]) if pair is not None and len(pair) == 2 else None
    numbers = None if index is None else [as_whole(i) for i in index]
    if pair is None or numbers is None or not isinstance(pair[0], str) or None in numbers:
        raise expected("at", "(site, index), the index whole numbers, one for each axis", at)
    return pair[0], tuple(i for i in numbers if i is not None)
