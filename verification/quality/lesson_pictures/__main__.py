"""Writes the pictures: all of them, or those that are named."""

from __future__ import annotations

import sys

from refl.io.files import atomic_write
from refl.lessons.lesson import FOLDER
from refl.verification.quality.lesson_pictures import pictures


def main() -> int:
    every = pictures()
    for name in sys.argv[1:] or every:
        atomic_write(FOLDER / "pictures" / f"{name}.svg", every[name]().encode("utf-8"))
        print(f"wrote refl/lessons/pictures/{name}.svg")
    return 0


if __name__ == "__main__":
    sys.exit(main())
