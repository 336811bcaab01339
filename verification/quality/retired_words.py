"""Words that the project has given up for the field's own, and where any is left.

    python -m refl.verification.quality.retired_words

Some are nobody else's words: they may stand nowhere, prose included. Others are ordinary English
and say nothing as a name: they may not name a module's constants, functions, classes, arguments or
fields, nor stand alone in a string, which is how JSON keys and the names of rules are written. A
local variable is between a function and its reader. Exit status 1 where one is left.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from refl.verification.quality.import_graph import PROJECT

ANYWHERE = re.compile(
    r"\b(booked|unbooked|\w*_books|books(?= *[\[.,:=)])|second_gradient|_meet|Kin|worlds|Passed|"
    r"Suspects?|suspects?|aimed|verdicts?|right_answer|Inapplicable|"
    r"carries|carried(?! out| over)|gaps?(?= of the ledger)|"
    r"[a-z]*(?:stabil|normal|linear|parametr|standard|initial|general|summar|optim|minim|maxim|"
    r"recogn|organ|factor|quant|memor|penal|serial)is(?:e|ed|er|ers|es|ing|ation|ations)|"
    r"(?:colour|neighbour|behaviour|favour|honour)\w*|\w*cancelling|\w*cancelled|labelled|"
    r"labelling|modelled|modelling|centre|centred|grey|analyse|artefacts?|judgements?|Judgement)\b"
)
AS_NAMES = {
    *("real", "given", "half", "share", "taken", "follow", "stop", "turn", "feed", "seen", "ends"),
    *("right", "measure", "terms", "written", "ratio", "frozen", "here", "arrived"),
    *("gap", "carries", "lever", "misfits", "lone", "suspects", "verdict", "sees"),
}

EXCEPT: tuple[tuple[str, str, str], ...] = (
    ("CHANGELOG.md", "*", "says what was renamed"),
    ("refl/io/format_1.py", "*", "reads files of format 1"),
    ("tests/refl/test_oracle.py", "*", "holds the reader of format 1 to that format's words"),
    ("tests/refl/data/format_1/*", "*", "files of format 1"),
    ("verification/vectors/README.md", "carries", "says what format 1 was"),
    ("verification/quality/retired_words.py", "*", "this list"),
    ("tests/verification/test_retired_words.py", "*", "its test"),
    ("*", "stop", "the end of a slice, as Python's own slice and range call it"),
    ("verification/quality/engine_error.py", "right", "a side of a column, as rich calls it"),
    ("tests/refl/walk/test_rules_js.py", "terms", "of a sum, as refl/walk/page/rules.js says"),
    ("verification/training/train_shipped.py", "right", "a side, as config.json calls it"),
    ("verification/training/grammar.py", "here", "a word of the grammar"),
)
"""File, word, why it may stand there."""


class Found(NamedTuple):
    word: str
    file: str
    line: int
    text: str


def tracked(project: Path) -> list[str]:
    """Text files of the repository, links left out."""
    listed = subprocess.run(
        ["git", "ls-files"], cwd=project, capture_output=True, text=True, check=True
    )
    names = listed.stdout.splitlines()
    kinds = (".py", ".md", ".toml", ".json", ".css", ".cff", ".yaml")
    return [n for n in names if n.endswith(kinds) and not (project / n).is_symlink()]


def anywhere(text: str) -> Iterator[tuple[str, int]]:
    """Retired words of the first kind, with their lines."""
    for number, line in enumerate(text.splitlines(), 1):
        for match in ANYWHERE.finditer(line):
            yield match[0], number


def in_strings(document: str) -> Iterator[tuple[str, int]]:
    """The same of a JSON document, whose words are in its strings: each string once, for there are
    many more numbers, and the same keys again and again.
    """
    for text in sorted(set(re.findall(r'"[^"\n]*"', document))):
        for word, _ in anywhere(text):
            yield word, document[: document.index(text)].count("\n") + 1


def names(source: str) -> Iterator[tuple[str, int]]:
    """Retired words of the second kind, where a name is made, and strings that are only the word;
    with their lines.
    """
    tree = ast.parse(source)
    nodes = list(ast.walk(tree))
    for node in nodes:
        for name in _made(node):
            if name.strip("_") in AS_NAMES:
                yield name, getattr(node, "lineno", 0)
    classes = [node for node in nodes if isinstance(node, ast.ClassDef)]
    for name, line in _of_bodies(tree, classes):
        if name.strip("_") in AS_NAMES:
            yield name, line


def _made(node: ast.AST) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.arg):
        return [node.arg]
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node.value]
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
        return [node.attr]
    return []


def _of_bodies(tree: ast.Module, classes: Sequence[ast.ClassDef]) -> Iterator[tuple[str, int]]:
    """Constants of the module, and fields of its classes."""
    bodies = [tree.body, *(n.body for n in classes)]
    for statement in (s for body in bodies for s in body):
        targets = statement.targets if isinstance(statement, ast.Assign) else []
        if isinstance(statement, ast.AnnAssign):
            targets = [statement.target]
        for target in targets:
            for node in ast.walk(target):
                if isinstance(node, ast.Name):
                    yield node.id, statement.lineno


def excepted(file: str, word: str) -> bool:
    return any(fnmatchcase(file, f) and fnmatchcase(word, w) for f, w, _ in EXCEPT)


def left(project: Path) -> list[Found]:
    """Every retired word that is left, but for the exceptions."""
    found = []
    for file in tracked(project):
        text = (project / file).read_text(encoding="utf-8")
        words = [*(in_strings if file.endswith(".json") else anywhere)(text)]
        words += names(text) if file.endswith(".py") else ()
        lines = text.splitlines()
        found += [
            Found(word, file, line, lines[line - 1].strip())
            for word, line in words
            if not excepted(file, word)
        ]
    return found


def main() -> int:
    found = left(PROJECT)
    for one in found:
        print(f"{one.file}:{one.line}: {one.word}: {one.text[:100]}")
    counted = Counter(one.word for one in found)
    print(", ".join(f"{word} {count}" for word, count in counted.most_common()) or "no word left")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
