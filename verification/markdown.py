"""Pages that scripts write: their tables, and the command that made them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lines without a newline behind the last."""
    lines = (head, ["---"] * len(head), *rows)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def command(module: str, arguments: Sequence[str] | None, page: str) -> str:
    """As it was given on the command line, or as `arguments`; the page's own place is left out."""
    asked = " ".join(sys.argv[1:] if arguments is None else arguments).replace(page, "FILE")
    return f"python -m {module} {asked}"
