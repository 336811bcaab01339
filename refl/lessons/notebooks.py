"""A lesson as a Jupyter notebook (nbformat 4.5): its examples as code cells with their outputs, its
pictures inside it, folded answers folded.

A notebook says which lesson it is of and what its cells were (`metadata.refl`), so that one which
its reader has worked in is not overwritten, nor any other file.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from refl.errors import ReflError, shown
from refl.io.files import read_bytes, writable
from refl.lessons.examples import Namespace, Outcome, parsed, run
from refl.lessons.lesson import FOLDER, PICTURE, Lesson, Section, pieces
from refl.version import __version__

Cell = dict[str, Any]
LARGEST = 50_000_000
"""Bytes of a notebook that is looked into before it is replaced."""


def notebook(lesson: Lesson) -> bytes:
    """The file."""
    namespace: Namespace = {"__name__": "__main__"}
    title = lesson.text.partition("\n")[0]
    head, *rest = lesson.sections
    cells = [
        cell
        for section in (Section("", f"{title}\n\n{head.text}"), *rest)
        for cell in _cells(section, namespace)
    ]
    _number(cells)
    return (json.dumps(_document(lesson, cells), indent=1, ensure_ascii=False) + "\n").encode()


def _document(lesson: Lesson, cells: Sequence[Cell]) -> dict[str, Any]:
    said = {"lesson": lesson.number, "version": __version__, "cells": digest(cells)}
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {
        "cells": list(cells),
        "metadata": {
            "kernelspec": kernel,
            "language_info": {"name": "python"},
            "refl": said,
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def digest(cells: Sequence[Cell]) -> str:
    """Of what stands in the cells; outputs may change by running them."""
    sources = ["".join(cell["source"]) for cell in cells]
    return hashlib.sha256(json.dumps(sources).encode()).hexdigest()


def _number(cells: Sequence[Cell]) -> None:
    """Ids, and the order in which code was executed."""
    count = 0
    for place, cell in enumerate(cells):
        cell["id"] = f"cell-{place}"
        if cell["cell_type"] == "code":
            count += 1
            cell["execution_count"] = count
            for output in cell["outputs"]:
                if output["output_type"] == "execute_result":
                    output["execution_count"] = count


# -- cells -----------------------------------------------------------------------------------------


def _cells(section: Section, namespace: Namespace) -> Iterator[Cell]:
    prose = f"## {section.title}\n\n" if section.title else ""
    for piece in pieces(section.text):
        if piece.kind == "code":
            if prose:
                yield _markdown(prose)
            yield from _code(piece.text, namespace)
            prose = ""
        elif piece.kind == "prose":
            prose += piece.text + "\n\n"
        else:
            prose += f"<details><summary>Answer</summary>\n\n{piece.text}\n\n</details>\n\n"
    if prose:
        yield _markdown(prose)


def _markdown(text: str) -> Cell:
    source = PICTURE.sub(_inside, text.strip())
    return {"cell_type": "markdown", "id": "", "metadata": {}, "source": _lines(source)}


def _inside(found: Any) -> str:
    """A picture as data: attachments of a cell may not be SVG in every viewer."""
    data = base64.b64encode((FOLDER / "pictures" / found[2]).read_bytes()).decode()
    return f"![{found[1]}](data:image/svg+xml;base64,{data})"


def _code(block: str, namespace: Namespace) -> Iterator[Cell]:
    """A cell ends where something is shown."""
    sources = list[str]()
    for example in parsed(block):
        outcome = run(example, namespace)
        sources.append(example.source)
        if outcome.text:
            yield _code_cell(sources, outcome)
            sources = []
    if sources:
        yield _code_cell(sources, None)


def _code_cell(sources: Sequence[str], outcome: Outcome | None) -> Cell:
    outputs = [] if outcome is None else list(_outputs(outcome))
    raises = any(output["output_type"] == "error" for output in outputs)
    return {
        "cell_type": "code",
        "execution_count": None,
        "id": "",
        "metadata": {"tags": ["raises-exception"]} if raises else {},
        "outputs": outputs,
        "source": _lines("".join(sources).rstrip("\n")),
    }


def _outputs(outcome: Outcome) -> Iterator[dict[str, Any]]:
    if outcome.printed:
        text = _lines(outcome.printed)
        yield {"output_type": "stream", "name": "stdout", "text": text}
    if outcome.value:
        data = {"text/plain": _lines(outcome.value)}
        yield {
            "output_type": "execute_result",
            "data": data,
            "metadata": {},
            "execution_count": None,
        }
    if outcome.raised:
        kind, _, words = outcome.raised.rstrip("\n").partition(": ")
        lines = outcome.raised.splitlines()
        yield {"output_type": "error", "ename": kind, "evalue": words, "traceback": lines}


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


# -- where it goes ---------------------------------------------------------------------------------


def place(folder: Path, lesson: Lesson) -> Path:
    """The file of a lesson in a folder. Raises ReflError where it cannot be written, or where there
    is something that is not a notebook of refl's, as refl wrote it.
    """
    path = folder / f"{lesson.name}.ipynb"
    if path.exists() or path.is_symlink():
        if path.is_symlink() or not path.is_file():
            raise ReflError(f"{shown(path)} is no regular file: choose another folder")
        if obstacle := _obstacle(path):
            raise ReflError(
                f"{shown(path)} {obstacle}: it is not overwritten; move it, or choose another "
                "folder"
            )
    return writable(path)


def _obstacle(path: Path) -> str:
    try:
        found = json.loads(read_bytes(path, LARGEST))
        said, now = found["metadata"]["refl"]["cells"], digest(found["cells"])
    except (ValueError, LookupError, TypeError, RecursionError):
        return "is there already, and is not a notebook of refl's"
    return "" if said == now else "has been changed since refl wrote it"
