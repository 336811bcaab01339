"""A heatmap for LaTeX: a snippet for \\input that needs \\usepackage{xcolor} and nothing else.

Whatever a token holds is letters: no character of it is read as a command. ASCII and accented
letters of Latin-1 are set by every engine. Any other character is set by XeLaTeX and LuaLaTeX, if
the font has it; pdfLaTeX, which has no letters for most, sets its escape.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from refl.show.colors import Color, hexadecimal
from refl.show.text import one_line, printable

SPECIAL = {
    "\\": r"\textbackslash{}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"{\char34}",
    **{c: f"\\{c}" for c in "{}$&#_%"},
    **{c: f"{{{c}}}" for c in "'`-,?!*[]"},  # no ligatures, and no optional arguments
    " ": r"\ ",
    "␣": r"\textvisiblespace{}",
    "→": r"\ensuremath{\to}",
    "…": r"\ldots{}",
    "·": r"\textperiodcentered{}",
}

PREAMBLE = r"""\begingroup
\ifdefined\Umathcode
  \def\reflchar#1#2{#1}% XeLaTeX and LuaLaTeX set the character
\else
  \def\reflchar#1#2{#2}% pdfLaTeX sets its escape
\fi
\ifdefined\reflbox\else\newsavebox\reflbox\fi
\def\reflnone{}%
\def\reflbelow{\rule[\dimexpr-\dp\reflbox-2pt\relax]{\wd\reflbox}{1pt}}%
\def\reflabove{\rule[\dimexpr\ht\reflbox+1pt\relax]{\wd\reflbox}{1pt}}%
\def\reflcell#1#2#3#4{% background, letters, mark, text
  \sbox\reflbox{\fboxsep1.5pt\colorbox[HTML]{#1}{\textcolor[HTML]{#2}{\strut#4}}}%
  \usebox\reflbox\llap{#3}}%
\def\reflglue{\hskip0pt plus 0.3pt\relax}%
\parindent0pt\raggedright\ttfamily\small
"""

Look = tuple[Color, Color, str]
"""Background, letters, and which mark: none, below, above."""


@dataclass(frozen=True)
class Panel:
    """One explanation: texts, rows of (text, spaced, ends a line, look), and its scale."""

    title: str
    method: str
    rows: Sequence[tuple[str, Sequence[tuple[str, bool, bool, Look]]]]
    target: str
    ramp: Sequence[Look]
    low: str
    high: str
    said: Sequence[str]


def document(panels: Sequence[Panel]) -> str:
    """The snippet; what it defines is forgotten at its end."""
    head = "% made by refl: \\usepackage{xcolor}, then \\input this file\n"
    return head + PREAMBLE + "".join(map(_panel, panels)) + "\\endgroup\n"


def escaped(text: object) -> str:
    """Letters, whatever they are."""
    return "".join(map(_letter, printable(text)))


def _letter(c: str) -> str:
    if c in SPECIAL:
        return SPECIAL[c]
    plain = unicodedata.normalize("NFD", c)[0]
    if c.isascii() or (c <= "\u00ff" and plain.isascii() and plain.isalpha()):
        return c
    code = c.encode("unicode_escape").decode("ascii").removeprefix("\\")
    return f"\\reflchar{{{c}}}{{\\textbackslash{{}}{code}}}"


def _panel(p: Panel) -> str:
    lines = [f"\\textbf{{{_words(p.title)}}}\\par\n"] if p.title else []
    lines.append(f"\\textbf{{{_words(p.method)}}}\\par\n")
    for name, tokens in p.rows:
        lines += [f"{_words(name)}\\par\n"] if name else []
        lines += [_token(*token) for token in tokens]
        lines.append("\\par\n")
    lines.append(f"\\textbf{{{escaped('→ ' + p.target)}}}\\par\n")
    ramp = "".join(cell("\\kern3pt", look) + "%\n" for look in p.ramp)
    lines.append(f"{escaped(p.low)}\\ %\n{ramp}\\ {escaped(p.high)}\\par\n")
    lines += [f"{_words(said)}\\par\n" for said in p.said]
    return "".join(lines)


def _words(text: str) -> str:
    """A text whose blanks may end a line."""
    return " ".join(map(escaped, one_line(text).split(" ")))


def _token(text: str, spaced: bool, ends_line: bool, look: Look) -> str:
    before, after = "\\ " if spaced else "\\reflglue ", "\\par" if ends_line else ""
    return f"{before}{cell(escaped(text), look)}{after}%\n"


def cell(text: str, look: Look) -> str:
    """A text, which is TeX already, on its color with its mark."""
    back, ink, mark = look
    colors = "".join(f"{{{hexadecimal(color)[1:].upper()}}}" for color in (back, ink))
    return f"\\reflcell{colors}{{\\refl{mark}}}{{{text}}}"
