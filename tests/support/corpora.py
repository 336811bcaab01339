"""Files of inputs, and what a run has left in its folder."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from refl.model import SHIPPED


def of_evidence(file: Path, count: int) -> Path:
    """The first lines of the data that comes with the shipped model."""
    with open(SHIPPED / "evidence.jsonl", "rb") as source:
        file.write_bytes(b"".join(islice(source, count)))
    return file


def content(folder: Path) -> dict[str, bytes]:
    """Name -> the bytes of every file."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
