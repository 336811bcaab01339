"""Every method of attribution there is, by name.

Tables of rules are in refl/rules/published.py: a table and a sweep are all such a method is. One
that is none (a gradient along a path, attention multiplied through the layers, a part of the input
left out) is a file in this folder, its equation and its source on top, and a line of FURTHER.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from refl.errors import ReflError, argument, nearest, shown
from refl.io import composites
from refl.methods.base import Attribution, Method, Table
from refl.methods.random import Random
from refl.rules import published
from refl.rules.composites import Composite

__all__ = ["METHODS", "Attribution", "Method", "Table", "chosen", "method"]

FURTHER: tuple[Attribution, ...] = (Random(),)
"""Those that are no tables of rules, with their options at the defaults."""

METHODS: dict[str, Composite | Attribution] = dict(published.METHODS) | {m.name: m for m in FURTHER}


def method(name: str) -> Composite | Attribution:
    """A method by name. Raises ReflError for a name that is none."""
    if isinstance(name, str) and name in METHODS:
        return METHODS[name]
    said = shown(repr(name)) if isinstance(name, str) else f"of type {type(name).__name__}"
    raise ReflError(
        f"unknown method {said}: expected one of {', '.join(METHODS)}, or a .toml file with a "
        "composite"
    )


def chosen(
    which: str | Path | Composite | Method,
    eps: float | None = None,
    stabilizer: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Method:
    """A method by its name, by the path of a .toml composite, or as it is; with these options.
    Raises ReflError for what is none, and for an option that it does not take.
    """
    if isinstance(which, str) and not which.endswith(".toml"):
        which = method(which)
    if not isinstance(which, (str, Path, Composite)):
        if not callable(getattr(type(which), "explain", None)):
            raise ReflError(
                f"{argument('method')} is a {type(which).__name__}: expected the name of a method, "
                "a .toml file, a Composite, or a method of refl.methods"
            )
        _refuse_rule_options(which, eps, stabilizer)
        return _with_options(which, options)
    table = composites.chosen(which, eps, stabilizer)
    return Table(table.with_options(**options) if options else table)


def _refuse_rule_options(which: Method, eps: Any, stabilizer: Any) -> None:
    for name, value in (("eps", eps), ("stabilizer", stabilizer)):
        if value is not None:
            raise ReflError(
                f"method {which.name} has no rules with a stabilizer: leave {argument(name)} out"
            )


def _with_options(which: Method, options: Mapping[str, Any] | None) -> Method:
    if not options:
        return which
    known = [one.name for one in fields(which)] if isinstance(which, Attribution) else []
    for name in options:
        if name not in known:
            near = ", ".join(nearest(name, known, 3)) or "none"
            raise ReflError(
                f"method {which.name} has no option {shown(name)!r}: it has "
                f"{', '.join(known) or 'none'} (nearest: {near})"
            )
    assert isinstance(which, Attribution)
    return replace(which, **options)
