"""The one exception that refl raises for bad input: a sentence that says what was expected, what
came, and what to do. And what such sentences need: names that are safe to show, names that are
near.
"""

from __future__ import annotations

import difflib
import heapq
import os
import re
from collections.abc import Collection, Iterable

OTHERWISE = {"edits": "edit", "conditions": "through"}
"""Arguments that a command line calls by another name."""


class ReflError(Exception):
    """Input that refl cannot work with. Its text is one sentence,
    meant to be shown to the user as it stands: one printable line of bounded length.

    What it calls arguments of a function it calls as they are spelled where it is shown: `position`
    in Python, `--position` on the command line (`spelled`).
    """

    def __init__(self, words: object = "") -> None:
        self._words = str(words)
        super().__init__(sentence(_ARGUMENT.sub(r"\1", self._words)))

    def spelled(self, options: Collection[str]) -> ReflError:
        """The same for a command line with these options."""
        known = set(options)

        def spelling(found: re.Match[str]) -> str:
            name = found[1].removesuffix("=")
            option = name if name in known else OTHERWISE.get(name, name)
            return f"--{option.replace('_', '-')}" if option in known else found[1]

        return ReflError(_ARGUMENT.sub(spelling, self._words))


def argument(name: str) -> str:
    """The name of an argument for a message, `position` or `position=`."""
    return f"{_OPENS}{name}{_CLOSES}" if name.replace("_", "").rstrip("=").isalpha() else name


_OPENS, _CLOSES = "\ufdd0", "\ufdd1"
"""No characters, and in no text: what stands between them is the name of an argument."""
_ARGUMENT = re.compile(f"{_OPENS}([a-z_]+=?){_CLOSES}")


LONGEST_SENTENCE, LONGEST_WORD, LONGEST_REPR = 1000, 300, 240


class UnknownWords(UserWarning):
    """Words of an input that the model's vocabulary lacks."""


def sentence(words: object, most: int = LONGEST_SENTENCE) -> str:
    """Words on one line, control characters escaped, long ones and the whole cut in the middle:
    what they quote may be anybody's.
    """
    line = " ".join(str(words).splitlines())
    line = line if line.isprintable() else "".join(map(_escaped, line))
    line = _LONG_WORDS.sub(lambda word: _cut(word[0], LONGEST_WORD), line)
    return _cut(line, most)


_LONG_WORDS = re.compile(rf"\S{{{LONGEST_WORD + 1},}}")


def _escaped(c: str) -> str:
    return c if c.isprintable() else c.encode("unicode_escape").decode("ascii")


def _cut(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    tail = most // 4
    return f"{text[: most - tail - 3]}...{text[-tail:]}"


def shown(name: object) -> str:
    """A name for a message: as it stands where it can be printed, otherwise escaped and cut."""
    text = str(name)
    return text if text.isprintable() and len(text) <= 300 else ascii(text[:300])


def quoted(value: object) -> str:
    """A value for a message, as Python writes it; its type where it cannot be written."""
    try:
        return sentence(repr(value), LONGEST_WORD)
    except Exception:  # noqa: BLE001 - nested too deeply, too many digits, somebody's own class
        return f"a {type(value).__name__}"


def nearest(name: str, names: Iterable[str], count: int) -> list[str]:
    """The `count` names most like `name`, best first; fewer where fewer are alike.

    difflib takes minutes for the names of a large checkpoint: it sees those which begin and end
    alike.
    """

    def alike(other: str) -> int:
        return _common(name, other) + _common(name[::-1], other[::-1])

    likely = heapq.nlargest(
        200, (other for other in names if len(other) < 2 * len(name) + 4), key=alike
    )
    return difflib.get_close_matches(name, likely, n=count)


def nearest_patterns(pattern: str, names: Iterable[str]) -> list[str]:
    """Names, or for a pattern that begins with * ends of names, that are like the pattern."""
    if not pattern.startswith("*"):
        return nearest(pattern, names, 3)
    wanted = pattern.strip("*.?")
    parts = wanted.count(".") + 1
    ends = {".".join(name.split(".")[-parts:]) for name in names}
    return [f"*.{end}" for end in nearest(wanted, sorted(ends), 3)]


def _common(a: str, b: str) -> int:
    return len(os.path.commonprefix([a, b]))
