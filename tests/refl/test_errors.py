"""Messages: an argument is called as it is spelled where a message is shown; none is named bare."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkpoints import ROOT

from refl.model import Model

ARGUMENTS = sorted(
    {*inspect.signature(Model.explain).parameters, "device", "dtype"} - {"self", "item"}
)
_ANY = "|".join(ARGUMENTS)
BARE = re.compile(rf"\b({_ANY})(=(?=[\s'\"]|$)| out\b)|(try|or) dtype|^({_ANY}) (is|has|names) ")
FOLDERS = ("refl", "rules", "nets")


def messages(path: Path) -> Iterator[tuple[int, str]]:
    """What each ReflError says, with {} for what is filled in."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "ReflError":
            for words in node.args:
                yield node.lineno, "".join(_texts(words))


def _texts(node: ast.expr) -> Iterator[str]:
    if isinstance(node, ast.Constant):
        yield str(node.value)
    elif isinstance(node, ast.JoinedStr):
        for part in node.values:
            yield from _texts(part) if isinstance(part, ast.Constant) else ["{}"]
    else:
        yield "{}"


def sources() -> list[Path]:
    found = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    return [p for p in found if "cli" not in p.parts]  # whose messages are of the command line


def test_no_message_names_an_argument_by_itself() -> None:
    bare = [
        f"{path.relative_to(ROOT)}:{line}: {words}"
        for path in sources()
        for line, words in messages(path)
        if BARE.search(words)
    ]
    assert bare == []
    assert sum(1 for path in sources() for _ in messages(path)) > 100


@pytest.mark.parametrize(
    "words", ["leave types out", "give position=", "try dtype float64", "keep is {}", "eps has {}"]
)
def test_a_bare_argument_is_seen(words: str) -> None:
    assert BARE.search(words)
