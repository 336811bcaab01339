"""Conformance cases for mistakes of structure: axes, heads, examples, shapes, the far ends of the
numbers. An implementation with default options, in float64 or in float32 alone, covers them.

Every rule is called in the shapes that its operation takes: all axes of different lengths, all of
one length, few and many axes, lengths of 1, rows of a thousand, square weights and others, operands
that are broadcast. No two numbers of an array are equal, so whatever is summed, averaged, rolled,
swapped or cut off shows. Each shape's `WHY` says which mistakes it is for.

    for aim in aims("matmul_uniform"):
        inputs, options = aim.make(Numbers("a seed", "float64", aim.kind))

Numbers are short decimals, so that files stay small and a failure can be followed.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np

from refl.verification.vectors.case import held, signature

Array: TypeAlias = Any
Made: TypeAlias = tuple[dict[str, Any], dict[str, Any]]
"""Inputs and options."""

BOTH, WIDE, HALF = ("float64", "float32"), ("float64",), ("float16",)

WHY = {
    "different": "no two axes of one length: one taken for another, or counted from the wrong end",
    "equal": "all axes of one length: what is transposed, rolled or averaged changes numbers alone",
    "flat": "few axes: an implementation that counts on more of them",
    "deep": "many axes: an implementation that counts on fewer of them",
    "single": "axes of length 1: what is squeezed or broadcast by mistake",
    "apart": "an example 10,000 times the size of the others, one with relevance of 1e-20: "
    "examples that touch each other, and small relevance that is dropped",
    "zeros": "zeros of both signs, sums that cancel",
    "loud": "an example with relevance of a million, one of 1e20: what is clipped",
    "offset": "a mean a thousand times the spread: E[x^2] - E[x]^2 cancels",
    "outside": "inputs beyond both bounds: they are not cut to the box",
    "twice": "the same operand twice: each place gets its own part",
    "long": "a long row: blocks whose rest is forgotten, sums in a narrower format",
    "square": "a square weight that is not symmetric, after two leading axes",
    "fewer": "fewer outputs than inputs, no bias",
    "more": "more outputs than inputs",
    "one output": "one output: its axis squeezed away",
    "one input": "one input: its axis squeezed away",
    "many outputs": "hundreds of outputs: blocks whose rest is forgotten",
    "large": "logits of 800 beside -800, and of 800 in one row alone: exp without the row's own "
    "maximum taken off overflows, or underflows to 0/0",
    "far arguments": "arguments from -800 to 800: exp(x)/(1 + exp(x)), approximations that hold "
    "near 0",
    "head masks": "a mask of its own for each head and each example",
    "one mask": "one mask for all heads and examples, broadcast",
    "key mask": "a mask over keys alone, another for each example",
    "causal": "causal attention of groups",
    "other axis": "a softmax over an axis in the middle",
    "hidden": "an example whose positions are all hidden: no mean, no relevance",
    "padding": "another number of hidden positions in each example, in the middle too",
    "half precision": "a mean of squares that float16 does not hold: a norm is computed in float32",
    "negative": "weights with a negative sum: a sum that is clamped, or taken of sizes",
    "borders": "pixels beyond the last whole window: they take no part and get nothing",
    "patches": "kernel, windows, channels and outputs all of different number",
    "pointwise": "a kernel of one pixel",
    "whole": "one window as large as the picture",
    "groups": "three and more copies of each of several heads, which stand side by side",
    "one group": "all queries share one head of keys and values",
    "crossed": "more keys than queries",
    "ties": "equal numbers: of equal ones the first is taken, and none twice",
    "descending": "entries that are in order and entries in reverse order",
    "copies": "rows read several times, in any order, and rows that are not read",
    "permuted": "a permutation that is not its own inverse, another for each example",
    "operands": "five operands",
    "negative zero": "outputs of -0.0 by way of a negative weight: their sign counts as +",
    "constant": "a constant operand in the middle, which takes no share",
    "networks": "layers of different widths",
    "sixes": "axes of six, each the product of two others: what is dealt out by twos or threes, or "
    "read in blocks",
    "heavy": "weights of a hundred: what is clipped",
    "wide": "an axis of hundreds that is not the last: blocks whose rest is forgotten",
    "minus infinity": "logits that a mask made -inf or the lowest finite number, others in each "
    "head and example: they get nothing, and the rest is a softmax by itself",
}


class Numbers:
    """Short decimals of one format from a seed, no two of an array equal.

    kind: `apart` makes the second example large and the relevance of the third small, `loud` the
    relevance of the second and third large; `zeros` draws small whole numbers with zeros of both
    signs, `heavy` makes weights large.
    """

    def __init__(self, seed: str, dtype: str, kind: str = "") -> None:
        self.random = random.Random(seed)
        self.dtype = dtype
        self.kind = kind
        self.power = 4
        """Of 10: what the second example of `apart` is multiplied by."""

    def __call__(self, *shape: int, sign: int = 0) -> Array:
        """Sizes between 0.26 and 4, of the sign given or of both."""
        return self._held(self._decimals(math.prod(shape), sign), shape)

    def x(self, *shape: int, sign: int = 0) -> Array:
        """An operand: examples along the first axis."""
        if self.kind == "zeros":
            return self._whole(*shape)
        return self._by_example(shape, (0, self.power * (self.kind == "apart"), 0), sign)

    def w(self, *shape: int) -> Array:
        """A weight."""
        if self.kind == "zeros":
            return self._whole(*shape)
        power = "e2" if self.kind == "heavy" else ""
        return self._held([d + power for d in self._decimals(math.prod(shape), 0)], shape)

    def r(self, *shape: int) -> Array:
        """Relevance, or a gradient."""
        return self._by_example(shape, (0, 6, 20) if self.kind == "loud" else (0, 0, -20), 0)

    def table(self, values: Any) -> Array:
        return self._held(np.ravel(values).tolist(), np.shape(values))

    def _by_example(self, shape: tuple[int, ...], powers: Sequence[int], sign: int) -> Array:
        n = math.prod(shape)
        decimals = self._decimals(n, sign)
        if self.kind in ("apart", "loud"):
            each = n // shape[0]
            decimals = [f"{d}e{powers[i // each % 3]}" for i, d in enumerate(decimals)]
        return self._held(decimals, shape)

    def _decimals(self, n: int, sign: int) -> list[str]:
        digits = 2 if n <= 300 else 4
        step = 10**digits
        sizes = self.random.sample(range(26 * step // 100, 4 * step), n)
        signs = ("", "-") if not sign else ("-" if sign < 0 else "",)
        return [f"{self.random.choice(signs)}{k // step}.{k % step:0{digits}}" for k in sizes]

    def _whole(self, *shape: int) -> Array:
        pool = (0.0, -0.0, 1.0, -1.0, 2.0, -2.0, 3.0, 0.5)
        return self._held([self.random.choice(pool) for _ in range(math.prod(shape))], shape)

    def _held(self, flat: Sequence[Any], shape: tuple[int, ...]) -> Array:
        return held(np.array([float(v) for v in flat]).reshape(shape), self.dtype)


@dataclass(frozen=True)
class Aim:
    """A case to be made."""

    key: str
    """Of WHY."""
    make: Callable[[Numbers], Made]
    dtypes: tuple[str, ...] = BOTH
    detail: str = ""

    @property
    def kind(self) -> str:
        return self.key if self.key in ("apart", "loud", "zeros", "heavy") else ""

    @property
    def note(self) -> str:
        return f"{self.detail}; {WHY[self.key]}" if self.detail else WHY[self.key]


# -- rules of rows: linear, softmax, norms, activations, ... ---------------------------------------

ROWS: dict[str, tuple[int, ...]] = {
    "different": (2, 3, 4, 5),
    "equal": (3, 3, 3, 3),
    "flat": (5, 3),
    "single": (1, 1, 1, 4),
    "apart": (3, 2, 4),
    "zeros": (2, 2, 4),
}
"""Shapes of x for rules of its last axis."""
QUADRATIC = 130
"""A thousand entries would be a million messages."""


def _incoming(rule: str, d: Numbers, shape: Sequence[int]) -> dict[str, Array]:
    """What is propagated."""
    return {signature(rule).propagated: d.r(*shape)}


def _eps(rule: str) -> dict[str, Any]:
    return {"eps": 1e-6} if "eps" in signature(rule).options else {}


def _of_rows(make: Callable[..., Made], rule: str, long: int = 1000) -> Iterator[Aim]:
    dtypes = BOTH if long == 1000 else WIDE
    for key, shape in ROWS.items():
        yield Aim(key, partial(_shaped, make, rule, shape))
    yield Aim("flat", partial(_shaped, make, rule, (4, 4)), WIDE, "two axes of one length")
    yield Aim("flat", partial(_shaped, make, rule, (4, 2, 3)), WIDE, "three axes")
    detail = "" if long == 1000 else f"{long} entries"
    yield Aim("long", partial(_shaped, make, rule, (1, long)), dtypes, detail)


def _shaped(make: Callable[..., Made], rule: str, shape: tuple[int, ...], d: Numbers) -> Made:
    return make(rule, d, shape)


# -- linear ----------------------------------------------------------------------------------------

LINEAR: dict[str, tuple[tuple[int, ...], int, int, bool]] = {
    "different": ((2, 3, 4), 5, 6, True),
    "equal": ((3, 3, 3), 3, 3, False),
    "square": ((2, 3), 4, 4, True),
    "flat": ((4,), 3, 2, False),
    "fewer": ((2, 3), 5, 2, False),
    "more": ((3, 2), 2, 5, True),
    "one output": ((3, 2), 4, 1, True),
    "one input": ((3, 2), 1, 4, False),
    "single": ((1, 1, 1), 3, 2, True),
    "apart": ((3, 2), 4, 3, False),
    "zeros": ((2, 2), 3, 4, True),
    "long": ((2,), 1000, 2, True),
    "many outputs": ((2,), 2, 300, False),
}
"""Leading axes, inputs, outputs, whether there is a bias."""
LINEAR_OPTIONS: dict[str, dict[str, float]] = {
    "linear_gamma": {"gamma": 0.25},
    "linear_alpha_beta": {"alpha": 2.0, "beta": 1.0},
    "linear_z_box": {"low": -40000.0, "high": 40000.0},
}


def _linear(rule: str) -> Iterator[Aim]:
    for key, sizes in LINEAR.items():
        dtypes = WIDE if key in ("fewer", "more", "flat", "many outputs") else BOTH
        yield Aim(key, partial(_linear_call, rule, *sizes), dtypes)


def _linear_call(rule: str, lead: tuple[int, ...], i: int, o: int, bias: bool, d: Numbers) -> Made:
    options = LINEAR_OPTIONS.get(rule, {}) | _eps(rule)
    if rule == "linear_z_box" and d.kind != "apart":
        options = {"low": -5.0, "high": 4.0}
    x, w, b = d.x(*lead, i), d.w(o, i), d.w(o) if bias else None
    return {"x": x, "w": w, "b": b} | _incoming(rule, d, (*lead, o)), options


# -- convolution -----------------------------------------------------------------------------------

CONVOLUTION: dict[str, tuple[tuple[int, int, int], tuple[int, int], tuple[int, int], Any]] = {
    "patches": ((2, 3, 5), (3, 2), (2, 4), (0, 0)),
    "equal": ((2, 2, 2), (2, 2), (2, 2), (0, 0)),
    "borders": ((2, 2, 3), (2, 3), (2, 1), (1, 2)),
    "pointwise": ((2, 3, 2), (1, 1), (2, 3), (0, 0)),
    "whole": ((3, 2, 1), (3, 4), (1, 1), (0, 0)),
    "apart": ((3, 2, 2), (2, 1), (1, 2), (0, 0)),
    "zeros": ((2, 2, 3), (2, 2), (1, 2), (0, 0)),
    "long": ((1, 3, 2), (16, 16), (1, 1), (0, 0)),
}
"""Examples, channels and outputs; kernel; windows; pixels left over."""


def _convolution(rule: str) -> Iterator[Aim]:
    for key, sizes in CONVOLUTION.items():
        dtypes = WIDE if key in ("pointwise", "whole") else BOTH
        yield Aim(key, partial(_convolution_call, rule, *sizes), dtypes)


def _convolution_call(
    rule: str, sizes: Any, kernel: Any, windows: Any, left: Any, d: Numbers
) -> Made:
    b, c, o = sizes
    h, w = (k * n + m for k, n, m in zip(kernel, windows, left, strict=True))
    bias = d.w(o) if d.kind or o > 2 else None
    inputs = {"x": d.x(b, c, h, w), "w": d.w(o, c, *kernel), "b": bias}
    return inputs | _incoming(rule, d, (b, o, *windows)), _eps(rule)


# -- sums and products, entry by entry -------------------------------------------------------------

ENTRIES: dict[str, tuple[int, ...]] = {
    "different": (2, 3, 4, 5),
    "equal": (3, 3, 3, 3),
    "flat": (5,),
    "single": (1, 1, 1, 1),
    "apart": (3, 2, 4),
    "zeros": (2, 3, 4),
    "long": (1, 1000),
}
BROADCAST: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = (
    ("the second has features alone", (2, 3, 4), (4,)),
    ("the second has positions and features alone", (2, 3, 4), (3, 4)),
    ("the second is one number for each example and position", (2, 3, 4), (2, 3, 1)),
    ("the second lacks an axis in the middle", (2, 3, 4, 2), (2, 1, 4, 2)),
    ("the second is one row for all examples, in all axes", (2, 3, 4), (1, 1, 4)),
    ("the second is a column for all examples", (2, 3, 4), (3, 1)),
    ("the second is one number", (2, 3, 4), (1,)),
    ("the first has features alone", (4,), (2, 3, 4)),
    ("the first has positions and features alone", (3, 4), (2, 3, 4)),
    ("the first lacks an axis in the middle", (2, 1, 4, 2), (2, 3, 4, 2)),
    ("the first is one number for each example", (2, 1, 1), (2, 3, 4)),
    ("each lacks an axis the other has", (2, 1, 4), (1, 3, 4)),
    ("all axes of one length, the second without the first", (3, 3, 3), (3, 3)),
    ("all axes of one length, the second without the middle", (3, 3, 3), (3, 1, 3)),
    ("all axes of one length, the first without the last", (3, 3, 1), (3, 3, 3)),
)
"""Which operand is broadcast, and the shapes of both."""


def _pairs(rule: str) -> Iterator[Aim]:
    yield from _entries(rule, partial(_pair, rule))


def _lists(rule: str) -> Iterator[Aim]:
    yield from _entries(rule, partial(_list, rule))
    for key, shape in {"operands": (2, 3, 4), "apart": (3, 4)}.items():
        yield Aim(
            key, partial(_list, rule, *[shape] * 5), detail="five operands" * (key == "apart")
        )
    yield Aim("equal", partial(_list, rule, *[(3, 3)] * 3), detail="three operands")
    if rule.startswith("multiply"):
        three = ((2, 3, 4), (4,), (3, 1))
        yield Aim("operands", partial(_list, rule, *three), detail="three, two of them broadcast")
        fixed = [False, True, False]
        of_three = partial(_list, rule, *[(2, 3, 4)] * 3, constant=fixed)
        yield Aim("constant", of_three, WIDE)


def _entries(rule: str, make: Callable[..., Made]) -> Iterator[Aim]:
    for key, shape in ENTRIES.items():
        yield Aim(key, partial(make, shape, shape), WIDE if key == "long" else BOTH)
    for shape in ((4, 3), (4, 2, 3)):
        yield Aim("flat", partial(make, shape, shape), WIDE, f"{len(shape)} axes")
    if rule != "sum_epsilon":
        for k, (what, *shapes) in enumerate(BROADCAST):
            dtypes = WIDE if k % 2 else BOTH
            yield Aim("broadcast", partial(make, *shapes), dtypes, what)


def _pair(rule: str, a: tuple[int, ...], b: tuple[int, ...], d: Numbers) -> Made:
    inputs = {"a": d.x(*a), "b": d.x(*b)}
    return inputs | _incoming(rule, d, np.broadcast_shapes(a, b)), _eps(rule)


def _list(rule: str, *arguments: Any, constant: list[bool] | None = None) -> Made:
    """arguments: the shape of each operand, and the numbers."""
    *of, d = arguments
    inputs: dict[str, Any] = {"operands": [d.x(*shape) for shape in of]}
    options = _eps(rule) if rule == "sum_epsilon" else {"constant": constant}
    options = _factors(rule, len(of)) | options
    return inputs | _incoming(rule, d, np.broadcast_shapes(*of)), options


def _factors(rule: str, count: int) -> dict[str, Any]:
    """No two neighbors alike, where the rule counts factors."""
    return {"factors": [2, 1, 3, 1, 2][:count]} if "factors" in signature(rule).options else {}


WHY["broadcast"] = "what its copies receive is summed back to it, and nothing else is"


# -- matrix products -------------------------------------------------------------------------------

MATMUL: dict[str, tuple[tuple[int, ...], int, int, int]] = {
    "different": ((2, 3), 4, 5, 6),
    "equal": ((3, 3), 3, 3, 3),
    "square": ((2, 3), 4, 4, 4),
    "flat": ((4,), 2, 3, 5),
    "deep": ((2, 1, 3), 2, 4, 3),
    "single": ((2, 1), 1, 3, 1),
    "one input": ((2, 3), 3, 1, 2),
    "apart": ((3, 2), 2, 3, 4),
    "zeros": ((2, 2), 3, 3, 2),
    "long": ((1, 1), 2, 1000, 1),
    "many outputs": ((1, 2), 150, 2, 1),
}


def _matmul(rule: str) -> Iterator[Aim]:
    for key, sizes in MATMUL.items():
        dtypes = WIDE if key in ("square", "one input", "deep", "many outputs") else BOTH
        detail = {"many outputs": "of a matrix of 150 rows", "square": "two square matrices"}.get(
            key, ""
        )
        yield Aim(key, partial(_matmul_call, rule, *sizes), dtypes, detail)


def _matmul_call(rule: str, lead: tuple[int, ...], j: int, i: int, p: int, d: Numbers) -> Made:
    inputs = {"a": d.x(*lead, j, i), "v": d.x(*lead, i, p)}
    return inputs | _incoming(rule, d, (*lead, j, p)), _factors(rule, 2) | _eps(rule)


# -- softmax ---------------------------------------------------------------------------------------


def _softmax(rule: str) -> Iterator[Aim]:
    yield from _of_rows(_softmax_call, rule, 20 if rule == "softmax_spread" else QUADRATIC)
    yield Aim("large", partial(_large_logits, rule))
    for shape, axis in (((2, 3, 4, 2), 1), ((2, 3, 4, 2), -2), ((3, 3, 3, 3), 2)):
        of = partial(_softmax_call, rule, shape=shape, axis=axis)
        yield Aim("other axis", of, WIDE, f"axis {axis} of {len(shape)}")
    for key, shape in MASKS.items():
        yield Aim(key, partial(_softmax_call, rule, shape=(2, 3, 4, 4), masked=shape), WIDE)


MASKS = {"head masks": (2, 3, 4, 4), "one mask": (1, 1, 4, 4), "key mask": (2, 1, 1, 4)}
"""Shapes of masks for two examples, three heads, four queries and keys."""


def _softmax_call(
    rule: str, d: Numbers, shape: tuple[int, ...], axis: int = -1, masked: Any = None
) -> Made:
    d.power = 1
    mask = None if masked is None else _mask(d, masked)
    given = _incoming(rule, d, shape)
    return {"x": d.x(*shape)} | given, {"mask": mask, "axis": axis}


def _mask(d: Numbers, shape: tuple[int, ...]) -> Array:
    """About two thirds visible, in each row one at least."""
    seen = [d.random.random() < 0.65 for _ in range(math.prod(shape))]
    mask = np.array(seen).reshape(shape)
    for at in np.ndindex(*shape[:-1]):
        mask[(*at, d.random.randrange(shape[-1]))] = True
    return mask


def _large_logits(rule: str, d: Numbers) -> Made:
    x = NEAR if rule == "softmax_z_plus" else FAR
    return {"x": d.table(x)} | _incoming(rule, d, (2, 3, 4)), {"mask": None, "axis": -1}


FAR = [
    [[800, 799.5, 3.25, -800], [-800, -799.25, -802.5, -801], [1.5, -0.5, 0.25, 2.75]],
    [[-3.5, 90.5, 89.75, 91.25], [120.5, -2.25, 121.75, 119], [800.5, 1.25, 2.5, -1.75]],
]
NEAR = [
    [[800, 799.5, 801.25, 797], [-800, -799.25, -802.5, -801], [1.5, -0.5, 0.25, 2.75]],
    [[93.5, 90.5, 89.75, 91.25], [-120.5, -122.25, -121.75, -119], [800.5, 801, 802, 798]],
]
"""Where rounding does not decide what is left of 1 - p."""


# -- norms -----------------------------------------------------------------------------------------


def _norm(rule: str) -> Iterator[Aim]:
    linear = rule in ("rms_norm_identity", "rms_norm_identity_gxi", "layer_norm_identity")
    yield from _of_rows(_norm_call, rule, 1000 if linear else QUADRATIC)
    yield Aim(
        "flat", partial(_norm_call, rule, shape=(3, 5), norm_eps=0.5), WIDE, "a large norm_eps"
    )
    yield Aim("half precision", partial(_norm_in_half, rule), HALF)
    if rule == "layer_norm_epsilon":
        yield Aim("negative zero", partial(_norm_at_zero, rule))


def _norm_call(rule: str, d: Numbers, shape: tuple[int, ...], norm_eps: float = 1e-5) -> Made:
    n = shape[-1]
    weight = d.w if d.kind == "heavy" else d
    inputs = {"x": d.x(*shape), "w": weight(n)}
    if rule.startswith("layer"):
        inputs["b"] = weight(n) if len(shape) != 3 else None
    return inputs | _incoming(rule, d, shape), {"norm_eps": norm_eps} | _eps(rule)


def _norm_in_half(rule: str, d: Numbers) -> Made:
    inputs, options = _norm_call(rule, d, (2, 3, 4))
    inputs["x"] = held(inputs["x"] * 256, d.dtype)
    return inputs, options


def _norm_at_zero(rule: str, d: Numbers) -> Made:
    """x - mean(x) is exactly 0 in two places, the weight there negative in one."""
    x = d.table([[[1, 2, 2, 3], [5, 3, 3, 1]], [[0, 2, 2, 4], [-1, 0, 0, 1]]])
    inputs = {"x": x, "w": d.table([1.5, -0.75, 2.25, 0.5]), "b": None}
    return inputs | _incoming(rule, d, x.shape), {"norm_eps": 1e-5} | _eps(rule)


# -- activations -----------------------------------------------------------------------------------

KINDS = ("gelu", "gelu_tanh", "silu", "quick_gelu", "relu", "tanh")
ENDS = (-800, -100, -30, -10, -8, -6, -5, -4.5, -3.5, -2.25, -1.5, -0.75)
"""Arguments; their negatives, 0 and -0.0 as well."""
FURTHEST = {"tanh": -300, "gelu_tanh": -50}
"""cosh^2 and x^3 leave the range in which rounding is counted."""


def _activation(rule: str) -> Iterator[Aim]:
    for kind in KINDS:
        yield Aim("far arguments", partial(_far_arguments, rule, kind), detail=kind)
    for k, (key, shape) in enumerate((ROWS | {"long": (2, 200)}).items()):
        yield Aim(key, partial(_activation_call, rule, KINDS[k % 6], shape), WIDE, KINDS[k % 6])


def _far_arguments(rule: str, kind: str, d: Numbers) -> Made:
    ends = [max(x, FURTHEST.get(kind, -800)) for x in ENDS]
    values = [*ends, *(-x for x in ends), 0.0, -0.0]
    d.random.shuffle(values)
    x = d.table(np.array(values).reshape(2, 13))
    return {"x": x} | _incoming(rule, d, x.shape), {"kind": kind}


def _activation_call(rule: str, kind: str, shape: tuple[int, ...], d: Numbers) -> Made:
    return {"x": d.x(*shape)} | _incoming(rule, d, shape), {"kind": kind}


# -- rotation, pooling, scale, movement ------------------------------------------------------------

ROTARY = {
    "different": (2, 3, 5, 4),
    "equal": (4, 4, 4, 4),
    "flat": (2, 2, 2, 2),
    "single": (1, 1, 1, 6),
    "apart": (3, 1, 2, 4),
    "zeros": (2, 2, 3, 4),
    "long": (1, 1, 40, 10),
}


def _rotary(rule: str) -> Iterator[Aim]:
    for key, shape in ROTARY.items():
        detail = {"flat": "all axes of length 2", "long": "40 positions"}.get(key, "")
        yield Aim(key, partial(_rotary_call, rule, shape), detail=detail)


def _rotary_call(rule: str, shape: tuple[int, ...], d: Numbers) -> Made:
    """Another angle for each position and each pair of features."""
    t, width = shape[-2:]
    angles = [[d.random.uniform(0.1, 6) for _ in range(width // 2)] * 2 for _ in range(t)]
    cos, sin = (
        d.table([[round(f(a), 3) for a in row] for row in angles]) for f in (math.cos, math.sin)
    )
    inputs = {"x": d.x(*shape), "cos": cos, "sin": sin}
    return inputs | _incoming(rule, d, shape), _eps(rule)


POOLING: dict[str, tuple[int, int, int]] = {
    "different": (2, 3, 4),
    "equal": (3, 3, 3),
    "flat": (5, 2, 1),
    "single": (2, 1, 3),
    "apart": (3, 2, 4),
    "zeros": (2, 4, 3),
    "long": (1, 300, 1),
}


def _pooling(rule: str) -> Iterator[Aim]:
    for key, shape in POOLING.items():
        detail = {"flat": "one feature", "long": "300 positions"}.get(key, "")
        yield Aim(key, partial(_pooling_call, rule, shape), detail=detail)
    counted = [[0, 1, 1, 0], [1, 1, 1, 1], [1, 0, 1, 0]]
    yield Aim("padding", partial(_pooling_call, rule, (3, 4, 2), counted=counted))
    if rule == "pooling_epsilon":
        hidden = [[1, 1, 1], [0, 0, 0]]
        yield Aim("hidden", partial(_pooling_call, rule, (2, 3, 2), counted=hidden))


def _pooling_call(rule: str, shape: tuple[int, int, int], d: Numbers, counted: Any = None) -> Made:
    b, _, width = shape
    kept = None if counted is None else d.table(np.array(counted)[..., None])
    given = _incoming(rule, d, (b, 1, width))
    return {"x": d.x(*shape)} | given, {"counted": kept} | _eps(rule)


def _scale(rule: str) -> Iterator[Aim]:
    for k, (key, shape) in enumerate(ENTRIES.items()):
        yield Aim(key, partial(_scale_call, rule, shape, (0.125, -3.0, 0.37)[k % 3]))
    yield Aim("flat", partial(_scale_call, rule, (4, 3), 1.75), WIDE, "two axes")


def _scale_call(rule: str, shape: tuple[int, ...], factor: float, d: Numbers) -> Made:
    return {"x": d.x(*shape)} | _incoming(rule, d, shape), {"factor": factor}


REPEAT: dict[str, tuple[tuple[int, int, int, int], int]] = {
    "groups": ((2, 3, 4, 5), 3),
    "different": ((2, 3, 5, 4), 2),
    "equal": ((3, 3, 3, 3), 3),
    "flat": ((2, 2, 2, 2), 2),
    "single": ((3, 1, 1, 2), 4),
    "apart": ((3, 2, 2, 2), 3),
}


def _repeat(rule: str) -> Iterator[Aim]:
    for key, (shape, times) in REPEAT.items():
        detail = "all axes of length 2" if key == "flat" else f"{times} copies"
        yield Aim(key, partial(_repeat_call, shape, times), detail=detail)


def _repeat_call(shape: tuple[int, int, int, int], times: int, d: Numbers) -> Made:
    b, k, *rest = shape
    return {"x": d.x(*shape), "r": d.r(b, k * times, *rest)}, {"times": times}


GATHER: tuple[tuple[str, tuple[int, int, int], list[list[int]]], ...] = (
    ("copies", (2, 4, 3), [[3, 0, 3, 1, 3], [2, 2, 0, 0, 1]]),
    ("permuted", (3, 3, 3), [[1, 2, 0], [2, 0, 1], [0, 2, 1]]),
    ("copies", (3, 5, 2), [[4], [0], [2]]),
    ("equal", (4, 4, 4), [[1, 2, 3, 0], [3, 1, 0, 2], [0, 0, 0, 0], [2, 3, 1, 1]]),
    ("apart", (3, 2, 2), [[1, 0, 1], [0, 0, 1], [1, 1, 0]]),
    ("different", (2, 6, 1), [[5, 3, 4, 5], [0, 1, 2, 5]]),
)


def _gather(rule: str) -> Iterator[Aim]:
    for key, shape, index in GATHER:
        yield Aim(key, partial(_gather_call, shape, index))


def _gather_call(shape: tuple[int, int, int], index: list[list[int]], d: Numbers) -> Made:
    b, _, width = shape
    return {"x": d.x(*shape), "r": d.r(b, len(index[0]), width)}, {"index": index}


TOP_K: dict[str, tuple[tuple[int, int, int], int]] = {
    "different": ((2, 3, 5), 2),
    "equal": ((3, 3, 3), 3),
    "flat": ((4, 1, 6), 4),
    "single": ((3, 2, 1), 1),
    "apart": ((3, 2, 4), 3),
    "long": ((1, 2, 300), 9),
}


def _top_k(rule: str) -> Iterator[Aim]:
    for key, (shape, k) in TOP_K.items():
        detail = "one token" if key == "flat" else "nine of 300" if key == "long" else ""
        yield Aim(key, partial(_top_k_call, shape, k), detail=detail)
    in_order = [[[1, 2, 3, 4], [4, 3, 2, 1]], [[-1, -2, -3, -4], [-4, 0.5, -0.25, 3]]]
    yield Aim("descending", partial(_top_k_of, in_order, 3))
    ties = [[[3, 5, 5, 1], [2, 2, 2, 1]], [[1, 4, 4, 4], [0.5, 0.5, 0.25, 0.75]]]
    yield Aim("ties", partial(_top_k_of, ties, 3))


def _top_k_call(shape: tuple[int, int, int], k: int, d: Numbers) -> Made:
    return {"x": d.x(*shape), "r": d.r(*shape[:2], k)}, {"k": k}


def _top_k_of(x: list[Any], k: int, d: Numbers) -> Made:
    return {"x": d.table(x), "r": d.r(len(x), len(x[0]), k)}, {"k": k}


def _renormalize(rule: str) -> Iterator[Aim]:
    long = 1000 if rule == "renormalize_identity" else QUADRATIC
    for aim in _of_rows(_renormalize_call, rule, long):
        if aim.key != "zeros":
            yield aim
    negative = [[[1.5, -4.25, 0.5], [-1, -2.5, -0.25]], [[0.75, 2, -0.5], [0.0, -0.0, -3]]]
    yield Aim("negative", partial(_renormalize_of, rule, negative))


def _renormalize_call(rule: str, d: Numbers, shape: tuple[int, ...]) -> Made:
    return {"x": d.x(*shape, sign=1)} | _incoming(rule, d, shape), _eps(rule)


def _renormalize_of(rule: str, x: list[Any], d: Numbers) -> Made:
    return {"x": d.table(x)} | _incoming(rule, d, np.shape(x)), _eps(rule)


# -- state space models ---------------------------------------------------------------------------

CAUSAL: dict[str, tuple[tuple[int, int, int], int]] = {
    "different": ((2, 5, 3), 4),
    "equal": ((3, 3, 3), 3),
    "single": ((1, 1, 1), 1),
    "crossed": ((2, 2, 3), 5),
    "pointwise": ((2, 3, 4), 1),
    "apart": ((3, 5, 2), 3),
    "zeros": ((2, 4, 3), 2),
    "heavy": ((3, 4, 2), 3),
    "sixes": ((4, 6, 6), 6),
    "wide": ((1, 300, 1), 3),
    "long": ((1, 3, 300), 2),
}
"""Examples, places and channels; kernel."""
CAUSAL_DETAIL = {
    "crossed": "a kernel longer than the text",
    "pointwise": "one number for each channel",
    "wide": "300 places",
    "long": "300 channels",
}


def _causal(rule: str) -> Iterator[Aim]:
    for key, sizes in CAUSAL.items():
        dtypes = WIDE if key in ("crossed", "sixes", "wide") else BOTH
        biased = key not in ("equal", "crossed", "apart")
        made = partial(_causal_call, rule, *sizes, biased)
        yield Aim(key, made, dtypes, CAUSAL_DETAIL.get(key, ""))


def _causal_call(rule: str, shape: tuple[int, int, int], k: int, biased: bool, d: Numbers) -> Made:
    bias = d.w(shape[-1]) if biased else None
    inputs = {"x": d.x(*shape), "w": d.w(shape[-1], k), "b": bias}
    return inputs | _incoming(rule, d, shape), _eps(rule)


SCAN: dict[str, tuple[int, int, int, int]] = {
    "different": (2, 5, 3, 4),
    "equal": (3, 3, 3, 3),
    "single": (1, 1, 1, 1),
    "apart": (3, 3, 2, 4),
    "zeros": (2, 4, 3, 2),
    "sixes": (4, 6, 6, 6),
    "wide": (1, 36, 1, 2),
    "long": (1, 3, 130, 1),
    "more": (1, 2, 1, 130),
}
"""Examples, places, channels, states."""
SCAN_DETAIL = {"wide": "36 places", "long": "130 channels", "more": "130 states"}


def _scan(rule: str) -> Iterator[Aim]:
    for key, sizes in SCAN.items():
        dtypes = WIDE if key in ("sixes", "wide", "more") else BOTH
        yield Aim(key, partial(_scan_call, rule, sizes), dtypes, SCAN_DETAIL.get(key, ""))


def _scan_call(rule: str, sizes: tuple[int, int, int, int], d: Numbers) -> Made:
    """Steps and rates that keep something of what is a few places back."""
    b, t, i, n = sizes
    d.power = 2
    inputs = {"x": d.x(b, t, i), "d": d(b, t, i, sign=1), "b": d.x(b, t, n), "c": d.x(b, t, n)}
    inputs["a_log"] = d.table(np.round(np.asarray(d(i, n), dtype=float) / 4 - 1, 3))
    return inputs | _incoming(rule, d, (b, t, i)), _eps(rule)


# -- several rules one after the other -------------------------------------------------------------


def _fan_out(rule: str) -> Iterator[Aim]:
    for key in ("different", "equal", "square", "flat", "more", "one output", "apart", "zeros"):
        lead, i, o, _ = LINEAR[key]
        yield Aim(key, partial(_fan_out_call, rule, lead, i, o))
    yield Aim("long", partial(_fan_out_call, rule, (2,), 500, 1), detail="500 inputs")


def _fan_out_call(rule: str, lead: tuple[int, ...], i: int, o: int, d: Numbers) -> Made:
    inputs = {"x": d.x(*lead, i), "w1": d.w(o, i), "w2": d.w(o, i)}
    return inputs | _incoming(rule, d, (*lead, o)), _eps(rule)


ATTENTION: dict[str, tuple[int, int, int, int, int, int]] = {
    "different": (2, 3, 1, 4, 4, 5),
    "equal": (3, 3, 1, 3, 3, 3),
    "flat": (2, 2, 1, 2, 2, 2),
    "groups": (2, 2, 3, 3, 3, 2),
    "one group": (2, 1, 4, 3, 3, 2),
    "crossed": (2, 2, 2, 3, 5, 4),
    "single": (2, 1, 1, 1, 3, 1),
    "apart": (3, 2, 1, 2, 2, 3),
    "long": (1, 1, 1, 1, 130, 2),
}
"""Examples, heads of keys, queries in a group, queries, keys, width of a head."""


def _attention(rule: str) -> Iterator[Aim]:
    for key, sizes in ATTENTION.items():
        detail = {"flat": "all axes of length 2", "long": "130 keys"}.get(key, "")
        dtypes = WIDE if key in ("one group", "long") else BOTH
        yield Aim(key, partial(_attention_call, rule, sizes), dtypes, detail)
    yield Aim("large", partial(_large_scores, rule))
    sizes = (2, 1, 3, 4, 4, 2)
    yield Aim("causal", partial(_attention_call, rule, sizes, causal=True), WIDE)
    for key, shape in MASKS.items():
        yield Aim(key, partial(_attention_call, rule, sizes, masked=shape), WIDE)


def _attention_call(
    rule: str, sizes: Any, d: Numbers, causal: bool = False, masked: Any = None
) -> Made:
    b, heads, group, t, s, width = sizes
    d.power = 1
    mask = None if masked is None else _mask(d, masked)
    q, k, v = d.x(b, heads * group, t, width), d.x(b, heads, s, width), d.x(b, heads, s, width)
    inputs = {"q": q, "k": k, "v": v} | _incoming(rule, d, q.shape)
    return inputs, {"scale": 0.5, "causal": causal, "mask": mask} | _eps(rule)


def _large_scores(rule: str, d: Numbers) -> Made:
    inputs, options = _attention_call(rule, (2, 2, 1, 2, 3, 2), d)
    inputs["q"] = d.table(np.round(inputs["q"].astype(float) * 400, 2))
    return inputs, options


NETWORK: dict[str, tuple[int, tuple[int, ...]]] = {
    "networks": (3, (5, 4, 3, 2)),
    "equal": (3, (3, 3, 3)),
    "one output": (4, (3, 5, 1)),
    "apart": (3, (3, 4, 2)),
    "long": (2, (300, 4, 3)),
}
"""Examples, and widths from the inputs to the outputs."""
EPSILON = {"rule": "epsilon", "eps": 1e-6}
OTHERS = (
    {"rule": "gamma", "gamma": 0.25},
    {"rule": "z_plus"},
    {"rule": "alpha_beta", "alpha": 2.0, "beta": 1.0},
)
"""After a ReLU alone: elsewhere rounding decides the sign of what is almost 0."""


def _network(rule: str) -> Iterator[Aim]:
    for key, (batch, sizes) in NETWORK.items():
        for kind in ("gelu", "relu") if key in ("networks", "equal") else ("relu",):
            detail = "300 inputs" if key == "long" else kind
            yield Aim(key, partial(_network_call, batch, sizes, kind), detail=detail)


def _network_call(batch: int, sizes: tuple[int, ...], kind: str, d: Numbers) -> Made:
    layers: list[dict[str, Any]] = []
    for k, (i, o) in enumerate(pairwise(sizes)):
        weights = {"w": d.w(o, i), "b": d.w(o) if k % 2 else None}
        layers.append({"operation": "linear", **weights, **_rule_of_layer(k, kind)})
        layers.append({"operation": "activation", "kind": kind, "rule": "identity"})
    layers.pop()
    seeds = [d.r(batch, sizes[-1]) for _ in range(2)]
    return {"layers": layers, "x": d.x(batch, sizes[0]), "seeds": seeds}, {}


def _rule_of_layer(k: int, kind: str) -> dict[str, Any]:
    return OTHERS[k % 3] if kind == "relu" else EPSILON


# -- blocks: axes of six, long axes that are not the last ------------------------------------------

ROW_RULES: dict[str, Callable[..., Made]] = {
    "softmax": _softmax_call,
    "rms_norm": _norm_call,
    "layer_norm": _norm_call,
    "renormalize": _renormalize_call,
}


def _blocks_of_rows(rule: str) -> Iterator[Aim]:
    make = next(made for start, made in ROW_RULES.items() if rule.startswith(start))
    yield Aim("sixes", partial(_shaped, make, rule, (4, 6, 6)), WIDE)
    yield Aim("wide", partial(_shaped, make, rule, (1, 520, 2)), WIDE)
    if "norm" in rule:
        yield Aim("heavy", partial(_shaped, make, rule, (2, 4)))
    if rule.startswith("softmax"):
        for shape in ((2, 3, 4, 5), (3, 3, 3, 3), (3, 3, 3)):
            yield Aim("minus infinity", partial(_with_infinities, rule, shape))


def _with_infinities(rule: str, shape: tuple[int, ...], d: Numbers) -> Made:
    inputs, options = _softmax_call(rule, d, shape)
    hidden = ~_mask(d, shape)
    lowest = np.asarray(-np.inf if d.dtype == "float32" else np.finfo(d.dtype).min)
    at_odd = np.indices(shape).sum(0) % 2 == 1
    inputs["x"] = np.where(hidden, np.where(at_odd, lowest, -np.inf), inputs["x"]).astype(d.dtype)
    return inputs, options


def _blocks_of_linear(rule: str) -> Iterator[Aim]:
    yield Aim("sixes", partial(_linear_call, rule, (4, 6), 6, 6, True), WIDE)
    yield Aim("wide", partial(_linear_call, rule, (1, 520), 2, 1, False), WIDE, "520 positions")
    yield Aim("many outputs", partial(_linear_call, rule, (1,), 2, 600, True), WIDE, "600 outputs")
    if rule not in ("linear_flat", "linear_z_box"):
        yield Aim("heavy", partial(_linear_call, rule, (3, 2), 4, 3, True))


def _blocks_of_fan_out(rule: str) -> Iterator[Aim]:
    yield Aim("sixes", partial(_fan_out_call, rule, (4, 6), 6, 6), WIDE)
    yield Aim("wide", partial(_fan_out_call, rule, (1, 520), 2, 1), WIDE, "520 positions")
    yield Aim("heavy", partial(_fan_out_call, rule, (3, 2), 4, 3))


def _blocks_of_convolution(rule: str) -> Iterator[Aim]:
    sizes = ((4, 6, 6), (2, 1), (3, 6), (0, 0))
    yield Aim("sixes", partial(_convolution_call, rule, *sizes), WIDE)
    yield Aim("heavy", partial(_convolution_call, rule, *CONVOLUTION["patches"]))
    many = ((1, 1, 1), (1, 2), (270, 1), (0, 0))
    yield Aim("wide", partial(_convolution_call, rule, *many), WIDE, "270 windows")


def _blocks_of_pairs(rule: str) -> Iterator[Aim]:
    for key, shape in {"sixes": (4, 6, 6), "wide": (1, 520, 1)}.items():
        yield Aim(key, partial(_pair, rule, shape, shape), WIDE)


def _blocks_of_lists(rule: str) -> Iterator[Aim]:
    for key, shape in {"sixes": (4, 6, 6), "wide": (1, 520, 1)}.items():
        yield Aim(key, partial(_list, rule, shape, shape), WIDE)
    yield Aim("sixes", partial(_list, rule, *[(4, 6, 6)] * 5), WIDE, "five operands")
    yield Aim("equal", partial(_list, rule, *[(3, 3, 3)] * 4), WIDE, "four operands")
    yield Aim("equal", partial(_list, rule, *[(3, 3, 3, 3)] * 5), WIDE, "five operands")
    if rule.startswith("multiply"):
        shared = ((3, 3), (4, 3, 3), (4, 1, 3), (3, 1), (4, 3, 3))
        yield Aim("broadcast", partial(_list, rule, *shared), WIDE, "three of five operands are")


def _blocks_of_matmul(rule: str) -> Iterator[Aim]:
    yield Aim("sixes", partial(_matmul_call, rule, (6,), 6, 6, 6), WIDE)
    yield Aim("wide", partial(_matmul_call, rule, (1,), 520, 2, 1), WIDE, "520 rows")
    yield Aim("many outputs", partial(_matmul_call, rule, (1,), 1, 2, 520), WIDE, "520 columns")


def _blocks_of_activation(rule: str) -> Iterator[Aim]:
    for kind in ("gelu", "silu", "gelu_tanh"):
        yield Aim("sixes", partial(_activation_call, rule, kind, (4, 6, 6)), WIDE, kind)
    yield Aim("long", partial(_activation_call, rule, "silu", (1, 600)), WIDE, "600 entries")


def _blocks_of_rotary(rule: str) -> Iterator[Aim]:
    yield Aim("sixes", partial(_rotary_call, rule, (2, 6, 6, 6)), WIDE)
    yield Aim("wide", partial(_rotary_call, rule, (1, 1, 520, 2)), WIDE, "520 positions")
    yield Aim("long", partial(_rotary_call, rule, (1, 1, 1, 130)), WIDE, "heads of 130")


def _blocks_of_pooling(rule: str) -> Iterator[Aim]:
    yield Aim("sixes", partial(_pooling_call, rule, (4, 6, 6)), WIDE)
    yield Aim("long", partial(_pooling_call, rule, (1, 2, 520)), WIDE, "520 features")


def _blocks_of_scale(rule: str) -> Iterator[Aim]:
    yield Aim("sixes", partial(_scale_call, rule, (4, 6, 6), 0.37), WIDE)
    yield Aim("wide", partial(_scale_call, rule, (1, 520, 1), -3.0), WIDE)


def _blocks_of_repeat(rule: str) -> Iterator[Aim]:
    yield Aim("sixes", partial(_repeat_call, (2, 6, 6, 6), 2), WIDE)
    yield Aim("wide", partial(_repeat_call, (1, 1, 270, 1), 2), WIDE, "270 positions")
    yield Aim("long", partial(_repeat_call, (1, 1, 1, 270), 2), WIDE, "heads of 270")


def _blocks_of_gather(rule: str) -> Iterator[Aim]:
    rows = [[3, 1, 0, 5, 2, 4], [5, 5, 0, 1, 3, 2], [1, 2, 3, 4, 5, 0], [4, 0, 4, 2, 2, 1]]
    yield Aim("sixes", partial(_gather_call, (4, 6, 6), rows), WIDE)
    yield Aim("wide", partial(_gather_call, (1, 270, 1), [[*range(269, -1, -1)]]), WIDE)
    yield Aim("long", partial(_gather_call, (1, 2, 520), [[1, 0]]), WIDE, "520 features")


def _blocks_of_top_k(rule: str) -> Iterator[Aim]:
    yield Aim("sixes", partial(_top_k_call, (4, 6, 6), 6), WIDE)
    yield Aim("wide", partial(_top_k_call, (1, 270, 2), 1), WIDE, "270 tokens")


def _blocks_of_attention(rule: str) -> Iterator[Aim]:
    yield Aim("sixes", partial(_attention_call, rule, (2, 6, 1, 6, 6, 6)), WIDE)
    yield Aim("wide", partial(_attention_call, rule, (1, 1, 1, 270, 2, 2)), WIDE, "270 queries")


def _blocks_of_network(rule: str) -> Iterator[Aim]:
    yield Aim("sixes", partial(_network_call, 6, (6, 6, 6), "relu"), WIDE)


# -- what structural_mutants.py found to be left --------------------------------------------------


def _rest_of_linear(rule: str) -> Iterator[Aim]:
    yield Aim(
        "wide", partial(_linear_call, rule, (1, 70), 2, 3, True), WIDE, "70 positions, a bias"
    )


def _rest_of_convolution(rule: str) -> Iterator[Aim]:
    windows = partial(_convolution_call, rule, (2, 1, 4), (2, 2), (3, 3), (1, 1))
    yield Aim("borders", windows, WIDE, "as many windows each way, a bias")
    yield Aim("borders", partial(_without_bias, windows), WIDE, "as many windows each way")


def _without_bias(make: Callable[[Numbers], Made], d: Numbers) -> Made:
    inputs, options = make(d)
    return inputs | {"b": None}, options


def _rest_of_lists(rule: str) -> Iterator[Aim]:
    yield Aim("equal", partial(_list, rule, *[(2, 2, 2)] * 4), WIDE, "four operands")
    if rule.startswith("multiply"):
        for shapes in (
            ((3, 3), (4, 3, 3), (4, 3, 3), (4, 3, 3)),
            ((3, 1, 2), (3, 4, 1), (3, 4, 2), (3, 4, 1)),
        ):
            yield Aim("broadcast", partial(_list, rule, *shapes), WIDE, "of four operands")


def _rest_of_softmax(rule: str) -> Iterator[Aim]:
    yield Aim("minus infinity", partial(_scattered, rule), WIDE, "all axes of one length")
    yield Aim("minus infinity", partial(_in_two_corners, rule), WIDE, "three axes of length 2")
    yield Aim("single", partial(_softmax_call, rule, shape=(1, 1)), WIDE, "one logit")


def _scattered(rule: str, d: Numbers) -> Made:
    inputs, options = _softmax_call(rule, d, (3, 3, 3, 3))
    inputs["x"] = np.where(_mask(d, (3, 3, 3, 3)), inputs["x"], -np.inf)
    return inputs, options


def _in_two_corners(rule: str, d: Numbers) -> Made:
    """Places that no exchange of two axes keeps."""
    inputs, options = _softmax_call(rule, d, (2, 2, 2))
    inputs["x"][:, 0, 1] = -np.inf
    return inputs, options


def _rest_of_activation(rule: str) -> Iterator[Aim]:
    yield Aim("single", partial(_activation_call, rule, "gelu", (1, 1)), WIDE, "one number")


def _rest_of_rotary(rule: str) -> Iterator[Aim]:
    yield Aim("long", partial(_rotary_call, rule, (1, 2, 2, 70)), WIDE, "heads of 70")


def _rest_of_scale(rule: str) -> Iterator[Aim]:
    yield Aim("equal", partial(_scale_call, rule, (2, 2, 2), -0.75), WIDE, "three axes")


def _rest_of_repeat(rule: str) -> Iterator[Aim]:
    yield Aim("single", partial(_repeat_call, (1, 1, 1, 1), 1), WIDE, "one copy")


def _rest_of_gather(rule: str) -> Iterator[Aim]:
    yield Aim("single", partial(_gather_call, (1, 1, 1), [[0]]), WIDE, "one row")


def _rest_of_top_k(rule: str) -> Iterator[Aim]:
    yield Aim("long", partial(_top_k_call, (1, 2, 80), 70), WIDE, "seventy of 80")


REST: dict[str, Callable[[str], Iterator[Aim]]] = {
    "linear": _rest_of_linear,
    "convolution": _rest_of_convolution,
    "sum": _rest_of_lists,
    "multiply": _rest_of_lists,
    "softmax": _rest_of_softmax,
    "activation": _rest_of_activation,
    "rotary": _rest_of_rotary,
    "scale": _rest_of_scale,
    "repeat_heads": _rest_of_repeat,
    "gather": _rest_of_gather,
    "top_k": _rest_of_top_k,
}
"""The same, after those of AIMS."""


AIMS: dict[str, tuple[Callable[[str], Iterator[Aim]], ...]] = {
    "linear": (_linear, _blocks_of_linear),
    "convolution": (_convolution, _blocks_of_convolution),
    "add": (_pairs, _blocks_of_pairs),
    "sum": (_lists, _blocks_of_lists),
    "multiply": (_lists, _blocks_of_lists),
    "multiply_second": (_pairs, _blocks_of_pairs),
    "matmul": (_matmul, _blocks_of_matmul),
    "softmax": (_softmax, _blocks_of_rows),
    "rms_norm": (_norm, _blocks_of_rows),
    "layer_norm": (_norm, _blocks_of_rows),
    "activation": (_activation, _blocks_of_activation),
    "rotary": (_rotary, _blocks_of_rotary),
    "pooling": (_pooling, _blocks_of_pooling),
    "scale": (_scale, _blocks_of_scale),
    "repeat_heads": (_repeat, _blocks_of_repeat),
    "gather": (_gather, _blocks_of_gather),
    "top_k": (_top_k, _blocks_of_top_k),
    "renormalize": (_renormalize, _blocks_of_rows),
    "causal_convolution": (_causal,),
    "scan": (_scan,),
    "fan_out": (_fan_out, _blocks_of_fan_out),
    "attention": (_attention, _blocks_of_attention),
    "network": (_network, _blocks_of_network),
}
"""Beginning of a rule's name (the longest counts) -> its cases."""


