"""Colors: red for, blue against, in steps from nothing to the strongest.

The palettes are ColorBrewer's RdBu, which the color-blind can tell apart. Letters are black or
white, whichever stands out more (WCAG 2).
"""

from __future__ import annotations

import math

Color = tuple[int, int, int]

POSITIVE: list[Color] = [(255, 255, 255), (253, 219, 199), (239, 138, 98), (178, 24, 43)]
NEGATIVE: list[Color] = [(255, 255, 255), (209, 229, 240), (103, 169, 207), (33, 102, 172)]
POSITIVE_DARK: list[Color] = [(24, 26, 31), (84, 34, 34), (176, 62, 56), (255, 150, 130)]
NEGATIVE_DARK: list[Color] = [(24, 26, 31), (24, 52, 86), (48, 108, 176), (140, 195, 255)]
POSITIVE_TERMINAL: list[Color] = [(244, 165, 130), (214, 96, 77), (178, 24, 43)]
NEGATIVE_TERMINAL: list[Color] = [(146, 197, 222), (67, 147, 195), (33, 102, 172)]

DRAWING = (NEGATIVE[-1], POSITIVE[-1])
"""Of a heatmap: against, and for."""
LEVELS = 12
FAINT = 2
"""Levels up to this are colored letters where the background is not known: a pale one would shine
on a dark terminal.
"""


def level(value: float, strongest: float) -> int:
    """-LEVELS ... LEVELS: the value as a step of the palette."""
    return round(LEVELS * (value / strongest)) if strongest > 0 and math.isfinite(value) else 0


def background(
    step: int, positive: list[Color] = POSITIVE, negative: list[Color] = NEGATIVE
) -> Color:
    """The color of a level."""
    ramp = positive if step > 0 else negative
    at = abs(step) / LEVELS * (len(ramp) - 1)
    i = min(int(at), len(ramp) - 2)
    red, green, blue = (
        round(x + (y - x) * (at - i)) for x, y in zip(ramp[i], ramp[i + 1], strict=True)
    )
    return red, green, blue


def terminal_background(step: int) -> Color:
    """The color of a level that is not faint, on a light or a dark terminal alike."""
    return background(step, POSITIVE_TERMINAL, NEGATIVE_TERMINAL)


def foreground(back: Color) -> Color:
    """Black or white, whichever stands out more from the background."""
    return max(((0, 0, 0), (255, 255, 255)), key=lambda c: contrast(c, back))


def contrast(a: Color, b: Color) -> float:
    """The contrast ratio of WCAG 2, 1 to 21."""
    light, dark = sorted((_luminance(a), _luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(color: Color) -> float:
    r, g, b = (c / 3294.6 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in color)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def hexadecimal(color: Color) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)


def token_style(step: int) -> str:
    """Letters in a color for the weak, a background for the strong; reads the same on a light and
    on a dark terminal.
    """
    if abs(step) <= FAINT:
        return ink(step)
    back = terminal_background(step)
    return f"{hexadecimal(foreground(back))} on {hexadecimal(back)}"


GRADES = ((FAINT, ""), (5, "underline "), (9, "reverse "), (LEVELS, "bold underline reverse "))
"""Of a terminal with 8 or 16 colors, whose reds may be of any brightness: up to which level what
makes letters louder.
"""


def few_colors(style: str) -> str:
    """A style as a terminal with 8 or 16 colors shows it: louder for what is stronger."""
    return _FEW.get(style, style)


def _grade(step: int) -> str:
    loud = next(words for most, words in GRADES if abs(step) <= most)
    return loud + ("red" if step > 0 else "blue")


def ink(value: float) -> str:
    """Red and blue letters that read on black and on white."""
    return "#d1495b" if value > 0 else "#3b7dd8" if value < 0 else ""


_FEW = {token_style(step): _grade(step) for step in range(-LEVELS, LEVELS + 1) if step}
