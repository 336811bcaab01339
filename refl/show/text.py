"""Text that is safe to show, and how much room it takes.

Tokens come from a checkpoint, names and sources from anyone's file: everything passes `printable`
on its way to a terminal, and `markup.safe` on its way to a page.
"""

from __future__ import annotations

import unicodedata


def printable(text: object) -> str:
    """The text with every control, format or unassigned character as its escape: a token must not
    steer a terminal.
    """
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text)
    )


def one_line(text: object) -> str:
    """The same on one line, line ends and runs of blanks as one space."""
    return printable(" ".join(str(text).split()))


def visible(token: str) -> str:
    """A token in a table: blanks at its ends are made visible."""
    shown = printable(token)
    inner = shown.strip(" ")
    left = len(shown) - len(shown.lstrip(" "))
    right = len(shown) - left - len(inner)
    return "␣" * left + inner + "␣" * right if inner else "␣" * len(shown)


def cells(text: str) -> int:
    """Columns the text takes in a terminal."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def shorten(text: str, most: int) -> str:
    """The text in at most so many columns; what is left out is marked."""
    if cells(text) <= most:
        return text
    room, kept = most - 1, 0
    for c in text:  # once through: it may be as long as anybody likes
        room -= cells(c)
        if room < 0:
            break
        kept += 1
    return text[:kept] + "…"
