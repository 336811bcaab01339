"""One forward pass and the sweeps asked of it."""

from __future__ import annotations

from dataclasses import replace

from refl.errors import ReflError
from refl.io.images import PREPARATION, Preparation
from refl.rules.composites import Composite, Rule


def with_pixel_bounds(
    composite: Composite, preparation: Preparation | None, channels: int
) -> Composite:
    """The composite with the bounds of pixels in every z_box line that has none of its own."""

    def filled(line: Rule) -> Rule:
        if line.rule != "z_box" or {"low", "high"} & {key for key, _ in line.options}:
            return line
        if preparation is None:
            raise ReflError(
                f"method {composite.name} needs the bounds of a pixel: there is no "
                f"{PREPARATION}, so give z_box low and high"
            )
        low, high = preparation.box(channels)
        return replace(line, options=(*line.options, ("low", low), ("high", high)))

    rules = tuple(map(filled, composite.rules))
    return composite if rules == composite.rules else replace(composite, rules=rules)
