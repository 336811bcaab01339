"""Rows as JSON: a file for each kind of machine, and in it for each part what ran it. A part that
is measured again replaces what is stored of it, whatever lengths were asked for.

{"format": 1, "kind": "amd-skylakex", "parts": {"tokens": {"about": {...}, "rows": [...]}}}
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent / "results"
FORMAT = 1

Results = dict[str, Any]


def ready(folder: Path) -> Path:
    """The folder, made where it is not there. Raises ReflError where it cannot be."""
    from refl.errors import ReflError

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as reason:
        raise ReflError(f"results cannot be put into {folder}: {reason.strerror}") from reason
    return folder


def with_part(
    folder: Path, kind: str, part: str, about: dict[str, Any], rows: Sequence[dict[str, Any]]
) -> Path:
    """The file of this kind of machine, in which the part is put or replaced."""
    from refl.io.files import atomic_write

    path = folder / f"{kind}.json"
    found: Results = {"format": FORMAT, "kind": kind, "parts": {}}
    found = read(path) if path.exists() else found
    found["parts"][part] = {"about": about, "rows": list(rows)}
    atomic_write(path, dumped(found).encode())
    return path


def read(path: Path) -> Results:
    """Raises ReflError for a file of another format."""
    from refl.errors import ReflError

    found: Results = json.loads(path.read_text(encoding="utf-8"))
    if found.get("format") != FORMAT:
        raise ReflError(f"{path.name} is no result of this benchmark: expected format {FORMAT}")
    return found


def every(folder: Path = FOLDER) -> list[Results]:
    """Of all kinds of machines, by name."""
    return [read(path) for path in sorted(folder.glob("*.json"))]


def rows(found: Results, part: str) -> list[dict[str, Any]]:
    return list(found["parts"].get(part, {"rows": []})["rows"])


def dumped(found: Results) -> str:
    """A row a line, so that a change of one is seen as one."""
    parts = [_part(name, each) for name, each in found["parts"].items()]
    head = f'{{"format": {found["format"]}, "kind": {json.dumps(found["kind"])}, "parts": {{\n'
    return head + ",\n".join(parts) + "\n}}\n"


def _part(name: str, part: dict[str, Any]) -> str:
    lines = ",\n".join(json.dumps(row) for row in part["rows"])
    return f'{json.dumps(name)}: {{"about": {json.dumps(part["about"])}, "rows": [\n{lines}\n]}}'
