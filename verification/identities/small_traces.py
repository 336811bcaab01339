"""Small nets written on a trace, and swept."""

from __future__ import annotations

from typing import Any

from refl.rules.composites import Composite
from refl.rules.published import LRP_0
from refl.sweep import Sweep, Swept
from refl.trace import Trace, Value


def input_value(t: Trace, name: str, array: Any) -> Value:
    """An input that has a site, so that the sweep keeps what arrives there."""
    return t.scale(name, Value(array, f"{name}.stored"), 1.0)


def sweep_from(t: Trace, at: Value, seed: Any, composite: Composite = LRP_0) -> Swept:
    """Audited, with every site kept."""
    return Sweep(composite, keep=lambda names: True, audit=True).run(t, at, seed)
