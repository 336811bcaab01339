"""The README and the pages of the guide, and what of them can be held against the program."""

from __future__ import annotations

import re

from checkpoints import ROOT

README = ROOT / "README.md"
GUIDE = ROOT / "refl" / "guide"
PAGES = (README, *sorted(GUIDE.glob("*.md")))


def read(name: str) -> str:
    """README.md, or a page of the guide by its name."""
    path = README if name == README.name else GUIDE / name
    return path.read_text(encoding="utf-8")


def blocks(name: str, language: str) -> list[str]:
    """Fenced blocks of a page in a language; without one, output."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", read(name), flags=re.MULTILINE | re.DOTALL)
    return [text for said, text in fenced if said == language]


def commands(name: str) -> list[str]:
    """Lines that are indented as code, those that end with a backslash joined to the next, comments
    cut off.
    """
    text = re.sub(r"^```.*?^```$", "", read(name), flags=re.MULTILINE | re.DOTALL)
    lines = re.findall(r"^    (.*)$", re.sub(r"\\\n\s*", "", text), flags=re.MULTILINE)
    return [re.sub(r"\s{2,}#.*", "", line).strip() for line in lines]


def prose(name: str) -> str:
    """A page without code, output, targets of links and the table of the benchmark, on one line."""
    text = re.sub(r"<!-- benchmark -->.*<!-- /benchmark -->", "", read(name), flags=re.DOTALL)
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^    .*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"\]\([^)]*\)", "]", re.sub(r"`[^`]*`", "CODE", text))
    return re.sub(r"\s+", " ", text)


def coarse(shown: str) -> list[str]:
    """To two decimals and without bars: the last digits of float32 differ between processors."""
    rows = [
        row
        for row in shown.splitlines()
        if not row.lstrip().startswith(("conservation error", "stabilizer"))
    ]
    return [
        re.sub(
            r"\d+\.\d+", lambda m: f"{float(m[0]):.2f}", re.sub(r"[█▏▎▍▌▋▊▉▐▒░]+|\s+", " ", row)
        ).strip()
        for row in rows
    ]