# -- what came later: behind the others, whose numbers follow from their places --------------------

LOUD: dict[str, Callable[[str], Callable[[Numbers], Made]]] = {
    "linear": lambda rule: partial(_linear_call, rule, (3,), 2, 2, True),
    "convolution": lambda rule: partial(_convolution_call, rule, (3, 1, 2), (1, 2), (1, 1), (0, 0)),
    "add": lambda rule: partial(_pair, rule, (3, 2), (3, 2)),
    "sum": lambda rule: partial(_list, rule, (3, 2), (3, 2)),
    "multiply": lambda rule: partial(_list, rule, (3, 2), (3, 2)),
    "multiply_second": lambda rule: partial(_pair, rule, (3, 2), (3, 2)),
    "matmul": lambda rule: partial(_matmul_call, rule, (3,), 2, 2, 1),
    "softmax": lambda rule: partial(_shaped, _softmax_call, rule, (3, 2)),
    "rms_norm": lambda rule: partial(_shaped, _norm_call, rule, (3, 2)),
    "layer_norm": lambda rule: partial(_shaped, _norm_call, rule, (3, 3)),
    "activation": lambda rule: partial(_activation_call, rule, "silu", (3, 2)),
    "rotary": lambda rule: partial(_rotary_call, rule, (3, 1, 1, 2)),
    "pooling": lambda rule: partial(_pooling_call, rule, (3, 2, 1)),
    "scale": lambda rule: partial(_scale_call, rule, (3, 2), 0.37),
    "repeat_heads": lambda rule: partial(_repeat_call, (3, 1, 1, 2), 2),
    "gather": lambda rule: partial(_gather_call, (3, 2, 1), [[1, 0], [0, 1], [1, 0]]),
    "top_k": lambda rule: partial(_top_k_call, (3, 1, 3), 2),
    "renormalize": lambda rule: partial(_shaped, _renormalize_call, rule, (3, 2)),
    "causal_convolution": lambda rule: partial(_causal_call, rule, (3, 2, 2), 2, True),
    "scan": lambda rule: partial(_scan_call, rule, (3, 2, 1, 2)),
    "fan_out": lambda rule: partial(_fan_out_call, rule, (3,), 2, 2),
    "attention": lambda rule: partial(_attention_call, rule, (3, 1, 1, 2, 2, 1)),
    "network": lambda rule: partial(_network_call, 3, (2, 2, 1), "relu"),
}
"""As AIMS: one small call of three examples."""


