"""Options as the name of a metric says them, and reads them again: flip:baseline=mask:steps=20.

A value stands as it is where it reads as itself: a number, True, a word. Any other text is in
quotes, as Python writes it: baseline='5' is the token 5, baseline=5 the token of that id. Between
quotes a colon is \\x3a and a comma \\x2c, for these part options and names.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any
from warnings import catch_warnings

from refl.arguments import received
from refl.errors import ReflError, shown


def option(name: str, value: Any) -> str:
    """name=value, which `options` reads again; not where the value is neither text nor number."""
    if isinstance(value, str) and not _stands(value):
        value = repr(value).replace(":", r"\x3a").replace(",", r"\x2c")
    return f"{name}={value}"


def _stands(text: str) -> bool:
    """Whether it can stand without quotes."""
    apart = any(c in text for c in ":,") or text != text.strip() or not text.isprintable()
    return not apart and text != "" and _value(text) == text


def options(said: Sequence[str]) -> dict[str, Any]:
    """name=value each. Raises ReflError for what is none, and for a name that stands twice."""
    found: dict[str, Any] = {}
    for one in said:
        name, equals, value = one.partition("=")
        if not equals:
            raise ReflError(f"{shown(repr(one))} is no option of a metric: expected name=value")
        if name in found:
            raise ReflError(f"the metric's option {received(name)} is given twice: give it once")
        found[name] = _value(value)
    return found


def _value(said: str) -> Any:
    try:
        with catch_warnings(action="ignore", category=SyntaxWarning):  # of a text that is no code
            return ast.literal_eval(said)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return said
