"""A lesson in a terminal: Markdown drawn by rich in the columns there are; answers at the end."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Any

from refl.lessons.lesson import PICTURE, Lesson, Piece, pieces

if TYPE_CHECKING:
    from rich.console import Console

WIDEST = 100
"""Columns of a text that is good to read."""
STYLES = {"markdown.code": "cyan", "markdown.h1": "bold", "markdown.h2": "bold"}
"""No background: it would stand out on a light or on a dark terminal."""
FOLDED = "*(The answer is at the end.)*"


def text(lesson: Lesson) -> str:
    """The whole lesson as Markdown, with what is folded away below all else."""
    parts = pieces(lesson.text)
    answers = [piece.text for piece in parts if piece.kind == "answer"]
    end = ["## Answers", *answers] if answers else []
    return "\n\n".join([*(_above(piece) for piece in parts), *end])


def _above(piece: Piece) -> str:
    return FOLDED if piece.kind == "answer" else markdown(piece)


def markdown(piece: Piece) -> str:
    """A piece by itself."""
    return f"```python\n{piece.text}\n```" if piece.kind == "code" else piece.text


def drawn(markdown: str, width: int, color: bool = False) -> str:
    """Markdown as lines for a terminal of so many columns."""
    from rich.console import Console
    from rich.theme import Theme

    out = io.StringIO()
    console = Console(
        file=out,
        width=min(width, WIDEST),
        force_terminal=color,
        color_system="standard" if color else None,
        theme=Theme(STYLES),
        highlight=False,
        legacy_windows=False,
    )
    _draw(console, markdown)
    lines = "\n".join(line.rstrip() for line in out.getvalue().splitlines())
    return re.sub(r"\n{3,}", "\n\n", lines).strip("\n") + "\n"


def _draw(console: Console, markdown: str) -> None:
    from rich.markdown import Heading, Markdown
    from rich.text import Text

    class Left(Heading):
        """A heading at the left, marked where there are no colors."""

        def __rich_console__(self, console: Any, options: Any) -> Any:
            self.text.justify = "left"
            yield Text("")
            yield Text.assemble(("#" * int(self.tag[1]) + " ", "dim"), self.text)

    class Lessons(Markdown):
        elements = Markdown.elements | {"heading_open": Left}

    said = PICTURE.sub(lambda found: f"> Picture: {found[1]}", markdown)
    said = re.sub(r"^```python$", "```pycon", said, flags=re.MULTILINE)
    if not console.color_system:
        said = _marked(said)
    console.print(Lessons(said, code_theme="ansi_dark", hyperlinks=False))


def _marked(markdown: str) -> str:
    """With the signs around `names` kept: without colors nothing else tells them from the text."""
    parts = re.split(r"(^```.*?^```$)", markdown, flags=re.MULTILINE | re.DOTALL)
    parts[::2] = [re.sub(r"`([^`]+)`", r"`` `\1` ``", part) for part in parts[::2]]
    return "".join(parts)
