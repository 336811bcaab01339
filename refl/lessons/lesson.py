"""A lesson read: number, title, claim, the sections in their order, and the pieces of a text:
prose, code, an answer that is folded away.

    # N. Title
    **Claim.** ...
    ## Predict    ## Try    ## Answer    ## The misconception    ## Find the mistake    ## Read on
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from refl.errors import ReflError, quoted

FOLDER = Path(__file__).parent
SECTIONS = ("Predict", "Try", "Answer", "The misconception", "Find the mistake", "Read on")
GROUPS = {
    "the hour": range(1, 8),
    "further": range(8, 11),
    "for implementers": range(11, 12),
}
WORDS_PER_MINUTE = 90
"""Of a text that is half numbers, with its question thought about and its examples followed."""


@dataclass(frozen=True)
class Section:
    """What stands below a heading; the first, below the title, has no other."""

    title: str
    text: str


@dataclass(frozen=True)
class Piece:
    """A stretch of a text: `prose`, `code` (>>> examples), or `answer` (what <details> folds)."""

    kind: str
    text: str


@dataclass(frozen=True)
class Lesson:
    """A lesson, as its file has it."""

    name: str
    text: str

    @property
    def number(self) -> int:
        return int(self.name[:2])

    @property
    def title(self) -> str:
        return re.sub(r"^# \d+\. ", "", self.text.partition("\n")[0])

    @property
    def claim(self) -> str:
        """Its first sentence, without signs of Markdown."""
        found = re.search(r"\*\*Claim\.\*\*\s+(.+?)(?:\n\n|\Z)", self.text, re.DOTALL)
        words = " ".join(found[1].split()) if found else self.title
        return _without_signs(re.split(r"(?<=[.!?]) (?=[^a-z])", words)[0])

    @property
    def minutes(self) -> int:
        return round(len(self.text.split()) / WORDS_PER_MINUTE)

    @property
    def sections(self) -> list[Section]:
        """The first is what stands above all headings, without the title."""
        _, _, below = self.text.partition("\n")
        head, *rest = re.split(r"^## (.+)$", below, flags=re.MULTILINE)
        pairs = zip(rest[::2], rest[1::2], strict=True)
        return [Section("", head.strip()), *(Section(t.strip(), s.strip()) for t, s in pairs)]

    @property
    def letter(self) -> str:
        """Of the right option: a, b or c; "" where the answer does not begin with it."""
        answers = [s.text for s in self.sections if s.title == "Answer"]
        found = re.match(r"\*\*([abc])\)", answers[0]) if answers else None
        return found[1] if found else ""

    def as_dict(self) -> dict[str, object]:
        said = {name: getattr(self, name) for name in ("number", "title", "claim", "minutes")}
        return said | {"words": len(self.text.split())}


def _without_signs(words: str) -> str:
    return re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", lambda found: found[1] or "", words)


# -- which there are -------------------------------------------------------------------------------


def lessons() -> list[Lesson]:
    """All of them, in order."""
    files = sorted(FOLDER.glob("[0-9][0-9]_*.md"))
    return [Lesson(file.stem, file.read_text(encoding="utf-8")) for file in files]


def lesson(number: str) -> Lesson:
    """The lesson of this number. Raises ReflError where there is none."""
    every = lessons()
    wanted = int(number) if number.isdecimal() and len(number) < 4 else 0
    for one in every:
        if one.number == wanted:
            return one
    last = every[-1].number if every else 0
    raise ReflError(
        f"there is no lesson {quoted(number)}: expected a number from 1 to {last}; refl learn "
        "lists them"
    )


# -- the pieces of a text --------------------------------------------------------------------------

PICTURE = re.compile(r"!\[([^\]]*)\]\(pictures/([\w.-]+\.svg)\)")
"""Its alt text, and its file."""
_PIECES = re.compile(
    r"^```python\n(?P<code>.*?)^```[ ]*\n?"
    r"|^<details><summary>[^<]*</summary>\n(?P<answer>.*?)^</details>[ ]*\n?",
    re.MULTILINE | re.DOTALL,
)


def pieces(text: str) -> list[Piece]:
    """One after the other; together they are the text."""
    found, at = list[Piece](), 0
    for match in _PIECES.finditer(text + "\n"):
        found += _prose(text[at : match.start()])
        kind = match.lastgroup or ""
        found.append(Piece(kind, match[kind].strip("\n")))
        at = match.end()
    return found + _prose(text[at:])


def _prose(text: str) -> list[Piece]:
    return [Piece("prose", text.strip())] if text.strip() else []