def _later(rule: str) -> Iterator[Aim]:
    yield Aim("loud", LOUD[_of(rule, LOUD)](rule))
    if rule == "linear_z_box":
        yield Aim("outside", partial(_beyond_the_box, rule))
    if rule in ("layer_norm_epsilon", "layer_norm_epsilon_gxi", "layer_norm_gradient"):
        yield Aim("offset", partial(_norm_offset, rule))
    if AIMS[_of(rule, AIMS)][0] is _lists:
        yield Aim("twice", partial(_list_twice, rule))


def _beyond_the_box(rule: str, d: Numbers) -> Made:
    inputs, _ = _linear_call(rule, (2,), 4, 3, True, d)
    return inputs, {"low": -1.0, "high": 0.5}


def _norm_offset(rule: str, d: Numbers) -> Made:
    """With a bias: without one the scale of layer_norm_epsilon cancels."""
    inputs, options = _norm_call(rule, d, (2, 4))
    inputs["x"] = held(inputs["x"] + 4000.0, d.dtype)
    return inputs, options


def _list_twice(rule: str, d: Numbers) -> Made:
    """Of three operands the first and the last."""
    inputs, options = _list(rule, (2, 3), (2, 3), (2, 3), d)
    first, second, _ = inputs["operands"]
    return inputs | {"operands": [first, second, first.copy()]}, options


def _of(rule: str, known: Iterable[str]) -> str:
    """The longest beginning of a rule's name."""
    return max((name for name in known if rule.startswith(name)), key=len)


def aims(rule: str) -> Iterator[Aim]:
    """The cases of a rule, in their order."""
    name = _of(rule, AIMS)
    for of in (*AIMS[name], *((REST[name],) if name in REST else ()), _later):
        yield from of(rule)
