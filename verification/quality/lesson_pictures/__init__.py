"""The pictures in the lessons, drawn by refl: every number in them is computed here.

    python -m refl.verification.quality.lesson_pictures [NAME ...]

writes refl/lessons/pictures/NAME.svg, all of them or those that are named; a test makes each again.

    numbers_by_hand         lessons 1 to 4
    attention_and_blocks    lessons 6 and 7
    graphs_and_questions    lessons 8 to 10

A module of pictures has PICTURES, name -> the function that draws it as SVG.
"""

from __future__ import annotations

from collections.abc import Callable


def pictures() -> dict[str, Callable[[], str]]:
    """All of them."""
    from refl.verification.quality.lesson_pictures import (
        attention_and_blocks,
        graphs_and_questions,
        numbers_by_hand,
    )

    modules = (numbers_by_hand, attention_and_blocks, graphs_and_questions)
    return {name: draw for module in modules for name, draw in module.PICTURES.items()}
