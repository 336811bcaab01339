"""The equations of the walk as MathML: `refl/walk/equations.json`, made of `equations.toml` by
latex2mathml (the extra `test`), so that the page needs no library to typeset them.

    python -m refl.verification.quality.equations
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import refl
from refl.io.files import atomic_write

WALK = Path(refl.__file__).parent / "walk"
SOURCE, MADE = WALK / "equations.toml", WALK / "equations.json"

Equations = dict[str, dict[str, str]]
"""operation.function -> latex and says, or mathml and says."""


def source() -> Equations:
    """What equations.toml says."""
    tables = tomllib.loads(SOURCE.read_text(encoding="utf-8"))
    return {
        f"{operation}.{function}": said
        for operation, functions in tables.items()
        for function, said in functions.items()
    }


def typeset(equations: Equations) -> Equations:
    """The same with MathML in place of LaTeX."""
    from latex2mathml.converter import convert

    def mathml(latex: str) -> str:
        found: str = convert(" ".join(latex.split()), display="block")
        return found.replace("<mtable", '<mtable displaystyle="true"')  # sums as large as outside

    return {
        key: {"mathml": mathml(said["latex"]), "says": said["says"]}
        for key, said in equations.items()
    }


def text() -> str:
    """The file as it is made: an equation a line."""
    lines = (f"{json.dumps(k)}: {json.dumps(said)}" for k, said in typeset(source()).items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    atomic_write(MADE, text().encode("utf-8"))
