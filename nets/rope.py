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
    longrope   f_i / short_factor_i, and in a text longer than original_max_position_embeddings
               f_i / long_factor_i; cos, sin times an attention factor
               (Ding et al. 2024, arXiv 2402.13753; the factor as transformers codes it)

Under dynamic and longrope the angles of all tokens change once a text is longer than what it was
trained on: keys that were turned before are turned anew then (see Rope.change).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
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
    "longrope": {
        "factor",
        "original_max_position_embeddings",
        "attention_factor",
        "short_factor",
        "long_factor",
    },
}
REQUIRED = {
    "default": set[str](),
    "linear": {"factor"},
    "dynamic": {"factor"},
    "llama3": ACCEPTED["llama3"],
    "yarn": {"factor"},
    "longrope": {"short_factor", "long_factor"},
}
ORIGINAL = "original_max_position_embeddings"
LISTS = ("short_factor", "long_factor")
"""The options of longrope that have a number for each frequency."""

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
    lists: dict[str, list[float]] = field(default_factory=dict)
    """The options that have a number for each frequency."""

    def frequencies(self, length: int) -> list[float]:
        """f_0 .. f_(d/2 - 1) for a text of `length` tokens."""
        return FREQUENCIES[self.kind](self, length)

    @property
    def gain(self) -> float:
        """The factor on cos and sin: 1 except under yarn and longrope."""
        return GAINS[self.kind](self) if self.kind in GAINS else 1.0

    @property
    def trained(self) -> int:
        """The length up to which the angles of a text do not depend on its length."""
        if self.kind == "longrope":
            return int(self.options.get(ORIGINAL, self.positions))
        return self.positions

    def batch_dependent(self, length: int) -> bool:
        """Whether the angles of a shorter text change where one of `length` tokens is in its batch:
        dynamic scaling and longrope go by the longest.
        """
        return self.kind in ("dynamic", "longrope") and length > self.trained

    def change(self, before: int, length: int) -> bool:
        """Whether a token of a text of `before` tokens is turned otherwise where there are
        `length`.
        """
        return self.batch_dependent(length) and self.frequencies(before) != self.frequencies(length)

    @property
    def longest(self) -> int:
        """How many tokens the config allows: where scaling begins at max_position_embeddings,
        `factor` times as many.
        """
        scaled = self.kind == "dynamic" or (
            self.kind == "longrope" and self.trained == self.positions
        )
        return int(self.positions * self.options.get("factor", 1.0)) if scaled else self.positions


def read(
    width: int,
    theta: float | None,
    positions: int,
    scaling: dict[str, Any] | None,
    parameters: dict[str, Any] | None,
    *,
    part: float | None = None,
    original: int | None = None,
) -> Rope:
    """Rope from `rope_theta` and `rope_scaling`, or from `rope_parameters`, where newer files hold
    both. `part`: the partial_rotary_factor of a net that has one; `original`: the
    original_max_position_embeddings beside them.

    Raises ReflError for a type that is not implemented, an option missing from it, one it does not
    have, or a value that makes no angles.
    """
    given = parameters or scaling or {}
    if not isinstance(given, dict):
        raise ReflError(f"config.json has {brief(given)} for rotary positions: expected an object")
    options = dict(given)
    if part is not None:
        width = _part(width, part, options.pop("partial_rotary_factor", None))
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
    if ORIGINAL in ACCEPTED[kind]:
        options[ORIGINAL] = _original(kind, options.get(ORIGINAL), original)
    lists = {key: list(map(float, options.pop(key))) for key in LISTS if key in options}
    numbers = {key: float(v) for key, v in options.items() if v is not None}
    rope = Rope(width, float(base), positions, kind, numbers, lists)
    if kind == "longrope":
        _check_longrope(rope)
    return _usable(rope)


def _part(width: int, part: Any, inside: Any) -> int:
    """How many features of a head are turned: by rope_parameters, where they say it."""
    part = part if inside is None else inside
    if isinstance(part, bool) or not isinstance(part, (int, float)) or not 0 < part <= 1:
        raise ReflError(
            f"config.json has partial_rotary_factor = {brief(part)}: expected a number above 0, at "
            "most 1"
        )
    return int(width * part)


def _original(kind: str, inside: Any, beside: int | None) -> Any:
    """original_max_position_embeddings, as an option of rotary positions or beside them, where
    transformers 4.52 looks for that of longrope alone.
    """
    if beside is None or inside == beside or (inside is None and kind == "longrope"):
        return beside if inside is None else inside
    raise ReflError(
        f"config.json has {ORIGINAL} = {brief(beside)}, and {brief(inside)} for rope_type "
        f"{kind!r}: expected one, there"
    )


def _check_longrope(rope: Rope) -> None:
    """Raises ReflError for lists of another length, and where the factor by which a text may be
    longer is not known, or is two.
    """
    for key, numbers in rope.lists.items():
        if len(numbers) != rope.width // 2:
            raise ReflError(
                f"config.json has {len(numbers)} numbers in {key}: expected {rope.width // 2}, one "
                "for each frequency"
            )
    factor, ratio = rope.options.get("factor"), rope.positions / rope.trained
    if ORIGINAL not in rope.options:
        if factor is None and "attention_factor" not in rope.options:
            raise ReflError("config.json asks for rope_type 'longrope' without its option factor")
    elif factor is not None and not math.isclose(factor, ratio):
        raise ReflError(
            f"config.json has factor = {factor:g} for rope_type 'longrope', and {ratio:g} is "
            f"max_position_embeddings / {ORIGINAL}: expected one"
        )


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
    if key not in LISTS:
        numbers = [] if value is None else [value]
    elif not isinstance(value, list):
        raise ReflError(
            f"config.json has {key} = {brief(value)} for rope_type {kind!r}: expected a list of "
            "numbers"
        )
    else:
        numbers = value
    for number in numbers:
        _check_number(kind, key, number)


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


def _longrope(rope: Rope, length: int) -> list[float]:
    factors = rope.lists["long_factor" if length > rope.trained else "short_factor"]
    return [f / factor for f, factor in zip(_default(rope, length), factors, strict=True)]


def _longrope_gain(rope: Rope) -> float:
    if "attention_factor" in rope.options:
        return rope.options["attention_factor"]
    factor = rope.options.get("factor", rope.positions / rope.trained)
    return math.sqrt(1 + math.log(factor) / math.log(rope.trained)) if factor > 1 else 1.0


GAINS: dict[str, Callable[[Rope], float]] = {"yarn": _yarn_gain, "longrope": _longrope_gain}
FREQUENCIES: dict[str, Callable[[Rope, int], list[float]]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}
