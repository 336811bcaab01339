"""Composites in files: a table of rules of one's own, as TOML.

name = "mine"
base = "attnlrp"            # the lines below stand on top of this method's table
[[rule]]
operation = "linear"
role = "mlp.*"              # or site = "model.layers.*.mlp.*"
rule = "gamma"
gamma = 0.25
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from refl.arguments import expected, number_or_none
from refl.arguments import path as as_path
from refl.errors import ReflError, quoted, shown
from refl.io.files import read_bytes
from refl.rules.composites import Composite, Rule
from refl.rules.published import identified, method

_MOST_BYTES = 1 << 20
KEYS = ("name", "base", "formulation", "source", "summary")


def named(name: str | Path) -> Composite:
    """A published method by its name, or a composite of one's own by the path of its .toml file.
    Raises ReflError for what is neither.
    """
    if not isinstance(name, (str, Path)):
        raise expected("method", "the name of a method, a .toml file, or a Composite", name)
    return from_toml(name) if str(name).endswith(".toml") else method(str(name))


def chosen(
    method: str | Path | Composite, eps: float | None = None, stabilizer: str | None = None
) -> Composite:
    """A method, by its name or as it is, with these options set in every rule that has them; under
    a name that is true.
    """
    composite = identified(method) if isinstance(method, Composite) else named(method)
    options = {"eps": number_or_none(eps), "stabilizer": stabilizer}
    asked = {key: value for key, value in options.items() if value is not None}
    return identified(composite.with_options(**asked)) if asked else composite


def from_toml(path: str | Path) -> Composite:
    """The composite of a file. Raises ReflError for a file that cannot be read, an unknown key,
    operation, rule or option, and a value of another type than it has to be.
    """
    path = as_path("path", path)
    try:
        content = tomllib.loads(read_bytes(path, _MOST_BYTES).decode("utf-8"))
    except RecursionError:
        raise ReflError(f"cannot read the composite {shown(path)}: nested too deeply") from None
    except (ReflError, ValueError) as reason:
        # ValueError: no UTF-8, no TOML, a number of thousands of digits
        raise ReflError(f"cannot read the composite {shown(path)}: {reason}") from reason
    return from_table(content, shown(path))


def from_table(content: dict[str, Any], where: str) -> Composite:
    """The same from a table already read; `where` names it in errors."""
    for key in KEYS:
        if not isinstance(content.get(key, ""), str):
            raise ReflError(f"{where} has {key} = {quoted(content[key])}: expected a string")
    unknown = set(content) - {*KEYS, "rule"}
    if unknown:
        raise ReflError(
            f"{where} has the unknown key {min(unknown)!r}; a composite has {', '.join(KEYS)}, "
            "[[rule]]"
        )
    lines = content.get("rule", [])
    if not isinstance(lines, list) or not all(isinstance(line, dict) for line in lines):
        raise ReflError(f"{where}: expected [[rule]] tables, got {quoted(lines)}")
    base = method(content["base"]) if "base" in content else Composite("none", ())
    mine = Composite(
        str(content.get("name", where)),
        tuple(_line(line, where) for line in lines) + base.rules,
        content.get("formulation", base.formulation),
        str(content.get("source", base.source)),
        str(content.get("summary", base.summary)),
        base.score,
    )
    return identified(mine.changed_from(base, mine.name) if "base" in content else mine)


def _line(line: dict[str, Any], where: str) -> Rule:
    if not isinstance(line.get("operation"), str) or not isinstance(line.get("rule"), str):
        raise ReflError(
            f"{where}: every [[rule]] needs an operation and a rule, got {quoted(line)}"
        )
    options = dict(line)
    operation, rule = options.pop("operation"), options.pop("rule")
    site, role = options.pop("site", "*"), options.pop("role", "*")
    for key, value in (("site", site), ("role", role)):
        if not isinstance(value, str):
            raise ReflError(f"{where} has {key} = {quoted(value)}: expected a pattern in quotes")
    return Rule(operation, rule, site, tuple(options.items()), role)
