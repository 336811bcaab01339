"""Rotary position embedding: the frequencies of a config, and the tables of cosines and sines they
give.

    angle[t, i] = t f_i,   f_i = theta^(-2i/d),   scaled as `rope_type` says:

    default    f_i  (Su et al. 2021, arXiv 2104.09864)
    linear     f_i / factor  (Chen et al. 2023, arXiv 2306.15595)
    dynamic    theta grows with the length once it exceeds max_position_embeddings
               (NTK-aware scaling; as transformers codes it)
    llama3     long waves divided by factor, short ones kept, a ramp between
               (Llama 3.1; as transformers codes it)
    yarn       the same with a ramp over dimensions, and cos, sin times an attention factor
               (Peng et al. 2023, arXiv 2309.00071)
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from refl.arrays import Array, device_of, namespace
from refl.errors import ReflError, shown
from refl.nets.config import LARGEST, brief

ACCEPTED = {
    "default": set[str](),
    "linear": {"factor"},
    "dynamic": {"factor", "original_max_position_embeddings"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
    "yarn": {
        "factor",
        "original_max_position_embeddings",
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
    },
}
REQUIRED = {
    "default": set[str](),
    "linear": {"factor"},
    "dynamic": {"factor"},
    "llama3": ACCEPTED["llama3"],
    "yarn": {"factor"},
}


WIDEST = 1 << 16
"""Features of a head that can be rotated: far above any that was trained."""


@dataclass(frozen=True)
class Rope:
    """What a config says about rotary embedding."""

    width: int
    """d, the number of features that are rotated."""
    theta: float
    positions: int
    """max_position_embeddings."""
    kind: str
    options: dict[str, float]

    def frequencies(self, length: int) -> list[float]:
        """f_0 .. f_(d/2 - 1) for a text of `length` tokens."""
        return FREQUENCIES[self.kind](self, length)

    @property
    def gain(self) -> float:
        """The factor on cos and sin: 1 except under yarn."""
        return _yarn_gain(self) if self.kind == "yarn" else 1.0

    def batch_dependent(self, length: int) -> bool:
        """Whether the angles of a shorter text change where one of `length` tokens is in its batch:
        dynamic scaling goes by the longest.
        """
        return self.kind == "dynamic" and length > self.positions

    @property
    def longest(self) -> int:
        """How many tokens the config allows."""
        return (
            int(self.positions * self.options["factor"])
            if self.kind == "dynamic"
            else self.positions
        )


def read(
    width: int,
    theta: float | None,
    positions: int,
    scaling: dict[str, Any] | None,
    parameters: dict[str, Any] | None,
) -> Rope:
    """Rope from `rope_theta` and `rope_scaling`, or from `rope_parameters`, where newer files hold
    both.

    Raises ReflError for a type that is not implemented, an option missing from it, one it does not
    have, or a value that makes no angles.
    """
    given = parameters or scaling or {}
    if not isinstance(given, dict):
        raise ReflError(f"config.json has {brief(given)} for rotary positions: expected an object")
    options = dict(given)
    kind = _kind(options.pop("rope_type", None), options.pop("type", None))
    base = options.pop("rope_theta", None)
    if base is None:
        base = 10000.0 if theta is None else theta
    for key, value in options.items():
        _check_option(kind, key, value)
    missing = sorted(REQUIRED[kind] - {key for key, value in options.items() if value is not None})
    if missing:
        raise ReflError(f"config.json asks for rope_type {kind!r} without its option {missing[0]}")
    _check_number(kind, "rope_theta", base)
    _check_width(kind, width)
    numbers = {key: float(v) for key, v in options.items() if v is not None}
    return _usable(Rope(width, float(base), positions, kind, numbers))


def _kind(kind: Any, older: Any) -> str:
    """rope_type, or `type` as older files spell it."""
    for name in (kind, older):
        if name is not None and name not in tuple(ACCEPTED):  # a tuple: it may be a list
            raise ReflError(
                f"config.json asks for rope_type {brief(name)}, which is not implemented: there "
                f"are {', '.join(ACCEPTED)}"
            )
    if None not in (kind, older) and kind != older:
        raise ReflError(f"config.json has rope_type {kind!r} and type {older!r}: expected one")
    return kind or older or "default"


def _check_width(kind: str, width: int) -> None:
    if width % 2:
        raise ReflError(f"rotary embedding needs an even head_dim, got {width}")
    least = 4 if kind == "dynamic" else 2  # the exponent of dynamic's theta is d / (d - 2)
    if not least <= width <= WIDEST:
        raise ReflError(
            f"config.json asks for rotary positions on {width} features of each head: rope_type "
            f"{kind!r} needs {least} to {WIDEST}"
        )


def _usable(rope: Rope) -> Rope:
    """Itself. Raises ReflError where its options, each a number, make no angles together."""
    if rope.kind == "llama3" and rope.options["high_freq_factor"] < rope.options["low_freq_factor"]:
        raise ReflError("config.json has a high_freq_factor below low_freq_factor")
    try:
        far = min(rope.longest, LARGEST)
        made = [rope.gain, *rope.frequencies(1), *rope.frequencies(far)]
    except (ArithmeticError, ValueError):
        made = [math.nan]
    if not all(math.isfinite(number) for number in made):
        raise ReflError(
            f"config.json has options of rope_type {rope.kind!r} that give no finite angles: "
            f"rope_theta = {rope.theta:g} and {brief(rope.options)}"
        )
    return rope


def _check_option(kind: str, key: str, value: Any) -> None:
    if key not in ACCEPTED[kind] and not (key == "partial_rotary_factor" and value == 1.0):
        raise ReflError(
            f"config.json gives rope_type {kind!r} the option {shown(key)}, which is not "
            "implemented"
        )
    if value is not None:
        _check_number(kind, key, value)


def _check_number(kind: str, key: str, value: Any) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (number and 0 < value <= sys.float_info.max):
        raise ReflError(
            f"config.json has {key} = {brief(value)} for rope_type {kind!r}: expected a number "
            "above 0"
        )


def tables(
    rope: Rope, length: int, other: Array, past: int = 0
) -> tuple[Array, Array]:  # -> cos, sin (1, 1, T, d), like `other`
    """Of `length` positions after `past` ones.
    Angles are formed in float64 and rounded once, to the dtype of `other`.
    """
    xp, device = namespace(other), device_of(other)
    t = xp.arange(past, past + length, dtype=xp.float64, **device)
    t = xp.reshape(t, (1, 1, length, 1))
    f = xp.reshape(
        xp.asarray(rope.frequencies(past + length) * 2, dtype=xp.float64, **device), (1, 1, 1, -1)
    )
    angle = t * f
    return xp.astype(xp.cos(angle) * rope.gain, other.dtype), xp.astype(
        xp.sin(angle) * rope.gain, other.dtype
    )


def _default(rope: Rope, length: int, theta: float | None = None) -> list[float]:
    return [(theta or rope.theta) ** (-2.0 * i / rope.width) for i in range(rope.width // 2)]


def _linear(rope: Rope, length: int) -> list[float]:
    return [f / rope.options["factor"] for f in _default(rope, length)]


def _dynamic(rope: Rope, length: int) -> list[float]:
    factor = rope.options["factor"]
    stretch = factor * max(length, rope.positions) / rope.positions - (factor - 1)
    return _default(rope, length, rope.theta * stretch ** (rope.width / (rope.width - 2)))


def _llama3(rope: Rope, length: int) -> list[float]:
    low, high, context = (
        rope.options[k]
        for k in ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    )

    def scaled(f: float) -> float:
        turns = context * f / (2 * math.pi)  # full turns within the original context
        if high == low:  # a ramp of no width, as transformers evaluates it
            kept = float(turns > high)
        else:
            kept = min(max((turns - low) / (high - low), 0.0), 1.0)
        return (1 - kept) * f / rope.options["factor"] + kept * f

    return [scaled(f) for f in _default(rope, length)]


def _yarn(rope: Rope, length: int) -> list[float]:
    low, high = _yarn_range(rope)
    factor = _yarn_factor(rope)

    def scaled(i: int, f: float) -> float:
        stretched = min(max((i - low) / (high - low), 0.0), 1.0)
        return stretched * f / factor + (1 - stretched) * f

    return [scaled(i, f) for i, f in enumerate(_default(rope, length))]


def _yarn_factor(rope: Rope) -> float:
    original = rope.options.get("original_max_position_embeddings")
    return rope.positions / original if original else rope.options["factor"]


def _yarn_range(rope: Rope) -> tuple[float, float]:
    """The dimensions between which frequencies go from kept to stretched: those that turn beta_fast
    and beta_slow times.
    """
    original = rope.options.get("original_max_position_embeddings", rope.positions)

    def dimension(turns: float) -> float:
        return rope.width * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low = max(math.floor(dimension(rope.options.get("beta_fast", 32.0))), 0)
    high = min(math.ceil(dimension(rope.options.get("beta_slow", 1.0))), rope.width - 1)
    return low, high if high != low else high + 0.001


def _yarn_gain(rope: Rope) -> float:
    factor = _yarn_factor(rope)

    def gain(scale: float = 1.0) -> float:
        return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0

    if "attention_factor" in rope.options:
        return rope.options["attention_factor"]
    if "mscale" in rope.options and "mscale_all_dim" in rope.options:
        return gain(rope.options["mscale"]) / gain(rope.options["mscale_all_dim"])
    return gain()


FREQUENCIES: dict[str, Callable[[Rope, int], list[float]]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
}
